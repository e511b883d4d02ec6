"""The love/hate attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from recbole_robust.attacks.profiles import (
    Intent,
    build_profiles,
    check_request,
    other_items,
    require_choice,
    sample_distinct_items,
)
from recbole_robust.types import AttackerView, Budget, FakeProfiles, Knowledge


@dataclass(frozen=True)
class LoveHate:
    """Targets at one end of the scale, random fillers at the other.

    Reference: B. Mobasher, R. Burke, R. Bhaumik, C. Williams. Toward Trustworthy Recommender Systems: An Analysis of
    Attack Models and Algorithm Robustness. ACM TOIT 2007.

    Knowledge: black-box; the rating scale. The paper has it as a nuke attack (targets hated, fillers loved); the push
    reverses both. On data with one rating only it is the random attack.

    Args:
        intent: ``push`` rates targets highest and fillers lowest, ``nuke`` the reverse. (Default: ``push``)
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
        ratings = np.full(items.shape, view.rating_min if self.intent == "push" else view.rating_max)
        return build_profiles(view, targets, budget, items, ratings, intent=self.intent).check(view)
