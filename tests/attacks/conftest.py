"""Small views that every test of an attack can use. Nothing here is changed by a test: views are frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from recbole_robust.types import AttackerView

MakeView = Callable[..., AttackerView]


@pytest.fixture(scope="session")
def make_view() -> MakeView:
    """Build a view from a dense array in which 0 means unrated."""

    def make(dense: np.ndarray, low: float = 1.0, high: float = 5.0, step: float = 1.0) -> AttackerView:
        return AttackerView(csr_matrix(np.asarray(dense, dtype=np.float64)), low, high, step)

    return make


@pytest.fixture(scope="session")
def view(make_view: MakeView) -> AttackerView:
    """80 users, 60 items with popularity falling from the first to the last, stars 1 to 5; item 59 has one rating."""
    rng = np.random.default_rng(7)
    rated = rng.random((80, 60)) < np.linspace(0.9, 0.15, 60)
    rated[:, 59] = np.arange(80) == 3
    return make_view(rated * rng.choice([1, 2, 3, 4, 5], p=[0.1, 0.1, 0.2, 0.35, 0.25], size=rated.shape))


@pytest.fixture(scope="session")
def implicit_view(view: AttackerView) -> AttackerView:
    ones = view.ratings.copy()
    ones.data[:] = 1.0
    return AttackerView(ones, rating_min=1.0, rating_max=1.0, rating_step=0.0)


@pytest.fixture(scope="session")
def unbounded_view(view: AttackerView) -> AttackerView:
    """The same data on a continuous scale without ends: drawn ratings come through as they were drawn."""
    return replace(view, rating_min=-1e9, rating_max=1e9, rating_step=0.0)
