"""Data of the benchmarks: MovieLens-1M where RecBole finds it (or a stand-in), and a file as an attacker sees it."""

from __future__ import annotations

import lzma
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from recbole_robust.types import AttackerView


def place_ml_1m(folder: str) -> str:
    """Write ``<folder>/ml-1m/ml-1m.inter``; returns what it is."""
    target = Path(folder) / "ml-1m" / "ml-1m.inter"
    target.parent.mkdir(parents=True, exist_ok=True)
    source = Path(os.environ.get("RECBOLE_ROBUST_DATA", "")) / "ml-1m.inter.xz"
    if source.is_file():
        with lzma.open(source) as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
        return "ml-1m"
    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(0, 6040 * 3706, size=1_020_000))[:1_000_209]
    lines = ["user_id:token\titem_id:token\trating:float"]
    lines += [f"{k // 3706}\t{k % 3706}\t{r}" for k, r in zip(keys, rng.integers(1, 6, size=len(keys)), strict=True)]
    target.write_text("\n".join(lines) + "\n")
    return "a random stand-in for ml-1m"


def read_view(path: Path) -> AttackerView:
    """All rows of an atomic file; of a pair that stands twice the last one, and 1.0 everywhere without ratings."""
    table = pd.read_csv(path, sep="\t").drop_duplicates(["user_id:token", "item_id:token"], keep="last")
    users, items = (pd.factorize(table[column])[0] for column in ("user_id:token", "item_id:token"))
    rated = "rating:float" in table
    ratings = table["rating:float"].to_numpy(float) if rated else np.ones(len(table))
    return AttackerView(csr_matrix((ratings, (users, items))), ratings.min(), ratings.max(), 1.0 if rated else 0.0)
