"""What a kernel needs of a GPU, by Triton's compiler and without a GPU: registers, spills, memory,
wide loads.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.embedding.gpu.codegen import ARGUMENTS, load_kernel
from models.embedding.gpu.schedules import Branch

SM_90 = ("cuda", 90, 32)  # H100, H200
_THREADS_PER_SM, _REGISTERS_PER_SM, _PAGE = (
    2048,
    65536,
    8,
)  # registers are handed out by eights, sm_90


@dataclass(frozen=True, slots=True)
class Resources:
    """Of a thread (registers, stack bytes) and a program (shared bytes); places in the code that
    move 16 bytes.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    wide_loads: int
    wide_stores: int
    loads: int

    def threads_per_sm(self, warps: int) -> int:
        """Threads that an SM holds at once, by registers alone."""
        per_warp = -(-self.registers // _PAGE) * _PAGE * 32
        programs = min(_REGISTERS_PER_SM // (per_warp * warps), _THREADS_PER_SM // (32 * warps), 32)
        return programs * warps * 32


def resources(
    branches: Sequence[Branch],
    *,
    warps: int,
    rows: str = "fp32",
    indices: str = "i64",
    cache: Path | None = None,
    max_registers: int = 0,
) -> Resources:
    """Compile the kernel of these branches for sm_90; raises what Triton's compiler raises."""
    compiled = compile_for(
        branches, warps=warps, rows=rows, indices=indices, cache=cache, max_registers=max_registers
    )
    from triton import backends  # noqa: PLC0415 (optional)

    tools = Path(backends.__file__).parent / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        usage, code = (
            subprocess.run(
                [str(tools / tool), flag, str(binary)], capture_output=True, text=True, check=True
            ).stdout
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    assert found is not None, usage
    registers, stack_bytes, _ = map(int, found.groups())
    wide_loads, wide_stores = (
        len(re.findall(rf"\b{name}\.E[.\w]*\.128", code)) for name in ("LDG", "STG")
    )
    loads = len(re.findall(r"\bLDG\.E", code))
    return Resources(
        registers, stack_bytes, int(compiled.metadata.shared), wide_loads, wide_stores, loads
    )


def compile_for(
    branches: Sequence[Branch],
    *,
    warps: int,
    rows: str,
    indices: str,
    cache: Path | None,
    max_registers: int,
) -> Any:
    """Triton's compiled kernel for sm_90; all pointers aligned to 16 bytes."""
    import triton  # noqa: PLC0415 (optional)
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource  # noqa: PLC0415

    types = (
        "*i32",
        "*i64",
        f"*{indices}",
        f"*{indices}",
        f"*{rows}",
        "*fp32",
        "*fp32",
        "*i32",
        "i32",
        "i32",
        "i32",
    )
    signature = dict(zip(ARGUMENTS, (*types, "constexpr", "constexpr"), strict=True))
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind.startswith("*")
    }
    code = ASTSource(
        load_kernel(branches, cache),
        signature,
        constexprs={"COUNT": False, "ITEM_MAJOR": False},
        attrs=aligned,
    )
    options = {"num_warps": warps} | ({"maxnreg": max_registers} if max_registers else {})
    return triton.compile(code, target=GPUTarget(*SM_90), options=options)
