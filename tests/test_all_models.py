"""Every general, sequential and context-aware model of RecBole trains: loss finite, and lower at the end.

The data are a slice of the ml-100k inside the recbole wheel: 200 users, 300 items, at most 20 ratings a user, with all
attributes, and random vectors in place of the knowledge-graph embeddings that GRU4RecKG and KSR start from.
"""

import importlib.util
import inspect
import math
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole
import torch

FAMILIES = ("general", "sequential", "context_aware")
EPOCHS = 3
TIME_LIMIT = 120  # CPU seconds a model, so that a busy machine fails nothing
N_WORKERS = 2

# They have nothing to train by gradient (RecBole's TRADITIONAL type and Random): it is enough that they run.
WITHOUT_LOSS = {"ADMMSLIM", "AsymKNN", "EASE", "ItemKNN", "NCEPLRec", "Pop", "Random", "SLIMElastic"}

SMALL = {  # every model
    "epochs": EPOCHS, "seed": 1, "reproducibility": True, "gpu_id": "", "state": "ERROR",
    "show_progress": False, "log_tensorboard": False,
    "train_batch_size": 256, "eval_batch_size": 100_000, "MAX_ITEM_LIST_LENGTH": 10, "learning_rate": 0.003,
    "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
}  # fmt: skip
PRETRAINED = {"pretrain_epochs": 2, "save_step": 3}  # the first stage alone, no checkpoint
USER, ITEM = ["user_id", "age", "gender", "occupation"], ["item_id", "release_year", "class"]
CONTEXT = {"load_col": {**SMALL["load_col"], "user": USER, "item": ITEM}, "threshold": {"rating": 4}}
HISTORY = {"load_col": {**SMALL["load_col"], "user": USER, "item": ITEM[:2]}}
ATTRIBUTES = {"load_col": {**SMALL["load_col"], "item": ITEM}}
KNOWLEDGE = {
    "load_col": {
        **SMALL["load_col"], "kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"],
        "ent": ["ent_id", "ent_emb"], "rel": ["rel_id", "rel_emb"],
    },
    "additional_feat_suffix": ["ent", "rel"], "preload_weight": {"ent_id": "ent_emb", "rel_id": "rel_emb"},
    "alias_of_entity_id": ["ent_id"], "alias_of_relation_id": ["rel_id"],
    # RecBole's own settings for the two miss these, and end in an error
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
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
    inter, user, item, link, kg = (
        pd.read_csv(source / f"ml-100k.{kind}", sep="\t", dtype=str, keep_default_na=False)
        for kind in ("inter", "user", "item", "link", "kg")
    )
    for column, n in (("item_id:token", n_items), ("user_id:token", n_users)):
        counts = inter[column].value_counts().sort_index().sort_values(ascending=False, kind="stable")
        inter = inter[inter[column].isin(counts.index[:n])]
    inter = inter.sort_values("timestamp:float", kind="stable").groupby("user_id:token").tail(n_ratings)
    user = user[user["user_id:token"].isin(inter["user_id:token"])]
    item, link = (table[table["item_id:token"].isin(inter["item_id:token"])] for table in (item, link))
    kg = kg[kg["head_id:token"].isin(link["entity_id:token"])].iloc[::5]
    rng = np.random.default_rng(0)

    def vectors(name: str, *tokens: pd.Series) -> pd.DataFrame:
        ids = pd.unique(pd.concat(tokens))
        rows = [" ".join(f"{x:.4f}" for x in rng.normal(scale=0.1, size=dim)) for _ in ids]
        return pd.DataFrame({f"{name}_id:token": ids, f"{name}_emb:float_seq": rows})

    tables = {"inter": inter, "user": user, "item": item, "link": link, "kg": kg}
    tables["ent"] = vectors("ent", link["entity_id:token"], kg["head_id:token"], kg["tail_id:token"])
    tables["rel"] = vectors("rel", kg["relation_id:token"])
    folder.mkdir(parents=True)
    for kind, table in tables.items():
        table.to_csv(folder / f"{folder.name}.{kind}", sep="\t", index=False)


def train_one(model: str, data_path: Path) -> list[float]:
    """Train and evaluate one model through our config, data, loaders and trainer; return the loss of each epoch."""
    from recbole.utils import ModelType, get_model

    from recbole_robust.config import Config
    from recbole_robust.data.load import prepare
    from recbole_robust.evaluation import attach_targets
    from recbole_robust.initialisation import build_model
    from recbole_robust.trainer import get_trainer

    cls = get_model(model)
    options = {**SMALL, "data_path": str(data_path.parent)}
    if cls.type == ModelType.CONTEXT:
        options |= CONTEXT
    if cls.type == ModelType.SEQUENTIAL and not hasattr(cls, "input_type"):
        options["train_neg_sample_args"] = None  # its loss is a cross entropy over all items
    config = Config(model, data_path.name, config_dict={**options, **NEEDS.get(model, {})})
    loaders = prepare(config)
    splits = [loader._dataset for loader in loaders]
    trainer = get_trainer(config)(config, build_model(config, splits[0], splits[0]))
    trainer.know_items(splits[0])
    attach_targets(trainer, splits, torch.tensor([1]))
    trainer.fit(loaders[0], saved=False)
    metrics = trainer.evaluate(loaders[2], load_best_model=False)
    if not all(map(math.isfinite, metrics.values())):
        raise AssertionError(f"a metric is not finite: {dict(metrics)}")
    return list(trainer.train_loss_dict.values())


def attempt(model: str, data_path: Path, work: Path) -> tuple[str, list[float], float]:
    """Run :func:`train_one` in a worker process. Return what went wrong, the losses, the CPU seconds."""

    def out_of_time(*_):
        raise TimeoutError(f"more than {TIME_LIMIT} s")

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
    missing = {"NCL"} if importlib.util.find_spec("faiss") is None else set()
    assert set(failures) <= missing, failures
