"""DampedMean: the item's damped mean rating, the same for everybody: a row that every robust model must beat."""

from __future__ import annotations

import torch
from recbole.utils import ModelType
from torch import Tensor, nn

from recbole_robust.model.explicit import ExplicitRecommender


class DampedMean(ExplicitRecommender):
    """Score of an item: the sum of its ratings over their count plus ``damping`` (20 in our measurements).

    Few ratings pull the score to zero, so a handful of fakes cannot lift a cold item far; nor can genuine fans.

    Shape:
        item_score ``(n_items,)``, in stars.
    """

    type = ModelType.TRADITIONAL
    loss_types = ("MSE",)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.weighs_samples = False
        items = dataset.inter_feat[self.ITEM_ID]
        ratings = dataset.inter_feat[self.RATING].double()
        sums = torch.zeros(self.n_items, dtype=torch.double).index_add_(0, items, ratings)
        counts = torch.bincount(items, minlength=self.n_items)
        self.register_buffer("item_score", (sums / (counts + config["damping"])).float())
        self.no_parameter = nn.Parameter(torch.zeros(1))  # RecBole's trainer wants something to optimise

    def calculate_loss(self, interaction) -> Tensor:
        return 0.0 * self.no_parameter.sum()

    def predict(self, interaction) -> Tensor:
        return self.item_score[interaction[self.ITEM_ID]]

    def full_sort_predict(self, interaction) -> Tensor:
        return self.item_score.repeat(interaction[self.USER_ID].shape[0])
