"""What the explicit models share: ratings as targets, on a scale of at most one, and predictions in stars."""

from __future__ import annotations

import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_robust.types import SAMPLE_WEIGHT


class ExplicitRecommender(GeneralRecommender):
    """A model of ratings: it learns ``rating / rating_scale`` and predicts in the unit of the data (stars).

    Config keys:
        rating_scale (str | float): ``max`` divides by the highest rating of the data set, ``none`` by 1, a number by
            itself. APT divides by 5 on MovieLens.
        loss_type (str): ``MSE`` on the observed ratings, or ``BPR`` on sampled negatives (then ratings are not read).
        train_neg_sample_args (dict): under ``MSE``, how unrated pairs are sampled that learn ``imputed_rating`` (stars)
            with weight ``imputed_weight`` beside the observed ones, whose weight is 1. None: observed ratings only.

    Reference (imputed ratings):
        Steck. "Training and Testing of Recommender Systems on Data Missing Not at Random." KDD 2010: AllRank-Regression
        imputes r_m with weight w_m for all unrated pairs; here they are sampled.
    """

    input_type = InputType.POINTWISE
    feedback = "explicit"

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.RATING, self.LABEL = config["RATING_FIELD"], config["LABEL_FIELD"]
        self.loss_type = config["loss_type"] or "MSE"
        self.weighs_samples = self.loss_type == "MSE"  # its losses go through weigh
        sampling = config["train_neg_sample_args"] or {}
        self.imputes = self.loss_type == "MSE" and sampling.get("distribution", "none") != "none"
        self.imputed_rating, self.imputed_weight = config["imputed_rating"], config["imputed_weight"]
        self.rating_scale = self._rating_scale(config["rating_scale"], dataset) if self.loss_type == "MSE" else 1.0

    def _rating_scale(self, setting: str | float | None, dataset) -> float:
        if setting is None or setting == "max":
            rating_range = getattr(dataset, "rating_range", None)
            return float(rating_range[1] if rating_range else dataset.inter_feat[self.RATING].max())
        return 1.0 if setting == "none" else float(setting)

    def rating_target(self, interaction) -> Tensor:
        """The ratings of a batch on the model's scale, imputed where a pair is a sampled one. Shape: ``(B,)``."""
        ratings = interaction[self.RATING]
        if self.imputes:
            ratings = torch.where(interaction[self.LABEL] > 0, ratings, self.imputed_rating)
        return ratings / self.rating_scale

    def weigh(self, losses: Tensor, interaction) -> Tensor:
        """Losses times the weight of their samples: ``sample_weight`` where the data carry one, imputed_weight.

        A sampled pair has the ``sample_weight`` of the rating it was drawn for. The weights are not normed: the mean of
        the result is over the number of samples, so that weight 1 is none.

        Shape: ``(B,)`` or ``(K, B)``, as ``losses``.
        """
        if SAMPLE_WEIGHT in interaction:
            losses = losses * interaction[SAMPLE_WEIGHT]
        if self.imputes:
            losses = torch.where(interaction[self.LABEL] > 0, losses, self.imputed_weight * losses)
        return losses


def rows_l2(*rows: Tensor) -> Tensor:
    """Squared norm of the looked-up rows over the batch size: the ridge term of the rows that a batch uses."""
    return torch.stack([row.pow(2).sum() for row in rows]).sum() / rows[0].shape[0]
