#!/usr/bin/env python3
"""How wrong is virtual time?

Real runs beside simulations of the same schedule, model by model and load by load.

python experiments/simulator_validation/run.py [--models rm1,wnd] [--quick] [--out FOLDER] [flags of DeepRecSys.py]

For every model, on the CPU alone and with a modelled accelerator, at 30, 50, 70 and 90 % of the
capacity: (1) replay, the very service times of the real run's tasks, (2) the latency model, service
times measured on the same engines just before. Then the highest rate under an SLA, real and
simulated. Rows go to validation.csv and rates.csv model by model; a model that is there is not run
again. About 4 minutes a model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import numpy.typing as npt
import pandas as pd

from accelerator.devices import model_configs
from accelerator.service import ServiceTable, overheads_of, recording_of
from backends.opening import OpenSession, open_session
from backends.tuning.calibration import Sample, calibration_of, sample
from backends.tuning.probe import Sla, capacity_qps, latencies_ms, max_rate_qps
from backends.virtual.simulated import SimulatedSession
from infra.messages import ACCEL, CPU
from infra.progress import Progress
from infra.results.rows import Rows
from infra.settings.cli import parse
from infra.settings.config import ConfigError, RunConfig
from loadGenerator import CommonLoad, Schedule, draw_schedule
from scheduler import Policy, Stage

HERE = Path(__file__).resolve().parent
POLICIES = {"CPU": Policy(128), "CPU + accelerator": Policy(128, 256)}
LOADS = (0.3, 0.5, 0.7, 0.9)
QUANTILES = (0.5, 0.95, 0.99)
BLOCKS, RESAMPLES = 20, 500
SAMPLE_S = 1.0
SLA_OF_P95 = 2.5  # the SLA is so many times the p95 at the lowest load
COMMON = [
    "--queue", "--inference_engines", "0", "--num_batches", "32", "--max_mini_batch_size", "1024", "--model_accel",
    "--batch_size_distribution", "production", "--sub_task_batch_size", "128", "--batch_configs", "128-1024",
]  # fmt: skip


@dataclass(frozen=True)
class Effort:
    """How long the real runs are."""

    seconds: float = 7.0  # of a run
    most_queries: int = 5000
    rate_queries: int = 1500  # of a trial of the rate under the SLA


QUICK = Effort(1.0, 300, 200)


class Case:
    """One model on one session: real and simulated runs in turn."""

    def __init__(self, config: RunConfig, opened: OpenSession, effort: Effort) -> None:
        self.config = config
        self.opened = opened
        self.effort = effort
        self.engines = {CPU: opened.n_engines, ACCEL: 1}
        self.n_runs = 0

    def run(self) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
        """Rows of the quantiles and rows of the rates, step by step."""
        before = self.sample()
        for mode, policy in POLICIES.items():
            table = self.table([before])
            capacity = capacity_qps(SimulatedSession(self.engines, table), self.config, policy, 64)
            sla_ms = 0.0
            facts = {"model": self.config.model.name, "mode": mode}
            for load in LOADS:
                schedule, real = self.real_run(policy, load * capacity)
                after = self.sample()
                rows = self.compare(policy, schedule, real, self.table([before, after]))
                before = after
                yield [{**facts, "load": load, **row} for row in rows], []
                sla_ms = sla_ms or SLA_OF_P95 * float(np.quantile(latencies_ms(real), 0.95))
            found = self.rates(policy, before, sla_ms, capacity)
            yield [], [{**facts, **found}]
            before = self.sample()

    def sample(self) -> Sample:
        """Service times of now."""
        return sample(self.opened.session, self.config, self.opened.n_engines, 1, SAMPLE_S)

    def table(self, samples: Sequence[Sample]) -> ServiceTable:
        """For virtual time."""
        inputs = self.config.inputs
        return calibration_of(samples, self.opened.n_engines).table(
            inputs.max_mini_batch_size, inputs.numpy_rand_seed
        )

    def real_run(self, policy: Policy, rate_qps: float) -> tuple[Schedule, Rows]:
        """On the engines."""
        self.n_runs += 1
        n = int(np.clip(rate_qps * self.effort.seconds, 200, self.effort.most_queries))
        schedule = draw_schedule(self.config, n, n // 10, rate_qps, self.n_runs)
        return schedule, self.opened.session.run(schedule, [Stage(policy)])

    def compare(
        self, policy: Policy, schedule: Schedule, real: Rows, table: ServiceTable
    ) -> list[dict[str, Any]]:
        """The real run beside its replay, its model, and the model with the run's mean service
        time.
        """
        replay = ServiceTable(np.ones((1, 2), np.int64), recording=recording_of(real))
        modelled = self.simulate(table, schedule, policy)
        ratio = _busy_ns(real) / _busy_ns(modelled)
        scaled = replace(table, cpu_ns=np.rint(table.cpu_ns * ratio).astype(np.int64))
        overhead = overheads_of(real)[CPU]
        simulated = {
            "replay": self.simulate(replay, schedule, policy),
            "model": modelled,
            "model, drift removed": self.simulate(scaled, schedule, policy),
        }
        facts = {
            "rate_qps": schedule.rate_qps,
            "queries": len(schedule) - schedule.n_warmup,
            "service_ratio": ratio,
            "wake_us": overhead.wake_ns / 1e3,
            "gap_us": overhead.gap_ns / 1e3,
            "model_wake_us": table.cpu_overhead.wake_ns / 1e3,
            "model_gap_us": table.cpu_overhead.gap_ns / 1e3,
        }
        return [
            {"kind": kind, **facts, **row}
            for kind, rows in simulated.items()
            for row in errors(real, rows, schedule)
        ]

    def simulate(self, table: ServiceTable, schedule: Schedule, policy: Policy) -> Rows:
        """In virtual time."""
        return SimulatedSession(self.engines, table).run(schedule, [Stage(policy)])

    def rates(
        self, policy: Policy, before: Sample, sla_ms: float, capacity: float
    ) -> dict[str, Any]:
        """The highest rate under the SLA on the same load, found on the engines and by samples
        before and after.
        """
        load = CommonLoad(self.config, self.effort.rate_queries, 1000)
        sla = Sla(sla_ms, max_queries=self.effort.rate_queries)

        def in_virtual_time(samples: Sequence[Sample]) -> float:
            session = SimulatedSession(self.engines, self.table(samples))
            return max_rate_qps(session, load, policy, sla, capacity / 2, 0.01).value

        foretold = in_virtual_time([before])
        found = max_rate_qps(self.opened.session, load, policy, sla, foretold or capacity / 2, 0.03)
        both = in_virtual_time([before, self.sample()])
        return {
            "sla_ms": sla_ms,
            "foretold_qps": foretold,
            "with_after_qps": both,
            "found_qps": found.value,
            "found_low": found.low,
            "found_high": found.high,
            "error": both / found.value - 1 if found.value else np.nan,
        }


def errors(real: Rows, simulated: Rows, schedule: Schedule) -> Iterator[dict[str, float]]:
    """Relative error of each quantile, with a 95 % interval from blocks of neighbouring queries
    (paired bootstrap).
    """
    measured, said = (latencies_ms(rows)[schedule.n_warmup :] for rows in (real, simulated))
    rng = np.random.default_rng(7)
    blocks = np.array_split(np.arange(len(measured)), BLOCKS)
    drawn = [
        np.concatenate([blocks[i] for i in rng.integers(0, BLOCKS, BLOCKS)])
        for _ in range(RESAMPLES)
    ]
    for p in QUANTILES:
        spread = [_error(measured[own], said[own], p) for own in drawn]
        low, high = np.quantile(spread, [0.025, 0.975])
        yield {
            "quantile": p,
            "real_ms": float(np.quantile(measured, p)),
            "simulated_ms": float(np.quantile(said, p)),
            "error": _error(measured, said, p),
            "low": float(low),
            "high": float(high),
        }


def _error(measured: npt.NDArray[np.float64], said: npt.NDArray[np.float64], p: float) -> float:
    return float(np.quantile(said, p) / np.quantile(measured, p) - 1)


def _busy_ns(rows: Rows) -> float:
    """Service time of all CPU tasks."""
    own = rows.tasks[rows.tasks["pool"] == CPU]
    return float((own["end_ns"] - own["start_ns"]).sum()) or 1.0


def study(config: RunConfig, effort: Effort) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All of one model: rows of the quantiles, rows of the rates."""
    quantiles: list[dict[str, Any]] = []
    rates: list[dict[str, Any]] = []
    steps = len(POLICIES) * (len(LOADS) + 1)
    with (
        Progress("auto") as progress,
        open_session(config, progress) as opened,
        progress.step(f"{config.model.name}: real and simulated runs") as on_fraction,
    ):
        for i, (some, more) in enumerate(Case(config, opened, effort).run(), start=1):
            quantiles += some
            rates += more
            on_fraction(i / steps)
    return quantiles, rates


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    known = model_configs()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--models", default=",".join(known))
    parser.add_argument("--quick", action="store_true", help="short runs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the CSV files")
    given, flags = parser.parse_known_args(argv)
    if unknown := set(given.models.split(",")) - set(known):
        sys.stderr.write(
            f"run.py: --models: {', '.join(sorted(unknown))}: not among {', '.join(known)}\n"
        )
        return 2
    files = [given.out / "validation.csv", given.out / "rates.csv"]
    given.out.mkdir(parents=True, exist_ok=True)
    done = set(pd.read_csv(files[1])["model"]) if files[1].is_file() else set()
    try:
        for model in given.models.split(","):
            if model in done:
                continue
            config = parse(["--config_file", str(known[model]), *COMMON, *flags])
            for file, rows in zip(
                files, study(config, QUICK if given.quick else Effort()), strict=True
            ):
                pd.DataFrame(rows).to_csv(
                    file, mode="a", header=not file.is_file(), index=False, float_format="%.5g"
                )
    except ConfigError as error:
        sys.stderr.write(f"run.py: --{error}\n")
        return 2
    print("\n".join(map(str, files)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
