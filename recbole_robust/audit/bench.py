"""What the self-checks work on: the toy data, split, poisoned and loaded as in any run; models with given scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from recbole.utils import init_seed
from torch import Tensor

from recbole_robust.config import Config
from recbole_robust.data.card import PoisonCard
from recbole_robust.data.injection import without_fakes
from recbole_robust.data.load import clean_train_split, create_dataset, prepare
from recbole_robust.data.poison import Poison
from recbole_robust.evaluation import TargetRanks, attach_targets, mean_over_targets, target_metrics
from recbole_robust.initialisation import build_model
from recbole_robust.properties_path import properties_dir
from recbole_robust.registry import build_attack
from recbole_robust.trainer import get_trainer
from recbole_robust.types import UserError

TARGETS = ["i3", "i40"]
K = 10
_SMALL = {"MAX_ITEM_LIST_LENGTH": 8, "hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1}
VICTIMS: dict[str, dict[str, Any]] = {  # one a form of training rows: ratings, sampled negatives, sequences
    "MF": {},
    "BPR": {},
    "SASRec": {**_SMALL, "train_neg_sample_args": None},
}


class Made(NamedTuple):
    """A trainer that is not fitted, its loaders, the three splits behind them, and the ranks of its last test."""

    trainer: Any
    loaders: tuple[Any, Any, Any]
    splits: list[Any]
    ranks: Callable[[], TargetRanks]


@dataclass(frozen=True)
class Bench:
    """The toy data in ``data_path``; whatever is written goes to ``folder``."""

    data_path: Path
    folder: Path

    @classmethod
    def of(cls, data_path: str | Path | None, folder: str | Path) -> Bench:
        """``data_path`` None: the ``dataset/`` of the source tree.

        Raises:
            UserError: no toy data there.
        """
        place = Path(data_path) if data_path else properties_dir().parent / "dataset"
        if not (place / "toy" / "toy.inter").is_file():
            raise UserError(f"audit: expected the toy data of the project, {place / 'toy' / 'toy.inter'}; "
                            "--data_path=<folder> says where they are")  # fmt: skip
        return cls(place, Path(folder))

    def keys(self, **keys: Any) -> dict[str, Any]:
        """Configuration keys of a small, quiet run; ``keys`` win."""
        quiet = {"use_gpu": False, "show_progress": False, "log_tensorboard": False, "save_checkpoint": False}
        places = {"data_path": str(self.data_path), "output_dir": str(self.folder)}
        return {**places, **quiet, "topk": [5, K], "target_items": TARGETS, **keys}

    def config(self, model: str = "MF", **keys: Any) -> Config:
        return Config(model, "toy", config_dict=self.keys(**{**VICTIMS.get(model, {}), **keys}))

    def splits(self, config: Config, poison: PoisonCard | None = None) -> list[Any]:
        """Train, valid and test split, as any run makes them."""
        dataset = create_dataset(config, poison)
        init_seed(config["seed"], config["reproducibility"])
        return dataset.build()

    def card(self, config: Config, attack: str = "Average", **keys: Any) -> PoisonCard:
        """The fake profiles of an attack on the training split of a configuration."""
        settings = {"n_fake_users": 10, "n_fillers": 6, "target_items": TARGETS, "seed": 3, **keys}
        arguments = settings.pop("attack_args", {})
        return Poison(build_attack(attack, arguments), **settings).plan(clean_train_split(config))

    def made(self, config: Config, poison: PoisonCard | None = None) -> Made:
        """Loaders, model and trainer, put together as ``quick_start`` does."""
        loaders = prepare(config, poison)
        splits = [loader._dataset for loader in loaders]
        train = splits[0]
        trainer = get_trainer(config)(config, build_model(config, train, without_fakes(train)))
        trainer.know_items(train)
        targets = torch.tensor([train.token2id(train.iid_field, token) for token in TARGETS])
        return Made(trainer, loaders, splits, attach_targets(trainer, splits, targets))

    def measured(self, made: Made, table: Tensor | None = None) -> tuple[dict[str, float], TargetRanks]:
        """All metrics on the test rows, and the target ranks behind them, of a model or of given scores.

        Shape: ``table`` ``(n_users, n_items)``, in RecBole's ids; None: the scores are the model's.
        """
        if table is not None:
            uid = made.splits[0].uid_field
            made.trainer.model.full_sort_predict = lambda queries: table[queries[uid]].view(-1)
        made.trainer.eval_collector.data_collect(made.loaders[0])
        init_seed(0, True)
        metrics = dict(made.trainer.evaluate(made.loaders[2], load_best_model=False, show_progress=False))
        found = made.ranks()
        config = made.trainer.config
        each = target_metrics(
            found.ranks, found.scores, found.eligible, config["topk"], config["target_hr_denominator"]
        )
        return {name: float(value) for name, value in {**metrics, **mean_over_targets(each)}.items()}, found


def rows_of(split) -> set[tuple[int, int]]:
    """(user, item) of the rows of a split, in RecBole's ids; a sequence's history counts for a training split only."""
    feat = split.inter_feat
    return set(zip(feat[split.uid_field].tolist(), feat[split.iid_field].tolist(), strict=True)) if len(feat) else set()


def pairs_trained_on(train_data) -> set[tuple[int, int]]:
    """(user, item) of all that a training loader hands to a model as something the user did, histories included."""
    train = train_data._dataset
    history = train.iid_field + (train.config["LIST_SUFFIX"] or "_list")
    found: set[tuple[int, int]] = set()
    for batch in train_data:
        users = batch[train.uid_field]
        labelled = train.label_field in batch
        done = batch[train.label_field] > 0 if labelled else torch.ones(len(users), dtype=torch.bool)
        found |= set(zip(users[done].tolist(), batch[train.iid_field][done].tolist(), strict=True))
        if history in batch:
            rows, columns = batch[history].nonzero(as_tuple=True)
            found |= set(zip(users[rows].tolist(), batch[history][rows, columns].tolist(), strict=True))
    return found
