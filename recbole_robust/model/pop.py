"""Pop: RecBole's most-popular ranking, with the counting made right."""

from __future__ import annotations

import torch
from recbole.model.general_recommender.pop import Pop as RecBolePop
from recbole.utils import InputType
from torch import Tensor


class Pop(RecBolePop):
    """Ranks every item by its number of training rows.

    RecBole 1.2.1 counts an item once a batch however often the batch holds it (``cnt[item] += 1`` does not
    accumulate), and counts the sampled negatives too: at its default batch of 2,048 the most popular items all tie.
    This class counts rows, positives only (``train_neg_sample_args: ~`` in its YAML).
    """

    input_type = InputType.POINTWISE

    def calculate_loss(self, interaction) -> Tensor:
        items = interaction[self.ITEM_ID]
        self.item_cnt.index_add_(0, items, torch.ones_like(items).unsqueeze(1))
        self.max_cnt = self.item_cnt.max(dim=0)[0]
        return 0.0 * self.fake_loss.sum()
