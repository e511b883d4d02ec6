"""ASHA beside the whole grid: a sweep as it is shipped, and again with every trial trained to its end.

    python benchmarks/bench_asha.py properties/sweep/PurifyAugMF.yaml [output/sweep] [workers]

Leaves both sweeps in the folder, the second as ``<name>_whole``; goes on with trials that are there. Asked: ASHA stops
at least half of the trials early, and its best is within 2 % of the whole grid's (by what is maximised, on validation
rows; a trial is the same in both, so that they differ by the choice alone).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from recbole_robust.sweep import run_sweep
from recbole_robust.sweep.file import read_sweep
from recbole_robust.sweep.page import judged_as_whole


def trials_of(sweep: dict[str, Any], folder: str, workers: int) -> list[dict[str, Any]]:
    done = run_sweep(sweep, output_dir=folder, workers=workers, resume=True)
    return json.loads(done.trials.read_text(encoding="utf-8"))["trials"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sweep", type=Path)
    parser.add_argument("folder", nargs="?", default="output/sweep")
    parser.add_argument("workers", nargs="?", type=int, default=2)
    given = parser.parse_args()
    sweep = yaml.safe_load(given.sweep.read_text(encoding="utf-8"))
    whole = {**sweep, "name": f"{sweep['name']}_whole", "scheduler": {"method": "none"}}
    both = [trials_of(one, given.folder, given.workers) for one in (sweep, whole)]
    goal, rows = read_sweep(sweep).objective, []
    for condition in read_sweep(sweep).conditions:
        asha, every = ([trial for trial in trials if trial["condition"] == condition] for trials in both)
        found, best = (max(judged_as_whole(some, goal), key=lambda one: one["score"]) for some in (asha, every))
        rows.append([
            condition, f"{sum(one['status'] == 'stopped' for one in asha)} of {len(asha)}",
            sum(one["epochs"] for one in asha) / sum(one["epochs"] for one in every),
            sum(one["seconds"] for one in asha) / sum(one["seconds"] for one in every),
            found["values"], found["score"], best["values"], best["score"], found["score"] / best["score"],
        ])  # fmt: skip
    heads = [
        "data",
        "stopped",
        "epochs, share",
        "seconds, share",
        "ASHA's best",
        "score",
        "the grid's",
        "score",
        "ratio",
    ]
    print(tabulate(rows, headers=heads, floatfmt=".3f"))


if __name__ == "__main__":
    main()
