"""The attack on defenses that look for what fakes have in common."""

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
    require_choice,
    require_number,
)
from recbole_robust.attacks.templates import copy_templates
from recbole_robust.types import AttackerView, Budget, FakeProfiles, Knowledge


@dataclass(frozen=True)
class Diluted:
    """Copied fillers, and the most popular items rated highest: fakes share what everybody shares.

    Reference: after the average-over-popular attack of N. Hurley, Z. Cheng, M. Zhang. Statistical Attack Detection.
    RecSys 2009, which hides from detectors that way; the copied fillers are CopyProfile's. The project's own, to test
    CoRating, GroupWeights and PurifyAugMF by an attacker who knows them: they weigh a common top rating by the item's
    rarity. CoRating divides by the number of top ratings, to which popular items add, and hardly to the rest; the other
    two by what a user shares by chance, to which copied fillers at the top add (``top_share``). With ``target_mode:
    split`` the fakes have few targets in common as well.

    Knowledge: gray-box; the rows of some users, which items are popular, the mean and deviation of each item's ratings.

    Args:
        intent: ``push`` rates the targets highest, ``nuke`` lowest. (Default: ``push``)
        popular_share: share of a fake's fillers that is popular, 0 to 1; halves are rounded up. The same items for all
            fakes, the most rated ones. (Default: 0.7)
        top_share: share of the copied fillers that is rated highest, too, 0 to 1; each by chance. (Default: 0)
    """

    intent: Intent = "push"
    popular_share: float = 0.7
    top_share: float = 0.0

    knowledge: ClassVar[Knowledge] = "gray-box"

    def __post_init__(self) -> None:
        require_choice("intent", self.intent, Intent)
        require_number("popular_share", self.popular_share, 0, 1)
        require_number("top_share", self.top_share, 0, 1)

    def __call__(
        self, view: AttackerView, target_items: ArrayLike, budget: Budget, *, rng: np.random.Generator
    ) -> FakeProfiles:
        targets = check_request(self, view, target_items, budget)
        popular = most_rated(view, int(self.popular_share * budget.n_fillers + 0.5), excluded=targets)
        excluded = np.concatenate([targets, popular])
        positions = copy_templates(view, excluded, budget, rng, n_beside=len(popular))
        items = view.ratings.indices[positions].astype(np.int64)
        ratings = draw_ratings(rng, view.item_means[items], view.item_stds[items], view, items.shape)
        ratings[rng.random(items.shape) < self.top_share] = view.rating_max
        beside = np.tile(popular, (budget.n_fake_users, 1))
        items = np.hstack([beside, items])
        ratings = np.hstack([np.full(beside.shape, view.rating_max), ratings])
        return build_profiles(view, targets, budget, items, ratings, intent=self.intent).check(view)
