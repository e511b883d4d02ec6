"""Time and memory against the size of the data, on synthetic ratings.

    python benchmarks/bench_scale.py [threads]

Three sizes, each about sqrt(10) times the last one in users, items and ratings, up to 100,000 users x 50,000 items and
10 million ratings; each in a process of its own, whose peak memory is told. Reading and splitting are RecBole's; the
rest is ours. Last, the growth: the slope of log(seconds) over log(ratings) between the two largest sizes (1 is linear;
the pairs of users and items, which a target pass scores, grow with an exponent of 2).

Asked of the largest: injection (attack, id tables, rows) under 10 s and 4 GiB, target pass under 60 s, MF epoch under
30 s, on two cores.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from bench_target_pass import product_and_topk
from bench_training import bare_epoch
from recbole.utils import init_seed
from scipy.sparse import csr_matrix
from tabulate import tabulate

from recbole_robust.attacks import Average, Bandwagon, Random
from recbole_robust.config import Config
from recbole_robust.data.load import create_dataset, prepare
from recbole_robust.data.poison import Poison
from recbole_robust.evaluation import TargetPass
from recbole_robust.initialisation import build_model
from recbole_robust.trainer import get_trainer

SIZES = [(10_000, 5_000, 1_000_000), (31_600, 15_800, 3_160_000), (100_000, 50_000, 10_000_000)]
N_TARGETS, EMBEDDING_SIZE, BATCH = 10, 64, 32_768


def write_ratings(folder: str, n_users: int, n_items: int, n_ratings: int) -> None:
    """Ratings whose users and items are unevenly popular."""
    rng = np.random.default_rng(0)
    users, items = n_users * rng.random(2 * n_ratings) ** 1.5, n_items * rng.random(2 * n_ratings) ** 2
    cells = rng.permutation(np.unique(users.astype(np.int64) * n_items + items.astype(np.int64)))[:n_ratings]
    os.makedirs(os.path.join(folder, "scale"))
    columns = {"user_id:token": cells // n_items, "item_id:token": cells % n_items}
    table = pd.DataFrame({**columns, "rating:float": rng.integers(1, 6, len(cells))})
    table.to_csv(os.path.join(folder, "scale", "scale.inter"), sep="\t", index=False)


def timed(run: Callable[[], object]) -> float:
    """Seconds on the clock: the asked ones are."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def peak() -> float:
    """GiB that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def injection(dataset, attack) -> tuple[float, float]:
    """Seconds of a split's share of a poisoned run: the attack is planned on it, its rows and users are appended.

    And those of what no injection can do without: the training rows as a sorted matrix of users and items, which an
    attack reads, and a copy of their columns with the new rows behind them.
    """
    init_seed(0, True)
    clean = dataset.build()
    train = clean[0]
    genuine = dict(train.inter_feat.interaction)
    dataset.poison = Poison(attack, target_items=[str(item) for item in range(N_TARGETS)], attack_size=0.01)
    seconds = timed(lambda: dataset._poison(clean))
    users, items = (genuine[name].numpy() for name in (train.uid_field, train.iid_field))

    def bare() -> None:
        matrix = csr_matrix((genuine[train.config["RATING_FIELD"]].numpy(), (users, items)))
        matrix.sum_duplicates()
        n_new = len(train.inter_feat) - len(users)
        for column in genuine.values():
            torch.cat([column, column[:n_new]])

    return seconds, timed(bare)


def measure(n_users: int, n_items: int, n_ratings: int, threads: int) -> dict:
    torch.set_num_threads(threads)
    seconds, memory = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        write_ratings(folder, n_users, n_items, n_ratings)
        keys = {
            "data_path": folder, "output_dir": os.path.join(folder, "out"), "gpu_id": "", "log_tensorboard": False,
            "show_progress": False, "protocol": "apt", "learner": "adagrad", "learning_rate": 1.0,
            "embedding_size": EMBEDDING_SIZE, "train_batch_size": BATCH, "rating_range": [1, 5],
        }  # fmt: skip
        config = Config("MF", "scale", config_dict=keys)
        seconds["reading (RecBole)"] = timed(lambda: create_dataset(config))
        memory["reading (RecBole)"] = peak()
        for attack in (Random(), Average(), Bandwagon()):
            name = type(attack).__name__
            seconds[name], seconds[f"bare {name}"] = injection(create_dataset(config), attack)
            memory[name] = peak()
        loaders = prepare(config)
        splits = [loader._dataset for loader in loaders]
        model = build_model(config, splits[0], splits[0])
        trainer = get_trainer(config)(config, model)
        trainer.know_items(splits[0])
        seconds["MF epoch"] = timed(lambda: trainer._train_epoch(loaders[0], 0))
        optimizer = torch.optim.Adagrad(model.parameters(), lr=1.0)
        seconds["bare epoch"] = timed(lambda: bare_epoch(config, loaders[0], model, optimizer))
        memory["MF epoch"] = peak()
        target_pass = TargetPass(splits, torch.arange(100, 100 + N_TARGETS), "test")
        seconds["target pass"] = timed(lambda: target_pass.run(trainer))
        seconds["product and top-50"] = timed(lambda: product_and_topk(model))
        memory["target pass"] = peak()
    return {"seconds": seconds, "memory": memory}


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    found = []
    for size in SIZES:
        command = [sys.executable, __file__, "--child", *map(str, size), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for name in found[0]["seconds"]:
        times = [result["seconds"][name] for result in found]
        growth = math.log(times[-1] / times[-2]) / math.log(SIZES[-1][2] / SIZES[-2][2])
        memory = [result["memory"].get(name) for result in found]
        rows.append([name, *times, growth, *memory])
    ratings = [f"{size[2] / 1e6:.3g} M" for size in SIZES]
    headers = ["", *(f"{n}, s" for n in ratings), "growth", *(f"{n}, GiB" for n in ratings)]
    print(tabulate(rows, headers=headers, floatfmt=".2f"))
    pairs = [("MF epoch", "bare epoch"), ("target pass", "product and top-50")]
    for ours, bare in [(name, f"bare {name}") for name in ("Random", "Average", "Bandwagon")] + pairs:
        print(f"{ours} / {bare}: " + ", ".join(f"{r['seconds'][ours] / r['seconds'][bare]:.2f}" for r in found))


if __name__ == "__main__":
    if "--child" in sys.argv:
        print(json.dumps(measure(*map(int, sys.argv[2:]))))
    else:
        main()
