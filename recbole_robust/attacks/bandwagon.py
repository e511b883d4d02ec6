"""The bandwagon attack."""

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
    most_rated,
    other_items,
    require_choice,
    require_number,
    sample_distinct_items,
)
from recbole_robust.types import AttackerView, Budget, FakeProfiles, Knowledge, UserError


@dataclass(frozen=True)
class Bandwagon:
    """Popular items with the highest rating, so that a fake resembles many users, and random fillers.

    Reference: R. Burke, B. Mobasher, R. Bhaumik. Limited Knowledge Shilling Attacks in Collaborative Filtering Systems.
    ITWP 2005. B. Mobasher et al. Toward Trustworthy Recommender Systems: An Analysis of Attack Models and Algorithm
    Robustness. ACM TOIT 2007.

    Knowledge: gray-box; which items are popular, and the mean and the standard deviation of all ratings.

    A share of the fillers comes from the pool of the most rated items, drawn anew for each fake; the others are uniform
    over the items outside the pool, rated N(mean, sd). Targets are never in the pool, and the budget holds. Published
    codes give every fake the same popular items and half as many fillers again (ARLib), list a popular target twice
    (ARLib), or read the segment attack's items (recad).

    Args:
        intent: ``push`` rates the targets highest, ``nuke`` lowest. (Default: ``push``)
        popular_share: share of each fake's fillers that is popular, 0 to 1; halves are rounded up. (Default: 0.5)
        popular_size: size of the pool, a fraction of all items, 0 to 1. (Default: 0.1)
    """

    intent: Intent = "push"
    popular_share: float = 0.5
    popular_size: float = 0.1

    knowledge: ClassVar[Knowledge] = "gray-box"

    def __post_init__(self) -> None:
        require_choice("intent", self.intent, Intent)
        require_number("popular_share", self.popular_share, 0, 1)
        require_number("popular_size", self.popular_size, 0, 1)

    def __call__(
        self, view: AttackerView, target_items: ArrayLike, budget: Budget, *, rng: np.random.Generator
    ) -> FakeProfiles:
        targets = check_request(self, view, target_items, budget)
        n_popular = int(self.popular_share * budget.n_fillers + 0.5)
        n_random = budget.n_fillers - n_popular
        pool = most_rated(view, int(self.popular_size * view.n_items + 0.5), excluded=targets)
        others = other_items(view.n_items, np.concatenate([pool, targets]))
        if n_popular > len(pool) or n_random > len(others):
            n_most = len(pool) + len(others) - n_random
            raise UserError(
                f"attack_args.popular_size: expected a pool of {n_popular} to {n_most} items "
                f"for {budget.n_fillers} fillers with popular_share {self.popular_share}, "
                f"got {self.popular_size}, which is {len(pool)} items"
            )
        popular_items = sample_distinct_items(rng, budget.n_fake_users, n_popular, pool)
        random_items = sample_distinct_items(rng, budget.n_fake_users, n_random, others)
        random_ratings = draw_ratings(rng, view.rating_mean, view.rating_std, view, random_items.shape)
        items = np.hstack([popular_items, random_items])
        ratings = np.hstack([np.full(popular_items.shape, view.rating_max), random_ratings])
        return build_profiles(view, targets, budget, items, ratings, intent=self.intent).check(view)
