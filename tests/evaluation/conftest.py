"""A trainer whose scores are a table."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture
def score_table() -> Callable[[torch.Tensor], Any]:
    """A trainer that scores by a table. Shape: ``(n_users, n_items)``, RecBole ids."""

    def make(table: torch.Tensor):
        def full_sort_scores(queries):
            scores = table[queries["user_id"]].clone()
            scores[:, 0] = -torch.inf
            return scores

        return SimpleNamespace(model=SimpleNamespace(eval=lambda: None), full_sort_scores=full_sort_scores)

    return make
