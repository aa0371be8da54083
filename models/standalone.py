"""A model on its own, without queue and engines: `python models/<model>.py ...`.

So does DeepRecSys.py without --queue.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from infra.deployment import one_model
from infra.memory import check_memory
from infra.progress import Progress
from infra.settings.cli import parse
from infra.settings.config import RunConfig
from models import build
from models.base import RecModel
from models.embedding.plan.plan import plan_of
from models.inputs.sources import source_of
from models.inputs.synthetic import InputPool
from models.operator_times import operator_times

WARMUP_ITERATIONS = 3


@dataclass(frozen=True)
class StandaloneTimes:
    """Sums over `n_iterations` in ms: slicing (and copying to the device), forward, and both."""

    n_iterations: int
    load_ms: float
    compute_ms: float

    def numbers(self) -> list[float]:
        """The release's six: total and per iteration, of loading, computation and execution."""
        sums = (self.load_ms, self.compute_ms, self.load_ms + self.compute_ms)
        return [number for total in sums for number in (total, total / self.n_iterations)]

    def lines(self) -> list[str]:
        """The six lines that scripts of the release cut between `***` and `ms`."""
        names = ("data loading", "computation", "execution")
        labels = [(f"Total {name} time", unit) for name in names for unit in ("ms", "ms/iter")]
        return [
            f"{label}: ***  {number:.6g}  {unit}"
            for (label, unit), number in zip(labels, self.numbers(), strict=True)
        ]


def time_model(
    model: RecModel, inputs: InputPool, batch_items: int, n_epochs: int, device: torch.device
) -> StandaloneTimes:
    """Time `n_epochs` passes over the pool's inputs at one batch size.

    A few iterations before are not counted.
    """
    load_ns = compute_ns = 0
    n_iterations = n_epochs * inputs.n_inputs
    with torch.inference_mode():
        for i in range(-WARMUP_ITERATIONS, n_iterations):
            start_ns = time.perf_counter_ns()
            batch = inputs.batch(i % inputs.n_inputs, 0, batch_items)
            if device.type == "cuda":
                batch = batch.to(device)
                torch.cuda.synchronize()
            loaded_ns = time.perf_counter_ns()
            model(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i >= 0:
                load_ns += loaded_ns - start_ns
                compute_ns += time.perf_counter_ns() - loaded_ns
    return StandaloneTimes(n_iterations, load_ns / 1e6, compute_ns / 1e6)


def choose_device(use_accel: bool) -> torch.device:
    """The CUDA device if asked for; raises ValueError if there is none."""
    if use_accel and not torch.cuda.is_available():
        raise ValueError(
            "--use_accel: PyTorch sees no CUDA device here; leave it out to run on the CPU"
        )
    return torch.device("cuda" if use_accel else "cpu")


def run(config: RunConfig) -> None:
    """Build, time and print; raises ValueError for what cannot be run here."""
    device = choose_device(config.engines.use_accel)
    plan_of(config.model, [device.type])
    check_memory(one_model(config, n_engines=0))
    source_of(config.model, config.inputs)  # unusable files are found before tables are built
    torch.set_num_threads(config.engines.n_threads)
    with Progress(config.output.progress) as progress:
        with progress.step(f"building {config.model.name}'s tables") as on_progress:
            model = build(config.model, config.inputs.numpy_rand_seed, on_progress, device)
        with progress.step("drawing inputs") as on_progress:
            inputs = InputPool.of(config, on_progress)
    n_items = config.inputs.mini_batch_size
    n_epochs = config.inputs.nepochs
    if config.output.enable_profiling:
        time_model(model, inputs, n_items, 1, device)  # the first calls are not typical
        with operator_times(model) as self_ms:
            times = time_model(model, inputs, n_items, n_epochs, device)
        _print_operators(self_ms, times)
    else:
        times = time_model(model, inputs, n_items, n_epochs, device)
    print("\n".join(times.lines()))


def _print_operators(self_ms: dict[str, float], times: StandaloneTimes) -> None:
    """Print shares of the forward's time.

    Warm-up is in the operators' sums and in what they are divided by.
    """
    n_calls = times.n_iterations + WARMUP_ITERATIONS
    per_iteration = {name: ms / n_calls for name, ms in self_ms.items()}
    total = max(times.compute_ms / times.n_iterations, sum(per_iteration.values()))
    per_iteration["Other"] = total - sum(per_iteration.values())
    print(f"{'operator':<20} {'ms/iter':>10} {'share':>8}")
    for name, ms in sorted(per_iteration.items(), key=lambda item: -item[1]):
        print(f"{name:<20} {ms:>10.4f} {ms / total:>8.1%}")


def main(argv: Sequence[str], model_type: str) -> int:
    """Command line of `python models/<model>.py`; returns the exit code."""
    prog = f"models/{model_type}"
    config = parse(argv, prog, forced={"model_type": model_type})
    try:
        if config.model.model_type != model_type:
            raise ValueError(
                f"model_type is {config.model.model_type!r} in the configuration, but this is "
                f"{model_type!r}"
            )
        run(config)
    except ValueError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return 130
    return 0
