"""Scores of users that tell fake profiles from genuine ones. Pure functions of a rating matrix."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from recbole_robust.types import AttackerView, FakeProfiles


def stealth(view: AttackerView, profiles: FakeProfiles) -> dict[str, float | None]:
    """How well simple scores tell the fakes from the genuine users; 0.5: not at all, 0 and 1: perfectly.

    ``popularity_auc``: by the mean number of ratings of the items in a profile.
    """
    popularity = view.item_counts.astype(np.float64)

    def mean_popularity(items: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        users = np.repeat(np.arange(len(lengths)), lengths)
        sums = np.bincount(users, weights=popularity[items], minlength=len(lengths))
        return sums[lengths > 0] / lengths[lengths > 0]

    genuine = mean_popularity(view.ratings.indices, np.diff(view.ratings.indptr))
    fake = mean_popularity(profiles.item_ids, np.diff(profiles.user_ptr))
    if not len(genuine) or not len(fake):
        return {"popularity_auc": None}
    ranks = rankdata(np.concatenate([fake, genuine]))[: len(fake)]
    wins = ranks.sum() - len(fake) * (len(fake) + 1) / 2
    return {"popularity_auc": float(wins / (len(fake) * len(genuine)))}
