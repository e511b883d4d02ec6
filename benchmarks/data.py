"""Data of the benchmarks, where RecBole finds them, and a file as an attacker sees it.

    RECBOLE_ROBUST_DATA=<folder with <name>.inter.xz> python benchmarks/data.py <data_path> <name> ...

unpacks data sets into ``<data_path>/<name>/``.
"""

from __future__ import annotations

import lzma
import os
import shutil
import sys
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


def place(folder: str, name: str) -> None:
    """Unpack ``<name>.inter.xz`` of RECBOLE_ROBUST_DATA to ``<folder>/<name>/``, with the items' attribute for S3Rec.

    The attribute is ``none`` for all of them: so S3Rec runs, and learns nothing by it.
    """
    target = Path(folder) / name / f"{name}.inter"
    target.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(Path(os.environ["RECBOLE_ROBUST_DATA"]) / f"{name}.inter.xz", "rt") as packed:
        lines = packed.read().splitlines()
    target.write_text("\n".join(lines) + "\n")
    column = [field.split(":")[0] for field in lines[0].split("\t")].index("item_id")
    items = dict.fromkeys(line.split("\t")[column] for line in lines[1:])
    attributes = ["item_id:token\tclass:token_seq", *(f"{item}\tnone" for item in items)]
    target.with_suffix(".item").write_text("\n".join(attributes) + "\n")


def read_view(path: Path) -> AttackerView:
    """All rows of an atomic file; of a pair that stands twice the last one, and 1.0 everywhere without ratings."""
    table = pd.read_csv(path, sep="\t").drop_duplicates(["user_id:token", "item_id:token"], keep="last")
    users, items = (pd.factorize(table[column])[0] for column in ("user_id:token", "item_id:token"))
    rated = "rating:float" in table
    ratings = table["rating:float"].to_numpy(float) if rated else np.ones(len(table))
    return AttackerView(csr_matrix((ratings, (users, items))), ratings.min(), ratings.max(), 1.0 if rated else 0.0)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        place(sys.argv[1], name)
