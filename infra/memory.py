"""Does the run fit in memory? Asked before anything is built."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from collections.abc import Iterator
from pathlib import Path

from infra.settings.config import ConfigError, RunConfig

BASE_BYTES = 600 << 20  # the driver with PyTorch and the rows of a run
ENGINE_BYTES = 200 << 20  # an engine's own memory beside the shared tables
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 1 << 30
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


def free_bytes() -> int:
    """Memory that a new process can have: the machine's, and no more than the control group's."""
    free = _available_bytes()
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
        used = int(_CGROUP_USED.read_text())
    except (OSError, ValueError):
        return free
    return min(free, int(limit) - used) if limit.isdecimal() else free


def _available_bytes() -> int:
    try:
        import psutil  # noqa: PLC0415 (a borrowed GPU machine may lack it)
    except ImportError:
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
        assert found is not None
        return int(found[1]) << 10
    return int(psutil.virtual_memory().available)


def keep_freed_memory() -> None:
    """Let this process keep what it frees instead of giving it back and asking anew: activations
    come every task.

    An engine's large batches otherwise pay a page fault for every 4 KiB of every activation, every
    time.
    """
    with contextlib.suppress(
        OSError, AttributeError
    ):  # another C library than glibc: slower, not wrong
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def check_memory(config: RunConfig, n_engines: int, others_bytes: int = 0) -> None:
    """Raise ConfigError if tables, inputs and engines do not fit; the message suggests a
    table_scale.

    `others_bytes`: tables and inputs of other models.
    """
    other = config.input_bytes + BASE_BYTES + n_engines * ENGINE_BYTES + others_bytes
    needed = config.model.table_bytes + other
    free = free_bytes()
    if needed <= free:
        return
    gib = 1 << 30
    shares = {
        "arch_embedding_size": config.model.table_bytes,
        "num_batches": config.input_bytes,
        "inference_engines": n_engines * ENGINE_BYTES,
    }
    room = (free - other) / config.model.table_bytes * config.model.table_scale
    advice = (
        f"try --table_scale {max(int(room * 90) / 100, 0.001):g}"
        if room > 0.001
        else "the inputs and engines alone are too large: lower --num_batches, "
        "--max_mini_batch_size or the engines"
    )
    parts = (
        f"tables {shares['arch_embedding_size'] / gib:.1f}, inputs "
        f"{shares['num_batches'] / gib:.1f}"
    )
    raise ConfigError(
        max(shares, key=lambda name: shares[name]),
        f"needs {needed / gib:.1f} GiB ({parts}, {n_engines} engines "
        f"{shares['inference_engines'] / gib:.1f}), but {free / gib:.1f} GiB are free; {advice}",
    )


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A full collection takes tens of ms, and the generator would be late by as much; a run makes
    no cycles.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
