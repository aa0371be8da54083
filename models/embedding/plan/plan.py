"""A plan: which schedule looks up which tables, for small batches and for large ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from infra.settings.fields import ConfigError
from infra.settings.model_config import ModelConfig
from models.embedding.plan.catalogue import (
    FIXED_IDS,
    ONE_ID,
    SCHEDULES,
    SETTINGS,
    WHOLE,
    Params,
    Value,
    check_params,
    in_words,
)
from models.embedding.plan.spec import (
    TableSpec,
    alike,
    difference,
    from_ranges,
    model_specs,
    ranges,
    specs_hash,
)

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Group:
    """Ascending tables that one schedule looks up.

    `params` is sorted by name; one that is missing has its default.
    """

    schedule: str
    params: Params
    tables: tuple[int, ...]


Groups = tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Bucket:
    """What runs for batches of at most `max_batch` items (None: of any size).

    The groups partition the tables.
    """

    max_batch: int | None
    groups: Groups
    settings: Params = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Raises ValueError where it is built if it fits no tables or is not of the catalogue."""

    device: str
    specs: tuple[TableSpec, ...]
    buckets: tuple[Bucket, ...]
    provenance: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.device not in SCHEDULES:
            raise ValueError(
                f"plan for device {self.device!r}; expected one of {', '.join(SCHEDULES)}"
            )
        limits = [bucket.max_batch for bucket in self.buckets]
        bounded = [limit for limit in limits if limit is not None]
        ascends = sorted({*bounded}) == bounded == limits[:-1]
        if not limits or limits[-1] is not None or not ascends:
            raise ValueError(
                f"max_batch of the buckets is {limits}; expected ascending sizes, the last one null"
            )
        if bounded and bounded[0] < 1:
            raise ValueError(f"max_batch is {bounded[0]}; expected at least 1")
        for bucket in self.buckets:
            self._check(bucket)

    def _check(self, bucket: Bucket) -> None:
        for group in bucket.groups:
            self._check_group(group)
        for params in (bucket.settings, *(group.params for group in bucket.groups)):
            if list(params) != sorted(params):
                raise ValueError(f"parameters {params} are not sorted by name")
        check_params("settings", SETTINGS[self.device], bucket.settings)
        counts = [0] * len(self.specs)
        for table in (table for group in bucket.groups for table in group.tables):
            counts[table] += 1
        for table, n in enumerate(counts):
            if n != 1:
                raise ValueError(f"table {table} is in {n} groups; expected exactly one")

    def _check_group(self, group: Group) -> None:
        schedules = SCHEDULES[self.device]
        if group.schedule not in schedules:
            raise ValueError(
                f"unknown schedule {group.schedule!r}; expected one of {', '.join(schedules)}"
            )
        check_params(group.schedule, schedules[group.schedule], group.params)
        for table in group.tables:
            self._check_bags(group.schedule, table)
        if list(group.tables) != sorted({*group.tables}):
            raise ValueError(f"{group.schedule}: tables {ranges(group.tables)} are not ascending")
        n = len(group.tables)
        n_all = len(self.specs)
        if group.schedule in WHOLE and n != n_all:
            raise ValueError(
                f"{group.schedule}: for {n} of {n_all} tables; it looks up all at once"
            )

    def _check_bags(self, schedule: str, table: int) -> None:
        if not 0 <= table < len(self.specs):
            raise ValueError(
                f"table {table} is in a group, but the plan has {len(self.specs)} tables"
            )
        spec = self.specs[table]
        if schedule in ONE_ID and spec.bag_ids != 1:
            needs = "exactly one id"
        elif schedule in FIXED_IDS and spec.bag_ids is None:
            needs = "so many ids"
        else:
            return
        raise ValueError(f"table {table}: {schedule} needs bags of {needs}; the table is {spec}")

    @property
    def specs_hash(self) -> str:
        """Of the tables it was made for."""
        return specs_hash(self.specs)

    def check_specs(self, specs: Sequence[TableSpec]) -> None:
        """Raise ValueError, the difference in one line, if these are not the plan's tables."""
        words = difference(self.specs, specs)
        if words is not None:
            raise ValueError(words)

    def bucket(self, n_items: int) -> Bucket:
        """The bucket for a batch of so many items."""
        return next(b for b in self.buckets if b.max_batch is None or n_items <= b.max_batch)

    def to_json(self) -> str:
        """JSON for readers: runs of like tables in one line each."""
        whole = {
            "version": _VERSION,
            "device": self.device,
            "specs_hash": self.specs_hash,
            "provenance": self.provenance,
            "tables": [
                {"tables": ranges(tables), **dataclasses.asdict(spec)}
                for spec, tables in alike(self.specs).items()
            ],
            "buckets": [_written(bucket) for bucket in self.buckets],
        }
        return json.dumps(whole, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json())


def _written(bucket: Bucket) -> dict[str, Any]:
    groups = [
        {
            "schedule": group.schedule,
            "params": dict(group.params),
            "tables": ranges(group.tables),
        }
        for group in bucket.groups
    ]
    return {"max_batch": bucket.max_batch, "settings": dict(bucket.settings), "groups": groups}


def _bucket_of(written: dict[str, Any]) -> Bucket:
    groups = tuple(
        Group(group["schedule"], params(**group["params"]), from_ranges(group["tables"]))
        for group in written["groups"]
    )
    return Bucket(written["max_batch"], groups, params(**written["settings"]))


def from_json(text: str) -> Plan:
    """`Plan.to_json`'s inverse; raises ValueError in one line."""
    try:
        whole = json.loads(text)
        if whole["version"] != _VERSION:
            raise ValueError(
                f"plan of version {whole['version']}; this release reads version {_VERSION}"
            )
        by_table = {
            table: TableSpec(part["rows"], part["dim"], part["bag_ids"])
            for part in whole["tables"]
            for table in from_ranges(part["tables"])
        }
        specs = tuple(by_table[table] for table in range(len(by_table)))
        buckets = tuple(_bucket_of(written) for written in whole["buckets"])
        plan = Plan(whole["device"], specs, buckets, whole["provenance"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is no plan: {type(error).__name__} {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error}") from error
    if plan.specs_hash != whole["specs_hash"]:
        raise ValueError(
            f"specs_hash is {whole['specs_hash']}, but that of its tables is {plan.specs_hash}"
        )
    return plan


def load_plan(
    path: str, specs: Sequence[TableSpec], devices: Sequence[str], flag: str = "embedding_plan"
) -> Plan:
    """The plan in a file, for these tables and one of the devices.

    Raises ConfigError naming `flag`.
    """
    try:
        plan = from_json(Path(path).read_text())
        if plan.device not in devices:
            raise ValueError(
                f"is a plan for {plan.device}; expected one for {' or '.join(devices)}"
            )
        plan.check_specs(specs)
    except OSError as error:
        raise ConfigError(
            flag, f"{path}: {error.strerror}; python -m models.embedding.tuner writes plans"
        ) from error
    except ValueError as error:
        raise ConfigError(flag, f"{path}: {error}") from error
    return plan


def plan_of(config: ModelConfig, devices: Sequence[str] = tuple(SCHEDULES)) -> Plan | None:
    """The plan that a model's settings name, for its tables; None if they name none.

    Raises ConfigError.
    """
    if not config.embedding_plan:
        return None
    return load_plan(config.embedding_plan, model_specs(config), devices)


def params(**values: Value) -> Params:
    """Params of a group or settings of a bucket."""
    return tuple(sorted(values.items()))


@dataclass(frozen=True)
class GroupRow:
    """A group in the table that explains a plan."""

    batch: str
    schedule: str
    parameters: str
    tables: int
    widths: str
    rows: str
    one_hot: int
    which: str


def explain(plan: Plan) -> pd.DataFrame:
    """One row a group: batch sizes, schedule, parameters, and what its tables are."""
    rows = []
    smallest = 1
    for bucket in plan.buckets:
        sizes = f"{smallest}-{'' if bucket.max_batch is None else bucket.max_batch}"
        for group in bucket.groups:
            specs = [plan.specs[table] for table in group.tables]
            rows.append(
                GroupRow(
                    sizes,
                    group.schedule,
                    in_words((*group.params, *bucket.settings)),
                    len(specs),
                    _span([spec.dim for spec in specs]),
                    _span([spec.rows for spec in specs]),
                    sum(spec.bag_ids == 1 for spec in specs),
                    ranges(group.tables),
                )
            )
        smallest = (bucket.max_batch or 0) + 1
    return pd.DataFrame(rows).rename(columns={"one_hot": "one-hot"})


def _span(values: Sequence[int]) -> str:
    if not values:
        return "-"
    low = min(values)
    high = max(values)
    return f"{low}" if low == high else f"{low}-{high}"
