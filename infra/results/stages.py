"""What a pipeline's rows say by stage: where a query's time went, and what it was answered."""

from __future__ import annotations

import numpy as np
import pandas as pd

from infra.clock import NS_PER_MS
from infra.results.rows import Rows

PARTS = ("queue_ms", "compute_ms", "filter_ms")
_BOUNDS = ("enqueued_ns", "first_start_ns", "end_ns", "next_ns")  # between which the parts lie


def stage_table(rows: Rows) -> pd.DataFrame:
    """A row per query and stage: query_id, stage, pool, n_items, n_tasks, and when its parts began.

    A stage waits from `enqueued_ns` (the first stage: the query's arrival) to `first_start_ns`,
    computes to `end_ns` (its last part's) and chooses to `next_ns` (the next stage's tasks are
    enqueued, or the query is answered; null if neither came). These parts add up to the query's
    latency.
    """
    key = ["query_id", "stage"]
    tasks_by_stage = rows.tasks.sort_values(key).groupby(key, as_index=False)
    table = tasks_by_stage.agg(
        pool=("pool", "first"),
        n_items=("n_items", "sum"),
        n_tasks=("part", "nunique"),
        enqueued_ns=("enqueued_ns", "min"),
        first_start_ns=("start_ns", "min"),
        end_ns=("end_ns", "max"),
    )
    queries = rows.queries.set_index("query_id")
    first = table["stage"] == 0
    table.loc[first, "enqueued_ns"] = table.loc[first, "query_id"].map(queries["arrival_ns"])
    following = table.groupby("query_id")["enqueued_ns"].shift(-1)
    done = table["query_id"].map(queries["done_ns"])
    table["next_ns"] = following.astype("Int64").fillna(done.astype("Int64"))
    return table


def stage_parts(rows: Rows) -> pd.DataFrame:
    """Mean and p95 of each part by stage, in ms, over answered queries after the warm-up."""
    counted = rows.queries[~rows.queries["is_warmup"] & rows.queries["done_ns"].notna()]
    table = stage_table(rows)
    table = table[table["query_id"].isin(counted["query_id"])]
    spans_ns = table[[*_BOUNDS]].astype(float).diff(axis=1)
    parts = table[["stage", "n_items"]].assign(
        **{name: spans_ns[end] / NS_PER_MS for name, end in zip(PARTS, _BOUNDS[1:], strict=True)}
    )
    by_stage = parts.groupby("stage")
    columns = {"items": by_stage["n_items"].mean()}
    for name in PARTS:
        columns[name] = by_stage[name].mean()
        columns[f"p95_{name}"] = by_stage[name].quantile(0.95)
    return pd.DataFrame(columns).reset_index()


def answer_table(rows: Rows) -> pd.DataFrame:
    """A row per place of each answered list: query_id, place (from 1), item of its input."""
    lists = {query: np.frombuffer(rows.answers[query], np.int32) for query in sorted(rows.answers)}
    lengths = np.array([len(items) for items in lists.values()], np.int64)
    begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return pd.DataFrame(
        {
            "query_id": np.repeat(np.array([*lists], np.int64), lengths),
            "place": np.arange(1, len(begins) + 1) - begins,
            "item": np.concatenate([np.zeros(0, np.int32), *lists.values()]),
        }
    )


def answers_by_input(rows: Rows) -> dict[int, np.ndarray]:
    """{input: its list, best first}: a pipeline answers an input alike whenever it comes."""
    inputs = rows.queries.set_index("query_id")["input_id"]
    return {
        int(inputs[query]): np.frombuffer(items, np.int32) for query, items in rows.answers.items()
    }
