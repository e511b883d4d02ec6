"""Data sets and loaders for a configuration: RecBole's classes, attacked."""

from __future__ import annotations

import copy
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import recbole.data.dataset as recbole_datasets
from recbole.data import data_preparation
from recbole.utils import ModelType, init_seed
from recbole.utils.argument_list import dataset_arguments

from recbole_robust.data.attacked_dataset import AttackedDataset
from recbole_robust.data.card import PoisonCard
from recbole_robust.data.loaders import use_fast_loader
from recbole_robust.data.newcomers import FAN_KEYS
from recbole_robust.data.noise import InteractionNoise
from recbole_robust.data.poison import Poison
from recbole_robust.data.seq_context import SequentialContextDataset
from recbole_robust.foreign_files import NO_FILE
from recbole_robust.types import UserError

_BY_TYPE = {ModelType.SEQUENTIAL: "SequentialDataset", ModelType.KNOWLEDGE: "KnowledgeBasedDataset"}
_OWN_ARGUMENTS = (
    "dataset", "data_path", "encoding", "rating_range", "rating_step", "numerical_features", "discretization",
)  # fmt: skip
_AFTER_READING = ("poison_hash", "heldout_file")  # what only the split depends on
_loaded: dict[str, Any] = {}  # the data set read last, before its split: clean and attacked runs share the reading


def dataset_class(config) -> type:
    """The attacked form of the class that RecBole would take for this model, or for the one that it wraps."""
    if getattr(config.model_class, "sees_history", False):
        return AttackedDataset(SequentialContextDataset)
    name = f"{config['base_model'] or config['model']}Dataset"
    if not hasattr(recbole_datasets, name):
        name = _BY_TYPE.get(config["MODEL_TYPE"], "Dataset")
    return AttackedDataset(getattr(recbole_datasets, name))


def data_digest(config) -> str:
    """Twelve hexadecimal digits of the contents of a configuration's data files: other data, another run."""
    paths = sorted(Path(config["data_path"]).glob(f"{config['dataset']}.*"))
    if config["heldout_file"]:
        paths.append(Path(config["heldout_file"]))
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]
    return _digest_of(tuple(stamps))


@lru_cache(maxsize=16)
def _digest_of(stamps: tuple[tuple[str, int, int], ...]) -> str:
    sha = hashlib.sha256()
    for path, size, _ in stamps:
        sha.update(f"{Path(path).name}\x1f{size}\x1f".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()[:12]


def create_dataset(config, poison: Poison | PoisonCard | None = None):
    """The data set of a configuration, filtered and with ids, not yet split.

    The data set read last is kept in memory: a second run on the same data copies it instead of reading it again.
    Noise and poison are not in it: they come with the split.
    """
    cls, digest = dataset_class(config), data_digest(config)
    names = [name for name in [*dataset_arguments, *_OWN_ARGUMENTS] if name not in _AFTER_READING]
    settings = {name: config[name] for name in names}
    if config["new_fans"]:
        settings.update(new_fans=[config[name] for name in FAN_KEYS])
    if issubclass(cls, recbole_datasets.DIENDataset):  # it draws negatives while it is read
        settings["seed"] = config["seed"]
    settings.update(cls=cls.__name__, explicit=getattr(config, "is_explicit", False), digest=digest)
    key = json.dumps(settings, sort_keys=True, default=str)
    original = _loaded.get(key) or _read(cls, config)
    _loaded.clear()
    _loaded[key] = original
    dataset = copy.deepcopy(original, {id(original.config): config})
    dataset.poison, dataset.noise = poison, InteractionNoise.from_config(config)
    config["poison_hash"] = "-".join(filter(None, [digest, dataset.fingerprint()]))
    return dataset


def _read(cls, config):
    init_seed(config["seed"], config["reproducibility"])
    try:
        return cls(config)
    except ValueError as error:  # RecBole's kind for settings that do not fit the data
        raise UserError(f"dataset: {' '.join(str(error).split())}") from error


def check_topk(config, dataset) -> None:
    """K must not be larger than the number of items."""
    if max(config["topk"]) > dataset.item_num - 1:
        raise UserError(f"topk: expected at most {dataset.item_num - 1} (the items), got {max(config['topk'])}")


def check_labels(config, dataset) -> None:
    """A context-aware model that gets no sampled negatives learns from labels, which must be there."""
    label, sampling = config["LABEL_FIELD"], config["train_neg_sample_args"]["distribution"]
    if config["MODEL_TYPE"] == ModelType.CONTEXT and sampling == "none" and label not in dataset.inter_feat:
        raise UserError(f"{dataset.dataset_name}: {config['model']} learns labels, expected a column {label}:float or "
                        f"a threshold such as --threshold=\"{{'rating': 4}}\", got neither")  # fmt: skip


def prepare(config, poison: Poison | PoisonCard | None = None):
    """Split, poison and load: ``(train_data, valid_data, test_data)`` loaders, their ``_dataset`` the three splits.

    The split is made right after re-seeding, as RecBole's quick start does: it does not depend on the poison.
    """
    dataset = create_dataset(config, poison)
    check_topk(config, dataset)
    check_labels(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    config["dataloaders_save_path"] = NO_FILE  # else RecBole unpickles <data set>-for-<model>-dataloader.pth, if there
    try:
        loaders = data_preparation(config, dataset)
    except ValueError as error:
        if "interacted with all items" not in str(error):
            raise
        raise UserError(f"{dataset.dataset_name}: expected an item that a user has not rated, to sample as a negative "
                        "one, got a (fake or genuine) user who has rated them all") from None  # fmt: skip
    return use_fast_loader(config, loaders[0]), *loaders[1:]


def clean_train_split(config):
    """The training split alone, without loaders: what an attack is planned on."""
    dataset = create_dataset(config)
    check_topk(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    return dataset.build()[0]
