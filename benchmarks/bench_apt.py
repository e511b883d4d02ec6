"""CPU seconds of one injection of APT on MF, and what its inverse Hessian does to the gradient, on one thread.

    python benchmarks/bench_apt.py [data set ...]        (ml-100k, ml-1m)

The model is trained up to ``start_epoch`` under the APT protocol first. ML-100K ships with RecBole, ML-1M is looked for
in RECBOLE_ROBUST_DATA. Asked: at most 5 s on ML-100K (1000 iterations), 30 s on ML-1M (the authors' 200 iterations).
"""

from __future__ import annotations

import sys
import tempfile
import time

import numpy as np
import torch
from data import place_ml_1m
from tabulate import tabulate

from recbole_robust import registry
from recbole_robust.config import Config
from recbole_robust.data.extra_users import with_room, with_users
from recbole_robust.data.load import prepare
from recbole_robust.data.views import defender_view
from recbole_robust.defenses.squared_error import SquaredError, conjugate_gradients, lissa, partition
from recbole_robust.initialisation import build_model
from recbole_robust.trainer import get_trainer

ARGUMENTS = {"ml-100k": {}, "ml-1m": {"n_iterations": 200, "n_selected": 700}}
HEADERS = ("data set", "step", "CPU s", "|h| / |g|", "cos(h, g)")


def rows_of(name: str, folder: str) -> list[tuple]:
    """The lines of one data set."""
    keys = {"output_dir": folder, "gpu_id": "", "show_progress": False, "log_tensorboard": False}
    places = {"data_path": folder} if name == "ml-1m" else {}
    config = Config("MF", name, config_dict={**keys, **places, "defense": "APT", "defense_args": ARGUMENTS[name]})
    apt = registry.build_defenses(config["defense"], config["defense_args"]).training
    loader = prepare(config)[0]
    train = loader._dataset
    room = with_room(train, apt.n_erm_users, config["seed"])
    trainer = get_trainer(config)(config, build_model(config, train, train, None, room))
    for epoch in range(apt.start_epoch):
        trainer._train_epoch(loader, epoch)
    model, view, rng = trainer.model, defender_view(train), np.random.default_rng(0)

    started = time.process_time()
    profiles = apt(model, view, rng=rng)
    drawn = time.process_time()
    with_users(loader, room, profiles, config["seed"])
    loaded = time.process_time()
    rows = [
        (name, f"{profiles.n_users} ERM users of {profiles.user_ptr[1]} items", drawn - started, None, None),
        (name, "their loader", loaded - drawn, None, None),
    ]
    ratings = view.ratings / model.rating_scale
    p = model.user_embedding.weight.detach()[1 : 1 + ratings.shape[0]]
    q = model.item_embedding.weight.detach()[1:]
    risk = SquaredError(ratings, p, q)
    g = risk.gradient()
    for how in ("lissa", "cg"):
        started = time.process_time()
        if how == "lissa":
            h = lissa(partition(ratings, p, q, apt.batch_size, rng), g, apt.n_iterations)
        else:
            h = conjugate_gradients(risk, g, apt.n_iterations)
        seconds = time.process_time() - started
        cosine = torch.cosine_similarity(h.flatten(), g.flatten(), dim=0)
        rows.append((name, how, seconds, float(h.norm() / g.norm()), float(cosine)))
    return rows


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        names = sys.argv[1:] or list(ARGUMENTS)
        what = place_ml_1m(folder) if "ml-1m" in names else None
        rows = [row for name in names for row in rows_of(name, folder)]
    print(tabulate(rows, HEADERS, floatfmt=("", "", ".2f", ".1f", ".3f")))
    if what not in ("ml-1m", None):
        print(what)


if __name__ == "__main__":
    main()
