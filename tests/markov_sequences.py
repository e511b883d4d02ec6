"""Sequences with an order to find in them: walks through clusters of items, and chains from item to item."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def walks(n_users: int, length: int, n_items: int, n_clusters: int, stay: float, seed: int) -> NDArray[np.int64]:
    """Item ids from 1, item i in the cluster ``i % n_clusters``; a user stays in one with probability ``stay``.

    Shape: ``(n_users, length)``.
    """
    rng = np.random.default_rng(seed)
    clusters = np.empty((n_users, length), dtype=np.int64)
    clusters[:, 0] = rng.integers(n_clusters, size=n_users)
    for t in range(1, length):
        leaves = rng.random(n_users) > stay
        clusters[:, t] = np.where(leaves, rng.integers(n_clusters, size=n_users), clusters[:, t - 1])
    return clusters + n_clusters * rng.integers(n_items // n_clusters, size=clusters.shape) + 1


def chains(n_users: int, length: int, n_items: int, n_next: int, stay: float, seed: int) -> NDArray[np.int64]:
    """Item ids from 1; each item has ``n_next`` that may come next, each half as likely as the one before.

    With probability ``1 - stay`` a user goes anywhere. Shape: ``(n_users, length)``.
    """
    rng = np.random.default_rng(seed)
    follows = np.array([rng.choice(n_items, n_next, replace=False) for _ in range(n_items)])
    shares = 0.5 ** np.arange(n_next)
    items = np.empty((n_users, length), dtype=np.int64)
    items[:, 0] = rng.integers(n_items, size=n_users)
    for t in range(1, length):
        stays = rng.random(n_users) < stay
        onward = follows[items[:, t - 1], rng.choice(n_next, size=n_users, p=shares / shares.sum())]
        items[:, t] = np.where(stays, onward, rng.integers(n_items, size=n_users))
    return items + 1


def write_walks(folder: Path, items: NDArray[np.int64]) -> None:
    """The walks as the atomic file of a data set that is called as its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"u{user}\ti{item}\t{t}" for user, walk in enumerate(items) for t, item in enumerate(walk)]
    head = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / f"{folder.name}.inter").write_text("\n".join([head, *rows]) + "\n")
