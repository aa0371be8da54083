"""What is tuned: tables in memory, batches of several sizes, and the exact sums of some."""

# B items, N items of all batches, T tables, C columns = sum of D, E elements of all tables

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infra.memory import free_bytes
from infra.settings.config import ModelConfig
from models.embedding.backend import Run
from models.embedding.huge_pages import zeros
from models.embedding.jagged import Bags, picked
from models.embedding.offsets import starts_of
from models.embedding.plan.spec import Layout, model_specs
from models.embedding.tuning.recorded import Jagged, Recorded, cut

# of one size, kept in memory
_LEAST_BATCHES = 64
_MOST_IDS = 8_000_000
_ORACLE_ITEMS = 8
# rows of a round of batches: more than caches hold
_MOST_INPUTS = 256
_COLD_BYTES = 256 << 20
_MOST_COLD = 16_384
# weights are the whole numbers -7 to 7, so float32 sums of them are exact in any order
_LEVELS = 15
_LARGEST = 7.0


@dataclass(frozen=True)
class Problem:
    """Tables with their rows and ids for them, on one device."""

    layout: Layout
    weight_E: Tensor
    batches: Mapping[int, tuple[Bags, ...]]  # batch size: different batches of it
    checks: tuple[tuple[Bags, Tensor], ...]  # batches and their exact sums (B, C) in float64

    def wrong(self, run: Run, columns: Sequence[int], max_error: float) -> str | None:
        """What is wrong with a look-up that must write these tables' columns; None: nothing.

        `max_error`: of an element over the largest weight; 0: exact.
        """
        for bags, expected_BC in self.checks:
            out_BC = torch.full(
                expected_BC.shape, torch.nan, dtype=torch.float32, device=self.weight_E.device
            )
            run(bags, out_BC)
            lengths_TB = bags.lengths()
            for table in columns:
                of_table = slice(*self.layout.columns[table : table + 2].tolist())
                error_B = (out_BC[:, of_table].double() - expected_BC[:, of_table]).abs().amax(1)
                allowed_B = max_error * _LARGEST * lengths_TB[table]
                if not bool((error_B <= allowed_B).all()):  # NaN is not
                    return f"table {table} is off by {float(error_B.max()):.3g}"
        return None


def exact_sums(layout: Layout, weight_E: Tensor, bags: Bags) -> Tensor:
    """(B, C) float64, table by table by index_add: slow and obvious."""
    columns = []
    items = torch.arange(bags.n_items, device=weight_E.device)
    for table, spec in enumerate(layout.specs):
        ids, offsets = bags.of((table,))
        rows = (ids - int(layout.first_ids_T[table])).long()
        item = torch.repeat_interleave(items, torch.diff(offsets).long())
        sums_BD = torch.zeros(bags.n_items, spec.dim, dtype=torch.float64, device=weight_E.device)
        sums_BD.index_add_(0, item, layout.rows_of(table, weight_E)[rows].double())
        columns.append(sums_BD)
    return torch.cat(columns, dim=1)


def fill_whole_numbers(weight_E: Tensor) -> None:
    """Small whole numbers that repeat with no row's period."""
    numbers = (torch.arange(1_000_003, device=weight_E.device) * 7919) % _LEVELS - _LEVELS // 2
    pattern = numbers.float()
    for first in range(0, len(weight_E), len(pattern)):
        part = weight_E[first : first + len(pattern)]
        part.copy_(pattern[: len(part)])


def of_model(config: ModelConfig, sizes: Sequence[int], seed: int, device: str = "cpu") -> Problem:
    """A model's tables and ids as engines get them: item after item, counted through all tables."""
    # Compiled with numba: drawn tables do without.
    from models.inputs.synthetic import InputPool  # noqa: PLC0415 (see above)

    layout = Layout.joined(model_specs(config))
    largest = max(sizes)
    check_room(layout)
    per_item = len(config.table_rows) * config.num_indices_per_lookup
    n_inputs = int(min(max(_MOST_IDS // (largest * per_item), 2), _MOST_INPUTS))
    item_bytes = 4 * per_item * config.arch_sparse_feature_size
    pool = InputPool(config, n_inputs, largest, seed)

    def bags(input_id: int, first: int, n_items: int) -> Bags:
        batch = pool.batch(input_id, first, n_items)
        ids_L, offsets = (part.contiguous().to(device) for part in (batch.ids_L, batch.offsets))
        return Bags(ids_L, offsets, len(layout.specs), item_major=True)

    batches = {}
    for n_items in sizes:
        places = [
            (i, first)
            for first in range(0, largest - n_items + 1, n_items)
            for i in range(n_inputs)
        ]
        chosen = places[: enough(item_bytes, n_items)]
        batches[n_items] = tuple(bags(i, first, n_items) for i, first in chosen)
    return _problem(layout, batches, bags(0, 0, min(_ORACLE_ITEMS, largest)), device)


def enough(item_bytes: float, n_items: int) -> int:
    """So many batches of n_items read more rows than caches hold; an item reads `item_bytes`."""
    return int(min(max(_COLD_BYTES / (item_bytes * n_items), _LEAST_BATCHES), _MOST_COLD))


def of_recorded(recorded: Recorded, sizes: Sequence[int], device: str = "cpu") -> Problem:
    """Tables and samples of a folder, cut into batches of these sizes.

    Raises ValueError if there are too few.
    """
    layout = Layout.apart(recorded.specs)
    check_room(layout)
    n_tables = len(layout.specs)
    first = recorded.batches[0]
    read = sum(first.lengths_of(t).sum() * spec.dim * 4 for t, spec in enumerate(layout.specs))
    item_bytes = max(read / max(first.n_items, 1), 1.0)

    def bags(n_items: int, most: int) -> tuple[Bags, ...]:
        parts = recut(recorded.batches, n_tables, n_items, most)
        return tuple(_bags(part, n_tables, device) for part in parts)

    batches = {n_items: bags(n_items, enough(item_bytes, n_items)) for n_items in sizes}
    for n_items, parts in batches.items():
        if not parts:
            raise ValueError(
                f"the folder's samples do not make one batch of {n_items}; leave that size out"
            )
    return _problem(layout, batches, bags(min(_ORACLE_ITEMS, max(sizes)), 1)[0], device)


def _bags(part: Jagged, n_tables: int, device: str) -> Bags:
    offsets = torch.from_numpy(part.offsets.astype(np.int32))
    return Bags(torch.from_numpy(part.ids_L).to(device), offsets.to(device), n_tables)


def recut(
    batches: Sequence[Jagged], n_tables: int, n_items: int, most: int = _LEAST_BATCHES
) -> tuple[Jagged, ...]:
    """Samples in their order in at most so many batches of n_items; the rest is dropped.

    So is what has no room in memory.
    """
    ids_T = [np.concatenate([batch.ids_of(t) for batch in batches]) for t in range(n_tables)]
    lengths_TN = np.concatenate(
        [np.diff(batch.offsets).reshape(n_tables, -1) for batch in batches], axis=1
    )
    n = min(lengths_TN.shape[1] // n_items, most)
    ids_before = starts_of(lengths_TN.sum(0))[: n * n_items : n_items]
    with_room = int(np.searchsorted(ids_before, _MOST_IDS))
    return cut(ids_T, lengths_TN, [n_items] * max(with_room, min(n, 2)))


def _problem(
    layout: Layout, batches: Mapping[int, tuple[Bags, ...]], check: Bags, device: str
) -> Problem:
    weight_E = zeros(max(layout.n_elements, 1), device)
    fill_whole_numbers(weight_E)
    checks = [check]
    jagged = [spec.bag_ids is None for spec in layout.specs]
    if any(jagged):
        checks.append(_emptied(check, jagged))
    sums = tuple((bags, exact_sums(layout, weight_E, bags)) for bags in checks)
    return Problem(layout, weight_E, batches, sums)


def _emptied(bags: Bags, jagged: Sequence[bool]) -> Bags:
    """The same, but every second item has no ids in the tables that allow it.

    Their sums must be zeros.
    """
    device = bags.offsets.device
    lengths_TB = bags.lengths().clone()
    item_B = torch.arange(bags.n_items, device=device) % 2 == 0
    lengths_TB[torch.tensor(jagged, device=device)[:, None] & item_B] = 0
    lengths_M = (lengths_TB.T if bags.item_major else lengths_TB).reshape(-1)
    ids_L, offsets = picked(bags.ids_L, bags.offsets[:-1], lengths_M)
    return Bags(ids_L, offsets, bags.n_tables, bags.item_major)


def check_room(layout: Layout) -> None:
    """Raise ValueError if the tables do not fit the memory that is free."""
    needed = layout.n_elements * 4
    free = free_bytes()
    if needed * 1.1 > free:
        raise ValueError(
            f"the tables need {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free"
        )
