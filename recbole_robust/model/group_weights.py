"""The weight of a rating in the loss, by how many others stand behind it as one voice with its user."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from recbole_robust.scores import coordinated_raters


class GroupWeights:
    """``1 / (1 + c_ui)``, with c_ui of :func:`recbole_robust.scores.coordinated_raters`: a group counts as one rater.

    Computed from the training rows at the first call, labels unseen. Of a pair that is there twice the last row counts.

    Args:
        user, item, rating: the training rows. Shape: ``(n,)`` each.
        low, high, own_share: see :func:`recbole_robust.scores.coordinated_raters`.
    """

    def __init__(self, user: Tensor, item: Tensor, rating: Tensor, low: float, high: float, own_share: float):
        self.rows = user, item, rating
        self.low, self.high, self.own_share = low, high, own_share
        self.keys: Tensor | None = None
        self.weights: Tensor | None = None
        self.n_items = int(item.max()) + 1

    def __call__(self, user: Tensor, item: Tensor) -> Tensor:
        """The weights of training pairs. Shape: ``(B,)`` each -> ``(B,)``."""
        if self.keys is None or self.weights is None or self.keys.device != user.device:
            self.keys, self.weights = (found.to(user.device) for found in self._compute())
        return self.weights[torch.searchsorted(self.keys, user * self.n_items + item)]

    def _compute(self) -> tuple[Tensor, Tensor]:
        """Sorted keys of the pairs and their weights."""
        user, item, rating = (row.cpu().numpy() for row in self.rows)
        keys, last = np.unique((user.astype(np.int64) * self.n_items + item)[::-1], return_index=True)
        chosen = len(user) - 1 - last
        users = np.unique(user)  # the padding user and those without a row are not among the users that count
        shape = len(users), self.n_items
        ptr = np.searchsorted(keys, np.append(users, users[-1] + 1).astype(np.int64) * self.n_items)
        ratings = csr_matrix((rating[chosen].astype(np.float64), item[chosen], ptr), shape=shape)
        count = coordinated_raters(ratings, low=self.low, high=self.high, own_share=self.own_share)
        return torch.from_numpy(keys), torch.from_numpy(1.0 / (1.0 + count)).float()
