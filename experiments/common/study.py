"""The study kit: one command line, progress, resume, errors and writing for all studies.

A study is a question, a list of frozen cases, and a function from a case to rows:

    @dataclass(frozen=True)
    class SearchCase:                    # all that makes its rows: settings, sizes, seed
        model: str
        sla_ms: float
        n_queries: int

    @dataclass(frozen=True)
    class SearchOptions:                 # its fields are flags: --models wnd,ncf --device NAME
        models: tuple[str, ...] = names((), "models (default: the effort's)", MEDIUM_SLA_MS)
        device: str = flag("nvidia_a100", "folder under accelerator/")

    def cases(effort: SearchEffort, options: SearchOptions) -> list[SearchCase]:
        ...                              # ConfigError and ValueError: one line, exit code 2

    def search(case: SearchCase) -> dict[str, list[SearchRow]]:
        ...                              # table -> rows: dicts or records (with records inside)

    STUDY = Study(
        "scheduling_virtual",
        "What does tuning gain?",
        cases,
        search,
        efforts={"quick": SearchEffort(("wnd",), 10_000), "full": SearchEffort(ALL, 20_000)},
        options=SearchOptions,
        parallel=True,                   # False: it times something, so its cases run alone
        figures={"gains": View(figure_gains, "virtual")},       # gains.png from virtual.csv
        report={"Regret": View(regret_summary, "virtual")},     # printed at the end
    )

    if __name__ == "__main__":
        STUDY.main()

Rows are kept by the digest of their case and the study's `version`: raise it whenever a case gives
different numbers (a seed that is no field of the case belongs to the version). A second start with
the same --out computes only what is missing; the tables hold the rows of the cases asked for, in
their order. What is dear to make and serves several cases of a process is a function with
functools.cache. Inside of a case `progress()` is the display, for steps within it, and
`out_folder()` is where files go that are no rows. An options field
`flags: tuple[str, ...] = passed_on()` takes all flags that the study itself does not have.

Where an effort is a list of cases that differ by their model, `cases` is `of_models` and the
options are `flags_of(SearchCase, MODELS)`: those fields of a case that are declared as flags.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from experiments.common.case_log import (
    CaseLog,
    RowTables,
    digest_of,
    frame_of,
    label,
    label_fields,
    plain,
    read_table,
    table_file,
    write_table,
)
from experiments.common.case_runs import RunCase, in_processes, in_turn, noted_signals
from experiments.common.study_flags import flags_of, names, of_models, parse, passed_on, wanted
from infra.progress import Progress
from infra.provenance import cpu_name, git_commit, package_versions, usable_cores
from infra.settings.fields import ConfigError

__all__ = [
    "NoOptions",
    "Study",
    "View",
    "flags_of",
    "names",
    "of_models",
    "out_folder",
    "passed_on",
    "progress",
]


@dataclass
class _Running:
    """What the study in this process shows and fills; a worker shows nothing."""

    progress: Progress = field(default_factory=lambda: Progress("none"))
    folder: Path = Path()


_running = _Running()


def progress() -> Progress:
    """The display of the study that runs in this process; silent in a worker."""
    return _running.progress


def out_folder() -> Path:
    """The folder of the study that runs in this process or its parent."""
    return _running.folder


class View:
    """A function of some of the study's tables as they are on disk: what it gives is shown."""

    def __init__(self, function: Callable[..., Any], *tables: str) -> None:
        self.function = function
        self.tables = tables


@dataclass(frozen=True)
class NoOptions:
    """The options of a study that has only the shared flags."""


@dataclass(frozen=True)
class Study:
    """A question with its cases; the module's docstring tells how to write one."""

    name: str
    question: str
    cases: Callable[[Any, Any], Sequence[Any]]  # effort, options -> records
    run: RunCase
    efforts: Mapping[str, Any]  # by name; "full" is the default
    options: type[Any] = NoOptions
    parallel: bool = False
    version: int = 1
    derived: Mapping[str, View] = field(default_factory=dict)  # tables computed from all rows
    figures: Mapping[str, View] = field(default_factory=dict)
    report: Mapping[str, View] = field(default_factory=dict)  # tables to print, by title
    check: View | None = None  # gives complaints about the rows; exit code 1 if there is one
    float_format: str = "%.5g"
    formats: Mapping[str, str] = field(default_factory=dict)  # of single tables; or PARQUET
    other_files: str = ""  # what cases put into `out_folder()`, as a pattern, to be published too
    check_machine: Callable[[], None] = lambda: None  # raises ValueError where it cannot run

    def main(self) -> NoReturn:
        """The command line of this process."""
        sys.exit(self.command(sys.argv[1:]))

    def command(self, argv: Sequence[str]) -> int:
        """Exit code: 0, 1 (a case failed), 2 (bad input), 130 or 143 (interrupted)."""
        args, options = parse(argv, self.question, list(self.efforts), self.options)
        try:
            if args.plot:
                if not self._show(args.plot):
                    raise ValueError(f"--plot: {args.plot} has no rows of {self.name}")
                return 0
            cases = self._selected(self.efforts[args.effort], options, args.only)
            if args.list:
                self._list(cases, args.out)
                return 0
            if args.publish and (args.effort == "quick" or args.only):
                raise ValueError("--publish takes all cases of --effort full, and nothing less")
            self.check_machine()
            stamp = time.strftime("%Y%m%d-%H%M%S")
            folder = args.out or Path("results") / f"{self.name}-{stamp}"
            with CaseLog(self._log_file(folder)) as log:
                self._describe(folder, args.effort, options)
                return self._execute(cases, log, folder, args)
        except ConfigError as error:
            _tell(f"--{error}")
        except (ValueError, OSError) as error:
            _tell(str(error))
        return 2

    def _selected(self, effort: Any, options: Any, only: str | None) -> dict[str, Any]:
        """The cases asked for by their digests."""
        cases = list(self.cases(effort, options))
        for name, values in wanted(only).items():
            fields = [label_fields(case) for case in cases]
            choices = {str(facts[name]) for facts in fields if name in facts}
            if not choices:
                raise ValueError(f"--only: no case has {name!r}; expected {', '.join(fields[0])}")
            if missing := values - choices:
                words = ", ".join(sorted(missing))
                raise ValueError(f"--only: no {name} is {words}: {', '.join(sorted(choices))}")
            pairs = zip(cases, fields, strict=True)
            cases = [case for case, facts in pairs if str(facts.get(name)) in values]
        return {digest_of(self.name, self.version, case): case for case in cases}

    def _list(self, cases: Mapping[str, Any], folder: Path | None) -> None:
        finished: Mapping[str, RowTables] = {}
        if folder and self._log_file(folder).is_file():
            with CaseLog(self._log_file(folder)) as log:
                finished = log.finished
        for digest, case in cases.items():
            print(digest, label(case) + (" (done)" if digest in finished else ""))

    def _log_file(self, folder: Path) -> Path:
        return folder / f"{self.name}.cases.jsonl"

    def _execute(
        self, cases: Mapping[str, Any], log: CaseLog, folder: Path, args: argparse.Namespace
    ) -> int:
        todo = {digest: case for digest, case in cases.items() if digest not in log.finished}
        with noted_signals() as came:
            try:
                n_failed = self._run_cases(todo, log, folder, args, came)
            except KeyboardInterrupt:
                n_done = sum(digest in log.finished for digest in cases)
                _tell(f"interrupted, {n_done} of {len(cases)} cases done; --out {folder} goes on")
                return 128 + (came() or signal.SIGINT)
            finally:
                files = self._write(log.tables(cases), folder)
        n_failed += self._derive(folder, files)
        files += self._show(folder)
        complaints = (self._view(self.check, folder) or []) if self.check else []
        for complaint in complaints:
            _tell(complaint)
        print("\n".join(map(str, files)))
        if n_failed or complaints:
            return 1
        if args.publish:
            self._publish([*files, folder / f"{self.name}.json"], folder)
        return 0

    def _run_cases(
        self,
        todo: Mapping[str, Any],
        log: CaseLog,
        folder: Path,
        args: argparse.Namespace,
        came: Callable[[], int],
    ) -> int:
        """Compute and keep the cases; returns how many failed."""
        _running.folder = folder
        n_failed = 0
        jobs = min(self._n_jobs(args.jobs), len(todo))
        outcomes = in_processes(self.run, todo, jobs) if jobs > 1 else in_turn(self.run, todo)
        with (
            contextlib.closing(outcomes),
            Progress("auto") as _running.progress,
            _running.progress.step(f"{len(todo)} cases") as on_fraction,
        ):
            for i, (digest, outcome) in enumerate(outcomes, start=1):
                if came():  # a session has noted it, and the case's rows are a part
                    raise KeyboardInterrupt
                if outcome.failure:
                    n_failed += 1
                    _tell(f"{label(todo[digest])}: {outcome.failure}")
                    with (folder / f"{self.name}.failures.log").open("a") as file:
                        file.write(f"{label(todo[digest])}\n{outcome.trace}\n")
                else:
                    log.add(digest, args.effort, todo[digest], outcome.tables)
                on_fraction(i / len(todo), label(todo[digest]))
        return n_failed

    def _n_jobs(self, jobs: int | None) -> int:
        if self.parallel:
            return jobs or len(usable_cores())
        if jobs and jobs > 1:
            _tell("--jobs: this study times what it runs, so its cases run alone")
        return 1

    def _describe(self, folder: Path, effort: str, options: Any) -> None:
        facts = {
            "study": self.name,
            "question": self.question,
            "version": self.version,
            "effort": effort,
            "options": plain(options),
            "cpu": cpu_name(),
            "cores": len(usable_cores()),
            "packages": package_versions(),
            "git_commit": git_commit(),
        }
        (folder / f"{self.name}.json").write_text(json.dumps(facts, indent=1) + "\n")

    def _layout(self, table: str) -> str:
        return self.formats.get(table, self.float_format)

    def _write(self, tables: RowTables, folder: Path) -> list[Path]:
        files = []
        for name, rows in tables.items():
            if rows:
                files.append(write_table(folder, name, frame_of(rows), self._layout(name)))
            else:  # of an earlier start with other cases
                table_file(folder, name, self._layout(name)).unlink(missing_ok=True)
        return files

    def _view(self, view: View, folder: Path) -> Any:
        """The function's value; None where one of its tables is not there."""
        tables = [read_table(folder, name, self._layout(name)) for name in view.tables]
        return None if any(table is None for table in tables) else view.function(*tables)

    def _derive(self, folder: Path, files: list[Path]) -> int:
        """Write the derived tables; returns how many could not be computed."""
        n_failed = 0
        for name, view in self.derived.items():
            try:
                table = self._view(view, folder)
                if table is not None:
                    files.append(write_table(folder, name, table, self._layout(name)))
            except Exception as error:  # noqa: BLE001 (what the cases have cost is kept)
                _tell(f"{name}: {type(error).__name__}: {error}")
                n_failed += 1
        return n_failed

    def _show(self, folder: Path) -> list[Path]:
        """Draw the figures into the folder of their rows, and print the report."""
        files = []
        for name, view in {**self.figures, **self.report}.items():
            try:
                shown = self._view(view, folder)
                if shown is not None and name in self.figures:
                    shown.savefig(folder / f"{name}.png", dpi=120)
                    files.append(folder / f"{name}.png")
                elif shown is not None:
                    print(f"\n{name}\n{_text(shown)}")
            except Exception as error:  # noqa: BLE001 (the rows are there: --plot draws again)
                _tell(f"warning: not shown: {name}: {type(error).__name__}: {error}")
        return files

    def _publish(self, files: Sequence[Path], folder: Path) -> None:
        data = Path(inspect.getfile(inspect.unwrap(self.run))).resolve().parent / "data"
        others = folder.glob(self.other_files) if self.other_files else ()
        for file in [*files, *others]:
            target = data / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
        print(f"published in {data}")


def _text(table: pd.DataFrame | pd.Series) -> str:
    """The table with three digits; an index of numbers only is left out."""
    table = table.to_frame() if isinstance(table, pd.Series) else table
    plain_index = isinstance(table.index, pd.RangeIndex)

    def cell(value: float) -> str:
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"

    return str(table.to_string(index=not plain_index, float_format=cell, na_rep="-"))


def _tell(message: str) -> None:
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")
