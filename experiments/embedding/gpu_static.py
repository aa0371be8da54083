#!/usr/bin/env python3
"""What does a kernel with a branch for each schedule need of an sm_90 GPU?

python experiments/embedding/gpu_static.py [--models A,B] [--batches 1,512] [--warps 4]

By Triton's compiler alone: no GPU is used. Every kind of table gets the first guess of the
candidates (nothing is measured). gpu_static.csv: a line for each model, batch and number of warps;
some 4 minutes. Needs Triton.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.common.study import Study, View, flags_of, of_models
from experiments.embedding.gpu_setup import MODELS, check_triton, work_of
from infra.settings.fields import ConfigError, flag
from models.embedding.gpu.backend import CudaBackend
from models.embedding.gpu.codegen import ARGUMENTS, load_kernel
from models.embedding.gpu.schedules import Branch, branches
from models.embedding.plan.catalogue import WARPS
from models.embedding.plan.plan import params
from models.embedding.tuning.clusters import clusters
from models.embedding.tuning.problem import Problem
from models.embedding.tuning.search import merged

SM_90 = ("cuda", 90, 32)  # H100, H200
_THREADS_PER_SM = 2048
_REGISTERS_PER_SM = 65536
_REGISTER_PAGE = 8  # registers are handed out by eights


@dataclass(frozen=True, slots=True)
class KernelNeeds:
    """What a thread of a kernel takes; places in the kernel's code that load 16 bytes."""

    registers: int
    stack_bytes: int
    wide_loads: int

    def threads_per_sm(self, warps: int) -> int:
        """Threads that an SM holds at once, by registers alone."""
        per_warp = -(-self.registers // _REGISTER_PAGE) * _REGISTER_PAGE * 32
        programs = min(_REGISTERS_PER_SM // (per_warp * warps), _THREADS_PER_SM // (32 * warps), 32)
        return programs * warps * 32


def kernel_needs(
    branches: Sequence[Branch],
    *,
    warps: int,
    rows: str = "fp32",
    indices: str = "i64",
    cache: Path | None = None,
) -> KernelNeeds:
    """Compile the kernel of these branches for sm_90; raises what Triton's compiler raises."""
    compiled = compile_for(branches, warps, rows, indices, cache)
    from triton import backends  # noqa: PLC0415 (optional)

    tools = Path(backends.__file__).parent / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        usage, code = (
            subprocess.check_output([str(tools / tool), flag, binary.name], text=True)
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    needs = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert needs is not None, usage
    wide_loads = re.findall(r"\bLDG\.E[.\w]*\.128", code)
    return KernelNeeds(int(needs[1]), int(needs[2]), len(wide_loads))


def compile_for(
    branches: Sequence[Branch], warps: int, rows: str, indices: str, cache: Path | None
) -> Any:
    """Triton's compiled kernel for sm_90; all pointers aligned to 16 bytes."""
    import triton  # noqa: PLC0415 (optional)
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415 (optional)
    from triton.compiler import ASTSource  # noqa: PLC0415 (optional)

    pointers = f"*i32 *i64 *{indices} *{indices} *{rows} *fp32 *fp32 *i32".split()
    types = [*pointers, "i32", "i32", "i32", "constexpr", "constexpr"]
    code = ASTSource(
        load_kernel(branches, cache),
        dict(zip(ARGUMENTS, types, strict=True)),
        constexprs={"COUNT": False, "ITEM_MAJOR": False},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(pointers))},
    )
    return triton.compile(code, target=GPUTarget(*SM_90), options={"num_warps": warps})


@dataclass(frozen=True)
class StaticCase:
    """The kernels of one model."""

    model: str
    batches: tuple[int, ...] = flag((1, 512), "batch sizes")
    warps: int = flag(4, "warps of a program")
    tables_frac: float = flag(1.0, "part of every kind's tables", low=0.0)

    def __post_init__(self) -> None:
        if self.warps not in WARPS:
            raise ConfigError("warps", f"is {self.warps}; expected one of {WARPS}")


@dataclass(frozen=True)
class StaticRow:
    """The kernel of all tables, and the least and the most that a branch of it needs alone."""

    model: str
    batch: int
    warps: int
    tables: int
    kinds: int
    groups: int
    branches: int
    programs: int
    registers: int
    registers_least: int
    registers_most: int
    stack_bytes: int
    threads_per_sm: int
    threads_per_sm_least: int
    threads_per_sm_most: int


def row_of(model: str, problem: Problem, batch: int, warps: int) -> StaticRow:
    """The kernel's row, for int32 ids and float32 rows."""
    backend = CudaBackend()
    specs = problem.layout.specs
    knobs = params(launch="fused", warps=warps)
    kinds = clusters(problem.layout, problem.batches[batch])
    groups = merged([(backend.candidates(kind, knobs, 0.0)[0], kind.tables) for kind in kinds])
    of_table = branches(specs, groups, warps)
    distinct = sorted({*of_table.values()})
    whole = kernel_needs(distinct, warps=distinct[0].warps, indices="i32")
    alone = [kernel_needs([branch], warps=branch.warps, indices="i32") for branch in distinct]
    registers = [needs.registers for needs in alone]
    threads = [needs.threads_per_sm(warps) for needs in alone]
    return StaticRow(
        model=model,
        batch=batch,
        warps=warps,
        tables=len(specs),
        kinds=len(kinds),
        groups=len(groups),
        branches=len(distinct),
        programs=sum(branch.tiles(batch) for branch in of_table.values()),
        registers=whole.registers,
        registers_least=min(registers),
        registers_most=max(registers),
        stack_bytes=whole.stack_bytes,
        threads_per_sm=whole.threads_per_sm(warps),
        threads_per_sm_least=min(threads),
        threads_per_sm_most=max(threads),
    )


def compile_model(case: StaticCase) -> dict[str, list[StaticRow]]:
    """A row for each batch size."""
    problem, _ = work_of(case.model, case.batches, case.tables_frac, device=torch.device("cpu"))
    rows = [row_of(case.model, problem, batch, case.warps) for batch in case.batches]
    return {"gpu_static": rows}


STUDY = Study(
    "embedding_gpu_static",
    "What does a kernel with a branch for each schedule need of an sm_90 GPU?",
    of_models,
    compile_model,
    efforts={
        "quick": [StaticCase("B", (1,), tables_frac=0.01)],
        "full": [StaticCase(model) for model in MODELS],
    },
    options=flags_of(StaticCase, MODELS),
    parallel=True,
    report={"Needs of the kernels": View(pd.DataFrame, "gpu_static")},
    float_format="%.3g",
    check_machine=check_triton,
)

if __name__ == "__main__":
    STUDY.main()
