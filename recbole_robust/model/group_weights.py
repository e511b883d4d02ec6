"""The weight of a rating in the loss, by how many others stand behind it as one voice with its user."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from recbole_robust.scores import coordinated_raters
from recbole_robust.types import FloatArray, IntArray


class GroupWeights:
    """``1 / (1 + c_ui)``, with c_ui of :func:`recbole_robust.scores.coordinated_raters`: a group counts as one rater.

    Computed from the training rows at the first call, labels unseen. Of a pair that is there twice the last row counts.

    Args:
        user, item, rating: the training rows. Shape: ``(n,)`` each.
        low, high, own_share: see :func:`recbole_robust.scores.coordinated_raters`.
    """

    def __init__(self, user: Tensor, item: Tensor, rating: Tensor, low: float, high: float, own_share: float):
        self.rows: tuple[Tensor, Tensor, Tensor] | None = (user, item, rating)
        self.low, self.high, self.own_share = low, high, own_share
        self.keys = self.weights = torch.empty(0)
        self.n_items = int(item.max()) + 1

    def __call__(self, user: Tensor, item: Tensor) -> Tensor:
        """The weights of pairs, 1 for those that are no training rows. Shape: ``(B,)`` each -> ``(B,)``."""
        if self.rows is not None:
            self.keys, self.weights = self._compute(*(row.cpu().numpy() for row in self.rows))
            self.rows = None
        self.keys, self.weights = self.keys.to(user.device), self.weights.to(user.device)
        key = user * self.n_items + item
        place = torch.searchsorted(self.keys, key).clamp_max(len(self.keys) - 1)
        return torch.where((self.keys[place] == key) & (item < self.n_items), self.weights[place], 1.0)

    def _compute(self, user: IntArray, item: IntArray, rating: FloatArray) -> tuple[Tensor, Tensor]:
        """Sorted keys of the pairs and their weights."""
        keys, last = np.unique((user.astype(np.int64) * self.n_items + item)[::-1], return_index=True)
        chosen = len(user) - 1 - last
        users = np.unique(user)  # the padding user and those without a row are not among the users that count
        ptr = np.searchsorted(keys, np.append(users, users[-1] + 1).astype(np.int64) * self.n_items)
        matrix = (rating[chosen].astype(np.float64), item[chosen], ptr)
        ratings = csr_matrix(matrix, shape=(len(users), self.n_items))
        count = coordinated_raters(ratings, low=self.low, high=self.high, own_share=self.own_share)
        return torch.from_numpy(keys), torch.from_numpy(1.0 / (1.0 + count)).float()
