"""CPU time and peak memory of the attacks that learn, each in a process of its own, on one thread.

    RECBOLE_ROBUST_DATA=<folder> python benchmarks/bench_learned_attacks.py [data set ...] [attack ...]

Data sets: ml-100k (28 fakes x 20 fillers; ships with RecBole), ml-1m (181 x 164), yelp-hin (487 x 12), yelp-nfa
(992 x 19; implicit), those of the folder as xz. Asked for AUSH, TNA and DADA: under 10 CPU s on ml-100k and 3 minutes
on ml-1m; for any attack under 10 minutes and 4 GiB on both Yelps. Five targets among the least rated items.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import recbole
from data import read_view

from recbole_robust import registry
from recbole_robust.types import AttackerView, Budget

ML_100K = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
BUDGETS = {"ml-100k": (28, 20), "ml-1m": (181, 164), "yelp-hin": (487, 12), "yelp-nfa": (992, 19)}
ATTACKS = ("AUSH", "TNA", "DADA", "PGA", "RevAdv", "DPA2DL")


def read(name: str) -> AttackerView:
    return read_view(ML_100K if name == "ml-100k" else Path(os.environ["RECBOLE_ROBUST_DATA"]) / f"{name}.inter.xz")


def run(name: str, attack: str) -> None:
    import torch

    torch.set_num_threads(1)
    view = read(name)
    targets = np.argsort(view.item_counts, kind="stable")[:5]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    registry.ATTACKS[attack]()(view, targets, Budget(*BUDGETS[name]), rng=np.random.default_rng(0))
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = "{} x {}".format(*BUDGETS[name])
    print(f"{name:10}{size:>11}  {attack:8}{seconds:8.1f}{before / 1024:10.0f}{peak / 1024:10.0f}")


def main() -> None:
    names = [word for word in sys.argv[1:] if word in BUDGETS] or [
        name for name in BUDGETS if name == "ml-100k" or os.environ.get("RECBOLE_ROBUST_DATA")
    ]
    attacks = [word for word in sys.argv[1:] if word in ATTACKS] or ATTACKS
    print(f"{'data':10}{'fakes':>11}  {'attack':8}{'CPU s':>8}{'MiB read':>10}{'MiB peak':>10}", flush=True)
    for name in names:
        for attack in attacks:
            subprocess.run([sys.executable, __file__, "--one", name, attack], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        run(*sys.argv[2:])
    else:
        main()
