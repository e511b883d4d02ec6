"""The random attack."""

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
    sample_distinct_items,
)
from recbole_robust.types import AttackerView, Budget, FakeProfiles, Knowledge


@dataclass(frozen=True)
class Random:
    """Random fillers with ratings around the global mean (RandomBot).

    Reference: S. K. Lam, J. Riedl. Shilling Recommender Systems for Fun and Profit. WWW 2004.

    Knowledge: black-box; the mean and the standard deviation of all ratings, nothing about any item.

    Fillers are uniform over the items that are not targets, rated N(mean, sd) on the data set's grid. The published
    codes differ from this in ways that change the attack: draws left off the grid or clipped near 0 (AUSH's baselines),
    a draw that rounds to 0 and so vanishes from the profile (APT), and targets that no fake rates where the number of
    fakes is no multiple of theirs (recad).

    Args:
        intent: ``push`` rates the targets highest, ``nuke`` lowest. (Default: ``push``)

    Example::

        fakes = Random()(view, target_items, Budget(28, 105), rng=np.random.default_rng(0))
    """

    intent: Intent = "push"

    knowledge: ClassVar[Knowledge] = "black-box"

    def __post_init__(self) -> None:
        require_choice("intent", self.intent, Intent)

    def __call__(
        self, view: AttackerView, target_items: ArrayLike, budget: Budget, *, rng: np.random.Generator
    ) -> FakeProfiles:
        targets = check_request(self, view, target_items, budget)
        candidates = other_items(view.n_items, targets)
        items = sample_distinct_items(rng, budget.n_fake_users, budget.n_fillers, candidates)
        ratings = draw_ratings(rng, view.rating_mean, view.rating_std, view, items.shape)
        return build_profiles(view, targets, budget, items, ratings, intent=self.intent).check(view)
