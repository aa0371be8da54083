"""Service times as a run measured them: a mean by size, and how tasks scatter around it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from infra.arrays import BoolArray, FloatArray, Int64Array

SIZE_BINS = 24  # of equally many tasks, for the mean by size
TASKS_A_BIN = 8  # at least
CLASSES = 4  # of sizes that scatter in their own way
TASKS_A_CLASS = 100  # at least
BLOCK_MEMORIES = 3  # length of a resampled block
BLOCK_ALIKE = 16  # tasks: some queries' worth
BINS = 256  # of a run, in which a slow drift is looked for
FEWEST_BINS = 16
FEWEST_STRETCHES = 8  # of a run: longer memories are not told from a trend
GRID = 24  # memories and strengths of a drift that are weighed
SLOW_SHARE = 0.5  # of the mean's variance, or no drift is told
TAIL = 0.025  # beyond each end of an interval
SURE_ERRORS = 3.0  # standard errors: an effect


@dataclass(frozen=True)
class Tasks:
    """Tasks of one stage on one pool in the order of their start.

    `items` and `n_busy` int64[tasks], `took_ns` float64[tasks], `was_idle` and `is_first`
    bool[tasks]. `n_busy`: engines that were busy beside them; `was_idle`: their engine had nothing
    to do before; `is_first`: of its query.
    """

    items: Int64Array
    took_ns: FloatArray
    n_busy: Int64Array
    was_idle: BoolArray
    is_first: BoolArray

    def __len__(self) -> int:
        return len(self.items)

    def at(self, chosen: Int64Array) -> Tasks:
        """The chosen ones, in this order."""
        return Tasks(
            self.items[chosen],
            self.took_ns[chosen],
            self.n_busy[chosen],
            self.was_idle[chosen],
            self.is_first[chosen],
        )


@dataclass(frozen=True)
class Memory:
    """How long residuals remember, in tasks, and the standard error of their mean."""

    tasks: float
    mean_error: float


@dataclass(frozen=True)
class Law:
    """What the order of tasks in time tells, and resampled tasks have lost.

    `classes` [items] of sizes that scatter in their own way. Each engine that is busy beside a
    task, more than usual, adds the share `per_busy` to its time; a task on an engine that was idle
    takes the share `cold` longer (caches, clock). `alike`: tasks of a query scatter alike.
    """

    classes: Int64Array
    per_busy: float
    cold: float
    memory: Memory
    alike: bool

    @property
    def in_order(self) -> bool:
        """Whether residuals are drawn as they followed each other, and not each on its own."""
        return self.alike or self.memory.tasks > 1

    @property
    def block(self) -> int:
        """Tasks that follow each other and are resampled together."""
        return max(BLOCK_ALIKE if self.alike else 1, math.ceil(BLOCK_MEMORIES * self.memory.tasks))


@dataclass(frozen=True)
class Fit:
    """Times of tasks: `mean_ns` [items] (index 0 unused) x a residual of the size's class.

    `residuals` [class] in the order of time, the first at `positions` [class] among all tasks and
    so on. `starts`: positions of the first tasks of queries. `usual_busy`: engines that were busy
    beside a task, in the mean; `cold_ns`: what a task takes longer on an engine that was idle.
    """

    law: Law
    mean_ns: FloatArray
    residuals: tuple[FloatArray, ...]
    positions: tuple[Int64Array, ...]
    starts: Int64Array
    usual_busy: float
    cold_ns: int
    n_tasks: int

    @property
    def n_memories(self) -> float:
        """How many independent stretches the run has."""
        return self.n_tasks / (2 * max(self.law.memory.tasks, 1.0))

    @property
    def work_ns(self) -> FloatArray:
        """Mean ns by items with the mean of its class's residuals in it."""
        means = np.array([part.mean() for part in self.residuals])
        work_ns: FloatArray = self.mean_ns * means[self.law.classes]
        return work_ns

    def beside_ns(self, most: int) -> list[FloatArray]:
        """Mean ns by items beside 0 .. `most` busy engines; once where these change nothing."""
        if not self.law.per_busy:
            return [self.mean_ns]
        factors = 1 + self.law.per_busy * (np.arange(most + 1) - self.usual_busy)
        return [factor * self.mean_ns for factor in np.maximum(0.1, factors)]


def memory_of(residuals: FloatArray) -> Memory:
    """Noise of single tasks, and perhaps a slow drift under it, by the spectrum of short bins.

    Whittle's likelihood of white noise plus a first-order autoregression, over a grid of the
    drift's memory and strength with flat priors in their logarithms (the scale is integrated out):
    so what the run is too short to tell widens the error. Source: Whittle, Arkiv foer matematik 2
    (1953); the error of a mean from the spectrum at 0: Heidelberger and Welch, CACM 24 (1981).
    """
    n = len(residuals)
    width = max(1, n // BINS)
    n_bins = n // width
    binned = residuals[: n_bins * width].reshape(n_bins, width).mean(axis=1)
    if n_bins < FEWEST_BINS or binned.std() <= 1e-9 * abs(float(binned.mean())):
        return Memory(1.0, float(residuals.std()) / math.sqrt(n))
    power = np.abs(np.fft.rfft(binned - binned.mean()))[1 : (n_bins + 1) // 2] ** 2 / n_bins
    angle = 2 * np.pi * np.arange(1, len(power) + 1) / n_bins
    memories = np.geomspace(1, n_bins / FEWEST_STRETCHES, GRID)[:, None, None]  # in bins
    strengths = np.concatenate([[0.0], np.geomspace(0.03, 30, GRID)])[None, :, None]
    phi = np.exp(-1 / memories)
    shape = 1 + strengths * (1 - phi**2) / (1 - 2 * phi * np.cos(angle) + phi**2)
    scaled = (power / shape).mean(axis=2)
    log_likelihood = -np.log(shape).sum(axis=2) - len(power) * np.log(scaled)
    weight = np.exp(log_likelihood - log_likelihood.max())
    weight[:, 0] *= GRID  # no drift is as likely as any
    weight /= weight.sum()
    at_zero = (strengths * (1 + phi) / (1 - phi))[:, :, 0]
    errors = np.sqrt(scaled * (1 + at_zero) / n_bins)
    slow = weight * at_zero / (1 + at_zero)
    remembered = float(np.exp((slow * np.log(memories[:, :, 0])).sum() / slow.sum())) * width
    share = float(slow.sum())
    return Memory(remembered if share > SLOW_SHARE else 1.0, _mixed_error(errors, weight))


def _mixed_error(errors: FloatArray, weight: FloatArray) -> float:
    """The standard deviation of the normal law whose 95 % reach as far as the mixture's."""
    low = float(errors.min())
    high = float(errors.max())
    for _ in range(40):
        middle = (low + high) / 2
        outside = float((weight * special.ndtr(-1.96 * middle / errors)).sum())
        low, high = (middle, high) if outside > TAIL else (low, middle)
    return high


def mean_by_items(items: Int64Array, took_ns: FloatArray, largest: int) -> FloatArray:
    """Mean ns by number of items, 0 .. largest: means of bins of equally many tasks.

    Linear between them, and beyond them by the cost of an item.
    """
    order = np.argsort(items, kind="stable")
    sizes = items[order]
    n_bins = max(1, min(SIZE_BINS, len(items) // TASKS_A_BIN))
    borders = np.unique(np.quantile(sizes, np.linspace(0, 1, n_bins + 1)[1:-1]))
    begins = np.unique([0, *np.searchsorted(sizes, borders)])
    counts = np.diff([*begins, len(items)])
    bin_items = np.add.reduceat(sizes.astype(float), begins) / counts
    bin_ns = np.add.reduceat(took_ns[order], begins) / counts
    every_size = np.arange(largest + 1)
    mean_ns: FloatArray = np.interp(every_size, bin_items, bin_ns)
    if len(bin_items) > 1:
        item_ns = max(0.0, (bin_ns[-1] - bin_ns[0]) / (bin_items[-1] - bin_items[0]))
        below = np.maximum(bin_ns[0] - item_ns * (bin_items[0] - every_size), 0.2 * bin_ns[0])
        beyond = bin_ns[-1] + item_ns * (every_size - bin_items[-1])
        mean_ns = np.where(every_size < bin_items[0], below, mean_ns)
        mean_ns = np.where(every_size > bin_items[-1], beyond, mean_ns)
    return mean_ns


def size_classes(items: Int64Array, largest: int) -> Int64Array:
    """The class of every size 0 .. largest: of equally many tasks."""
    n_classes = max(1, min(CLASSES, len(items) // TASKS_A_CLASS))
    borders = np.unique(np.quantile(items, np.linspace(0, 1, n_classes + 1)[1:-1]))
    borders = borders[borders > items.min(initial=0)]
    return np.searchsorted(borders, np.arange(largest + 1), side="right").astype(np.int64)


def fit(tasks: Tasks, largest: int, law: Law | None = None) -> Fit:
    """The times of these tasks, for sizes up to `largest`; `law` of resampled ones."""
    law = law or law_of(tasks, largest)
    mean_ns, residuals = _without_effects(tasks, largest, law.per_busy, law.cold)
    of_task = law.classes[tasks.items]
    positions = [np.flatnonzero(of_task == i) for i in range(int(law.classes.max()) + 1)]
    everything = np.arange(len(tasks))  # for a class that a resample does not have
    positions = [part if len(part) else everything for part in positions]
    return Fit(
        law,
        mean_ns,
        tuple(residuals[part] for part in positions),
        tuple(positions),
        np.flatnonzero(tasks.is_first),
        float(tasks.n_busy.mean()),
        round(law.cold * float(mean_ns[tasks.items].mean())),
        len(tasks),
    )


def law_of(tasks: Tasks, largest: int) -> Law:
    """What the order of the tasks tells."""
    per_busy, cold = _effects(_without_effects(tasks, largest, 0.0, 0.0)[1], tasks)
    _, residuals = _without_effects(tasks, largest, per_busy, cold)
    alike = scatter_alike(residuals, tasks.is_first)
    return Law(size_classes(tasks.items, largest), per_busy, cold, memory_of(residuals), alike)


def _without_effects(
    tasks: Tasks, largest: int, per_busy: float, cold: float
) -> tuple[FloatArray, FloatArray]:
    """Mean ns by items and residuals, as if no engine were idle, and as many busy as usual."""
    usual_busy = float(tasks.n_busy.mean())
    effect = 1 + per_busy * (tasks.n_busy - usual_busy) + cold * tasks.was_idle
    took_ns = tasks.took_ns / effect
    mean_ns = mean_by_items(tasks.items, took_ns, largest)
    return mean_ns, took_ns / mean_ns[tasks.items]


def scatter_alike(residuals: FloatArray, is_first: BoolArray) -> bool:
    """Whether a query's tasks are surely more alike than those of different queries."""
    second = np.flatnonzero(~is_first[1:]) + 1  # whose query's task is the one before
    around = residuals - residuals.mean()
    variance = float((around * around).mean())
    if len(second) < TASKS_A_CLASS or variance == 0:
        return False
    within = float((around[second] * around[second - 1]).mean()) / variance
    return within > SURE_ERRORS / math.sqrt(len(second))


def _effects(residuals: FloatArray, tasks: Tasks) -> tuple[float, float]:
    """Shares that a busy neighbour, and an idle engine, add to a task's time; 0 where not sure."""
    columns = {"busy": tasks.n_busy.astype(float), "cold": tasks.was_idle.astype(float)}
    columns = {name: x - x.mean() for name, x in columns.items() if x.std() > 0}
    sure = _sure_slopes(columns, residuals)
    while len(sure) < len(columns):  # those that remain, without the others
        columns = {name: columns[name] for name in sure}
        sure = _sure_slopes(columns, residuals)
    cold = sure.get("cold", 0.0)
    warm = 1 - cold * float(tasks.was_idle.mean())  # residual of a task on a busy engine
    return sure.get("busy", 0.0), cold / warm


def _sure_slopes(columns: dict[str, FloatArray], y: FloatArray) -> dict[str, float]:
    """Slopes of y by columns with mean 0 that are surely above 0; by least squares."""
    if not columns:
        return {}
    x = np.column_stack([*columns.values()])
    around = y - y.mean()
    slopes, *_ = np.linalg.lstsq(x, around, rcond=None)
    scatter = around - x @ slopes
    variance = float(scatter @ scatter) / max(len(x) - x.shape[1] - 1, 1)
    errors = np.sqrt(variance * np.diag(np.linalg.pinv(x.T @ x)))
    by_name = zip(columns, slopes.tolist(), errors, strict=True)
    return {name: slope for name, slope, error in by_name if slope > SURE_ERRORS * error}


def tasks_of(table: pd.DataFrame, stage: int, *, offloaded: bool) -> Tasks:
    """Tasks of one stage, on its own pool or offloaded, from a run's rows in order of start.

    The rows have `is_offloaded`, `n_busy` and `was_idle`, too.
    """
    chosen = ((table["stage"] == stage) & (table["is_offloaded"] == offloaded)).to_numpy()
    table = table[chosen]
    return Tasks(
        table["n_items"].to_numpy(np.int64),
        (table["end_ns"] - table["start_ns"]).to_numpy(float),
        table["n_busy"].to_numpy(np.int64),
        table["was_idle"].to_numpy(bool),
        (table["part"] == 0).to_numpy(),
    )


def busy_beside(table: pd.DataFrame) -> Int64Array:
    """Engines that were busy beside each task when it began (rows in order of start)."""
    start_ns = table["start_ns"].to_numpy(np.int64)
    ended = np.searchsorted(np.sort(table["end_ns"].to_numpy(np.int64)), start_ns, side="right")
    n_busy: Int64Array = np.maximum(np.arange(len(table)) - ended, 0).astype(np.int64)
    return n_busy
