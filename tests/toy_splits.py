"""Splits of the toy data set for every family of models, and data sets written for one test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed

from recbole_robust import Average, Poison
from recbole_robust.data.injection import without_fakes
from recbole_robust.data.load import create_dataset, prepare
from recbole_robust.evaluation import attach_targets
from recbole_robust.initialisation import build_model
from recbole_robust.quick_start import run_recbole_robust
from recbole_robust.trainer import RobustTrainerMixin, get_trainer

FEATURES = {
    "inter": ["user_id", "item_id", "rating", "timestamp"],
    "user": ["user_id", "age", "gender"],
    "item": ["item_id", "year", "class"],
}
SMALL = {"MAX_ITEM_LIST_LENGTH": 8, "mlp_hidden_size": [8], "embedding_size": 8, "hidden_size": 8, "inner_size": 8,
         "n_layers": 1, "n_heads": 1}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "MF": {},  # ratings
    "BPR": {},  # implicit
    "DCN": {"load_col": FEATURES, "threshold": {"rating": 4}},  # context: labels, features
    "SASRec": {"train_neg_sample_args": None},  # sequences
    "DIN": {"load_col": FEATURES},  # sequences with features
}


class Splits(NamedTuple):
    train: Any
    valid: Any
    test: Any


@pytest.fixture
def family_config(toy_config) -> Callable[..., Any]:
    """A small Config of one of the FAMILIES; keys win."""

    def make(model: str, **keys: Any):
        known = SMALL if model in ("DCN", "SASRec", "DIN") else {}
        return toy_config(model, **{**known, **FAMILIES[model], **keys})

    return make


def split(config, poison=None) -> Splits:
    """The three splits of a configuration, poisoned or not, made as ``load.prepare`` makes them."""
    dataset = create_dataset(config, poison)
    init_seed(config["seed"], config["reproducibility"])
    return Splits(*dataset.build())


def assert_same_rows(left: Interaction, right: Interaction) -> None:
    assert left.columns == right.columns
    for name in left.columns:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


class Run(NamedTuple):
    """A trainer of ours with everything attached, not fitted yet."""

    trainer: Any
    loaders: tuple[Any, Any, Any]
    splits: Splits

    def fit(self, **options: Any):
        return self.trainer.fit(*self.loaders[:2], **options)

    def test(self, **options: Any) -> dict[str, float]:
        return self.trainer.evaluate(self.loaders[2], **options)


def make_run(config, poison=None, targets: tuple[str, ...] = ("i3", "i40")) -> Run:
    """Model and trainer of a configuration, as ``quick_start`` builds them."""
    loaders = prepare(config, poison)
    splits = Splits(*(loader._dataset for loader in loaders))
    trainer = get_trainer(config)(config, build_model(config, splits.train, without_fakes(splits.train)))
    trainer.know_items(splits.train)
    attach_targets(trainer, splits, torch.tensor([splits.train.token2id("item_id", token) for token in targets]))
    return Run(trainer, loaders, splits)


def average(**keys: Any) -> Poison:
    """An Average attack with five targets, 10 fake users and 6 fillers unless told otherwise."""
    return Poison(Average(), **{"n_fake_users": 10, "n_fillers": 6, "seed": 3, **keys})


@pytest.fixture
def write_data(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Write atomic files (``suffix -> lines``) of a data set; returns the keys that find it."""

    def write(name: str = "mini", **files: list[str]) -> dict[str, str]:
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, lines in files.items():  # train_inter: a benchmark file, name.train.inter
            (folder / f"{name}.{suffix.replace('_', '.')}").write_text("\n".join(lines) + "\n")
        return {"dataset": name, "data_path": str(tmp_path / "data")}

    return write


# --- whole runs ----------------------------------------------------------------------------------------------------

ATTACK = {"attack": "Average", "n_fake_users": 8, "n_fillers": 6, "target_items": ["i3", "i40"]}
SEQUENTIAL = {"train_neg_sample_args": None}
VICTIMS: dict[str, dict[str, Any]] = {
    "BPR": {},
    "LightGCN": {},
    "NeuMF": {"mlp_hidden_size": [8]},
    "SASRec": {**SMALL, **SEQUENTIAL},
    "GRU4Rec": {**SMALL, **SEQUENTIAL},
    "DIN": {**SMALL, **FAMILIES["DIN"], "eval_step": 3},
    "DCN": {**SMALL, **FAMILIES["DCN"]},
}


@pytest.fixture
def run(data_path, output_dir):
    """Run a model on the toy data: few epochs, quiet, into the test's own folder."""

    def go(model="MF", files=None, **keys):
        quiet = {"use_gpu": False, "show_progress": False, "log_tensorboard": False, "save_checkpoint": False}
        places = {"data_path": str(data_path), "output_dir": str(output_dir)}
        return run_recbole_robust(model, "toy", files, {**places, **quiet, "epochs": 2, "topk": [5, 10], **keys})

    return go


@pytest.fixture
def trainings(monkeypatch) -> list[str]:
    """The label of every training that is really done."""
    done = []
    fit = RobustTrainerMixin.fit

    def noted(self, *args, **options):
        done.append(self.label)
        return fit(self, *args, **options)

    monkeypatch.setattr(RobustTrainerMixin, "fit", noted)
    return done


@pytest.fixture
def attacks(monkeypatch) -> list[int]:
    """One entry for every time that the attack Average really runs: the number of users that it saw."""
    calls: list[int] = []
    plan = Average.__call__

    def counted(self, view, target_items, budget, *, rng):
        calls.append(view.n_users)
        return plan(self, view, target_items, budget, rng=rng)

    monkeypatch.setattr(Average, "__call__", counted)
    return calls


def numbers(result) -> dict[str, object]:
    return {key: result[key] for key in ("clean", "attacked", "lift", "per_target", "split_hash", "valid")}
