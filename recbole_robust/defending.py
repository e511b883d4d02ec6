"""The defenses of a training: detectors before it, weights and losses in it, users that are added on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from recbole_robust import registry
from recbole_robust.config import Config
from recbole_robust.criterion_tap import weigh_samples
from recbole_robust.data.extra_users import with_room, with_users
from recbole_robust.data.injection import without_fakes
from recbole_robust.data.screening import screened
from recbole_robust.data.views import defender_view
from recbole_robust.data.weighting import oracle_weighted, weighted
from recbole_robust.defenses import GroupWeights, defended, detection_report
from recbole_robust.initialisation import build_model
from recbole_robust.model.propagation import hasten
from recbole_robust.randomness import stage_rng
from recbole_robust.trainer import get_trainer
from recbole_robust.types import Detection, FakeProfiles, TrainingDefense, Weigher


def under_defenses(config: Config, train_data) -> tuple[Any, Any, dict[str, Any] | None]:
    """The model under its defenses in a trainer, the loader that is left to train on, and what the detectors found.

    In a first stage (S3Rec's pre-training), which has no recommendation's loss, nothing changes or weighs the loss.
    """
    defenses = registry.build_defenses(config["defense"], config["defense_args"])
    detection, first_stage = None, config["train_stage"] == "pretrain"
    of_model = config.internal_config_dict  # a key that the model does not have is ignored, and stays in the Config
    if "atjt_weights" in of_model and config["atjt_weights"] == "oracle" and not first_stage:
        train_data = oracle_weighted(train_data)
    if defenses.detectors:
        flagged, detection = _detect(config, defenses.detectors, train_data._dataset)
        train_data = screened(train_data, flagged)
    weigher = None if first_stage else defenses.weights or group_weights_of(config)
    if weigher:
        view = defender_view(train_data._dataset)
        rng = stage_rng(config["seed"], f"defense {type(weigher).__name__}")
        train_data = weighted(train_data, view.ratings, weigher(view, rng=rng))
    loss = None if first_stage else defenses.loss
    model_class = defended(config.model_class, loss) if loss else config.model_class
    train = room = train_data._dataset
    if defenses.training:
        room = with_room(train, defenses.training.n_erm_users, config["seed"])
    model = build_model(config, train, without_fakes(train), model_class, room)
    hasten(model)
    if weigher and not getattr(model, "weighs_samples", False):
        weigh_samples(model)
    trainer = get_trainer(config)(config, model)
    if defenses.training:
        defenses.training.attach(model)
        trainer.before_epoch.append(_adding_users(config, defenses.training, train, room))
    return trainer, train_data, detection


def group_weights_of(config: Config) -> Weigher | None:
    """The purification of PurifyAugMF's training rows; of a model that has no such key it is no business."""
    if "group_weights" not in config.internal_config_dict or not config["group_weights"]:
        return None
    return GroupWeights(*(config[f"group_{name}"] for name in ("low", "high", "own_share", "usual", "evidence")))


def _detect(config: Config, detectors, train) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """Who is flagged by any of the detectors, and how right they are together (the defense never learns that).

    Under the control Organic nobody is fake; ``newcomers_lost`` is the share of those who joined that is flagged.

    Shape: ``(n_users,)``, bool, without the padding user.
    """
    view = defender_view(train)
    found = [one(view, rng=stage_rng(config["seed"], f"defense {type(one).__name__}")) for one in detectors]
    flagged = np.logical_or.reduce([detection.flagged for detection in found])
    joined = np.arange(len(flagged)) >= len(flagged) - train.n_fake_users
    together = Detection(np.mean([rankdata(detection.scores) for detection in found], axis=0), flagged)
    if train.card is not None and train.card.is_control:
        return flagged, {
            **detection_report(together, np.zeros_like(joined)),
            "newcomers_lost": float(flagged[joined].mean()),
        }
    return flagged, detection_report(together, joined)


def _adding_users(config: Config, defense: TrainingDefense, train, room) -> Callable[[Any, Any, int], Any]:
    """A hook of the trainer: the rows of ``train`` and, beside them, those of the defense's own users.

    A resumed training has the users of the checkpoint until the next are drawn, each time by a generator of its own.
    """
    view = defender_view(train)
    users, loader = None, None

    def before_epoch(trainer, train_data, epoch: int):
        nonlocal users, loader
        if defense.is_due(epoch):
            rng = stage_rng(config["seed"], f"defense {type(defense).__name__}, epoch {epoch}")
            found = defense(trainer.model, view, rng=rng)
            trainer.model.erm_users = (found.user_ptr, found.item_ids, found.ratings)
        if users is not trainer.model.erm_users:
            users = trainer.model.erm_users
            loader = with_users(train_data, room, FakeProfiles(*users), config["seed"])
        return train_data if users is None else loader

    return before_epoch
