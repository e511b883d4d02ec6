"""The copied-profile attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from recbole_robust.attacks.profiles import (
    Intent,
    build_profiles,
    check_request,
    discretise,
    draw_ratings,
    require_choice,
)
from recbole_robust.attacks.templates import copy_templates
from recbole_robust.types import AttackerView, Budget, FakeProfiles, Knowledge

RatingSource = Literal["item_normal", "copy"]


@dataclass(frozen=True)
class CopyProfile:
    """Fillers that a real user has rated together: the power-user attack with random users.

    Reference: D. C. Wilson, C. E. Seminario. When Power Users Attack: Assessing Impacts in Collaborative Recommender
    Systems. RecSys 2013 (copied profiles); the templates of AUSH (Lin et al., CIKM 2020) without its generator.

    Knowledge: gray-box; the rows of some users, and the mean and the standard deviation of each item's ratings.

    A fake's template is a random user with at least ``n_fillers`` items that are not targets; the fillers are a random
    choice of these. Templates repeat only where there are fewer such users than fakes. Where there is none at all,
    fakes start from any user and are topped up from further ones until the budget holds.

    Args:
        intent: ``push`` rates the targets highest, ``nuke`` lowest. (Default: ``push``)
        ratings: ``item_normal`` draws N(item mean, item sd); ``copy`` takes the template's own. (Default:
            ``item_normal``)
    """

    intent: Intent = "push"
    ratings: RatingSource = "item_normal"

    knowledge: ClassVar[Knowledge] = "gray-box"

    def __post_init__(self) -> None:
        require_choice("intent", self.intent, Intent)
        require_choice("ratings", self.ratings, RatingSource)

    def __call__(
        self, view: AttackerView, target_items: ArrayLike, budget: Budget, *, rng: np.random.Generator
    ) -> FakeProfiles:
        targets = check_request(self, view, target_items, budget)
        positions = copy_templates(view, targets, budget, rng)
        items = view.ratings.indices[positions].astype(np.int64)
        if self.ratings == "copy":
            ratings = discretise(view.ratings.data[positions], view)
        else:
            ratings = draw_ratings(rng, view.item_means[items], view.item_stds[items], view, items.shape)
        return build_profiles(view, targets, budget, items, ratings, intent=self.intent).check(view)
