"""Puts MovieLens-1M where RecBole finds it: from RECBOLE_ROBUST_DATA, or a random stand-in of the same size."""

from __future__ import annotations

import lzma
import os
import shutil
from pathlib import Path

import numpy as np


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
