"""Does the run fit in memory? Asked before anything is built."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # SciPy comes with it; what runs on a borrowed GPU does without
    from infra.deployment import Deployment

GIB = 1 << 30
LEAST_SCALE = 0.001
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
        available = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
        assert available is not None
        return int(available[1]) << 10
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


def check_memory(deployment: Deployment) -> None:
    """Raise ConfigError if tables, inputs and engines do not fit; the message says what to change.

    Stages with the same model and weights share their tables, those with the same model the inputs.
    """
    tables = {(stage.model, stage.checkpoint): stage.model for stage in deployment.stages}
    sizes = {
        "arch_embedding_size": sum(model.table_bytes for model in tables.values()),
        "num_batches": sum(
            replace(deployment.config, model=model).input_bytes for model in deployment.models
        ),
        "inference_engines": sum(pool.engines for pool in deployment.pools) * ENGINE_BYTES,
    }
    needed = sum(sizes.values()) + BASE_BYTES
    free = free_bytes()
    if needed <= free:
        return
    shown = {name: f"{size / GIB:.1f}" for name, size in sizes.items()}
    n_engines = sum(pool.engines for pool in deployment.pools)
    parts = (
        f"tables {shown['arch_embedding_size']}, inputs {shown['num_batches']}, "
        f"{n_engines} engines {shown['inference_engines']}"
    )
    raise deployment.wrong_setting(
        max(sizes, key=lambda name: sizes[name]),
        f"needs {needed / GIB:.1f} GiB ({parts}), but {free / GIB:.1f} GiB are free; "
        f"{_advice(deployment, free - needed + sizes['arch_embedding_size'])}",
    )


def _advice(deployment: Deployment, room: int) -> str:
    """What makes it fit; `room`: bytes that are left for tables."""
    largest = max(deployment.models, key=lambda model: model.table_bytes)
    others = sum(
        stage.model.table_bytes
        for stage in {
            (stage.model, stage.checkpoint): stage for stage in deployment.stages
        }.values()
        if stage.model != largest
    )
    scale = (room - others) / largest.table_bytes * largest.table_scale
    if scale > LEAST_SCALE:
        return f"try --table_scale {max(int(scale * 90) / 100, LEAST_SCALE):g}"
    return (
        "the inputs and engines alone are too large: lower --num_batches, --max_mini_batch_size or "
        "the engines"
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
