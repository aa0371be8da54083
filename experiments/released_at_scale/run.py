#!/usr/bin/env python3
"""Our harness on the settings of the released one's at-scale runs: rate carried and tail latency.

python experiments/released_at_scale/run.py     some minutes

Each setting of data/released.csv runs with the release's gaps (legacy) and with exponential ones;
`capacity` is what the engines answer when they never wait. Table: released_at_scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from backends.opening import open_session
from backends.tuning.probe import capacity_qps
from DeepRecSys import QueueRun, fixed_policy, measure
from experiments.common.study import NoOptions, Study, View, out_folder, progress
from infra.deployment import resolve
from infra.settings.cli import parse

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "models/configs"
COMMON = """--queue --num_batches 32 --max_mini_batch_size 1024
    --batch_size_distribution normal --avg_mini_batch_size 165 --var_mini_batch_size 16"""


@dataclass(frozen=True)
class ReleasedCase:
    """A line of released.csv."""

    config: str
    batch: int
    engines: int
    nominal_qps: float
    released_qps: float
    released_highest_qps: float
    released_p95_ms: float
    released_p99_ms: float
    n_epochs: int


def compare(case: ReleasedCase) -> dict[str, list[dict[str, Any]]]:
    """The line on our engines."""
    words = f"""--arrival_qps {case.nominal_qps} --nepochs {case.n_epochs}
        --sub_task_batch_size {case.batch} --inference_engines {case.engines}"""
    file = str(CONFIGS / f"{case.config}.json")
    config = parse(["--config_file", file, *COMMON.split(), *words.split()])
    row = {name: value for name, value in vars(case).items() if name != "n_epochs"}
    with open_session(resolve(config), progress()) as opened:
        row["capacity"] = capacity_qps(opened.session, config, fixed_policy(config))
        for law in ("legacy", "exponential"):
            load = replace(config.load, arrival_process=law)
            deployment = replace(opened.deployment, config=replace(config, load=load))
            job = QueueRun(replace(opened, deployment=deployment), progress(), out_folder(), None)
            _, summary = measure(job)
            row[f"{law}_qps"] = summary.achieved_qps
            row[f"{law}_p95_ms"] = summary.p95_ms.value
            row[f"{law}_p99_ms"] = summary.p99_ms.value
            row[f"{law}_valid"] = summary.valid
    return {"released_at_scale": [row]}


def cases(n_epochs: int, _: NoOptions) -> list[ReleasedCase]:
    """All settings."""
    table = pd.read_csv(HERE / "data/released.csv", comment="#")
    return [ReleasedCase(**line, n_epochs=n_epochs) for line in table.to_dict("records")]


STUDY = Study(
    "released_at_scale",
    "What do our engines carry on the settings of the released harness?",
    cases,
    compare,
    efforts={"quick": 2, "full": 12},
    report={"Beside the released harness": View(pd.DataFrame, "released_at_scale")},
    float_format="%.4g",
)

if __name__ == "__main__":
    STUDY.main()
