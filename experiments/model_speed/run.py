#!/usr/bin/env python3
"""Time per model and batch at full table sizes, one thread, in turn with its peers and beside the
limit of this core.

python experiments/model_speed/run.py [--models rm1,wnd] [--folder FOLDER] [--no_compile]
writes model_speed.csv (one row a contender, batch and round) and model_speed.png; some 20 minutes with torch.compile
released_times.csv: the released Caffe2 harness (torch 1.x, MKL, one thread, best net type) on a machine of the same
kind in another run; its DIN has ONE behaviour table where ours has the 250 of its configuration.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import copy
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd
import torch

from accelerator.devices import model_configs
from experiments.common import core_limits
from experiments.model_speed import peers, plot
from inferenceEngine import CpuEngine, Workload
from infra.messages import WireTask
from infra.settings.cli import parse
from models import build
from models.base import RecModel
from models.inputs.synthetic import InputPool

BATCHES = (1, 4, 16, 64, 256, 1024)
N_INPUTS, MAX_ITEMS, MAX_SLICES = 8, 1024, 48
SEED = 4  # weights for which no model ends in zeros alone, so that scores can be compared
ROUNDS, ROUND_S, MAX_CALLS = 7, 0.06, 40
TOLERANCE = 1e-4  # relative, of a peer's scores

Call = Callable[[int], Any]  # number of a slice -> whatever; fresh inputs from call to call


class Bench:
    """One model, its peers, and slices of inputs that come round again only after all others."""

    def __init__(self, name: str, file: Path) -> None:
        config = parse(["--config_file", str(file), "--num_batches", str(N_INPUTS)])
        self.name = name
        self.portable = build(config.model, SEED)
        self.inputs = InputPool(config.model, N_INPUTS, MAX_ITEMS, seed=1)
        self.plain = peers.PlainPort(self.portable)
        self.fbgemm: peers.FbgemmPort | None = None
        try:
            self.fbgemm = peers.FbgemmPort(self.portable)
        except (ImportError, OSError) as error:
            print(f"{name}: fbgemm skipped: {error}", file=sys.stderr)
        self.model: RecModel = self.portable
        tables = self.model.tables.weight_RD
        self.half: RecModel = copy.deepcopy(self.model, {id(tables): tables})  # the same tables
        self.half.config = replace(config.model, dtype="bfloat16")
        self.model.pack()
        self.half.pack()
        self.engine = CpuEngine(Workload(self.model, self.inputs), 1, MAX_ITEMS)

    def slices(self, n_items: int) -> list[tuple[int, int]]:
        """(input, first item), spread over all inputs."""
        per_input = max(MAX_ITEMS // n_items, 1)
        every = [(i, k * n_items) for k in range(per_input) for i in range(N_INPUTS)]
        return every[:: max(len(every) // MAX_SLICES, 1)][:MAX_SLICES]

    def contenders(self, n_items: int, *, compiled: bool) -> dict[str, Call]:
        """Everything that is timed at this batch size."""
        slices = self.slices(n_items)
        batches = [self.inputs.batch(i, first, n_items) for i, first in slices]
        jagged = [peers.by_table(self.model, batch) for batch in batches]
        dense = [batch.dense_BF for batch in batches]
        tasks = [WireTask(1, 0, i, first, n_items) for i, first in slices]
        n = len(slices)
        calls: dict[str, Call] = {
            "ours": lambda i: self.engine.score(tasks[i % n]),
            "plain": lambda i: self.plain(dense[i % n], jagged[i % n]),
            "bfloat16": lambda i: self.half(self.inputs.batch(*slices[i % n], n_items)),
            "ours look-up": lambda i: self.model.tables(self.inputs.batch(*slices[i % n], n_items)),
            "plain look-up": lambda i: [
                bag(*own) for bag, own in zip(self.plain.bags, jagged[i % n], strict=True)
            ],
        }
        if self.fbgemm is not None:
            fbgemm = self.fbgemm
            joined = [peers.as_one(own) for own in jagged]
            calls["fbgemm"] = lambda i: fbgemm(dense[i % n], *joined[i % n])
        if compiled:
            torch._dynamo.reset()  # noqa: SLF001
            faster = torch.compile(self.plain, dynamic=False)
            calls["compiled"] = lambda i: faster(dense[i % n], jagged[i % n])
        expected = self.model(batches[0])
        if not expected.abs().max() > 0:
            raise AssertionError(
                f"{self.name}: all scores are 0, which compares with nothing; take another SEED"
            )
        self.errors = {
            name: ((calls[name](0) - expected).abs().max() / expected.abs().max()).item()
            for name in calls.keys() - {"ours", "ours look-up", "plain look-up"}
        }
        for name, error in self.errors.items():
            if error > TOLERANCE and name != "bfloat16":
                raise AssertionError(f"{self.name}, batch {n_items}: {name} differs by {error:.2g}")
        return calls


def measure(bench: Bench, n_items: int, *, compiled: bool) -> list[dict[str, object]]:
    """Median seconds of each contender in each of ROUNDS rounds, in turn."""
    calls = bench.contenders(n_items, compiled=compiled)
    turns = dict.fromkeys(calls, 0)
    rows = []
    for round_id in range(-1, ROUNDS):
        for name, call in calls.items():
            once_s = core_limits.median_s(call, 3)
            n_calls = int(min(max(ROUND_S / once_s, 3), MAX_CALLS))
            first = turns[name]
            seconds = core_limits.median_s(
                lambda i, call=call, first=first: call(first + i), n_calls
            )  # type: ignore[misc]
            turns[name] += n_calls
            if round_id >= 0:
                rows.append(
                    {
                        "model": bench.name,
                        "batch": n_items,
                        "contender": name,
                        "round": round_id,
                        "ms": seconds * 1e3,
                        "error": bench.errors.get(name),
                    }
                )
    return rows


def measure_model(name: str, file: Path, *, compiled: bool) -> list[dict[str, object]]:
    """All batches of one model; the limit is the best of those measured around each."""
    bench = Bench(name, file)
    rows: list[dict[str, object]] = []
    limits = [core_limits.measure_limit(bench.model, bench.inputs)]
    for n_items in BATCHES:
        begun = time.monotonic()
        rows += measure(bench, n_items, compiled=compiled)
        limits.append(core_limits.measure_limit(bench.model, bench.inputs))
        print(f"{name}, batch {n_items}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    bound = core_limits.best(limits)
    print(
        f"{name}: {bound.gemm_flops_per_s / 1e9:.0f} GFLOP/s, rows at "
        f"{bound.gather_bytes_per_s / 1e9:.1f} GB/s, weights in {bound.weights_s * 1e3:.2g} ms",
        file=sys.stderr,
    )
    return rows + [
        {
            "model": name,
            "batch": n,
            "contender": "limit",
            "round": 0,
            "ms": bound.seconds(bench.model, n) * 1e3,
        }
        for n in BATCHES
    ]


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(model_configs()))
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    parser.add_argument(
        "--no_compile", action="store_true", help="leave torch.compile out (saves most of the time)"
    )
    args = parser.parse_args(argv)
    files = model_configs()
    if unknown := set(args.models.split(",")) - set(files):
        parser.error(
            f"--models: {', '.join(sorted(unknown))} unknown; expected of {', '.join(files)}"
        )
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    with torch.inference_mode():
        for name in args.models.split(","):
            rows += measure_model(name, files[name], compiled=not args.no_compile)
            gc.collect()
            pd.DataFrame(rows).to_csv(
                args.folder / "model_speed.csv", index=False, float_format="%.5g"
            )
    table = plot.summary(pd.DataFrame(rows))
    print(table.to_string(index=False))
    plot.draw(table).savefig(args.folder / "model_speed.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
