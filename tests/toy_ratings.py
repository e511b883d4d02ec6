"""Small rating matrices, dense, for tests of scores."""

from __future__ import annotations

import numpy as np


def random_ratings(n_users: int = 40, n_items: int = 25, density: float = 0.3, seed: int = 0) -> np.ndarray:
    """A dense toy: 0 is unrated; user 3 has rated nothing, item 5 nobody, user 4 gave one rating."""
    rng = np.random.default_rng(seed)
    ratings = rng.integers(1, 6, (n_users, n_items)) * (rng.random((n_users, n_items)) < density)
    ratings[3], ratings[:, 5], ratings[4] = 0, 0, 0
    ratings[4, 7] = 2
    return ratings.astype(np.float64)


def sparse_world(n_fakes: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """2,000 users with one to six top ratings of 800 items, fakes after them, who push five items; and these."""
    rng, targets = np.random.default_rng(seed), np.arange(100, 600, 100)
    popularity = 1 / np.arange(20, 820)
    genuine, fakes = np.zeros((2000, 800)), np.zeros((n_fakes, 800))
    for row in genuine:
        row[rng.choice(800, rng.integers(1, 7), replace=False, p=popularity / popularity.sum())] = 5.0
    for row in fakes:
        row[rng.choice(800, 4, replace=False)] = 4.0
    fakes[:, targets] = 5.0
    return np.vstack([genuine, fakes]), targets


def popular_world(n_users: int = 200, n_items: int = 80, seed: int = 1) -> np.ndarray:
    """Genuine users who share a taste for some items, in the order of popularity, and two sorts of users."""
    rng = np.random.default_rng(seed)
    chance = 0.9 / np.arange(1, n_items + 1) ** 0.5
    liked = rng.random((n_users, n_items)) < chance
    sort = rng.integers(0, 2, n_users)[:, None] == (np.arange(n_items) % 2)[None, :]
    stars = np.clip(rng.normal(3 + 1.2 * sort, 0.8).round(), 1, 5)
    return stars * liked
