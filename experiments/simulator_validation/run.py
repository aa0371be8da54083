#!/usr/bin/env python3
"""How wrong is virtual time? Real runs beside simulations of the same schedule, load by load.

python experiments/simulator_validation/run.py [--models rm1,wnd] [--quick] [flags of DeepRecSys.py]

For every model, on the CPU alone and with a modelled accelerator, at 30, 50, 70 and 90 % of the
capacity: (1) replay, the very service times of the real run's tasks, (2) the latency model, service
times measured on the same engines just before and after. Then the highest rate under an SLA, real
and simulated. Tables: validation (quantiles) and rates. About 4 minutes a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from accelerator.devices import model_configs
from accelerator.replay import overheads_of, recording_of
from accelerator.service import ServiceTable
from backends.opening import OpenSession, open_session
from backends.tuning.calibration import Sample, calibrations_of, sample
from backends.tuning.probe import Sla, capacity_qps, latencies_ms, max_rate_qps
from backends.virtual.simulated import SimulatedSession
from experiments.common.study import Study, View, names, passed_on, progress
from experiments.simulator_validation import plot
from infra.deployment import resolve
from infra.messages import ACCEL, CPU
from infra.results.rows import Rows
from infra.settings.cli import parse
from infra.settings.config import RunConfig
from loadGenerator import CommonLoad, Schedule, draw_schedule
from scheduler import Policy

FloatArray = npt.NDArray[np.float64]
POLICIES = {"CPU": Policy(128), "CPU + accelerator": Policy(128, 256)}
LOADS = (0.3, 0.5, 0.7, 0.9)
QUANTILES = (0.5, 0.95, 0.99)
BLOCKS = 20  # of neighbouring queries, drawn again RESAMPLES times
RESAMPLES = 500
SAMPLE_S = 1.0
SLA_OF_P95 = 2.5  # the SLA is so many times the p95 at the lowest load
COMMON = """--queue --inference_engines 0 --num_batches 32 --max_mini_batch_size 1024 --model_accel
    --batch_size_distribution production --sub_task_batch_size 128 --batch_configs 128-1024"""


@dataclass(frozen=True)
class RunLengths:
    """How long the real runs are."""

    seconds: float = 7.0  # of a run
    most_queries: int = 5000
    rate_queries: int = 1500  # of a trial of the rate under the SLA


@dataclass(frozen=True)
class ValidationOptions:
    """The study's flags."""

    models: tuple[str, ...] = names(tuple(model_configs()), "models", model_configs())
    flags: tuple[str, ...] = passed_on()


@dataclass(frozen=True)
class ValidationCase:
    """One model on one session."""

    model: str
    lengths: RunLengths
    flags: tuple[str, ...]

    def config(self) -> RunConfig:
        """The settings of the session."""
        file = str(model_configs()[self.model])
        return parse(["--config_file", file, *COMMON.split(), *self.flags])


@dataclass(frozen=True)
class QuantileError:
    """A simulated quantile beside the real one: relative error with its 95 % interval."""

    quantile: float
    real_ms: float
    simulated_ms: float
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class RunFacts:
    """A real run, and what its simulation assumed."""

    rate_qps: float
    queries: int
    service_ratio: float  # service time in the run over that of the model
    wake_us: float
    gap_us: float
    model_wake_us: float
    model_gap_us: float


@dataclass(frozen=True)
class ValidationRow:
    """One quantile of one simulation of one real run."""

    model: str
    mode: str
    load: float
    kind: str
    facts: RunFacts
    error: QuantileError


@dataclass(frozen=True)
class RateRow:
    """The highest rate under an SLA: on the engines, and by samples of their service times."""

    model: str
    mode: str
    sla_ms: float
    foretold_qps: float  # by the sample before
    with_after_qps: float
    found_qps: float
    found_low: float
    found_high: float
    error: float


class Comparison:
    """Real and simulated runs of one model in turn, on one session; they fill both tables."""

    def __init__(self, opened: OpenSession, lengths: RunLengths) -> None:
        self.deployment = opened.deployment
        self.config = opened.deployment.config
        self.session = opened.session
        self.lengths = lengths
        self.engines = {CPU: self.deployment.n_engines, ACCEL: 1}
        self.n_runs = 0
        self.validation: list[ValidationRow] = []
        self.rates: list[RateRow] = []
        self.before = self.sample()

    def measure(self, mode: str, policy: Policy) -> Iterator[None]:
        """All loads of a mode, then its rate, step by step."""
        session = SimulatedSession(self.engines, self.table([self.before]))
        capacity = capacity_qps(session, self.config, policy, 64)
        sla_ms = 0.0
        for load in LOADS:
            schedule, real = self.real_run(policy, load * capacity)
            after = self.sample()
            self.compare(mode, load, policy, schedule, real, self.table([self.before, after]))
            self.before = after
            sla_ms = sla_ms or SLA_OF_P95 * float(np.quantile(latencies_ms(real), 0.95))
            yield
        self.rates.append(self.rate(mode, policy, sla_ms, capacity))
        self.before = self.sample()
        yield

    def sample(self) -> Sample:
        """Service times of now."""
        return sample(self.session, self.deployment, SAMPLE_S, offloads=True)

    def table(self, samples: Sequence[Sample]) -> ServiceTable:
        """The samples' service times for virtual time."""
        inputs = self.config.inputs
        (calibration,) = calibrations_of(samples, self.deployment)
        return calibration.table(inputs.max_mini_batch_size, inputs.numpy_rand_seed)

    def real_run(self, policy: Policy, rate_qps: float) -> tuple[Schedule, Rows]:
        """A run on the engines."""
        self.n_runs += 1
        n = int(np.clip(rate_qps * self.lengths.seconds, 200, self.lengths.most_queries))
        schedule = draw_schedule(self.config, n, n // 10, rate_qps, self.n_runs)
        return schedule, self.session.run(schedule, policy)

    def simulate(self, table: ServiceTable, schedule: Schedule, policy: Policy) -> Rows:
        """The same run in virtual time."""
        return SimulatedSession(self.engines, table).run(schedule, policy)

    def compare(
        self,
        mode: str,
        load: float,
        policy: Policy,
        schedule: Schedule,
        real: Rows,
        table: ServiceTable,
    ) -> None:
        """Add the rows of a real run beside its replay, its model, and the model without drift."""
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
        facts = RunFacts(
            schedule.rate_qps,
            len(schedule) - schedule.n_warmup,
            ratio,
            overhead.wake_ns / 1e3,
            overhead.gap_ns / 1e3,
            table.cpu_overhead.wake_ns / 1e3,
            table.cpu_overhead.gap_ns / 1e3,
        )
        self.validation += [
            ValidationRow(self.config.model.name, mode, load, kind, facts, error)
            for kind, rows in simulated.items()
            for error in errors(real, rows, schedule)
        ]

    def rate(self, mode: str, policy: Policy, sla_ms: float, capacity: float) -> RateRow:
        """The highest rate under the SLA on the same load, real and by samples before and after."""
        load = CommonLoad(self.config, self.lengths.rate_queries, 1000)
        sla = Sla(sla_ms, max_queries=self.lengths.rate_queries)

        def in_virtual_time(samples: Sequence[Sample]) -> float:
            session = SimulatedSession(self.engines, self.table(samples))
            return max_rate_qps(session, load, policy, sla, capacity / 2, 0.01).value

        foretold = in_virtual_time([self.before])
        start_qps = foretold or capacity / 2
        real = max_rate_qps(self.session, load, policy, sla, start_qps, 0.03)
        both = in_virtual_time([self.before, self.sample()])
        error = both / real.value - 1 if real.value else np.nan
        rates = (foretold, both, real.value, real.low, real.high, error)
        return RateRow(self.config.model.name, mode, sla_ms, *rates)


def errors(real: Rows, simulated: Rows, schedule: Schedule) -> Iterator[QuantileError]:
    """Error of each quantile; the interval is a paired bootstrap of blocks of neighbours."""
    real_ms = latencies_ms(real)[schedule.n_warmup :]
    simulated_ms = latencies_ms(simulated)[schedule.n_warmup :]
    rng = np.random.default_rng(7)
    blocks = np.array_split(np.arange(len(real_ms)), BLOCKS)
    drawn = [
        np.concatenate([blocks[i] for i in rng.integers(0, BLOCKS, BLOCKS)])
        for _ in range(RESAMPLES)
    ]
    for p in QUANTILES:
        spread = [_error(real_ms[queries], simulated_ms[queries], p) for queries in drawn]
        values = (float(np.quantile(real_ms, p)), float(np.quantile(simulated_ms, p)))
        error = _error(real_ms, simulated_ms, p)
        yield QuantileError(p, *values, error, *np.quantile(spread, [0.025, 0.975]))


def _error(real_ms: FloatArray, simulated_ms: FloatArray, p: float) -> float:
    return float(np.quantile(simulated_ms, p) / np.quantile(real_ms, p) - 1)


def _busy_ns(rows: Rows) -> float:
    """Service time of all CPU tasks."""
    tasks = rows.tasks[rows.tasks["pool"] == CPU]
    return float((tasks["end_ns"] - tasks["start_ns"]).sum()) or 1.0


def validate(case: ValidationCase) -> dict[str, Sequence[ValidationRow | RateRow]]:
    """All of one model: rows of the quantiles, rows of the rates."""
    steps = len(POLICIES) * (len(LOADS) + 1)
    i = 0
    with (
        open_session(resolve(case.config()), progress()) as opened,
        progress().step(f"{case.model}: real and simulated runs") as on_fraction,
    ):
        comparison = Comparison(opened, case.lengths)
        for mode, policy in POLICIES.items():
            for _ in comparison.measure(mode, policy):
                i += 1
                on_fraction(i / steps)
    return {"validation": comparison.validation, "rates": comparison.rates}


def cases(lengths: RunLengths, options: ValidationOptions) -> list[ValidationCase]:
    """The models; bad flags of DeepRecSys.py end here."""
    models = [ValidationCase(model, lengths, options.flags) for model in options.models]
    for case in models:
        case.config()
    return models


STUDY = Study(
    "simulator_validation",
    "How wrong is virtual time?",
    cases,
    validate,
    efforts={"quick": RunLengths(1.0, 300, 200), "full": RunLengths()},
    options=ValidationOptions,
    figures={"validation": View(plot.figure_errors, "validation")},
    report={
        "Size of the error, %": View(plot.summary, "validation"),
        "p95 by load, %": View(plot.by_load, "validation"),
        "Rate under an SLA": View(plot.rate_errors, "rates"),
        "Its error, %": View(plot.rate_summary, "rates"),
    },
)

if __name__ == "__main__":
    STUDY.main()
