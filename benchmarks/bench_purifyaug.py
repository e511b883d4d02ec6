"""PurifyAugMF and PurifyAug on ML-1M: CPU time of an epoch and of a full ranking, and what a rerank loses.

    RECBOLE_ROBUST_DATA=<folder with ml-1m.inter.xz> python benchmarks/bench_purifyaug.py [epochs]

One thread, side by side. PurifyAugMF is trained first (7 epochs: Algorithm 1 begins with the sixth). ``exact`` ranks
pair by pair, so it is timed on 200 users. Asked: ``rerank`` (C = 500) at most 0.2 of ``exact``, of whose top 50 it
keeps 0.99; the node level at most 1.2 times MF; below 2 GiB.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from data import place_ml_1m
from recbole.data.interaction import Interaction
from tabulate import tabulate

from recbole_robust.config import Config
from recbole_robust.data.load import prepare
from recbole_robust.defending import under_defenses

REPEATS, N_USERS, K, C = 3, 200, 50, 500
MODELS = {
    "MF": {"model": "MF"},
    "PurifyAug around MF": {"model": "PurifyAug", "base_model": "MF"},
    "PurifyAugMF": {"model": "PurifyAugMF", "infer_mode": "rerank", "rerank_topk": C},
    "PurifyAugMF, literal": {"model": "PurifyAugMF", "preset": "literal"},
}


def least(runs: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """CPU seconds of each run."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - started)
    return best


def main() -> None:
    torch.set_num_threads(1)
    n_epochs = int(sys.argv[1]) if sys.argv[1:] else 7
    with tempfile.TemporaryDirectory() as folder:
        data = place_ml_1m(folder)
        models, rows = {}, []
        for name, keys in MODELS.items():
            config = Config(
                config_dict={
                    **keys, "dataset": "ml-1m", "data_path": folder, "output_dir": os.path.join(folder, "out"),
                    "gpu_id": "", "protocol": "apt", "show_progress": False, "log_tensorboard": False, "seed": 0,
                },
            )  # fmt: skip
            trainer, train_data, _ = under_defenses(config, prepare(config)[0])
            epochs = 1 + (n_epochs - 1) * (name == "PurifyAugMF")  # the one whose ranking is compared
            for epoch in range(epochs):
                trainer.model.train()
                trainer._train_epoch(train_data, epoch)
            after_warmup = config["purify_warmup"] or 0
            seconds = least({name: lambda: trainer._train_epoch(train_data, after_warmup)}, 1)  # noqa: B023
            rows.append([name, seconds[name], seconds[name] / rows[0][1] if rows else 1.0])
            models[name] = trainer.model.eval()
        print(tabulate(rows, headers=[f"{data}, an epoch", "CPU s", "times MF"], floatfmt=".2f"), end="\n\n")

        model, users = models["PurifyAugMF"], torch.arange(1, N_USERS + 1)

        def rank(name: str, mode: str | None = None, users: torch.Tensor = users) -> torch.Tensor:
            if mode:
                model.infer_mode = mode
            with torch.no_grad():
                scores = models[name].full_sort_predict(Interaction({"user_id": users})).view(len(users), -1)
            scores[:, 0] = -torch.inf
            scores[model._rated_by(users)] = -torch.inf
            return scores.topk(K, dim=1).indices

        exact, reranked, gate = (rank("PurifyAugMF", mode) for mode in ("exact", "rerank", "se"))
        times = least({mode: lambda mode=mode: rank("PurifyAugMF", mode) for mode in ("exact", "rerank")}, 1)
        overlap = [(exact[:, :, None] == other[:, None, :]).any(2).float().mean() for other in (reranked, gate)]
        print(f"{N_USERS} users: exact {times['exact']:.2f} CPU s, rerank (C = {C}) {times['rerank']:.2f}, "
              f"{times['rerank'] / times['exact']:.3f} of it; of exact's top {K}, rerank has {overlap[0]:.4f}, "
              f"se {overlap[1]:.4f}\n")  # fmt: skip
        many = torch.arange(1, 1001)
        fast = {
            "MF": lambda: rank("MF", users=many),
            "PurifyAug around MF": lambda: rank("PurifyAug around MF", users=many),
            "PurifyAugMF, se": lambda: rank("PurifyAugMF", "se", many),
        }
        table = [[name, seconds] for name, seconds in least(fast, 2 * REPEATS).items()]
        table = [[*row, row[1] / table[0][1]] for row in table]
        print(tabulate(table, headers=["1000 users, full ranking", "CPU s", "times MF"], floatfmt=".3f"))
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
