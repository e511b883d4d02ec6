"""Invented result files that the tests of reports share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recbole_robust.report import write_text

METRICS = ["targethr@50", "hit@50", "recall@50", "tailhit@50"]


def cell(
    method: str = "MF", attack: str | None = "Average", seed: int = 0, target_set: str = "apt_1", **more: Any
) -> dict[str, Any]:
    clean = {"targethr@50": 0.04 + 0.001 * seed, "hit@50": 0.23, "recall@50": 0.23, "tailhit@50": 0.1}
    attacked = {**clean, "targethr@50": 0.3 + 0.01 * seed, "hit@50": 0.22}
    lift = {name: attacked[name] - clean[name] for name in clean}
    result = {
        "schema_version": 1,
        "command": f"python run_recbole_robust.py --model={method} --dataset=ml-100k --attack={attack} --seed={seed}",
        "model": method,
        "dataset": "ml-100k",
        "attack": attack and attack.split(",")[0],
        "defense": None,
        "seed": seed,
        "clean": clean,
        "attacked": attacked if attack else None,
        "lift": lift if attack else None,
        "baseline": None,
        "device": "cpu",
        "threads": 2,
        "versions": {"python": "3.11.7", "torch": "2.9.0"},
        "cell": {
            "grid": "g",
            "dataset": "ml-100k",
            "attack": attack,
            "method": method,
            "target_set": target_set,
            "seed": seed,
        },
    }
    return {**result, **more}


def write(folder: Path, cells: list[dict[str, Any]]) -> Path:
    for i, one in enumerate(cells):
        write_text(folder / f"cell{i:03d}.json", json.dumps(one))
    return folder


def full_grid(methods: tuple[str, ...] = ("MF", "MF + AT"), n_seeds: int = 5) -> list[dict[str, Any]]:
    """Cells with everything that a report shows: two target sets, budgets, stealth, settings, a defense."""
    cells = []
    for method in methods:
        for attack, n_fakes in (("Average", 30), ("Average, 1 %", 10), ("Random", 30)):
            for target_set in ("apt_1", "random_0"):
                for seed in range(n_seeds):
                    one = cell(method, attack, seed, target_set)
                    lift = {**one["lift"]}
                    lift["targethr@50"] *= (n_fakes / 30) * (0.5 if method != methods[0] else 1.0)
                    auc = 0.9 if attack == "Random" else 0.6
                    stealth = {"popularity_auc": auc, "pca_auc": 0.5 + 0.01 * seed, "tvd": 0.2}
                    more = {"poison": {"n_fake_users": n_fakes, "stealth": stealth}, "n_genuine": 1000}
                    config = {
                        "epochs": 25,
                        "defense": method.partition(" + ")[2] or None,
                        "attack_size": n_fakes / 1000,
                    }
                    attacked = {name: one["clean"][name] + value for name, value in lift.items()}
                    cells.append({**one, **more, "lift": lift, "attacked": attacked, "config": config})
    return cells
