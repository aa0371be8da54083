"""A search's state on disk: a line per trial as soon as it is known, and every query sent."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from accelerator.latency import read_profile, write_profile
from backends.tuning.calibration import Calibration
from backends.tuning.probe import Probed
from infra.results.long_run import RateLimit
from infra.results.quantiles import Estimate
from scheduler import Outcome, Trial

LOG_NAME, QUERIES_NAME = "search.jsonl", "search_queries.parquet"


class SearchLog:
    """`search.jsonl` and `search_queries.parquet/` in a run's folder; without one nothing is kept.

    What an earlier, killed search wrote there is given back first, in order. Raises ValueError if
    it is not a log.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._recorded = _read(folder / LOG_NAME) if folder is not None else []
        self._n_lines = 0

    def once(self, name: str, measure: Callable[[], float]) -> float:
        """A number that the search rests on: as recorded, else measured now and recorded."""
        line = self._replay({"value": name})
        if line is None:
            line = {"value": name, "number": measure()}
            self._write(line)
        return float(line["number"])

    def calibrations(
        self, n_stages: int, measure: Callable[[], list[Calibration]]
    ) -> list[Calibration]:
        """The service times that the search rests on, by stage: as an earlier search wrote them,
        else measured and written.
        """
        if self._folder is None:
            return measure()
        prefixes = [_profile_prefix(self._folder, stage) for stage in range(n_stages)]
        if not all(Path(f"{prefix}cpu.csv").is_file() for prefix in prefixes):
            for prefix, measured in zip(prefixes, measure(), strict=True):
                for i, profile in enumerate(measured.accels):
                    write_profile(Path(f"{prefix}accel{i}.csv"), profile)
                write_profile(Path(f"{prefix}cpu.csv"), measured.cpu)
        return [_read_calibration(prefix) for prefix in prefixes]

    def recorded(self, phase: str, trial: Trial) -> dict[str, Any] | None:
        """The line of this trial if an earlier search made it."""
        return self._replay(_head(phase, trial))

    def note(self, phase: str, trial: Trial, probed: Probed) -> dict[str, Any]:
        """Keep a trial; returns its line."""
        decision = probed.decision
        line = {
            **_head(phase, trial),
            **asdict(probed.outcome),
            "seconds": probed.seconds,
            "n_effective": decision.n_effective if decision else math.nan,
            "saturated": bool(decision and decision.saturated),
        }
        if self._folder is not None and probed.rows is not None:
            (self._folder / QUERIES_NAME).mkdir(exist_ok=True)
            rows = probed.rows.queries.assign(update=self._n_lines)
            rows.to_parquet(
                self._folder / QUERIES_NAME / f"{self._n_lines:05d}.parquet", index=False
            )
        self._write(line)
        return line

    def _replay(self, head: dict[str, Any]) -> dict[str, Any] | None:
        if self._n_lines >= len(self._recorded):
            return None
        line = self._recorded[self._n_lines]
        if any(not _same(line.get(key), value) for key, value in head.items()):
            raise ValueError(
                f"{LOG_NAME}, line {self._n_lines + 1}: another search's; expected {head}"
            )
        self._n_lines += 1
        return line

    def _write(self, line: dict[str, Any]) -> None:
        self._n_lines += 1
        if self._folder is not None:
            with (self._folder / LOG_NAME).open("a") as file:
                file.write(json.dumps(_finite(line)) + "\n")


def outcome_of(line: dict[str, Any]) -> Outcome:
    """What the search observes of a line."""
    tail_ms = math.inf if line["p_sla_ms"] is None else line["p_sla_ms"]
    foreseen = line.get("foreseen_ms")
    return Outcome(
        line["verdict"],
        line["late_share"],
        tail_ms,
        line["n_queries"],
        line["leans_met"],
        _limit_of(line.get("limit")),
        None if foreseen is None else (foreseen[0], foreseen[1]),
    )


def _limit_of(limit: dict[str, Any] | None) -> RateLimit | None:
    """The limit that a line holds."""
    if limit is None:
        return None
    below, above = limit["by_service"]
    return RateLimit(Estimate(**limit["qps"]), (below, above), tuple(limit["by_part"]))


def table(lines: list[dict[str, Any]]) -> pd.DataFrame:
    """The lines as rows: phase, batch_items, offload_items, rate_qps, verdict, late_share, ...

    A limit that a trial told is in limit_qps, limit_low_qps and limit_high_qps.
    """
    flat = []
    for line in lines:
        limit = (line.get("limit") or {}).get("qps", {})
        bounds = {
            f"limit{bound}_qps": limit.get(name, math.nan)
            for bound, name in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
        kept = {name: x for name, x in line.items() if name not in ("limit", "foreseen_ms")}
        flat.append({**kept, **bounds})
    return pd.DataFrame(flat)


def _profile_prefix(folder: Path, stage: int) -> str:
    """How the names of a stage's profiles begin; the first stage's as they were before stages."""
    return str(folder / ("service_" if stage == 0 else f"service_stage{stage}_"))


def _read_calibration(prefix: str) -> Calibration:
    start = Path(prefix)
    accels = sorted(start.parent.glob(f"{start.name}accel*.csv"))
    return Calibration(read_profile(Path(f"{prefix}cpu.csv")), tuple(map(read_profile, accels)))


def _head(phase: str, trial: Trial) -> dict[str, Any]:
    policy = trial.policy
    return {
        "phase": phase,
        "batch_items": policy.batch_items,
        "offload_items": policy.offload_items,
        "rate_qps": trial.rate_qps,
    }


def _same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9)
    return a == b


def _finite(value: Any) -> Any:
    """The value with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1]  # a kill can cut the last line
    if whole != text:
        file.write_text(whole)
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise ValueError(f"{file}: not a search's log: {error}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError(f"{file}: not a search's log: expected one object a line")
    return lines
