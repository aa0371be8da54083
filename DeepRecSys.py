#!/usr/bin/env python3
"""DeepRecSys: at-scale inference of neural recommendation models.

Configuration -> session -> measure or tune -> results on disk -> one table. `--help` lists the
settings; README.md tells the life of a query.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from accelerator.devices import accelerator_root, load_device, published_speedups
from accelerator.service import replayed_rows, service_of
from accelInferenceEngine import check_cuda
from backends.opening import OpenSession, n_engines, open_session
from backends.pipeline import check_pipeline, pipeline_of, with_pipeline
from backends.session import SessionError
from backends.tuning.power import ServerPower, check_power, server_power
from backends.tuning.probe import capacity_qps
from backends.tuning.search_log import SearchLog, table
from backends.tuning.tuner import Found, Phase, Tuner
from infra.labelled_queries import read_queries
from infra.memory import check_memory
from infra.progress import Progress
from infra.provenance import provenance
from infra.results import figures, report, run_folder
from infra.results.rows import Rows
from infra.results.stages import answers_by_input, stage_parts
from infra.results.stats import Estimate, Summary, summarize
from infra.settings.cli import parse
from infra.settings.config import ConfigError, RunConfig, from_settings
from infra.settings.pipeline import Pipeline
from loadGenerator import Schedule, check_files, draw_schedule, schedule_of, too_short
from models.embedding.plan.plan import plan_of
from models.inputs.sources import source_of
from scheduler import Policy, Stage

Report = Callable[[], None]  # prints; called when the progress bars are gone

INTERRUPTED = 130
log = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Everything that can be wrong with the input and is not the settings' own; before anything is
    started.
    """
    check_files(config)
    check_power(config)
    if config.engines.pipeline:
        check_pipeline(config, pipeline_of(config, n_engines(config)))
        return
    if config.engines.backend == "simulated":
        service_of(config)
        return
    names = config.engines.accel_devices
    on_gpu = config.engines.model_accel and "cuda" in names
    plan_of(config.model, ["cpu", "cuda"] if on_gpu else ["cpu"])
    check_memory(config, n_engines(config))
    source_of(config.model, config.inputs)
    if on_gpu:
        if len(names) > 1:
            raise ConfigError(
                "accel_device",
                f"is {','.join(names)}; cuda runs alone, not beside modelled devices",
            )
        check_cuda("accel_device", "is cuda")
    elif config.engines.model_accel:
        for name in names:
            device = load_device(accelerator_root(config.engines.accel_root_dir), name)
            if device.kind == "speedup":
                published_speedups(device, config.model.name)


def fixed_policy(config: RunConfig) -> Policy:
    """The policy of a measuring run."""
    offload = config.engines.accel_request_size_thres if config.engines.model_accel else None
    return Policy(config.engines.sub_task_batch_size, offload)


def measure(config: RunConfig, opened: OpenSession, progress: Progress) -> tuple[Rows, Summary]:
    """One run at a fixed policy."""
    rate_qps = config.load.rate_qps
    if config.simulation.service_law == "replay":
        return _measured(config, opened, progress, schedule_of(replayed_rows(config).queries))
    if config.load.offered_load is not None:
        with progress.step("measuring the capacity"):
            rate_qps = config.load.offered_load * capacity_qps(
                opened.session, config, fixed_policy(config), opened.n_engines
            )
    schedule = draw_schedule(config, config.n_queries, config.n_warmup, rate_qps)
    return _measured(config, opened, progress, schedule, too_short(config, schedule))


def _measured(
    config: RunConfig,
    opened: OpenSession,
    progress: Progress,
    schedule: Schedule,
    faults: tuple[str, ...] = (),
) -> tuple[Rows, Summary]:
    title = f"{config.name}: {len(schedule)} queries at {schedule.rate_qps:.4g} QPS"
    with progress.step(title) as on_fraction:
        rows = opened.session.run(
            schedule,
            [Stage(fixed_policy(config))],
            lambda n_done: on_fraction(n_done / len(schedule)),
        )
    faults = (*rows.notes, *faults)
    return rows, summarize(
        rows.queries, rows.tasks, config.tune.target_latency, config.tune.sla_percentile, faults
    )


def run_measure(
    config: RunConfig, opened: OpenSession, progress: Progress, folder: Path, task_log: Path | None
) -> Report:
    """Measure and save; returns what prints the report."""
    rows, summary = measure(config, opened, progress)
    memory = opened.session.memory()
    quality = quality_of(opened, rows)
    saved = {name: estimate.as_json() for name, estimate in quality.items()}
    _save(
        folder,
        config,
        opened,
        rows,
        {"summary": summary.as_json(), "memory": memory, "quality": saved or None},
    )
    figures.latency_cdf(rows.queries, summary, config.name).savefig(folder / "latency.png", dpi=120)
    if opened.pipeline is not None:
        figures.stage_bars(stage_parts(rows), opened.pipeline.labels, config.name).savefig(
            folder / "stages.png", dpi=120
        )
    if task_log is not None:
        run_folder.write_log(task_log, rows.tasks)
    return lambda: _report_measure(config, opened, rows, summary, memory, folder)


def quality_of(opened: OpenSession, rows: Rows) -> dict[str, Estimate]:
    """Of what a pipeline answered to queries with labels; {} where that is not known."""
    pipeline = opened.pipeline
    if pipeline is None or not (pipeline.is_ranked and pipeline.queries and rows.answers):
        return {}
    return read_queries(pipeline.queries).quality(
        answers_by_input(rows), pipeline.stages[-1].keep_items or 1
    )


def _report_measure(
    config: RunConfig,
    opened: OpenSession,
    rows: Rows,
    summary: Summary,
    memory: dict[str, Any],
    folder: Path,
) -> None:
    policy = fixed_policy(config)
    out = report.console()
    offload = f", offload from {policy.offload_items} items" if policy.offload_items else ""
    engines = (
        f"{opened.n_engines} {kind(opened)} engine(s), tasks of at most "
        f"{policy.batch_items} items{offload}"
    )
    out.print(report.measurement(f"{config.name}, {engines}", summary, memory))
    if opened.pipeline is not None:
        _print_pipeline(opened.pipeline, rows, quality_of(opened, rows), out)
    _print_service(opened, out)
    out.print(f"Results: {folder}", soft_wrap=True)
    print("\n".join(report.closing_lines(summary)))


def _print_pipeline(
    pipeline: Pipeline, rows: Rows, quality: dict[str, Estimate], out: Console
) -> None:
    """Where the time went, and how good the answers are."""
    parts = stage_parts(rows)
    parts.insert(1, "model", [pipeline.labels[i] for i in parts["stage"]])
    out.print(report.frame("Time by stage (ms); they add up to the latency", parts))
    k = pipeline.stages[-1].keep_items
    for name, estimate in quality.items():
        word = f"{name}@{k}" + (
            " (assumes as many clicks as places)" if name == "ndcg_released" else ""
        )
        out.print(
            f"{word}: {estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]",
            soft_wrap=True,
        )
    if not pipeline.is_ranked and any(
        stage.keep_items and not pipeline.ranks(stage) for stage in pipeline.stages
    ):
        out.print(
            "A modelled device gives no scores: which items survive is not known, only how many",
            soft_wrap=True,
        )


def kind(opened: OpenSession) -> str:
    """What the report calls the engines."""
    if opened.pipeline is not None:
        return "simulated" if opened.service else "pipeline"
    return "simulated CPU" if opened.service else "CPU"


def _print_service(opened: OpenSession, out: Console) -> None:
    if opened.service:
        out.print(f"Virtual time; service times: {opened.service['source']}", soft_wrap=True)


def run_tune(
    config: RunConfig, opened: OpenSession, progress: Progress, folder: Path, task_log: Path | None
) -> Report:
    """Tune, confirm and save, after an interruption what there is so far; returns what prints the
    report.
    """
    watts = server_power(config, opened.session, opened.n_engines, opened.device)
    # What --resume needs after a kill: the settings, and which pipeline its file stated.
    run_folder.save_document(
        folder, config, {"summary": None, "pipeline": opened.pipeline and opened.pipeline.as_json()}
    )
    per_watt = None if watts is None else watts.of
    found = Tuner(
        config, opened.session, opened.n_engines, progress, SearchLog(folder), per_watt
    ).run()
    lines = tuning_lines(config, found, opened.pipeline.fingerprint() if opened.pipeline else None)
    done = [phase for phase in found.phases if phase.summary is not None]
    best = max(done, key=lambda p: p.qps_per_watt or p.rate_qps, default=None)
    table(found.trials).to_parquet(folder / "search.parquet", index=False)
    saved = [{**line, "summary": line["summary"] and line["summary"].as_json()} for line in lines]
    document = {
        "summary": None,
        "tuning": saved,
        "forecast": found.notes,
        "memory": opened.session.memory(),
        "power": None if watts is None else watts.as_json(),
    }
    if best is None or best.rows is None or best.summary is None:
        run_folder.save_document(folder, config, _document(config, opened, document))
    else:
        _save(folder, config, opened, best.rows, {**document, "summary": best.summary.as_json()})
        figures.latency_cdf(best.rows.queries, best.summary, config.name).savefig(
            folder / "latency.png", dpi=120
        )
        if task_log is not None:
            run_folder.write_log(task_log, best.rows.tasks)
    if found.trials:
        walk = figures.search_walk(
            table(found.trials), config.tune.target_latency, config.tune.sla_percentile
        )
        walk.savefig(folder / "scheduler.png", dpi=120)
    return lambda: _report_tune(config, opened, lines, found.notes, best, watts, folder)


def _report_tune(
    config: RunConfig,
    opened: OpenSession,
    lines: list[dict[str, Any]],
    notes: list[str],
    best: Phase | None,
    watts: ServerPower | None,
    folder: Path,
) -> None:
    tune = config.tune
    out = report.console()
    title = (
        f"{config.name}, p{tune.sla_percentile:g} <= {tune.target_latency:g} ms, "
        f"{opened.n_engines} {kind(opened)} engines, scheduler {tune.scheduler}: highest rate, "
        "confirmed with a fresh seed"
    )
    out.print(report.search(title, lines, tune.sla_percentile))
    for sentence in [*report.search_notes(lines, tune.confidence), *notes]:
        out.print(sentence, soft_wrap=True)
    if watts is not None:
        out.print(f"Power: {watts}", soft_wrap=True)
    _print_service(opened, out)
    out.print(f"Results: {folder}", soft_wrap=True)
    if opened.session.interrupted:
        out.print(
            f"INVALID: the search was interrupted; --resume {folder.name} goes on with it",
            soft_wrap=True,
        )
    elif (
        tune.scheduler == "released"
        and best
        and math.isclose(best.limit.carried_qps, 1000 / tune.min_arr_range)
    ):
        out.print(
            f"The grid of rates ends at {best.rate_qps:.0f} QPS: a smaller --min_arr_range may "
            "find more"
        )
    if best is not None and best.summary is not None:
        policy = best.policy
        print(
            "\n".join(
                report.tuned_lines(
                    best.summary, policy.batch_items, policy.offload_items, best.rate_qps
                )
            )
        )
    elif not opened.session.interrupted:
        print("No rate meets the SLA: raise --target_latency")


def tuning_lines(
    config: RunConfig, found: Found, fingerprint: str | None = None
) -> list[dict[str, Any]]:
    """What the report and run.json say of each phase; regret against an exhaustive search in
    results_dir.
    """
    baseline = next((p.rate_qps for p in found.phases if p.name == "static"), 0.0)
    oracle = run_folder.exhaustive_rates(config, fingerprint)
    return [
        {
            "name": phase.name,
            "batch_items": phase.policy.batch_items,
            "offload_items": phase.policy.offload_items,
            "rate_qps": phase.rate_qps,
            "limit_qps": phase.limit.qps.as_json(),
            "gain": phase.rate_qps / baseline if baseline else None,
            "of_exhaustive": phase.rate_qps / oracle[phase.name]
            if oracle.get(phase.name)
            else None,
            "n_trials": phase.n_trials,
            "n_queries": phase.n_queries,
            "seconds": phase.seconds,
            "qps_per_watt": phase.qps_per_watt,
            "summary": phase.summary,
        }
        for phase in found.phases
    ]


def _document(config: RunConfig, opened: OpenSession, extra: dict[str, Any]) -> dict[str, Any]:
    return {
        "provenance": provenance(config.inputs.numpy_rand_seed),
        **extra,
        "n_engines": opened.n_engines,
        "accelerator": opened.device,
        "service": opened.service or None,
        "pipeline": opened.pipeline and opened.pipeline.as_json(),
        "engine_deaths": [*opened.session.deaths],
    }


def _save(
    folder: Path, config: RunConfig, opened: OpenSession, rows: Rows, extra: dict[str, Any]
) -> None:
    run_folder.save(folder, config, rows, _document(config, opened, extra))


def resume(config: RunConfig) -> tuple[RunConfig, Path]:
    """The settings and the folder of the search that --resume names; where to look and how to
    report stay as given.
    """
    saved = run_folder.resumed(config.output.results_dir, config.output.resume)
    here = {
        name: getattr(config.output, name)
        for name in ("results_dir", "resume", "progress", "debug_mode")
    }
    config = from_settings({**saved.document["config"], **here})
    if config.engines.pipeline:
        before = (saved.document.get("pipeline") or {}).get("fingerprint")
        if pipeline_of(config, n_engines(config)).fingerprint() != before:
            raise ConfigError(
                "resume",
                f"is {config.output.resume!r}, a search over another pipeline: "
                f"{config.engines.pipeline} or a file that it names has changed",
            )
    return config, saved.folder


def _noted_signals() -> list[int]:
    """From now on SIGTERM is like Ctrl-C, also while tables are built; gets the signals that have
    come.
    """
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return came


def run_queue(config: RunConfig, folder: Path | None = None) -> int:
    """At-scale mode, in a new folder or the one to go on with; returns the exit code."""
    if config.engines.pipeline:
        config = with_pipeline(config, pipeline_of(config, n_engines(config)))
    check(config)
    signals = _noted_signals()
    folder = folder or run_folder.new_folder(config)
    task_log = run_folder.open_log(config.output.log_file)
    tuning = config.tune.tune_batch_qps or config.tune.tune_accel_qps
    try:
        with Progress(config.output.progress) as progress, open_session(config, progress) as opened:
            if signals:  # somebody's callback has swallowed the exception
                raise KeyboardInterrupt
            work: Callable[..., Report] = run_tune if tuning else run_measure
            tell = work(config, opened, progress, folder, task_log)
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
        return run_queue(config) if config.engines.queue else run_standalone(config)
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
