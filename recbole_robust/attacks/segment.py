"""The segment attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from recbole_robust.attacks.profiles import (
    Intent,
    build_profiles,
    check_request,
    count_rated,
    named_items,
    other_items,
    require_choice,
    require_items,
    require_number,
    sample_distinct_items,
)
from recbole_robust.types import AttackerView, Budget, FakeProfiles, IntArray, Knowledge, UserError


@dataclass(frozen=True)
class Segment:
    """Push the targets to the users of one taste: its items highest, random fillers lowest.

    Reference: R. Burke, B. Mobasher, R. Bhaumik, C. Williams. Segment-Based Injection Attacks against Collaborative
    Filtering Recommender Systems. ICDM 2005. B. Mobasher et al. Toward Trustworthy Recommender Systems: An Analysis of
    Attack Models and Algorithm Robustness. ACM TOIT 2007.

    Knowledge: gray-box; which items the users of the segment rate.

    Every fake rates the same segment items. They count as fillers, so that the budget equals that of the other attacks.
    Where they are not named, they are the items most rated by the users who rated a target (ties, and targets that
    nobody rated: the most rated of all).

    Args:
        intent: ``push`` rates the targets highest, ``nuke`` lowest; the rest stays. (Default: ``push``)
        segment_items: the segment's item ids, 0-based (a configuration names tokens); None chooses them.
            (Default: None)
        n_segment_items: how many to choose; not read where ``segment_items`` is given. The papers name a handful of
            films of one genre. (Default: 5)
    """

    intent: Intent = "push"
    segment_items: tuple[int, ...] | None = None
    n_segment_items: int = 5

    knowledge: ClassVar[Knowledge] = "gray-box"

    def __post_init__(self) -> None:
        require_choice("intent", self.intent, Intent)
        require_number("n_segment_items", self.n_segment_items, 1, integer=True)
        object.__setattr__(self, "segment_items", require_items("segment_items", self.segment_items))

    def __call__(
        self, view: AttackerView, target_items: ArrayLike, budget: Budget, *, rng: np.random.Generator
    ) -> FakeProfiles:
        targets = check_request(self, view, target_items, budget)
        n_segment = self.n_segment_items if self.segment_items is None else len(self.segment_items)
        if n_segment > budget.n_fillers:
            raise UserError(f"n_fillers: expected at least the {n_segment} segment items, got {budget.n_fillers}")
        segment = self._segment(view, targets)
        candidates = other_items(view.n_items, np.concatenate([segment, targets]))
        fillers = sample_distinct_items(rng, budget.n_fake_users, budget.n_fillers - len(segment), candidates)
        segments = np.broadcast_to(segment, (budget.n_fake_users, len(segment)))
        items = np.hstack([segments, fillers])
        ratings = np.hstack([np.full(segments.shape, view.rating_max), np.full(fillers.shape, view.rating_min)])
        return build_profiles(view, targets, budget, items, ratings, intent=self.intent).check(view)

    def _segment(self, view: AttackerView, targets: IntArray) -> IntArray:
        if self.segment_items is not None:
            return named_items("segment_items", self.segment_items, targets, view.n_items)
        is_fan = count_rated(view, targets) > 0
        by_fans = np.repeat(is_fan, np.diff(view.ratings.indptr))
        fan_counts = np.bincount(view.ratings.indices[by_fans], minlength=view.n_items)
        items = other_items(view.n_items, targets)
        order = np.lexsort((-view.item_counts[items], -fan_counts[items]))  # lexsort is stable: last ties by id
        return items[order[: self.n_segment_items]]
