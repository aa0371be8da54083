"""Where the ids of a run come from: --data_generation random, zipf, synthetic, dataset.

Checked without PyTorch.
"""

# N items of all inputs together, F dense features, T tables, K ids a bag

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.rng import stream
from infra.settings.config import ConfigError, InputConfig, ModelConfig
from models.embedding.offsets import Int64Array, starts_of
from models.inputs.datasets import Criteo, Interactions, read_criteo, read_interactions
from models.inputs.zipf import draw_rows

if TYPE_CHECKING:  # compiled with numba, which the ids of other sources do not need
    from models.inputs.stack_distance import Locality

UInt64Array = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float32]
MOST_ROWS = 500_000  # of click logs; a run that looks up more reads them again
_DAYS = 7  # data_randomize day: parts of a data set, each shuffled by itself


class Source:
    """Ids and dense features of all inputs of a run, in the order in which they are looked up."""

    def table_ids(self, table: int, lengths_N: Int64Array) -> Int64Array:
        """Rows of the table for every item's bag, bag after bag: int64[sum of lengths]."""
        raise NotImplementedError

    def dense(self, n_items: int) -> FloatArray | None:
        """(N, F) float32, or None if the source has none."""
        del n_items
        return None


@dataclass(frozen=True)
class Zipf(Source):
    """Independent ids, rank k as likely as k^-alpha."""

    table_rows: tuple[int, ...]
    alpha: float
    seed: int

    def table_ids(self, table: int, lengths_N: Int64Array) -> Int64Array:
        """Every table has an order of popularity of its own."""
        rng = stream(self.seed, "zipf", table)
        return draw_rows(self.table_rows[table], self.alpha, int(lengths_N.sum()), rng)


@dataclass(frozen=True)
class StackDistances(Source):
    """Streams with given stack distances, one profile a table."""

    table_rows: tuple[int, ...]
    localities: tuple[Locality, ...]
    padding: bool
    seed: int

    def table_ids(self, table: int, lengths_N: Int64Array) -> Int64Array:
        """One stream through all inputs."""
        from models.inputs.stack_distance import generate  # noqa: PLC0415 (see above)

        n_rows = self.table_rows[table]
        rng = stream(self.seed, "stack distances", table)
        locality = self.localities[table]
        return generate(locality, n_rows, int(lengths_N.sum()), rng, padding=self.padding)


class Samples(Source):
    """Samples of a data set: item i of a run has sample i K; a bag takes that and those after it.

    So a table reads its column in the data's order, each value once, and again from the start when
    the data ends.
    """

    def __init__(
        self, data: Interactions | Criteo, model: ModelConfig, inputs: InputConfig
    ) -> None:
        self._data = data
        self._model = model
        rng = stream(inputs.numpy_rand_seed, "samples")
        self._order = _order(len(data), inputs.data_randomize, rng)

    def table_ids(self, table: int, lengths_N: Int64Array) -> Int64Array:
        """Hashed to the table's rows, in every table differently."""
        firsts_N = np.arange(len(lengths_N)) * self._model.num_indices_per_lookup
        sample = np.arange(lengths_N.sum())
        sample += np.repeat(firsts_N - starts_of(lengths_N)[:-1], lengths_N)
        values = self._column(table)[self._order[sample % len(self._order)]]
        hashes = _mixed(values + _mixed(np.full(1, table + 1, np.uint64)))
        return (hashes % np.uint64(self._model.table_rows[table])).astype(np.int64)

    def dense(self, n_items: int) -> FloatArray | None:
        """The data's own, repeated if the model reads more; None without."""
        if not isinstance(self._data, Criteo) or not self._model.dense_width:
            return None
        places = np.arange(n_items) * self._model.num_indices_per_lookup % len(self._order)
        features = np.arange(self._model.dense_width) % self._data.dense_NF.shape[1]
        return np.ascontiguousarray(self._data.dense_NF[self._order[places]][:, features])

    def _column(self, table: int) -> UInt64Array:
        if isinstance(self._data, Criteo):
            return self._data.sparse_NC[:, table % self._data.sparse_NC.shape[1]]
        return _interaction_column(self._data, self._model, table).astype(np.uint64)


def _interaction_column(data: Interactions, model: ModelConfig, table: int) -> Int64Array:
    """What a table holds: DIN's and DIEN's user, earlier items, item, time.

    Those of others hold users and items in turn.
    """
    last = len(model.table_rows) - 1
    if model.model_type not in ("din", "dien"):
        return (data.user, data.item)[table % 2]
    if table == last:
        return (data.time // 3600 % 24).astype(np.int64)
    if table == last - 1:
        return data.item
    return data.user if table == 0 else data.item_before(table)


def _order(n: int, randomize: str, rng: np.random.Generator) -> Int64Array:
    if randomize == "none":
        return np.arange(n)
    parts = np.array_split(np.arange(n), _DAYS if randomize == "day" else 1)
    return np.concatenate([rng.permutation(part) for part in parts])


def _mixed(x: UInt64Array) -> UInt64Array:
    """A bijection of 64 bits that looks random: splitmix64's finalizer.

    Steele et al., OOPSLA 2014.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# Asked for when a run is checked and again when its inputs are built, which then forget it.
@lru_cache(maxsize=1)
def source_of(model: ModelConfig, inputs: InputConfig) -> Source | None:
    """None for uniformly drawn ids; reads what the others need.

    Raises ConfigError naming the file and the fault.
    """
    seed = inputs.numpy_rand_seed
    match inputs.data_generation:
        case "zipf":
            return Zipf(model.table_rows, inputs.zipf_alpha, seed)
        case "synthetic":
            profiles: dict[Path, Locality] = {}
            localities = tuple(
                _locality(inputs.data_trace_file, table, n_rows, profiles)
                for table, n_rows in enumerate(model.table_rows)
            )
            padding = inputs.data_trace_enable_padding
            return StackDistances(model.table_rows, localities, padding, seed)
        case "dataset":
            return Samples(_data_of(model, inputs), model, inputs)
    return None


def _data_of(model: ModelConfig, inputs: InputConfig) -> Interactions | Criteo:
    file = inputs.raw_data_file
    try:
        if inputs.data_set == "movielens":
            return read_interactions(file)
        n = inputs.num_batches * inputs.max_mini_batch_size * model.num_indices_per_lookup
        return read_criteo(file, min(n, MOST_ROWS))
    except ValueError as error:
        raise ConfigError("raw_data_file", str(error)) from error


def _locality(pattern: str, table: int, n_rows: int, profiles: dict[Path, Locality]) -> Locality:
    """The table's profile: a j that stands alone in the file's name is the table's number."""
    from models.inputs.stack_distance import read_locality  # noqa: PLC0415 (see above)

    path = Path(pattern)
    file = path.with_name(re.sub(r"(?<![A-Za-z])j(?![A-Za-z])", str(table), path.name))
    try:
        if file not in profiles:
            profiles[file] = read_locality(file)
    except ValueError as error:
        raise ConfigError(
            "data_trace_file", f"{error} (python -m models.inputs profile writes such a file)"
        ) from error
    largest = profiles[file].largest_id
    if largest >= n_rows:
        raise ConfigError(
            "data_trace_file",
            f"{file}: id {largest} is outside of table {table} of {n_rows} rows",
        )
    return profiles[file]
