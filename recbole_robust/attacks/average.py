"""The average attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from recbole_robust.attacks.profiles import (
    Intent,
    build_profiles,
    check_request,
    draw_ratings,
    other_items,
    require_choice,
    require_number,
    sample_distinct_items,
)
from recbole_robust.types import AttackerView, Budget, FakeProfiles, FloatArray, Knowledge


@dataclass(frozen=True)
class Average:
    """Random fillers, each rated around its own mean (AverageBot).

    Reference: S. K. Lam, J. Riedl. Shilling Recommender Systems for Fun and Profit. WWW 2004.

    Knowledge: gray-box; the mean and the standard deviation of each item's ratings in the training data.

    Fillers are uniform over the items that are not targets; filler j is rated N(mean_j, sd_j) on the data set's grid.
    An item with one rating keeps its mean and takes the global sd, an unrated one takes both from the whole. Known
    slips of published codes: the item's mean in place of its sd (recad), NaN ratings for items rated once
    (ShillingREC), one scan of the data an item (both).

    Args:
        intent: ``push`` rates the targets highest, ``nuke`` lowest. (Default: ``push``)
        shrink: ratings' worth of global mean mixed into each item's: (n_j mean_j + shrink mean) / (n_j + shrink).
            The paper has 0. (Default: 0)
    """

    intent: Intent = "push"
    shrink: float = 0.0

    knowledge: ClassVar[Knowledge] = "gray-box"

    def __post_init__(self) -> None:
        require_choice("intent", self.intent, Intent)
        require_number("shrink", self.shrink, 0)

    def __call__(
        self, view: AttackerView, target_items: ArrayLike, budget: Budget, *, rng: np.random.Generator
    ) -> FakeProfiles:
        targets = check_request(self, view, target_items, budget)
        candidates = other_items(view.n_items, targets)
        items = sample_distinct_items(rng, budget.n_fake_users, budget.n_fillers, candidates)
        ratings = draw_ratings(rng, self._means(view)[items], view.item_stds[items], view, items.shape)
        return build_profiles(view, targets, budget, items, ratings, intent=self.intent).check(view)

    def _means(self, view: AttackerView) -> FloatArray:
        # An unrated item has the global mean already: any weight is right, and the 1 saves it from 0 / 0.
        weight = self.shrink / np.maximum(view.item_counts + self.shrink, 1)
        means: FloatArray = view.item_means + weight * (view.rating_mean - view.item_means)
        return means
