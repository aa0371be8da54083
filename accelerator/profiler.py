#!/usr/bin/env python3
"""Measures models on a device of this machine over batch sizes 1 to 4096: the device's profiles.

python accelerator/profiler.py --device cpu_core [--models rm1,wnd] [--neighbours N] [more flags]

More flags are those of DeepRecSys.py. A CPU core is measured alone and, with --neighbours, while 1,
..., N other cores run the same model; the spread of the times is written beside the medians. A CUDA
device is timed by events, with the transfer of the inputs (the profile) and without (a second file,
<model>_compute.csv).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import contextlib
import ctypes
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.synchronize import Semaphore

import numpy as np
import torch

from accelerator.devices import (
    BATCHES,
    Device,
    accelerator_root,
    configurations,
    load_device,
    model_configs,
    profile_key,
)
from accelerator.latency import PROFILED_BATCHES, Profile, spread_of, write_profile
from infra.deployment import one_model
from infra.memory import check_memory
from infra.progress import OnFraction, Progress
from infra.provenance import cpu_name, package_versions, usable_cores
from infra.settings.config import RunConfig
from models import build
from models.base import RecModel
from models.batch import Batch
from models.inputs.query_pool import QueryPool
from models.inputs.synthetic import InputPool
from models.standalone import time_model

Inputs = InputPool | QueryPool
_REPEATS = 60  # calls of a batch, as far as the budget allows
_BUDGET_S = 1.0
_ROUNDS = 5
_SETTLE_S = 0.02
_START_S = 60
_NEIGHBOUR_ITEMS = 64
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def measure_cpu_core(model: RecModel, inputs: Inputs, batches: Sequence[int] = BATCHES) -> Profile:
    """Median ms of slicing and forward on a core, one thread; fresh items for each call.

    It takes some seconds in all. Batches beyond the pool's inputs are left out; the largest input
    is measured in their place.
    """
    return measure_cpu_cores(model, inputs, batches, 0)


def measure_cpu_cores(
    model: RecModel,
    inputs: Inputs,
    batches: Sequence[int],
    n_neighbours: int,
    on_fraction: OnFraction | None = None,
) -> Profile:
    """The same, and while 1, ..., `n_neighbours` forked neighbours run the model on their inputs.

    The spread is that beside the most neighbours.
    """
    torch.set_num_threads(1)
    sizes = sorted({min(n, inputs.max_items) for n in batches})
    # Caches, page tables and clocks settle.
    _times_s(model, inputs, min(_NEIGHBOUR_ITEMS, inputs.max_items), _BUDGET_S)
    levels: dict[int, dict[int, float]] = {n_busy: {} for n_busy in range(n_neighbours + 1)}
    spread: dict[int, tuple[float, ...]] = {}
    rounds = _ROUNDS if n_neighbours else 1
    with neighbours(model, inputs, n_neighbours) as keep_busy:
        for done, n in enumerate(sizes):
            times_s: dict[int, list[float]] = {n_busy: [] for n_busy in levels}
            # In turn, so that what else happens on the machine meets all of them.
            for n_busy in [*levels] * rounds:
                keep_busy(n_busy)
                times_s[n_busy] += _times_s(model, inputs, n, _BUDGET_S / rounds)
            for n_busy, level in levels.items():
                median_s = statistics.median(times_s[n_busy])
                level[n] = median_s * 1e3
                spread[n] = spread_of(np.array(times_s[n_busy]), median_s)
            if on_fraction is not None:
                on_fraction((done + 1) / len(sizes), f"batch {n}")
    source = _measured("on this machine, one thread, median")
    return Profile(levels.pop(0), source, levels, spread)


def _measured(how: str) -> dict[str, str]:
    """Where measured times come from."""
    return {
        "source": f"measured {how}",
        "cpu": cpu_name(),
        "torch": package_versions()["torch"],
        "date": time.strftime("%Y-%m-%d"),
    }


def measure_cuda(
    model: RecModel, inputs: Inputs, batches: Sequence[int], *, with_transfer: bool
) -> Profile:  # pragma: no cover (needs a GPU)
    """Median ms by CUDA events of forward on the device.

    `with_transfer`: the copy of the inputs from pinned memory is included.
    """
    where = torch.device("cuda")
    cuda: Any = torch.cuda  # its streams and events have no types
    stream = cuda.Stream()
    on_device = model.to(where)
    sizes = sorted({min(n, inputs.max_items) for n in batches})
    batch_ms = {}
    with torch.inference_mode(), cuda.stream(stream):
        for n in sizes:
            times = []
            for i in range(_REPEATS + 5):
                host = _slice(inputs, i, n).pinned()
                batch = host if with_transfer else host.to(where)
                begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
                stream.synchronize()
                begin.record(stream)
                on_device(batch.to(where))
                end.record(stream)
                end.synchronize()
                times.append(begin.elapsed_time(end))
            batch_ms[n] = statistics.median(times[5:])
    how = f"with CUDA events, {'with' if with_transfer else 'without'} the transfer, median"
    return Profile(batch_ms, {**_measured(how), "gpu": torch.cuda.get_device_name()})


@contextmanager
def neighbours(model: RecModel, inputs: Inputs, n: int) -> Iterator[Callable[[int], None]]:
    """n processes that run the model; what is yielded lets the first k work and stops the rest.

    Raises RuntimeError if a process does not start.
    """
    context = multiprocessing.get_context("fork")
    parent = os.getpid()
    ready = context.Semaphore(0)
    processes = [
        context.Process(target=_keep_busy, args=(model, inputs, i, parent, ready), daemon=True)
        for i in range(n)
    ]

    def keep_busy(n_busy: int) -> None:
        for i, process in enumerate(processes):
            os.kill(process.pid or 0, signal.SIGCONT if i < n_busy else signal.SIGSTOP)
        if processes:
            time.sleep(_SETTLE_S)

    try:
        for process in processes:
            process.start()
        if not all(ready.acquire(timeout=_START_S) for _ in processes):
            raise RuntimeError(f"a neighbour did not start within {_START_S} s")
        yield keep_busy
    finally:
        for process in processes:
            process.kill()
            process.join()


@torch.inference_mode()
def _keep_busy(model: RecModel, inputs: Inputs, index: int, parent: int, ready: Semaphore) -> None:
    # A stopped neighbour looks at nothing: the kernel ends it with its parent.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    ready.release()  # from here on it may be stopped
    i = index
    while os.getppid() == parent:
        i += 1
        model(_slice(inputs, i, min(_NEIGHBOUR_ITEMS, inputs.max_items)))


def _slice(inputs: Inputs, i: int, n_items: int) -> Batch:
    """The i-th batch of fresh items."""
    first = (i * n_items) % (inputs.max_items - n_items + 1)
    return inputs.batch(i % inputs.n_inputs, first, n_items)


def torch_device(device: Device) -> torch.device:
    """Where this device's models run; raises ValueError if the device is not in this machine."""
    if device.settings.get("torch") == "cpu":
        return torch.device("cpu")
    wanted = str(device.settings.get("cuda_name", device.name))
    present = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    if wanted in present:
        return torch.device("cuda")
    problem = f"needs a {wanted}, but here is {present}"
    if device.kind == "speedup":
        problem += "; its times are derived from this machine's CPU core and "
        problem += "published_speedup.csv without it"
    raise ValueError(problem)


def standalone_rows(
    device: Device, config: RunConfig, on_fraction: OnFraction
) -> list[list[float]]:
    """The six numbers of a standalone run on the device, by batch; see models.standalone."""
    where = torch_device(device)
    torch.set_num_threads(1)
    seed = config.inputs.numpy_rand_seed
    rows = []
    model = build(config.model, seed, device=where)
    inputs = InputPool(config.model, config.inputs.num_batches, BATCHES[-1], seed)
    for i, batch in enumerate(BATCHES):
        on_fraction(i / len(BATCHES), f"{config.model.name}, batch {batch}")
        rows.append(time_model(model, inputs, batch, config.inputs.nepochs, where).numbers())
    return rows


@torch.inference_mode()
def _times_s(model: RecModel, inputs: Inputs, n_items: int, budget_s: float) -> list[float]:
    """Times of some calls on fresh items, the first two left out.

    A core that was idle is slow at first, so it runs warm.
    """
    begun = time.perf_counter()
    while time.perf_counter() - begun < _SETTLE_S:
        model(inputs.batch(0, 0, n_items))
    times = []
    begun = time.perf_counter()
    for i in range(_REPEATS + 2):
        start = time.perf_counter()
        model(_slice(inputs, i, n_items))
        times.append(time.perf_counter() - start)
        if time.perf_counter() - begun > budget_s and i >= 4:
            break
    return times[2:]


def profile_model(
    device: Device, config: RunConfig, n_neighbours: int, on_fraction: OnFraction
) -> Path:
    """Measure a model and write the device's profile of it; returns the file."""
    where = torch_device(device)
    seed = config.inputs.numpy_rand_seed
    torch.set_num_threads(1)
    model = build(config.model, seed, device=where)
    inputs = InputPool(
        config.model, config.inputs.num_batches, config.inputs.max_mini_batch_size, seed
    )
    path = device.characterization(config.model)
    names = {"device": device.name, "model": config.model.name}

    def write(path: Path, profile: Profile, **key: str) -> None:
        write_profile(path, replace(profile, provenance={**names, **profile.provenance, **key}))

    if where.type == "cuda":
        compute = measure_cuda(model, inputs, PROFILED_BATCHES, with_transfer=False)
        write(path.with_stem(f"{path.stem}_compute"), compute)
        profile = measure_cuda(model, inputs, PROFILED_BATCHES, with_transfer=True)
    else:
        profile = measure_cpu_cores(model, inputs, PROFILED_BATCHES, n_neighbours, on_fraction)
    write(path, profile, key=profile_key(config.model, inputs.max_items))
    return path


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    prog = "accelerator/profiler.py"
    parser = argparse.ArgumentParser(
        prog=prog, description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--device", default="cpu_core", help="folder under accel_root_dir")
    parser.add_argument(
        "--models", default=",".join(model_configs()), help="names, comma-separated (default: all)"
    )
    parser.add_argument(
        "--neighbours",
        type=int,
        default=0,
        help="CPU: measure beside 1, ..., this many busy cores too",
    )
    parser.add_argument("--accel_root_dir", default=str(Path(__file__).resolve().parent))
    args, flags = parser.parse_known_args(argv)
    defaults = {"num_batches": 4, "max_mini_batch_size": PROFILED_BATCHES[-1]}
    most = len(usable_cores()) - 1
    try:
        device = load_device(accelerator_root(args.accel_root_dir), args.device)
        torch_device(device)
        if not 0 <= args.neighbours <= most:
            raise ValueError(
                f"--neighbours: {args.neighbours}; expected 0 to {most}, cores minus one"
            )
        for config in configurations(args.models, flags, prog, defaults):
            check_memory(one_model(config, n_engines=args.neighbours))
            with Progress("auto") as progress, progress.step(config.model.name) as on_fraction:
                path = profile_model(device, config, args.neighbours, on_fraction)
            print(path)
    except ValueError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
