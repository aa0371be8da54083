"""MLPerf's LoadGen in its Server scenario, as a peer: it sends, somebody else answers.

It is an optional package.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infra.clock import monotonic_ns

Complete = Callable[[int], None]  # sample id -> the sample is answered


def serve(
    rate_qps: float, n_queries: int, issue: Callable[[int, Complete], None]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Run `n_queries` at a rate; `issue(sample id, complete)` must not block.

    Returns the times of issuing in ns, as the callback saw them, and LoadGen's latencies in ns,
    which count from the time that its schedule says.
    """
    import mlperf_loadgen as lg  # noqa: PLC0415 (optional)

    issued: list[int] = []

    def complete(sample_id: int) -> None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(sample_id, 0, 0)])

    def on_issue(samples: list[object]) -> None:
        issued.append(monotonic_ns())
        for sample in samples:
            issue(sample.id, complete)  # type: ignore[attr-defined]

    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.Server
    settings.mode = lg.TestMode.PerformanceOnly
    settings.server_target_qps = rate_qps
    settings.server_target_latency_ns = 10**12
    settings.min_query_count = settings.max_query_count = n_queries
    settings.min_duration_ms = 0
    with tempfile.TemporaryDirectory() as folder:
        log = lg.LogSettings()
        log.log_output = lg.LogOutputSettings()
        log.log_output.outdir = folder
        log.log_output.copy_summary_to_stdout = False
        log.enable_trace = False
        sut = lg.ConstructSUT(on_issue, lambda: None)
        qsl = lg.ConstructQSL(1, 1, lambda _: None, lambda _: None)
        try:
            test = (sut, qsl, settings, log)
            runner = threading.Thread(target=lg.StartTestWithLogSettings, args=test)
            runner.start()
            runner.join()
        finally:
            lg.DestroyQSL(qsl)
            lg.DestroySUT(sut)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
    return np.array(issued, np.int64), _percentiles(summary)


def _percentiles(summary: str) -> npt.NDArray[np.int64]:
    """The latencies of LoadGen's summary in ns: 50, 90, 95, 97, 99, 99.9 %."""
    lines = [line for line in summary.splitlines() if "percentile latency (ns)" in line]
    return np.array([int(line.split(":")[1]) for line in lines], np.int64)
