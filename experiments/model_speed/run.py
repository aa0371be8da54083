#!/usr/bin/env python3
"""How long does a task take on one core, beside its peers and beside the limit of this core?

python experiments/model_speed/run.py [--models rm1,wnd] [--no_compile] [--quick] [--out FOLDER]

Every model at every batch at full table sizes, one thread, in turn with its peers. model_speed.csv:
one row a contender, batch and round; model_speed.png; some 20 minutes with torch.compile.
data/released_times.csv: the released Caffe2 harness (torch 1.x, MKL, one thread, best net type) on
a machine of the same kind in another run; its DIN has ONE behaviour table where ours has the 250 of
its configuration.
"""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from accelerator.devices import model_configs
from experiments.common import core_limits
from experiments.common.look_up_peers import by_table, cycled
from experiments.common.released import config_of
from experiments.common.study import Study, View, flags_of, of_models, progress
from experiments.model_speed import peers, plot
from inferenceEngine import CpuEngine, Workload
from infra.messages import WireTask
from infra.settings.fields import flag
from models import build
from models.base import RecModel
from models.batch import Batch
from models.inputs.synthetic import InputPool

N_INPUTS = 8
MAX_ITEMS = 1024
MAX_SLICES = 48
SEED = 4  # weights for which no model ends in zeros alone, so that scores can be compared
ROUND_S = 0.06
MAX_CALLS = 40
TOLERANCE = 1e-4  # relative, of a peer's scores
UNCHECKED = {"ours", "ours look-up", "plain look-up"}

Call = Callable[[int], Any]  # number of a slice -> whatever; fresh inputs from call to call


@dataclass(frozen=True)
class ModelSpeedCase:
    """One model at these batches."""

    model: str
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    rounds: int = 7
    no_compile: bool = flag(False, "leave torch.compile out (saves most of the time)")


@dataclass(frozen=True)
class ContenderRound:
    """Median time of a contender's calls in a round; largest error over the largest score."""

    model: str
    batch: int
    contender: str
    round: int
    ms: float
    error: float | None = None


class Bench:
    """One model, its peers, and slices of inputs that come round again only after all others."""

    def __init__(self, name: str) -> None:
        config = config_of(name, f"--num_batches {N_INPUTS}").model
        self.name = name
        self.model: RecModel = build(config, SEED)
        self.inputs = InputPool(config, N_INPUTS, MAX_ITEMS, seed=1)
        self.plain = peers.PlainPort(self.model)
        self.fbgemm = self._optional("fbgemm", lambda: peers.FbgemmPort(self.model))
        self.half = self._optional("bfloat16", self._packed_half)  # some CPUs have none
        self.model.pack()
        self.engine = CpuEngine(Workload(self.model, self.inputs), 1, MAX_ITEMS)

    def _optional(self, peer: str, make: Callable[[], nn.Module]) -> nn.Module | None:
        try:
            return make()
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{self.name}: {peer} skipped: {error}", file=sys.stderr)
            return None

    def _packed_half(self) -> RecModel:
        """The model in bfloat16, with the same tables."""
        tables = self.model.tables.weight_RD
        half: RecModel = copy.deepcopy(self.model, {id(tables): tables})
        half.config = replace(half.config, dtype="bfloat16")
        half.pack()
        return half

    def slices(self, n_items: int) -> list[tuple[int, int]]:
        """(input, first item), spread over all inputs."""
        per_input = max(MAX_ITEMS // n_items, 1)
        slices = [(i, k * n_items) for k in range(per_input) for i in range(N_INPUTS)]
        return slices[:: max(len(slices) // MAX_SLICES, 1)][:MAX_SLICES]

    def contenders(self, n_items: int, *, compiled: bool) -> dict[str, Call]:
        """What is timed at this batch size."""
        slices = [(i, first, n_items) for i, first in self.slices(n_items)]
        batches = [self.inputs.batch(*place) for place in slices]
        bags = [peers.rival_bags(self.model, batch) for batch in batches]
        jagged = [by_table(tables) for tables in bags]
        dense = [batch.dense_BF for batch in batches]

        def sliced(score: Callable[[Batch], Any]) -> Call:
            return cycled(lambda place: score(self.inputs.batch(*place)), slices)

        calls = {
            "ours": cycled(self.engine.score, [WireTask(1, 0, *place) for place in slices]),
            "plain": cycled(self.plain, dense, jagged),
            "ours look-up": sliced(self.model.tables),
            "plain look-up": cycled(self.plain.look_up, jagged),
        }
        if self.half is not None:
            calls["bfloat16"] = sliced(self.half)
        if self.fbgemm is not None:
            ids = [tables.ids_L for tables in bags]
            calls["fbgemm"] = cycled(self.fbgemm, dense, ids, [tables.offsets for tables in bags])
        if compiled:
            torch._dynamo.reset()  # noqa: SLF001 (PyTorch documents it, underscore and all)
            calls["compiled"] = cycled(torch.compile(self.plain, dynamic=False), dense, jagged)
        return calls

    def errors(self, calls: dict[str, Call], n_items: int) -> dict[str, float]:
        """Largest error of each contender over the largest score.

        Raises AssertionError where a peer gives other scores.
        """
        expected = self.model(self.inputs.batch(*self.slices(n_items)[0], n_items))
        largest = expected.abs().max()
        if not largest > 0:
            raise AssertionError(
                f"{self.name}: all scores are 0, which compares with nothing; take another SEED"
            )
        errors = {
            name: ((calls[name](0) - expected).abs().max() / largest).item()
            for name in calls.keys() - UNCHECKED
        }
        for name, error in errors.items():
            if error > TOLERANCE and name != "bfloat16":
                raise AssertionError(f"{self.name}, batch {n_items}: {name} differs by {error:.2g}")
        return errors


def measure(bench: Bench, n_items: int, rounds: int, *, compiled: bool) -> list[ContenderRound]:
    """Median time of each contender in each round, in turn."""
    calls = bench.contenders(n_items, compiled=compiled)
    errors = bench.errors(calls, n_items)
    turns = dict.fromkeys(calls, 0)
    rows = []
    for round_id in range(-1, rounds):
        for name, call in calls.items():
            once_s = core_limits.median_s(call, 3)
            n_calls = int(min(max(ROUND_S / once_s, 3), MAX_CALLS))
            fresh = _from(call, turns[name])
            ms = core_limits.median_s(fresh, n_calls) * 1e3
            turns[name] += n_calls
            if round_id >= 0:
                error = errors.get(name)
                rows.append(ContenderRound(bench.name, n_items, name, round_id, ms, error))
    return rows


def _from(call: Call, first: int) -> Call:
    return lambda i: call(first + i)


@torch.inference_mode()
def measure_model(case: ModelSpeedCase) -> dict[str, list[ContenderRound]]:
    """All batches of one model; the limit is the best of those measured around each."""
    torch.set_num_threads(1)
    bench = Bench(case.model)
    rows: list[ContenderRound] = []
    limits = [core_limits.measure_limit(bench.model, bench.inputs)]
    with progress().step(case.model) as on_fraction:
        for place, n_items in enumerate(case.batches):
            on_fraction(place / len(case.batches), f"batch {n_items}")
            rows += measure(bench, n_items, case.rounds, compiled=not case.no_compile)
            limits.append(core_limits.measure_limit(bench.model, bench.inputs))
    bound = core_limits.best(limits)
    print(
        f"{case.model}: {bound.gemm_flops_per_s / 1e9:.0f} GFLOP/s, rows at "
        f"{bound.gather_bytes_per_s / 1e9:.1f} GB/s, weights in {bound.weights_s * 1e3:.2g} ms",
        file=sys.stderr,
    )
    for n_items in case.batches:
        limit_ms = bound.seconds(bench.model, n_items) * 1e3
        rows.append(ContenderRound(case.model, n_items, "limit", 0, limit_ms))
    del bench
    gc.collect()
    return {"model_speed": rows}


STUDY = Study(
    "model_speed",
    "How long does a task take on one core, beside its peers and beside the limit of this core?",
    of_models,
    measure_model,
    efforts={
        "quick": [ModelSpeedCase("ncf", (1, 64), rounds=2, no_compile=True)],
        "full": [ModelSpeedCase(model) for model in model_configs()],
    },
    options=flags_of(ModelSpeedCase, model_configs()),
    figures={"model_speed": View(plot.draw, "model_speed")},
    report={"Time over ours": View(plot.summary, "model_speed")},
)

if __name__ == "__main__":
    STUDY.main()
