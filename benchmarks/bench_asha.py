"""ASHA beside the whole grid: a sweep as it is shipped, and again with every trial trained to its end.

    python benchmarks/bench_asha.py PurifyAugMF [output/bench_asha] [workers]

The first argument is a sweep over a grid: a file, or the name of one in properties/sweep. Leaves both sweeps in the
folder, the second as ``<name>_whole``, and goes on with trials that are there (take another folder for other sources).
Asked: ASHA stops at least half of the trials early, and its best is within 2 % of the whole grid's, in what is
maximised on validation rows. A trial is the same in both sweeps, so that they differ by the choice alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from recbole_robust.grid import given_or_shipped
from recbole_robust.sweep import run_sweep
from recbole_robust.sweep.file import Objective, read_sweep
from recbole_robust.sweep.page import Trial, judged_as_whole
from recbole_robust.yaml_text import read_yaml


def trials_of(sweep: Mapping[str, Any], folder: str, workers: int) -> list[Trial]:
    done = run_sweep(sweep, output_dir=folder, workers=workers, resume=True)
    return json.loads(done.trials.read_text(encoding="utf-8"))["trials"]


def best_of(trials: list[Trial], goal: Objective) -> tuple[str, float | None]:
    """The values of the best trial and what it reaches; None where it breaks a bound, so that its score is another."""
    best = max(judged_as_whole(trials, goal), key=lambda trial: trial["score"])
    values = ", ".join(f"{key} {value:g}" for key, value in best["values"].items())
    return values, None if goal.excess(best["metrics"]) > 0 else best["score"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sweep")
    parser.add_argument("folder", nargs="?", default="output/bench_asha")
    parser.add_argument("workers", nargs="?", type=int, default=2)
    given = parser.parse_args()
    content = read_yaml(given_or_shipped("sweep", given.sweep, "sweep", "a sweep file"))
    sweep = read_sweep(content)
    if sweep.method != "grid":
        parser.error(f"expected a sweep over a grid, got {sweep.method}")
    whole = {**content, "name": f"{sweep.name}_whole", "scheduler": {"method": "none"}}
    both = [trials_of(one, given.folder, given.workers) for one in (content, whole)]
    rows = []
    for condition in sweep.conditions:
        asha, every = ([trial for trial in trials if trial["condition"] == condition] for trials in both)
        (found, reached), (best, most) = (best_of(some, sweep.objective) for some in (asha, every))
        n_stopped = sum(one["status"] == "stopped" for one in asha)
        epochs = sum(one["epochs"] for one in asha) / sum(one["epochs"] for one in every)
        data = ", ".join(f"{key} {value}" for key, value in condition.items())
        ratio = reached / most if reached is not None and most is not None else None
        rows.append([data, f"{n_stopped} of {len(asha)}", epochs, found, reached, best, most, ratio])
    heads = ["data", "stopped", "epochs, share", "ASHA's best", "reaches", "the grid's", "reaches", "ratio"]
    print(tabulate(rows, headers=heads, floatfmt=".4f", missingval="a bound is broken"))


if __name__ == "__main__":
    main()
