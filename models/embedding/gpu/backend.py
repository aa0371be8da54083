"""A CUDA device as a backend: plans become kernels written by Triton."""

# B items, T tables, C columns = sum of D, E elements of all tables

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.embedding.backend import (
    Backend,
    Call,
    Choice,
    Cluster,
    FloatArray,
    Refused,
    Run,
    rule_plan,
)
from models.embedding.gpu.candidates import Load, gpu_candidates
from models.embedding.gpu.look_up import TritonBags
from models.embedding.gpu.schedules import branch_of
from models.embedding.gpu.timing import device_seconds
from models.embedding.jagged import Bags
from models.embedding.plan.catalogue import WARPS, Params
from models.embedding.plan.plan import Bucket, Groups, Plan, params
from models.embedding.plan.spec import Layout, TableSpec, alike

_BATCHES = (8, 64, None)  # buckets of a plan that is not tuned
_LARGE_BATCH = 512
_USUAL_IDS = 10.0
_MANY_IDS = 30
_FULL_ELEMENTS = 1 << 24  # reads that keep an H200 busy for some 15 microseconds
MOST_CANDIDATES = 6
_COMPILERS = 16
# 1536 threads on an SM of 65536 registers; kernels of all branches take 56 to 64
_FEW_REGISTERS = 40
# one launch for all, by warps or registers; one a schedule; one a group, each of warps of its own
KNOBS = (
    # of one warp, an SM's 32 programs half fill it
    *(params(launch="fused", warps=warps) for warps in WARPS if warps > 1),
    params(launch="fused", warps=WARPS[0], max_registers=_FEW_REGISTERS),
    params(launch="by_schedule", warps=WARPS[0]),
    params(launch="grouped"),
)
# bags and ids of each; elements
UNIFORM_TILES = (1, 4, 16)
_LARGEST_UNIFORM = 4096


@dataclass
class Meter:
    """How often the last call looked its batch up."""

    repeats: int = 1


def triton_error() -> type[Exception]:
    """What Triton raises for kernels that it cannot compile or launch.

    For one, of too much shared memory.
    """
    from triton.errors import TritonError  # noqa: PLC0415 (optional)

    error: type[Exception] = TritonError
    return error


class CudaRun:
    """One bucket on a device."""

    def __init__(self, look_up: TritonBags, meter: Meter) -> None:
        self.look_up = look_up
        self._meter = meter

    def __call__(self, bags: Bags, out_BC: Tensor) -> None:
        """Write the columns of the bucket's tables.

        Raises ValueError for wrong ids or offsets if checked.
        """
        try:
            self.look_up(bags.ids_L, bags.offsets, out_BC, item_major=bags.item_major)
        except triton_error() as error:
            raise Refused(" ".join(str(error).split())) from error
        self._meter.repeats = self.look_up.repeats(bags.n_items)


class CudaBackend(Backend):
    """One CUDA device; `checked` look-ups wait for it.

    `knobs` are its settings; it offers at most so many candidates for a kind of tables.
    """

    name = "cuda"

    def __init__(self, knobs: Sequence[Params] = KNOBS, most: int = MOST_CANDIDATES) -> None:
        self._knobs = tuple(knobs)
        self._most = most
        self._fill_elements = 0
        self._meter = Meter()
        self._compiled: set[object] = set()

    def versions(self) -> dict[str, str]:
        """The device, PyTorch and Triton."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        has_triton = importlib.util.find_spec("triton") is not None
        triton = importlib.metadata.version("triton") if has_triton else "not installed"
        return {"gpu": device, "torch": torch.__version__, "triton": triton}

    def default_plan(self, specs: Sequence[TableSpec], *, joined: bool = False) -> Plan:
        """The first guess for each kind of table, bags of unknown length taken to have 10 ids."""
        del joined
        buckets = []
        for max_batch in _BATCHES:
            tables_of: dict[Choice, list[int]] = {}
            for spec, tables in alike(specs).items():
                mean_ids = _USUAL_IDS if spec.bag_ids is None else float(spec.bag_ids)
                most_ids = _MANY_IDS if spec.bag_ids is None else spec.bag_ids
                load = Load(max_batch or _LARGE_BATCH, mean_ids, most_ids, len(tables))
                guess = gpu_candidates(spec, load, warps=(4,))[0]
                tables_of.setdefault(guess, []).extend(tables)
            groups = tuple(choice.group(sorted(tables)) for choice, tables in tables_of.items())
            buckets.append(Bucket(max_batch, groups))
        return rule_plan(self.name, specs, *buckets)

    def build(self, layout: Layout, weight_E: Tensor, bucket: Bucket, *, checked: bool) -> Run:
        """See Backend."""
        look_up = TritonBags(
            layout, bucket, weight_E, check=checked, fill_elements=self._fill_elements
        )
        return CudaRun(look_up, self._meter)

    def prepare(
        self,
        layout: Layout,
        weight_E: Tensor,
        buckets: Sequence[Bucket],
        bags: Bags,
        seconds: float,
    ) -> None:
        """See Backend: a thread a core, as Triton's compiler mostly runs outside of Python."""
        end_s = time.monotonic() + seconds
        kernels = dict[object, Callable[[], object]]()
        for bucket in buckets:
            kernels |= TritonBags(layout, bucket, weight_E).compiling(
                bags.ids_L, bags.offsets, item_major=bags.item_major
            )

        def in_time(key: object) -> bool:
            if time.monotonic() >= end_s:
                return False
            try:
                kernels[key]()
            except triton_error():
                return True  # the call that needs it will say so
            return True

        fresh = [key for key in kernels if key not in self._compiled]
        with ThreadPoolExecutor(min(os.cpu_count() or 1, _COMPILERS)) as threads:
            done = [*threads.map(in_time, fresh)]
        self._compiled |= {*itertools.compress(fresh, done)}

    def uniform(
        self, specs: Sequence[TableSpec], settings: Params, *, joined: bool
    ) -> Sequence[Groups]:
        """`bags` of several tiles, for all tables alike."""
        del joined
        widest = max(specs, key=lambda spec: spec.dim)
        tiles = itertools.product(UNIFORM_TILES, UNIFORM_TILES, _warps(settings, (1, 4)))
        knobs = [params(tile_bags=bags, tile_ids=ids, warps=warps) for bags, ids, warps in tiles]
        return [
            (Choice("bags", chosen).group(range(len(specs))),)
            for chosen in knobs
            if branch_of(widest, "bags", chosen).elements <= _LARGEST_UNIFORM
        ]

    def settings(self, specs: Sequence[TableSpec]) -> Sequence[Params]:
        """How many threads share an SM is a knob of the whole: see KNOBS."""
        del specs
        return self._knobs

    def candidates(self, cluster: Cluster, settings: Params, max_error: float) -> Sequence[Choice]:
        """See Backend; rows are stored as they are."""
        del max_error
        load = Load(cluster.n_items, cluster.mean_ids, cluster.most_ids, len(cluster.tables))
        if torch.cuda.is_available():
            n_sms = torch.cuda.get_device_properties().multi_processor_count
            load = dataclasses.replace(load, n_sms=n_sms)
        return gpu_candidates(cluster.spec, load, _warps(settings, WARPS), self._most)

    @contextmanager
    def contended(self, settings: Params) -> Iterator[None]:
        """What is built within it repeats its look-ups until they load the device as all do."""
        del settings
        self._fill_elements = _FULL_ELEMENTS
        try:
            yield
        finally:
            self._fill_elements = 0

    def seconds(self, calls: Sequence[Call], n_rounds: int) -> FloatArray:
        """Time of one look-up by events, rows not in L2; two rounds before count for nothing."""
        repeats = []
        for call in calls:
            self._meter.repeats = 1
            call(0)
            repeats.append(self._meter.repeats)
        self.clock(calls, 2)
        return np.asarray(self.clock(calls, n_rounds) / np.array(repeats)[:, None])

    def clock(self, calls: Sequence[Call], n_rounds: int) -> FloatArray:
        """(calls, rounds), whatever a call does."""
        return device_seconds(calls, n_rounds)


def _warps(settings: Params, free: Sequence[int]) -> Sequence[int]:
    """The warps of the settings, or those to choose from where they leave them free."""
    warps = int(dict(settings).get("warps", 0))
    return (warps,) if warps else free
