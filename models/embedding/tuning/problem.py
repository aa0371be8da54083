"""What is tuned: tables in memory, batches of several sizes, and the exact sums that every
candidate must give.
"""

# B items, T tables, C columns = sum of D, E elements of all tables

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infra.memory import free_bytes
from infra.settings.config import ModelConfig
from models.embedding.backend import Run
from models.embedding.huge_pages import allocate
from models.embedding.jagged import Bags
from models.embedding.plan.spec import Layout, model_specs
from models.embedding.tuning.recorded import Jagged, Recorded, joined

_LEAST_BATCHES, _MOST_IDS = 64, 8_000_000  # of one size, kept in memory
_ORACLE_ITEMS = 8
# rows of a round of batches: more than caches hold
_MOST_INPUTS = 256
_COLD_BYTES = 256 << 20
_MOST_COLD = 16_384
_LEVELS = (
    15  # weights are the whole numbers -7 to 7, so float32 sums of them are exact in any order
)
_LARGEST = 7.0


@dataclass(frozen=True)
class Problem:
    """Tables with their rows and ids for them, on one device."""

    layout: Layout
    weight_E: Tensor
    batches: Mapping[int, tuple[Bags, ...]]  # batch size: different batches of it
    checks: tuple[tuple[Bags, Tensor], ...]  # batches and their exact sums (B, C) in float64

    def wrong(self, run: Run, columns: Sequence[int], max_error: float) -> str | None:
        """What is wrong with a look-up that must write these tables' columns; None if nothing is.

        `max_error`: of an element over the largest weight; 0: exact.
        """
        for bags, expected_BC in self.checks:
            out = torch.full(
                expected_BC.shape, torch.nan, dtype=torch.float32, device=self.weight_E.device
            )
            run(bags, out)
            lengths_BT = _lengths(bags)
            for table in columns:
                a = int(self.layout.columns[table])
                b = int(self.layout.columns[table + 1])
                error = (out[:, a:b].double() - expected_BC[:, a:b]).abs().amax(1)
                allowed = max_error * _LARGEST * lengths_BT[:, table]
                if not bool((error <= allowed).all()):  # NaN is not
                    return f"table {table} is off by {float(error.max()):.3g}"
        return None


def _lengths(bags: Bags) -> Tensor:
    lengths = torch.diff(bags.offsets)
    if bags.item_major:
        return lengths.view(bags.n_items, bags.n_tables)
    return lengths.view(bags.n_tables, bags.n_items).T


def exact_sums(layout: Layout, weight_E: Tensor, bags: Bags) -> Tensor:
    """(B, C) float64, table by table by index_add: slow and obvious."""
    columns = []
    for table, spec in enumerate(layout.specs):
        ids, offsets = bags.of((table,))
        first = int(layout.elements_T[table])
        rows_RD = weight_E[first : first + spec.rows * spec.dim].view(spec.rows, spec.dim)
        bag = torch.repeat_interleave(
            torch.arange(bags.n_items, device=ids.device), torch.diff(offsets).long()
        )
        sums_BD = torch.zeros(bags.n_items, spec.dim, dtype=torch.float64, device=ids.device)
        columns.append(
            sums_BD.index_add_(
                0, bag, rows_RD[(ids - int(layout.first_ids_T[table])).long()].double()
            )
        )
    return torch.cat(columns, dim=1)


def fill_whole_numbers(weight_E: Tensor) -> None:
    """Small whole numbers that repeat with no row's period."""
    pattern = (
        (torch.arange(1_000_003, device=weight_E.device) * 7919) % _LEVELS - _LEVELS // 2
    ).float()
    for first in range(0, len(weight_E), len(pattern)):
        part = weight_E[first : first + len(pattern)]
        part.copy_(pattern[: len(part)])


def of_model(config: ModelConfig, sizes: Sequence[int], seed: int, device: str = "cpu") -> Problem:
    """A model's tables, its ids as engines get them: item after item, counted through all tables."""
    layout = Layout.joined(model_specs(config))
    largest = max(sizes)
    from models.inputs.synthetic import InputPool  # noqa: PLC0415 (compiled with numba: drawn tables do without)

    check_room(layout)
    per_item = len(config.table_rows) * config.num_indices_per_lookup
    n_inputs = int(min(max(_MOST_IDS // (largest * per_item), 2), _MOST_INPUTS))
    item_bytes = 4 * per_item * config.arch_sparse_feature_size
    pool = InputPool(config, n_inputs, largest, seed)
    n_tables = len(layout.specs)

    def bags(input_id: int, first: int, n_items: int) -> Bags:
        batch = pool.batch(input_id, first, n_items)
        return Bags(
            batch.ids_L.contiguous().to(device),
            batch.offsets.contiguous().to(device),
            n_tables,
            True,
        )

    batches = {}
    for n_items in sizes:
        places = [
            (i, first)
            for first in range(0, largest - n_items + 1, n_items)
            for i in range(n_inputs)
        ]
        batches[n_items] = tuple(
            bags(i, first, n_items) for i, first in places[: enough(item_bytes, n_items)]
        )
    return _problem(layout, batches, [bags(0, 0, min(_ORACLE_ITEMS, largest))], device)


def enough(item_bytes: float, n_items: int) -> int:
    """So many batches of n_items read more rows than caches hold; `item_bytes`: of the rows that an
    item reads.
    """
    return int(min(max(_COLD_BYTES / (item_bytes * n_items), _LEAST_BATCHES), _MOST_COLD))


def of_recorded(recorded: Recorded, sizes: Sequence[int], device: str = "cpu") -> Problem:
    """Tables and samples of a folder, cut into batches of these sizes; raises ValueError if there
    are too few.
    """
    layout = Layout.apart(recorded.specs)
    check_room(layout)
    n_tables = len(layout.specs)
    first = recorded.batches[0]
    read = sum(first.lengths_of(t).sum() * spec.dim * 4 for t, spec in enumerate(layout.specs))
    batches = {}
    for n_items in sizes:
        most = enough(max(read / max(first.n_items, 1), 1.0), n_items)
        parts = tuple(
            _bags(part, n_tables, device)
            for part in recut(recorded.batches, n_tables, n_items, most)
        )
        if not parts:
            raise ValueError(
                f"the folder's samples do not make one batch of {n_items}; leave that size out"
            )
        batches[n_items] = parts
    check = next(iter(recut(recorded.batches, n_tables, min(_ORACLE_ITEMS, max(sizes)), 1)))
    return _problem(layout, batches, [_bags(check, n_tables, device)], device)


def _bags(part: Jagged, n_tables: int, device: str) -> Bags:
    offsets = torch.from_numpy(part.offsets.astype(np.int32))
    return Bags(torch.from_numpy(part.ids_L).to(device), offsets.to(device), n_tables)


def recut(
    batches: Sequence[Jagged], n_tables: int, n_items: int, most: int = _LEAST_BATCHES
) -> list[Jagged]:
    """Samples in their order in at most so many batches of n_items; the rest is dropped, and what
    has no room.
    """
    parts: list[Jagged] = []
    held: list[tuple[Jagged, int, int]] = []
    missing = n_items
    n_ids = 0
    for batch in batches:
        first = 0
        while first < batch.n_items and len(parts) < most and (n_ids < _MOST_IDS or len(parts) < 2):
            n = min(missing, batch.n_items - first)
            held.append((batch, first, first + n))
            missing = missing - n
            first = first + n
            if missing == 0:
                parts.append(_together(held, n_tables))
                n_ids += len(parts[-1].ids_L)
                held = []
                missing = n_items
    return parts


def _together(pieces: Sequence[tuple[Jagged, int, int]], n_tables: int) -> Jagged:
    ids = []
    lengths = []
    for table in range(n_tables):
        for batch, first, end in pieces:
            start = table * batch.n_items
            ids.append(batch.ids_L[batch.offsets[start + first] : batch.offsets[start + end]])
            lengths.append(np.diff(batch.offsets[start + first : start + end + 1]))
    return joined(np.concatenate(ids), np.concatenate(lengths).reshape(n_tables, -1))


def _problem(
    layout: Layout, batches: Mapping[int, tuple[Bags, ...]], checks: Sequence[Bags], device: str
) -> Problem:
    n = max(layout.n_elements, 1)
    weight_E = allocate(n, 1).view(-1) if device == "cpu" else torch.empty(n, device=device)
    fill_whole_numbers(weight_E)
    every = [*checks]
    jagged = [spec.bag_ids is None for spec in layout.specs]
    if any(jagged):
        every.append(_emptied(checks[0], jagged))
    return Problem(
        layout,
        weight_E,
        batches,
        tuple((bags, exact_sums(layout, weight_E, bags)) for bags in every),
    )


def _emptied(bags: Bags, jagged: Sequence[bool]) -> Bags:
    """The same, but every second item has no ids in the tables that allow it: their sums must be
    zeros.
    """
    lengths_BT = _lengths(bags).clone()
    item = torch.arange(bags.n_items) % 2 == 0
    lengths_BT[
        item.to(lengths_BT.device)[:, None] & torch.tensor(jagged, device=lengths_BT.device)
    ] = 0
    lengths = (lengths_BT if bags.item_major else lengths_BT.T).reshape(-1)
    starts = bags.offsets[:-1].long()
    place = torch.repeat_interleave(starts, lengths.long())
    within = torch.arange(len(place), device=place.device) - torch.repeat_interleave(
        torch.cumsum(lengths, 0) - lengths, lengths.long()
    )
    offsets = torch.cat((lengths.new_zeros(1), torch.cumsum(lengths, 0))).to(bags.offsets.dtype)
    return Bags(bags.ids_L[place + within], offsets, bags.n_tables, bags.item_major)


def check_room(layout: Layout) -> None:
    """Raise ValueError if the tables do not fit the memory that is free."""
    needed = layout.n_elements * 4
    free = free_bytes()
    if needed * 1.1 > free:
        raise ValueError(
            f"the tables need {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free"
        )
