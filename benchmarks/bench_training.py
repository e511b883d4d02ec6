"""CPU time of an MF epoch: ours, a bare torch loop over the same tensors, and RecBole's stock loader and trainer.

    RECBOLE_ROBUST_DATA=<folder with ml-1m.inter.xz> python benchmarks/bench_training.py

Minimum of 5 alternating runs, one thread, as ratios. Asked: ours <= 1.5x the bare loop; stock >= 2x ours (BPR) and
>= 1.3x ours (MSE).
"""

from __future__ import annotations

import os
import tempfile
import time

import torch
from data import place_ml_1m
from recbole.trainer import Trainer
from recbole.utils import init_seed
from tabulate import tabulate

from recbole_robust.config import Config
from recbole_robust.data.load import prepare
from recbole_robust.initialisation import build_model
from recbole_robust.trainer import get_trainer

REPEATS = 5


def cpu_time(run) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def set_up(folder: str, loss: str, **keys):
    config = Config(
        "MF",
        "ml-1m",
        config_dict={
            "data_path": folder, "output_dir": os.path.join(folder, "out"), "protocol": "apt", "loss_type": loss,
            "gpu_id": "", "show_progress": False, "log_tensorboard": False, "epochs": 1, "train_batch_size": 4096,
            "learner": "adagrad", "learning_rate": 1.0, "embedding_size": 64, **keys,
        },
    )  # fmt: skip
    train_data = prepare(config)[0]
    return config, train_data, build_model(config, train_data._dataset, train_data._dataset)


def bare_epoch(config, train_data, model, optimizer):
    """The least that an epoch needs: shuffle, slice, two look-ups, loss, backward, step; negatives unchecked."""
    rows = train_data._dataset.inter_feat
    users, items = rows["user_id"], rows["item_id"]
    targets = rows["rating"] / 5.0
    order = torch.randperm(len(users))
    users, items, targets = users[order], items[order], targets[order]
    p_table, q_table = model.user_embedding, model.item_embedding
    step = config["train_batch_size"]
    for start in range(0, len(users), step):
        batch = slice(start, start + step)
        p, q = p_table(users[batch]), q_table(items[batch])
        if config["loss_type"] == "BPR":
            q_neg = q_table(torch.randint(1, model.n_items, (len(p),)))
            loss = -torch.log(1e-10 + torch.sigmoid((p * q).sum(1) - (p * q_neg).sum(1))).mean()
        else:
            loss = ((p * q).sum(1) - targets[batch]).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place_ml_1m(folder)
        for loss in ("MSE", "BPR"):
            config, fast, model = set_up(folder, loss)
            stock_config, stock_loader, stock_model = set_up(folder, loss, dataloader="recbole")
            os.chdir(folder)  # the stock trainer writes where it stands
            ours, stock = get_trainer(config)(config, model), Trainer(stock_config, stock_model)
            _, _, bare_model = set_up(folder, loss)
            optimizer = torch.optim.Adagrad(bare_model.parameters(), lr=1.0)
            init_seed(0, True)
            runs = {
                "ours": lambda: ours._train_epoch(fast, 0),  # noqa: B023
                "bare torch loop": lambda: bare_epoch(config, fast, bare_model, optimizer),  # noqa: B023
                "stock RecBole": lambda: stock._train_epoch(stock_loader, 0),  # noqa: B023
            }
            best = dict.fromkeys(runs, float("inf"))
            for _ in range(REPEATS):
                for name, run in runs.items():
                    best[name] = min(best[name], cpu_time(run))
            ratios = best["ours"] / best["bare torch loop"], best["stock RecBole"] / best["ours"]
            rows.append([loss, best["ours"], *ratios])
    print(tabulate(rows, headers=["loss", "our epoch, CPU s", "ours / bare loop", "stock / ours"], floatfmt=".2f"))


if __name__ == "__main__":
    main()
