"""CPU time of the heuristic attacks, first use of the view's statistics included.

    python benchmarks/bench_attacks.py

Prints the minimum of five alternating runs. ``bincount`` is one weighted ``np.bincount`` over the ratings and ``keys``
one draw of ``n_fake_users x n_items`` uniform numbers: what any implementation has to do at least. The last column is
the time over the sum of both. The real MovieLens-1M is timed too where ``RECBOLE_ROBUST_DATA`` names its folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from data import read_view
from scipy.sparse import csr_matrix

from recbole_robust.attacks import Average, Bandwagon, Random
from recbole_robust.types import Attack, AttackerView, Budget, IntArray

N_RUNS = 5
N_TARGETS = 5


def synthetic_view(n_users: int, n_items: int, n_ratings: int) -> AttackerView:
    """Ratings whose items and users are both unevenly popular, as in MovieLens."""
    rng = np.random.default_rng(0)
    cells = np.empty(0, dtype=np.int64)
    while len(cells) < n_ratings:
        users, items = n_users * rng.random(2 * n_ratings) ** 2, n_items * rng.random(2 * n_ratings) ** 2
        cells = np.union1d(cells, users.astype(np.int64) * n_items + items.astype(np.int64))
    cells = np.sort(rng.permutation(cells)[:n_ratings])
    stars = rng.choice(np.arange(1.0, 6.0), n_ratings, p=[0.06, 0.11, 0.26, 0.35, 0.22])
    ratings = csr_matrix((stars, (cells // n_items, cells % n_items)), shape=(n_users, n_items))
    return AttackerView(ratings, 1.0, 5.0, 1.0)


def time_attacks(view: AttackerView, budget: Budget) -> dict[str, float]:
    """Least CPU seconds of each task; the tasks take turns, so that a slow moment of the machine hits all alike."""
    targets = np.argsort(view.item_counts, kind="stable")[:N_TARGETS]
    tasks: dict[str, Callable[[], object]] = {
        "bincount": lambda: np.bincount(view.ratings.indices, weights=view.ratings.data),
        "keys": lambda: np.random.default_rng(0).random((budget.n_fake_users, view.n_items)),
    }
    for attack in (Random(), Average(), Bandwagon()):
        tasks[type(attack).__name__] = partial(_attack_afresh, attack, view, targets, budget)
    seconds = dict.fromkeys(tasks, np.inf)
    for _ in range(N_RUNS):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def _attack_afresh(attack: Attack, view: AttackerView, targets: IntArray, budget: Budget) -> None:
    attack(replace(view), targets, budget, rng=np.random.default_rng(0))  # replace() drops the cached statistics


def main() -> None:
    cases = {
        "ml-100k size": (synthetic_view(943, 1682, 100_000), Budget(28, 105)),
        "ml-1m size": (synthetic_view(6040, 3706, 1_000_000), Budget(181, 160)),
    }
    if folder := os.environ.get("RECBOLE_ROBUST_DATA"):
        cases["ml-1m"] = (read_view(Path(folder) / "ml-1m.inter.xz"), Budget(181, 160))
    print(f"{'data':14}{'fakes x fillers':>17}  {'task':10}{'CPU ms':>9}{'ratio':>8}")
    for name, (view, budget) in cases.items():
        seconds = time_attacks(view, budget)
        reference = seconds["bincount"] + seconds["keys"]
        for task, value in seconds.items():
            size = f"{budget.n_fake_users} x {budget.n_fillers}"
            print(f"{name:14}{size:>17}  {task:10}{1000 * value:9.2f}{value / reference:8.1f}")


if __name__ == "__main__":
    main()
