"""CPU time of the target pass against the matrix product and the top-K that a ranking needs anyway.

    RECBOLE_ROBUST_DATA=<folder with ml-1m.inter.xz> python benchmarks/bench_target_pass.py

Minimum of 5 alternating runs, one thread. Asked: <= 1.5x.
"""

from __future__ import annotations

import os
import tempfile
import time

import torch
from data import place_ml_1m

from recbole_robust.config import Config
from recbole_robust.data.load import prepare
from recbole_robust.evaluation import TargetPass
from recbole_robust.initialisation import build_model
from recbole_robust.trainer import get_trainer

REPEATS, K = 5, 50


@torch.no_grad()
def product_and_topk(model) -> None:
    p, q = model.user_embedding.weight[1:], model.item_embedding.weight
    step = max(64, (1 << 20) // len(q))
    for start in range(0, len(p), step):
        (p[start : start + step] @ q.T).topk(K, dim=1)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        name = place_ml_1m(folder)
        keys = {"data_path": folder, "output_dir": os.path.join(folder, "out"), "gpu_id": "", "log_tensorboard": False}
        config = Config("MF", "ml-1m", config_dict={**keys, "protocol": "apt"})
        loaders = prepare(config)
        splits = [loader._dataset for loader in loaders]
        model = build_model(config, splits[0], splits[0])
        trainer = get_trainer(config)(config, model)
        trainer.know_items(splits[0])
        for n_targets in (5, 10):
            target_pass = TargetPass(splits, torch.arange(100, 100 + n_targets), "test")
            runs = {
                "target pass": lambda: target_pass.run(trainer),  # noqa: B023
                "product and top-K": lambda: product_and_topk(model),
            }
            best = dict.fromkeys(runs, float("inf"))
            for _ in range(REPEATS):
                for label, run in runs.items():
                    started = time.process_time()
                    run()
                    best[label] = min(best[label], time.process_time() - started)
            ratio = best["target pass"] / best["product and top-K"]
            print(f"{name}, {n_targets} targets: target pass {best['target pass']:.3f} CPU s, product and top-{K} "
                  f"{best['product and top-K']:.3f} CPU s, ratio {ratio:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
