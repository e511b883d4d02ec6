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
