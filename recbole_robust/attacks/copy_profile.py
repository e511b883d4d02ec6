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
    count_rated,
    discretise,
    draw_ratings,
    require_choice,
)
from recbole_robust.types import AttackerView, Budget, FakeProfiles, IntArray, Knowledge, UserError

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
        positions = choose_ratings(view, targets, budget, rng)
        items = view.ratings.indices[positions].astype(np.int64)
        if self.ratings == "copy":
            ratings = discretise(view.ratings.data[positions], view)
        else:
            ratings = draw_ratings(rng, view.item_means[items], view.item_stds[items], view, items.shape)
        return build_profiles(view, targets, budget, items, ratings, intent=self.intent).check(view)


def choose_ratings(view: AttackerView, targets: IntArray, budget: Budget, rng: np.random.Generator) -> IntArray:
    """Choose which genuine ratings each fake copies, as positions in the view's data.

    Returns:
        Shape: ``(n_fake_users, n_fillers)``, by ascending item in each row.

    Raises:
        UserError: all users together have rated fewer items than a fake needs.
    """
    n_fakes, n_fillers, n_items = budget.n_fake_users, budget.n_fillers, view.n_items
    n_rated = np.count_nonzero(view.item_counts) - np.count_nonzero(view.item_counts[targets])
    if n_fillers > n_rated:
        raise UserError(f"n_fillers: expected at most the {n_rated} items that a user has rated, got {n_fillers}")
    is_target = np.zeros(n_items, dtype=bool)
    is_target[targets] = True

    long_users = np.flatnonzero(np.diff(view.ratings.indptr) - count_rated(view, targets) >= n_fillers)
    templates = long_users if len(long_users) else np.arange(view.n_users)
    users = rng.choice(templates, n_fakes, replace=n_fakes > len(templates))
    tour = rng.permutation(view.n_users)  # topping up goes round it, one user a turn: so it always ends
    next_user = np.empty_like(tour)
    next_user[tour] = np.roll(tour, -1)
    kept_keys, kept_positions = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    short = np.arange(n_fakes)
    while len(short):  # once where the templates are long enough
        fakes, positions = _expand_rows(view, users[short])
        fakes = short[fakes]
        keys = fakes * n_items + view.ratings.indices[positions]  # one number a (fake, item)
        is_new = ~is_target[view.ratings.indices[positions]] & ~np.isin(keys, kept_keys)
        fakes, keys, positions = fakes[is_new], keys[is_new], positions[is_new]

        missing = n_fillers - np.bincount(kept_keys // n_items, minlength=n_fakes)
        order = np.lexsort((rng.random(len(fakes)), fakes))  # the rows of each fake together, in random order
        n_before = np.searchsorted(fakes, np.arange(n_fakes))
        chosen = order[np.arange(len(fakes)) - n_before[fakes] < missing[fakes]]
        kept_keys = np.concatenate([kept_keys, keys[chosen]])
        kept_positions = np.concatenate([kept_positions, positions[chosen]])
        short = np.flatnonzero(np.bincount(kept_keys // n_items, minlength=n_fakes) < n_fillers)
        users = next_user[users]
    return kept_positions[np.argsort(kept_keys)].reshape(n_fakes, n_fillers)


def _expand_rows(view: AttackerView, users: IntArray) -> tuple[IntArray, IntArray]:
    """List the ratings of some users: for each, its index in ``users`` and its position in the view's data."""
    starts, lengths = view.ratings.indptr[users].astype(np.int64), np.diff(view.ratings.indptr)[users]
    rows = np.repeat(np.arange(len(users)), lengths)
    ends = np.cumsum(lengths)
    return rows, np.repeat(starts - ends + lengths, lengths) + np.arange(len(rows))
