"""The organic control: genuine users who like a target are held out of the data, and may join it later.

A defense that lets no item rise is easy. So the users who really like a target leave the data before anything is split,
and ``attack: Organic`` lets them join the training rows where fakes would: whoever else rises by that has earned it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recbole_robust.randomness import stage_rng
from recbole_robust.types import FakeProfiles, UserError

FAN_KEYS = ("new_fans", "target_items", "target_sets", "seed")  # what decides who is held out
LIKED = 0.8  # of the highest rating: 4 of 5 stars


@dataclass(frozen=True)
class Newcomers:
    """The rows of the users who were held out, as in the file. Shape: every array is ``(n_rows,)``, by user."""

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    times: np.ndarray | None

    def to_profiles(self, token2id: dict[str, int]) -> FakeProfiles:
        """Their profiles with 0-based ids; items that nobody else has rated are left out."""
        known = np.array([token in token2id for token in self.items], dtype=bool)
        users = np.unique(self.users, return_inverse=True)[1][known]
        items = np.array([token2id[token] for token in self.items[known]], dtype=np.int64) - 1
        ptr = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=len(np.unique(self.users))))])
        order = np.argsort(users, kind="stable")
        times = None if self.times is None else self.times[known][order]
        return FakeProfiles(ptr, items[order], self.ratings[known][order].astype(np.float64), times)


def hold_out_fans(
    feat: pd.DataFrame, fields: tuple[str, str, str, str | None], targets: list[str], n_fans: int, seed: int
) -> tuple[pd.DataFrame, Newcomers]:
    """Take ``n_fans`` random users who like a target, with all their rows, out of an interaction table.

    Args:
        fields: names of the columns of users, items, ratings and (or None) times.

    Raises:
        UserError: there are no ratings, or not that many fans and one more rating of each target.
    """
    user, item, rating, time = fields
    if rating not in feat:
        raise UserError(f"new_fans: expected a column {rating}:float, by which fans are known, got none")
    is_target = feat[item].astype(str).isin(targets)
    fans = np.sort(feat.loc[is_target & (feat[rating] >= LIKED * feat[rating].max()), user].unique())
    if len(fans) < n_fans:
        raise UserError(f"new_fans: expected at most {len(fans)} (users who like {' '.join(targets)}), got {n_fans}")
    chosen = stage_rng(seed, "new fans").choice(fans, n_fans, replace=False)
    leaves = feat[user].isin(chosen)
    gone = set(targets) - set(feat.loc[~leaves & is_target, item].astype(str))
    if gone:
        raise UserError(f"new_fans: expected a target that somebody else has rated too, got {' '.join(sorted(gone))}")
    rows = feat[leaves].drop_duplicates([user, item], keep="last").sort_values(user, kind="stable")
    times = rows[time].to_numpy() if time in rows else None
    found = Newcomers(rows[user].to_numpy(), rows[item].astype(str).to_numpy(), rows[rating].to_numpy(), times)
    return feat[~leaves].reset_index(drop=True), found
