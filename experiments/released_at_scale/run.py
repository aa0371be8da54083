#!/usr/bin/env python3
"""Our harness on the settings of the released one's at-scale runs: rate carried and tail latency.

python experiments/released_at_scale/run.py [FOLDER]     writes released_at_scale.csv; some minutes
Each setting runs with the release's gaps (legacy) and with exponential ones; `capacity` is what the engines answer when
they never wait.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from dataclasses import replace

import pandas as pd

from backends.opening import open_session
from backends.tuning.probe import capacity_qps
from DeepRecSys import fixed_policy, measure
from infra.progress import Progress
from infra.settings.cli import parse

ROOT = Path(__file__).resolve().parents[2]
N_EPOCHS = 12


def compare(setting: pd.Series, progress: Progress) -> dict[str, float]:
    """One line of released.csv on our engines."""
    config = parse(
        [
            "--queue",
            "--config_file",
            str(ROOT / f"models/configs/{setting['config']}.json"),
            "--num_batches",
            "32",
            "--nepochs",
            str(N_EPOCHS),
            "--max_mini_batch_size",
            "1024",
            "--batch_size_distribution",
            "normal",
            "--avg_mini_batch_size",
            "165",
            "--var_mini_batch_size",
            "16",
            "--arrival_qps",
            str(setting["nominal_qps"]),
            "--sub_task_batch_size",
            str(setting["batch"]),
            "--inference_engines",
            str(setting["engines"]),
        ]
    )
    ours: dict[str, float] = {}
    with open_session(config, progress) as opened:
        ours["capacity"] = capacity_qps(opened.session, config, fixed_policy(config))
        for process in ("legacy", "exponential"):
            load = replace(config.load, arrival_process=process)
            _, summary = measure(replace(config, load=load), opened, progress)
            ours[f"{process}_qps"] = summary.achieved_qps
            ours[f"{process}_p95_ms"] = summary.p95_ms.value
            ours[f"{process}_p99_ms"] = summary.p99_ms.value
            ours[f"{process}_valid"] = summary.valid
    return ours


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    folder = Path(argv[0]) if argv else Path.cwd()
    released = pd.read_csv(Path(__file__).parent / "released.csv", comment="#")
    with Progress("auto") as progress:
        ours = [compare(setting, progress) for _, setting in released.iterrows()]
    table = pd.concat([released, pd.DataFrame(ours)], axis=1)
    table.to_csv(folder / "released_at_scale.csv", index=False, float_format="%.4g")
    print(table.round(2).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
