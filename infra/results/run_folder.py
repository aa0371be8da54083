"""A run's folder: run.json, the rows as Parquet, figures; written once, read again."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from infra.clock import NS_PER_MS
from infra.results.rows import TASK_COLUMNS, Rows
from infra.results.stages import answer_table, stage_table
from infra.settings.config import ConfigError, RunConfig, to_settings


@dataclass(frozen=True)
class SavedRun:
    """What is on disk of a run."""

    folder: Path
    document: dict[str, Any]  # run.json

    def rows(self) -> Rows:
        """The rows as they were written."""
        queries = pd.read_parquet(self.folder / "queries.parquet")
        tasks = pd.read_parquet(self.folder / "tasks.parquet")
        return Rows(queries, tasks, tuple(self.document["notes"]))


def new_folder(config: RunConfig) -> Path:
    """Create <results_dir>/<run id>/; the id has the time, the model and a random part.

    Raises ConfigError.
    """
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.name}-{secrets.token_hex(2)}"
    folder = Path(config.output.results_dir) / run_id
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        problem = f"{folder}: cannot be created: {error.strerror}"
        raise ConfigError("results_dir", problem) from error
    return folder


def save(
    folder: Path, config: RunConfig, rows: Rows, document: dict[str, Any], *, staged: bool = False
) -> None:
    """Write run.json (settings and `document`) and the rows, by stage and answer if `staged`."""
    rows.queries.to_parquet(folder / "queries.parquet", index=False)
    rows.tasks.to_parquet(folder / "tasks.parquet", index=False)
    if staged:
        stage_table(rows).to_parquet(folder / "stages.parquet", index=False)
        answer_table(rows).to_parquet(folder / "answers.parquet", index=False)
    seen = rows.disturbance
    if seen is not None:
        seen.by_second.to_parquet(folder / "disturbance.parquet", index=False)
    told = None if seen is None else seen.as_json()
    save_document(folder, config, {**document, "notes": list(rows.notes), "disturbance": told})


def save_document(folder: Path, config: RunConfig, document: dict[str, Any]) -> None:
    """Write run.json alone: the settings, which --config_file reads again, and `document`."""
    text = json.dumps({"config": to_settings(config), **document}, indent=2, allow_nan=False)
    (folder / "run.json").write_text(text + "\n")


def read(folder: Path) -> SavedRun:
    """A saved run; raises FileNotFoundError."""
    return SavedRun(folder, json.loads((folder / "run.json").read_text()))


def find(results_dir: Path) -> list[SavedRun]:
    """All complete runs below a folder, oldest first."""
    return [read(file.parent) for file in sorted(results_dir.glob("*/run.json"))]


def resumed(results_dir: str, run_id: str) -> SavedRun:
    """The run that `--resume` names; raises ConfigError if there is no search to go on with."""
    folder = Path(results_dir) / run_id
    if not (folder / "run.json").is_file() or not (folder / "search.jsonl").is_file():
        searches = sorted(file.parent.name for file in Path(results_dir).glob("*/search.jsonl"))
        raise ConfigError(
            "resume",
            f"is {run_id!r}; expected a run with a search in {results_dir}: "
            f"{', '.join(searches) or 'none'}",
        )
    return read(folder)


def exhaustive_rates(config: RunConfig, fingerprint: str | None = None) -> dict[str, float]:
    """{phase: QPS} of the latest exhaustive search in results_dir under otherwise equal settings.

    It is {} if there is none. `fingerprint` of the pipeline: its file may have changed.
    """
    free = {"scheduler", "results_dir", "log_file", "progress", "resume", "debug_mode"}
    free |= {"quiet_check", "renew_profile"}
    wanted = {name: value for name, value in to_settings(config).items() if name not in free}
    wanted["scheduler"] = "exhaustive"
    rates: dict[str, float] = {}
    for run in find(Path(config.output.results_dir)):
        saved = run.document["config"]
        same_settings = all(saved.get(name) == value for name, value in wanted.items())
        saved_fingerprint = (run.document.get("pipeline") or {}).get("fingerprint")
        if same_settings and saved_fingerprint == fingerprint:
            phases = run.document.get("tuning", [])
            rates = {phase["name"]: phase["rate_qps"] for phase in phases} or rates
    return rates


def open_log(path: str) -> Path | None:
    """The task log, created with its folder; None if it is not wanted. Raises ConfigError."""
    if not path:
        return None
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise ConfigError("log_file", f"{path}: cannot be written: {error.strerror}") from error
    return file


def write_log(file: Path, tasks: pd.DataFrame) -> None:
    """Write a line per task: its TASK_COLUMNS, times in ms."""
    with file.open("w") as out:
        out.write("query stage part pool engine items enqueued_ms start_ms end_ms\n")
        for *names, enqueued_ns, start_ns, end_ns in tasks[TASK_COLUMNS].itertuples(index=False):
            times = [f"{ns / NS_PER_MS:.4f}" for ns in (enqueued_ns, start_ns, end_ns)]
            out.write(" ".join([*map(str, names), *times]) + "\n")
