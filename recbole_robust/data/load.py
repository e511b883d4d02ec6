"""Data sets and loaders for a configuration: RecBole's classes, attacked."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import recbole.data.dataset as recbole_datasets
from recbole.data import data_preparation
from recbole.utils import ModelType, init_seed
from recbole.utils.argument_list import dataset_arguments

from recbole_robust.data.attacked_dataset import AttackedDataset
from recbole_robust.data.loaders import use_fast_loader
from recbole_robust.data.poison import Poison, PoisonCard
from recbole_robust.types import UserError

_BY_TYPE = {ModelType.SEQUENTIAL: "SequentialDataset", ModelType.KNOWLEDGE: "KnowledgeBasedDataset"}
_OWN_ARGUMENTS = ["dataset", "data_path", "rating_range", "rating_step", "numerical_features", "discretization"]
_loaded: dict[str, Any] = {}  # the data set read last, before its split: clean and attacked runs share the reading


def dataset_class(config) -> type:
    """The attacked form of the class that RecBole would take for this model."""
    name = f"{config['model']}Dataset"
    if not hasattr(recbole_datasets, name):
        name = _BY_TYPE.get(config["MODEL_TYPE"], "Dataset")
    return AttackedDataset(getattr(recbole_datasets, name))


def create_dataset(config, poison: Poison | PoisonCard | None = None):
    """The data set of a configuration, filtered and with ids, not yet split.

    The data set read last is kept in memory: a second run on the same data copies it instead of reading it again.
    """
    cls = dataset_class(config)
    settings = {name: config[name] for name in [*dataset_arguments, *_OWN_ARGUMENTS] if name != "poison_hash"}
    where = os.path.join(config["data_path"], f"{config['dataset']}.inter")
    stamp = [os.stat(where).st_mtime_ns, os.stat(where).st_size] if os.path.isfile(where) else None
    key = json.dumps([cls.__name__, settings, getattr(config, "is_explicit", False), stamp], sort_keys=True, default=str)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = cls(config)
        if config["save_dataset"]:
            _loaded[key].save()
    original = _loaded[key]
    dataset = copy.deepcopy(original, {id(original.config): config})
    dataset.poison = poison
    config["poison_hash"] = poison.fingerprint() if poison is not None else None
    return dataset


def check_topk(config, dataset) -> None:
    """K must not be larger than the number of items."""
    if max(config["topk"]) > dataset.item_num - 1:
        raise UserError(f"topk: expected at most {dataset.item_num - 1} (the items), got {max(config['topk'])}")


def prepare(config, poison: Poison | PoisonCard | None = None):
    """Split, poison and load: ``(train_data, valid_data, test_data)`` loaders, their ``_dataset`` the three splits.

    The split is made right after re-seeding, as RecBole's quick start does: it does not depend on the poison.
    """
    dataset = create_dataset(config, poison)
    check_topk(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    train_data, valid_data, test_data = data_preparation(config, dataset)
    return use_fast_loader(config, train_data), valid_data, test_data


def clean_train_split(config):
    """The training split alone, without loaders: what an attack is planned on."""
    dataset = create_dataset(config)
    check_topk(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    return dataset.build()[0]
