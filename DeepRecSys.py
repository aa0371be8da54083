#!/usr/bin/env python3
"""The driver: settings become a deployment, engines serve a load, one table shows what came of it.

Configuration -> deployment -> session -> measure or tune -> results on disk -> the table. `--help`
lists the settings; README.md tells the life of a query.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from accelerator.replay import replayed_rows
from backends.checks import check
from backends.long_run.of_run import long_run_of
from backends.opening import OpenSession, open_session
from backends.session import SessionError
from backends.tuning.policy_tuner import Phase, PolicyTuner, TuningResult
from backends.tuning.power import ServerPower, server_power
from backends.tuning.probe import capacity_qps
from backends.tuning.search_log import SearchLog, table
from infra.deployment import Deployment, resolve
from infra.labelled_queries import read_queries
from infra.messages import ACCEL
from infra.progress import Progress
from infra.provenance import provenance
from infra.results import figures, report, run_folder
from infra.results.long_run import LongRun
from infra.results.quantiles import Estimate
from infra.results.rows import Rows
from infra.results.stages import answers_by_input, stage_parts
from infra.results.stats import Summary, summarize
from infra.settings.cli import parse
from infra.settings.config import ConfigError, RunConfig, from_settings
from loadGenerator import Schedule, draw_schedule, schedule_of, too_short
from scheduler import Policy

Report = Callable[[], None]  # prints; called when the progress bars are gone

INTERRUPTED = 130
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueueRun:
    """One run in at-scale mode: its engines, and where its results go."""

    opened: OpenSession
    progress: Progress
    folder: Path
    task_log: Path | None

    @property
    def deployment(self) -> Deployment:
        """What is deployed."""
        return self.opened.deployment

    @property
    def config(self) -> RunConfig:
        """The settings as they hold for the deployment."""
        return self.opened.deployment.config

    def document(self, results: dict[str, Any]) -> dict[str, Any]:
        """What run.json holds beside the settings and the rows' notes."""
        opened = self.opened
        return {
            "provenance": provenance(self.config.inputs.numpy_rand_seed),
            **results,
            "n_engines": self.deployment.n_engines,
            "accelerator": opened.devices.get(ACCEL),
            "service": opened.service or None,
            "pipeline": stated(self.deployment),
            "engine_deaths": [*opened.session.deaths],
        }

    def save(self, rows: Rows, results: dict[str, Any]) -> None:
        """Write run.json, the rows, the distribution of their latencies and the task log."""
        document = self.document(results)
        run_folder.save(self.folder, self.config, rows, document, staged=self.deployment.is_staged)
        if self.task_log is not None:
            run_folder.write_log(self.task_log, rows.tasks)

    def draw(self, rows: Rows, summary: Summary) -> None:
        """Draw the latencies, the rate curve where the run tells it, and what disturbed it."""
        drawn = figures.latency_cdf(rows.queries, summary, self.config.name)
        drawn.savefig(self.folder / "latency.png", dpi=120)
        if summary.long_run is not None and summary.long_run.curve is not None:
            curve = figures.rate_curve(summary, self.config.name)
            curve.savefig(self.folder / "rate_curve.png", dpi=120)
        if rows.disturbance is not None:
            seconds = figures.disturbed_seconds(rows.queries, rows.disturbance, summary)
            seconds.savefig(self.folder / "disturbance.png", dpi=120)


def stated(deployment: Deployment) -> dict[str, Any] | None:
    """The pipeline's file as run.json holds it; None where the settings say all."""
    return None if deployment.stated is None else deployment.stated.as_json()


def fixed_policy(config: RunConfig) -> Policy:
    """The policy of a measuring run."""
    offload = config.engines.accel_request_size_thres if config.engines.model_accel else None
    return Policy(config.engines.sub_task_batch_size, offload)


def measure(job: QueueRun) -> tuple[Rows, Summary]:
    """One run at a fixed policy."""
    config = job.config
    if config.simulation.service_law == "replay":
        schedule = schedule_of(replayed_rows(config).queries)
        return _measured(job, schedule, schedule.rate_qps)
    rate_qps = config.load.rate_qps
    if config.load.offered_load is not None:
        with job.progress.step("measuring the capacity"):
            rate_qps = config.load.offered_load * capacity_qps(
                job.opened.session, config, fixed_policy(config), job.deployment.n_engines
            )
    schedule = draw_schedule(config, config.n_queries, config.n_warmup, rate_qps)
    return _measured(job, schedule, rate_qps, too_short(config, schedule))


def _measured(
    job: QueueRun, schedule: Schedule, rate_qps: float, faults: tuple[str, ...] = ()
) -> tuple[Rows, Summary]:
    config = job.config
    title = f"{config.name}: {len(schedule)} queries at {schedule.rate_qps:.4g} QPS"
    with job.progress.step(title) as on_fraction:
        rows = job.opened.session.run(
            schedule, fixed_policy(config), lambda n_done: on_fraction(n_done / len(schedule))
        )
    tune = config.tune
    faults = (*rows.faults(tune.target_latency, tune.sla_percentile), *faults)
    summary = summarize(rows.queries, rows.tasks, tune.target_latency, tune.sla_percentile, faults)
    try:
        with job.progress.step("the long run, in virtual time"):
            told = long_run_of(rows, job.deployment, fixed_policy(config), schedule, rate_qps)
    except KeyboardInterrupt:
        job.opened.session.interrupted = True
        told = LongRun(withheld="interrupted")
    return rows, summary.with_long_run(told)


def run_measure(job: QueueRun) -> Report:
    """Measure and save; returns what prints the report."""
    rows, summary = measure(job)
    memory = job.opened.session.memory()
    quality = quality_of(job.deployment, rows)
    saved = {name: estimate.as_json() for name, estimate in quality.items()}
    job.save(rows, {"summary": summary.as_json(), "memory": memory, "quality": saved or None})
    job.draw(rows, summary)
    if job.deployment.is_staged:
        bars = figures.stage_bars(stage_parts(rows), job.deployment.labels, job.config.name)
        bars.savefig(job.folder / "stages.png", dpi=120)
    return lambda: _report_measure(job, rows, summary, memory, quality)


def quality_of(deployment: Deployment, rows: Rows) -> dict[str, Estimate]:
    """Ranking quality of the answered lists, by metric; {} where the queries have no labels."""
    if not (deployment.is_ranked and deployment.queries and rows.answers):
        return {}
    n_places = deployment.stages[-1].keep_items or 1
    return read_queries(deployment.queries).quality(answers_by_input(rows), n_places)


def _report_measure(
    job: QueueRun,
    rows: Rows,
    summary: Summary,
    memory: dict[str, Any],
    quality: dict[str, Estimate],
) -> None:
    policy = fixed_policy(job.config)
    out = report.console()
    offload = f", offload from {policy.offload_items} items" if policy.offload_items else ""
    engines = (
        f"{job.deployment.n_engines} {job.opened.kind} engine(s), tasks of at most "
        f"{policy.batch_items} items{offload}"
    )
    title = f"{job.config.name}, {engines}"
    out.print(report.measurement(title, summary, memory, rows.queries["n_items"]))
    if job.deployment.is_staged:
        _print_stages(job.deployment, rows, quality, out)
    _print_service(job.opened, out)
    _print_where(job.folder, out)
    print("\n".join(report.closing_lines(summary)))


def _print_stages(
    deployment: Deployment, rows: Rows, quality: dict[str, Estimate], out: Console
) -> None:
    """Where the time went, and how good the answers are."""
    parts = stage_parts(rows)
    parts.insert(1, "model", [deployment.labels[i] for i in parts["stage"]])
    out.print(report.frame("Time by stage (ms); they add up to the latency", parts))
    n_places = deployment.stages[-1].keep_items
    for name, estimate in quality.items():
        assumed = " (assumes as many clicks as places)" if name == "ndcg_released" else ""
        interval = f"[{estimate.low:.4f}, {estimate.high:.4f}]"
        line = f"{name}@{n_places}{assumed}: {estimate.value:.4f} {interval}"
        out.print(line, soft_wrap=True)
    chooses = any(stage.keep_items is not None for stage in deployment.stages)
    if chooses and any(not pool.gives_scores for pool in deployment.pools):
        out.print(
            "A modelled device gives no scores: which items survive is not known, only how many",
            soft_wrap=True,
        )


def _print_where(folder: Path, out: Console) -> None:
    drawn = ", ".join(sorted(file.name for file in folder.glob("*.png")))
    out.print(f"Results: {folder}", soft_wrap=True)
    if drawn:
        out.print(f"Figures, there: {drawn}", soft_wrap=True)


def _print_service(opened: OpenSession, out: Console) -> None:
    if opened.service:
        out.print(f"Virtual time; service times: {opened.service['source']}", soft_wrap=True)


def run_tune(job: QueueRun) -> Report:
    """Tune, confirm and save, also after an interruption; returns what prints the report."""
    watts = server_power(job.deployment, job.opened.session, job.opened.devices)
    # What --resume needs after a kill: the settings, and which pipeline its file stated.
    begun = {"summary": None, "pipeline": stated(job.deployment)}
    run_folder.save_document(job.folder, job.config, begun)
    per_watt = None if watts is None else watts.of
    search_log = SearchLog(job.folder)
    tuned = PolicyTuner(
        job.deployment, job.opened.session, job.progress, search_log, per_watt
    ).run()
    lines = tuning_lines(job.deployment, tuned)
    done = [phase for phase in tuned.phases if phase.summary is not None]
    best = max(done, key=lambda phase: phase.qps_per_watt or phase.rate_qps, default=None)
    table(tuned.trials).to_parquet(job.folder / "search.parquet", index=False)
    results = {
        "summary": None,
        "tuning": [{**x, "summary": x["summary"] and x["summary"].as_json()} for x in lines],
        "forecast": tuned.notes,
        "memory": job.opened.session.memory(),
        "power": None if watts is None else watts.as_json(),
    }
    _save_best(job, best, results)
    if tuned.trials:
        tune = job.config.tune
        walk = figures.search_walk(table(tuned.trials), tune.target_latency, tune.sla_percentile)
        walk.savefig(job.folder / "scheduler.png", dpi=120)
    return lambda: _report_tune(job, lines, tuned.notes, best, watts)


def _save_best(job: QueueRun, best: Phase | None, results: dict[str, Any]) -> None:
    """The rows of the best phase's confirmation, if there is one."""
    if best is None or best.rows is None or best.summary is None:
        run_folder.save_document(job.folder, job.config, job.document(results))
        return
    job.save(best.rows, {**results, "summary": best.summary.as_json()})
    job.draw(best.rows, best.summary)


def _report_tune(
    job: QueueRun,
    lines: list[dict[str, Any]],
    notes: list[str],
    best: Phase | None,
    watts: ServerPower | None,
) -> None:
    tune = job.config.tune
    interrupted = job.opened.session.interrupted
    out = report.console()
    title = (
        f"{job.config.name}, p{tune.sla_percentile:g} <= {tune.target_latency:g} ms, "
        f"{job.deployment.n_engines} {job.opened.kind} engines, scheduler {tune.scheduler}: "
        "highest rate, confirmed with a fresh seed"
    )
    out.print(report.search(title, lines, tune.sla_percentile))
    for sentence in [*report.search_notes(lines, tune.confidence), *notes]:
        out.print(sentence, soft_wrap=True)
    if watts is not None:
        out.print(f"Power: {watts}", soft_wrap=True)
    _print_service(job.opened, out)
    _print_where(job.folder, out)
    if interrupted:
        line = f"INVALID: the search was interrupted; --resume {job.folder.name} goes on with it"
        out.print(line, soft_wrap=True)
    elif _grid_ended(job.config, best):
        print("The grid of rates ends here: a smaller --min_arr_range may find more")
    _print_best(best, interrupted=interrupted)


def _grid_ended(config: RunConfig, best: Phase | None) -> bool:
    """Whether the release's grid of rates, and not the SLA, bounded the search."""
    if config.tune.scheduler != "released" or best is None:
        return False
    return math.isclose(best.limit.carried_qps, 1000 / config.tune.min_arr_range)


def _print_best(best: Phase | None, *, interrupted: bool) -> None:
    if best is not None and best.summary is not None:
        policy = best.policy
        lines = report.tuned_lines(
            best.summary, policy.batch_items, policy.offload_items, best.rate_qps
        )
        print("\n".join(lines))
    elif not interrupted:
        print("No rate meets the SLA: raise --target_latency")


def tuning_lines(deployment: Deployment, tuned: TuningResult) -> list[dict[str, Any]]:
    """What the report and run.json say of each phase.

    Regret is told against an exhaustive search in results_dir, where there is one.
    """
    baseline = next((phase for phase in tuned.phases if phase.name == "static"), None)
    oracle = run_folder.exhaustive_rates(deployment.config, deployment.fingerprint)
    lines = []
    for phase in tuned.phases:
        best_possible = oracle.get(phase.name)
        gain = gain_over(phase, baseline)
        line = {
            "name": phase.name,
            "batch_items": phase.policy.batch_items,
            "offload_items": phase.policy.offload_items,
            "rate_qps": phase.rate_qps,
            "limit_qps": phase.limit.qps.as_json(),
            "is_told": phase.is_told,
            "foreseen_ms": phase.limit.foreseen_ms if phase.is_told else None,
            "gain": None if gain is None else gain.value,
            "gain_interval": None if gain is None else gain.as_json(),
            "of_exhaustive": phase.rate_qps / best_possible if best_possible else None,
            "n_trials": phase.n_trials,
            "n_queries": phase.n_queries,
            "seconds": phase.seconds,
            "qps_per_watt": phase.qps_per_watt,
            "summary": phase.summary,
        }
        lines.append(line)
    return lines


def gain_over(phase: Phase, baseline: Phase | None) -> Estimate | None:
    """The phase's rate over the baseline's; with an interval where runs told both."""
    if baseline is None or not baseline.rate_qps:
        return None
    if phase.is_told and baseline.is_told and phase.limit.told and baseline.limit.told:
        return phase.limit.told.over(baseline.limit.told)
    return Estimate(phase.rate_qps / baseline.rate_qps, -math.inf, math.inf)


def resume(config: RunConfig) -> tuple[Deployment, Path]:
    """The deployment and the folder of the search that --resume names.

    Where to look and how to report stay as they are now.
    """
    saved = run_folder.resumed(config.output.results_dir, config.output.resume)
    names = ("results_dir", "resume", "progress", "debug_mode")
    here = {name: getattr(config.output, name) for name in names}
    deployment = resolve(from_settings({**saved.document["config"], **here}))
    if deployment.fingerprint != (saved.document.get("pipeline") or {}).get("fingerprint"):
        raise ConfigError(
            "resume",
            f"is {config.output.resume!r}, a search over another pipeline: "
            f"{deployment.config.engines.pipeline} or a file that it names has changed",
        )
    return deployment, saved.folder


def _noted_signals() -> list[int]:
    """Signals that have come; from now on SIGTERM is like Ctrl-C, also while tables are made."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return came


def run_queue(deployment: Deployment, folder: Path | None = None) -> int:
    """At-scale mode, in a new folder or the one to go on with; returns the exit code."""
    config = deployment.config
    check(deployment)
    signals = _noted_signals()
    folder = folder or run_folder.new_folder(config)
    task_log = run_folder.open_log(config.output.log_file)
    work = run_tune if config.tune.tune_batch_qps or config.tune.tune_accel_qps else run_measure
    try:
        with (
            Progress(config.output.progress) as progress,
            open_session(deployment, progress) as opened,
        ):
            if signals:  # somebody's callback has swallowed the exception
                raise KeyboardInterrupt
            tell = work(QueueRun(opened, progress, folder, task_log))
        tell()
        return INTERRUPTED if opened.session.interrupted else 0
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def run_standalone(config: RunConfig) -> int:
    """One model on its own, as in the release; returns the exit code."""
    from models.standalone import run  # noqa: PLC0415 (PyTorch takes seconds to load)

    run(config)
    return 0


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code: 0, 1 (engines), 2 (bad input), 130 (interrupted)."""
    config = parse(argv)
    level = logging.DEBUG if config.output.debug_mode else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    try:
        if config.output.resume:
            return run_queue(*resume(config))
        return run_queue(resolve(config)) if config.engines.queue else run_standalone(config)
    except ConfigError as error:
        sys.stderr.write(f"DeepRecSys.py: --{error}\n")
        return 2
    except ValueError as error:
        sys.stderr.write(f"DeepRecSys.py: {error}\n")
        return 2
    except SessionError as error:
        sys.stderr.write(f"DeepRecSys.py: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("DeepRecSys.py: interrupted before the first query\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
