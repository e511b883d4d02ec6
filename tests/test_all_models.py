"""Every general, sequential and context-aware model of RecBole trains: loss finite, and lower at the end.

The data are a slice of the ml-100k inside the recbole wheel: 200 users, 300 items, at most 20 ratings a user, with all
attributes, and random vectors in place of the knowledge-graph embeddings that GRU4RecKG and KSR start from.
"""

import importlib
import inspect
import math
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole

FAMILIES = ("general", "sequential", "context_aware")
EPOCHS = 3
TIME_LIMIT = 120  # CPU seconds a model, so that a busy machine fails nothing
N_WORKERS = 2

# They have nothing to train by gradient (RecBole's TRADITIONAL type and Random): it is enough that they run.
WITHOUT_LOSS = {"ADMMSLIM", "AsymKNN", "EASE", "ItemKNN", "NCEPLRec", "Pop", "Random", "SLIMElastic"}

SMALL = {  # every model
    "epochs": EPOCHS, "seed": 1, "reproducibility": True, "gpu_id": "", "state": "ERROR", "show_progress": False,
    "train_batch_size": 256, "eval_batch_size": 100_000, "MAX_ITEM_LIST_LENGTH": 10, "learning_rate": 0.003,
    "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
}  # fmt: skip
PRETRAINED = {"pretrain_epochs": EPOCHS, "save_step": EPOCHS + 1}  # a whole run of the first stage, no checkpoint
USER, ITEM = ["user_id", "age", "gender", "occupation"], ["item_id", "release_year", "class"]
CONTEXT = {"load_col": {**SMALL["load_col"], "user": USER, "item": ITEM}, "threshold": {"rating": 4}}
HISTORY = {"load_col": {**SMALL["load_col"], "user": USER, "item": ITEM[:2]}}
ATTRIBUTES = {"load_col": {**SMALL["load_col"], "item": ITEM}}
KNOWLEDGE = {
    "load_col": {**SMALL["load_col"], "ent": ["ent_id", "ent_emb"], "rel": ["rel_id", "rel_emb"]},
    "additional_feat_suffix": ["ent", "rel"], "alias_of_item_id": ["ent_id"],
    "preload_weight": {"ent_id": "ent_emb", "rel_id": "rel_emb"},
}  # fmt: skip
NEEDS = {  # one model
    "DIN": HISTORY, "DIEN": HISTORY, "GRU4RecF": ATTRIBUTES, "SASRecF": ATTRIBUTES, "FDSA": ATTRIBUTES,
    "S3Rec": {**ATTRIBUTES, **PRETRAINED}, "RaCT": PRETRAINED, "GRU4RecKG": KNOWLEDGE, "KSR": KNOWLEDGE,
}  # fmt: skip


def all_models() -> dict[str, str]:
    """Model name -> family, for the classes that the three packages of RecBole export."""
    models = {}
    for family in FAMILIES:
        package = importlib.import_module(f"recbole.model.{family}_recommender")
        for name, cls in inspect.getmembers(package, inspect.isclass):
            if cls.__module__.startswith(package.__name__):
                models[name] = family
    return models


def write_slice(folder: Path, n_users: int = 200, n_items: int = 300, n_ratings: int = 20, dim: int = 64) -> None:
    """Write the last ratings of the ``n_users`` most active users for the most rated items, and all attributes."""
    source = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
    inter, user, item = (
        pd.read_csv(source / f"ml-100k.{kind}", sep="\t", dtype=str, keep_default_na=False)
        for kind in ("inter", "user", "item")
    )
    for column, n in (("item_id:token", n_items), ("user_id:token", n_users)):
        inter = inter[inter[column].isin(inter[column].value_counts().index[:n])]
    inter = inter.sort_values("timestamp:float", kind="stable").groupby("user_id:token").tail(n_ratings)
    item = item[item["item_id:token"].isin(inter["item_id:token"])]
    user = user[user["user_id:token"].isin(inter["user_id:token"])]
    rng = np.random.default_rng(0)

    def vectors(ids) -> list[str]:
        return [" ".join(f"{x:.4f}" for x in rng.normal(scale=0.1, size=dim)) for _ in ids]

    entities = item["item_id:token"].tolist()
    relations = [f"r{i}" for i in range(5)]
    folder.mkdir(parents=True)
    for kind, table in {
        "inter": inter,
        "user": user,
        "item": item,
        "ent": pd.DataFrame({"ent_id:token": entities, "ent_emb:float_seq": vectors(entities)}),
        "rel": pd.DataFrame({"rel_id:token": relations, "rel_emb:float_seq": vectors(relations)}),
    }.items():
        table.to_csv(folder / f"{folder.name}.{kind}", sep="\t", index=False)


def train_one(model: str, data_path: Path) -> list[float]:
    """Train and evaluate one model; return the training loss of each epoch. Swap the stack here."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import ModelType, get_model, get_trainer, init_seed

    import recbole_robust.compat

    recbole_robust.compat.apply()
    cls = get_model(model)
    options = {**SMALL, "data_path": str(data_path.parent)}
    if cls.type == ModelType.CONTEXT:
        options |= CONTEXT
    if cls.type == ModelType.SEQUENTIAL and not hasattr(cls, "input_type"):
        options["train_neg_sample_args"] = None  # its loss is a cross entropy over all items
    config = Config(model=model, dataset=data_path.name, config_dict={**options, **NEEDS.get(model, {})})
    init_seed(config["seed"], config["reproducibility"])
    train, _, test = data_preparation(config, create_dataset(config))
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, cls(config, train._dataset).to(config["device"]))
    trainer.fit(train, saved=False, show_progress=False)
    metrics = trainer.evaluate(test, load_best_model=False)
    if not all(map(math.isfinite, metrics.values())):
        raise AssertionError(f"a metric is not finite: {dict(metrics)}")
    return list(trainer.train_loss_dict.values())


def attempt(model: str, data_path: Path, work: Path) -> tuple[str, list[float], float]:
    """Run :func:`train_one` in a worker process. Return what went wrong, the losses, the CPU seconds."""

    def out_of_time(*_):
        raise TimeoutError(f"more than {TIME_LIMIT} s")

    import time

    import torch

    torch.set_num_threads(1)
    sys.argv = sys.argv[:1]  # RecBole's Config reads the command line, which is pytest's
    os.chdir(work)  # for log/, saved/ and log_tensorboard/
    signal.signal(signal.SIGPROF, out_of_time)
    signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
    start = time.process_time()
    try:
        losses, error = train_one(model, data_path), ""
    except BaseException as exception:  # SystemExit too: RecBole exits where it gives up
        losses, error = [], f"{type(exception).__name__}: {exception}".split("\n")[0]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return error, losses, time.process_time() - start


def failure(model: str, error: str, losses: list[float]) -> str:
    """Why the model does not count as running; "" where it does."""
    if error or model in WITHOUT_LOSS:
        return error
    if not all(map(math.isfinite, losses)):
        return f"loss is not finite: {losses}"
    return "" if losses[-1] < losses[0] else f"loss does not fall: {losses}"


@pytest.mark.slow
def test_all_models_of_recbole_train(tmp_path, record_property, capsys):
    data_path = tmp_path / "dataset" / "ml-slice"
    write_slice(data_path)
    models = all_models()
    assert len(models) == 82
    context = multiprocessing.get_context("spawn")  # torch has run here: a forked child could hang
    with ProcessPoolExecutor(N_WORKERS, mp_context=context) as pool:
        jobs = {model: pool.submit(attempt, model, data_path, tmp_path) for model in models}
        results = {model: job.result() for model, job in jobs.items()}
    failures = {m: failure(m, error, losses) for m, (error, losses, _) in results.items()}
    failures = {model: why for model, why in failures.items() if why}
    ran = len(models) - len(failures)
    record_property("models_that_train", ran)
    with capsys.disabled():
        print(f"\n{ran} of {len(models)} models train")  # noqa: T201
        for model, (_, losses, seconds) in results.items():
            print(f"{model:12s} {seconds:6.1f} s  {np.round(losses, 4)}  {failures.get(model, '')}")  # noqa: T201
    assert ran >= 75, failures
