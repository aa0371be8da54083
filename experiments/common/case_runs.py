"""Cases are computed one after the other or in several processes; a signal ends them cleanly."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from experiments.common.case_log import RowTables, row_of

_PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGINT, signal.SIGTERM)
RunCase = Callable[[Any], Mapping[str, Sequence[Any]]]


@dataclass(frozen=True)
class CaseOutcome:
    """The rows of a case, or why there are none."""

    tables: RowTables
    failure: str = ""  # one line
    trace: str = ""


def attempt(run: RunCase, case: Any) -> CaseOutcome:
    """The case's rows; what `run` raises becomes a failure."""
    try:
        return CaseOutcome(
            {name: [row_of(row) for row in rows] for name, rows in run(case).items()}
        )
    except (Exception, SystemExit) as error:  # noqa: BLE001 (the other cases go on)
        message = " ".join(str(error).split())
        return CaseOutcome({}, f"{type(error).__name__}: {message}", traceback.format_exc())


def in_turn(run: RunCase, todo: Mapping[str, Any]) -> Generator[tuple[str, CaseOutcome]]:
    """Digest and outcome, case by case."""
    for digest, case in todo.items():
        yield digest, attempt(run, case)


def in_processes(
    run: RunCase, todo: Mapping[str, Any], n_processes: int
) -> Generator[tuple[str, CaseOutcome]]:
    """Digest and outcome as cases end. The processes are forked at once: no thread runs yet."""
    before = set(multiprocessing.active_children())
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(n_processes, fork, initializer=_enter_worker, initargs=(run,))
    digests = {pool.submit(_attempt_in_worker, case): digest for digest, case in todo.items()}
    workers = set(multiprocessing.active_children()) - before

    def ended() -> Generator[tuple[str, CaseOutcome]]:
        try:
            for job in as_completed(digests):
                yield digests[job], _outcome(job)
        except BaseException:
            for process in workers:
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    return ended()


def _outcome(job: Future[CaseOutcome]) -> CaseOutcome:
    failure = job.exception()  # where the process itself has died
    return CaseOutcome({}, f"{type(failure).__name__}: {failure}") if failure else job.result()


_run_of_worker: RunCase | None = None


def _enter_worker(run: RunCase) -> None:
    """Begin a worker: it dies with its parent, which alone listens to Ctrl-C."""
    global _run_of_worker  # noqa: PLW0603 (a worker serves one study)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _run_of_worker = run


def _attempt_in_worker(case: Any) -> CaseOutcome:
    assert _run_of_worker is not None, "the worker has begun"
    return attempt(_run_of_worker, case)


@contextlib.contextmanager
def noted_signals() -> Iterator[Callable[[], int]]:
    """SIGINT and SIGTERM raise KeyboardInterrupt; the function tells which came, else 0.

    It also knows of those that a session has handled meanwhile: all are written to a pipe.
    """
    read_end, write_end = os.pipe()
    numbers = bytearray()

    def came() -> int:
        with contextlib.suppress(BlockingIOError):
            numbers.extend(os.read(read_end, 64))
        return next((number for number in numbers if number in SIGNALS), 0)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(read_end)
        os.close(write_end)
