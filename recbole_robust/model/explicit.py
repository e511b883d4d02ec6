"""What the explicit models share: ratings as targets, on a scale of at most one, and predictions in stars."""

from __future__ import annotations

import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_robust.trainer import SAMPLE_WEIGHT


class ExplicitRecommender(GeneralRecommender):
    """A model of ratings: it learns ``rating / rating_scale`` and predicts in the unit of the data (stars).

    Config keys:
        rating_scale (str | float): ``max`` divides by the highest rating of the data set, ``none`` by 1, a number by
            itself. APT divides by 5 on MovieLens.
        loss_type (str): ``MSE`` on the observed ratings, or ``BPR`` on sampled negatives (then ratings are not read).
    """

    input_type = InputType.POINTWISE
    feedback = "explicit"

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.RATING = config["RATING_FIELD"]
        self.loss_type = config["loss_type"] or "MSE"
        self.weighs_samples = self.loss_type == "MSE"  # its losses go through weighted_mean
        self.rating_scale = self._rating_scale(config["rating_scale"], dataset) if self.loss_type == "MSE" else 1.0

    def _rating_scale(self, setting: str | float | None, dataset) -> float:
        if setting is None or setting == "max":
            rating_range = getattr(dataset, "rating_range", None)
            return float(rating_range[1] if rating_range else dataset.inter_feat[self.RATING].max())
        return 1.0 if setting == "none" else float(setting)

    def rating_target(self, interaction) -> Tensor:
        """The ratings of a batch on the model's scale. Shape: ``(B,)``."""
        return interaction[self.RATING] / self.rating_scale


def weighted_mean(losses: Tensor, interaction) -> Tensor:
    """The mean of per-sample losses, each times its ``sample_weight`` where the training data carry one.

    Shape: ``losses`` is ``(B,)``; the result is a scalar. The divisor stays ``B``, so that weight 1 is no weight.
    """
    if SAMPLE_WEIGHT in interaction:
        losses = losses * interaction[SAMPLE_WEIGHT]
    return losses.mean()


def rows_l2(*rows: Tensor) -> Tensor:
    """Squared norm of the looked-up rows over the batch size: the ridge term of the rows that a batch uses."""
    return torch.stack([row.pow(2).sum() for row in rows]).sum() / rows[0].shape[0]
