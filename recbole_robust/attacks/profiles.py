"""What every attack is built from: checks, distinct fillers, ratings on the grid, targets, and their assembly.

Everything here is a pure function of its arguments and of the generator it is handed. Work is done on whole blocks of
fake profiles; no array is ever ``n_users x n_items``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recbole_robust import arguments
from recbole_robust.types import AttackerView, Budget, FakeProfiles, FloatArray, IntArray, Knowledge, UserError

Intent = Literal["push", "nuke"]

KNOWLEDGE_LEVELS: tuple[Knowledge, ...] = get_args(Knowledge)  # from the least to the most
BLOCK_KEYS = 2**20  # random keys held at once (8 MiB of float64): stays in cache, whatever the number of fakes


class Informed(Protocol):
    """Anything that declares how much of the victim's data it needs."""

    knowledge: ClassVar[Knowledge]


def require(condition: bool, key: str, expected: str, got: object) -> None:
    """Raise a :class:`UserError` that names ``attack_args.<key>`` unless ``condition`` holds."""
    arguments.require(condition, f"attack_args.{key}", expected, got)


def require_number(key: str, value: object, low: float, high: float = np.inf, *, integer: bool = False) -> None:
    arguments.require_number(f"attack_args.{key}", value, low, high, integer=integer)


def require_items(key: str, value: Any) -> tuple[Any, ...] | None:
    """Return a list of items as a tuple, which can be hashed, and None as it is; else raise a :class:`UserError`."""
    is_list = isinstance(value, tuple | list | np.ndarray) and len(value) > 0
    require(value is None or is_list, key, "a list of items, or nothing", value)
    return None if value is None else tuple(value)


def require_choice(key: str, value: object, choices: Any) -> None:
    arguments.require_choice(f"attack_args.{key}", value, choices)


def check_request(
    attack: Informed, view: AttackerView, target_items: ArrayLike, budget: Budget, *, n_selected: int = 0
) -> IntArray:
    """Return the targets as an array of ids, or say in one line why this attack cannot be run.

    Args:
        attack: declares the knowledge it needs.
        n_selected: items that each profile rates beside its fillers and its targets.

    Raises:
        UserError: the view grants too little knowledge; there are no targets, or they are repeated or unknown; the
            profile is longer than the catalogue.
    """
    if KNOWLEDGE_LEVELS.index(attack.knowledge) > KNOWLEDGE_LEVELS.index(view.knowledge):
        name = type(attack).__name__
        raise UserError(f"knowledge: expected {attack.knowledge} or more for attack {name}, got {view.knowledge}")
    targets = item_ids("target_items", target_items, view.n_items)
    if len(targets) == 0:
        raise UserError("target_items: expected at least one item, got none")
    n_free = view.n_items - len(targets) - n_selected
    if budget.n_fillers > n_free:
        taken = f"{len(targets)} targets" + (f" and {n_selected} selected items" if n_selected else "")
        raise UserError(
            f"n_fillers: expected at most {n_free} ({view.n_items} items less {taken}), got {budget.n_fillers}"
        )
    return targets


def item_ids(key: str, items: ArrayLike, n_items: int) -> IntArray:
    """Return ``items`` as an array, or raise a :class:`UserError` unless they are distinct ids below ``n_items``."""
    ids = np.asarray(items)
    if ids.size == 0:
        return np.empty(0, dtype=np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(f"{key}: expected a list of item ids, got {items!r}")
    if len(np.unique(ids)) != len(ids):
        raise UserError(f"{key}: expected distinct items, got {ids.tolist()}")
    if ids.min() < 0 or ids.max() >= n_items:
        raise UserError(f"{key}: expected item ids from 0 to {n_items - 1}, got {ids.tolist()}")
    return ids.astype(np.int64)


def named_items(key: str, items: ArrayLike, target_items: IntArray, n_items: int) -> IntArray:
    """The items that ``attack_args.<key>`` names, as ids; :class:`UserError` if they are none, or targets."""
    ids = item_ids(f"attack_args.{key}", items, n_items)
    shared = np.intersect1d(ids, target_items).tolist()
    require(not shared, key, "no target item among them", shared)
    return ids


def other_items(n_items: int, excluded: IntArray) -> IntArray:
    """The item ids not in ``excluded``, in ascending order."""
    keep = np.ones(n_items, dtype=bool)
    keep[excluded] = False
    return np.flatnonzero(keep)


def most_rated(view: AttackerView, n_most: int, excluded: IntArray) -> IntArray:
    """The ``n_most`` most rated items not in ``excluded``, most rated first; ties go to the lower id."""
    items = other_items(view.n_items, excluded)
    return items[np.argsort(-view.item_counts[items], kind="stable")[:n_most]]


def count_rated(view: AttackerView, items: IntArray) -> IntArray:
    """How many of ``items`` each user has rated. Shape: ``(n_users,)``."""
    wanted = np.zeros(view.n_items, dtype=bool)
    wanted[items] = True
    positions = np.flatnonzero(wanted[view.ratings.indices])
    users = np.searchsorted(view.ratings.indptr, positions, side="right") - 1
    return np.bincount(users, minlength=view.n_users).astype(np.int64)


def sample_distinct_items(
    rng: np.random.Generator,
    n_profiles: int,
    n_choices: int,
    candidates: IntArray,
    *,
    weights: FloatArray | None = None,
) -> IntArray:
    """Draw ``n_choices`` distinct items for each profile, without replacement within a profile.

    Every candidate gets a random key and a profile takes the smallest keys. The keys are uniform, or exponential
    divided by the weight: the order of such keys is that of draws one by one, each proportional to the weights of what
    is left (the same law as Gumbel top-k, less one logarithm).

    Args:
        candidates: the item ids to choose from. Shape: ``(n_candidates,)``.
        weights: >= 0, of any scale; a candidate of weight 0 is never drawn. Shape: ``(n_candidates,)``.

    Returns:
        Item ids, ascending in each row. Shape: ``(n_profiles, n_choices)``.

    Raises:
        UserError: fewer candidates (of positive weight) than choices.
    """
    if weights is not None:
        candidates, weights = candidates[weights > 0], weights[weights > 0]
    n_candidates = len(candidates)
    if n_choices > n_candidates:
        raise UserError(f"n_fillers: expected at most the {n_candidates} items to choose from, got {n_choices}")
    chosen = np.empty((n_profiles, n_choices), dtype=np.int64)
    if n_choices == 0:
        return chosen
    n_rows = max(1, BLOCK_KEYS // n_candidates)
    for start in range(0, n_profiles, n_rows):
        shape = (min(n_rows, n_profiles - start), n_candidates)
        keys = rng.random(shape) if weights is None else rng.standard_exponential(shape) / weights
        smallest = np.argpartition(keys, n_choices - 1, axis=1)[:, :n_choices]
        chosen[start : start + n_rows] = candidates[smallest]
    # The order inside a partition depends on numpy's version and on the CPU: sorted, the bits are the same everywhere.
    chosen.sort(axis=1)
    return chosen


def discretise(values: ArrayLike, view: AttackerView) -> FloatArray:
    """Move each value to the nearest rating that the data set knows: halves go up, then the ends are clipped.

    Data with one rating only gives that rating; a ``rating_step`` of 0 means a continuous scale, which is only clipped.
    """
    ratings = np.asarray(values, dtype=np.float64)
    if view.rating_min == view.rating_max:
        return np.full(ratings.shape, float(view.rating_max))
    if view.rating_step > 0:
        # floor(x + 0.5): np.round sends halves to the even neighbour, which moves the mean of half-star draws.
        steps = np.floor((ratings - view.rating_min) / view.rating_step + 0.5)
        ratings = view.rating_min + steps * view.rating_step
    return np.clip(ratings, view.rating_min, view.rating_max)


def draw_ratings(
    rng: np.random.Generator,
    means: float | FloatArray,
    stds: float | FloatArray,
    view: AttackerView,
    shape: tuple[int, ...],
) -> FloatArray:
    """Draw normal ratings on the data set's grid; ``means`` and ``stds`` are broadcast to ``shape``."""
    return discretise(means + stds * rng.standard_normal(shape), view)


def target_rating(view: AttackerView, intent: Intent) -> float:
    """The rating that a fake gives its targets: the highest to push them, the lowest to nuke them."""
    if intent == "push":
        return float(view.rating_max)
    require(view.rating_min < view.rating_max, "intent", "push, as the data has one rating only", intent)
    return float(view.rating_min)


def assign_targets(budget: Budget, target_items: IntArray) -> tuple[IntArray, IntArray]:
    """Decide which targets each fake rates.

    ``all``: every fake rates every target. ``round_robin``: fake ``k`` rates target ``k mod n_targets``. ``split``:
    contiguous blocks of fakes, one target a block, sizes differ by at most one; with fewer fakes than targets it is
    the targets that are dealt in contiguous blocks, so that none is left out.

    Returns:
        ``(target_ptr, target_ids)``: fake ``k`` rates ``target_ids[target_ptr[k]:target_ptr[k + 1]]``.
        Shape: ``(n_fake_users + 1,)`` and ``(target_ptr[-1],)``.
    """
    n_fakes, n_targets = budget.n_fake_users, len(target_items)
    if budget.target_mode == "all":
        return np.arange(n_fakes + 1) * n_targets, np.tile(target_items, n_fakes)
    if budget.target_mode == "round_robin":
        return np.arange(n_fakes + 1), target_items[np.arange(n_fakes) % n_targets]
    if n_fakes < n_targets:
        return np.concatenate([[0], np.cumsum(_even_blocks(n_targets, n_fakes))]), target_items
    return np.arange(n_fakes + 1), np.repeat(target_items, _even_blocks(n_fakes, n_targets))


def _even_blocks(total: int, n_blocks: int) -> NDArray[np.int64]:
    """Sizes of ``n_blocks`` blocks that add up to ``total`` and differ by at most one, the larger first."""
    return total // n_blocks + (np.arange(n_blocks) < total % n_blocks)


def build_profiles(
    view: AttackerView,
    target_items: IntArray,
    budget: Budget,
    filler_items: IntArray,
    filler_ratings: FloatArray,
    *,
    intent: Intent = "push",
) -> FakeProfiles:
    """Put fillers and targets together: each profile holds its fillers, then its targets.

    Shape: ``filler_items`` and ``filler_ratings`` are ``(n_fake_users, n_fillers)``.
    """
    n_fakes, n_fillers = filler_items.shape
    target_ptr, target_ids = assign_targets(budget, target_items)
    user_ptr = target_ptr + np.arange(n_fakes + 1) * n_fillers
    is_target = np.ones(user_ptr[-1], dtype=bool)
    is_target[user_ptr[:-1, None] + np.arange(n_fillers)] = False
    items = np.empty(user_ptr[-1], dtype=np.int64)
    items[is_target], items[~is_target] = target_ids, filler_items.ravel()
    ratings = np.full(user_ptr[-1], target_rating(view, intent))
    ratings[~is_target] = filler_ratings.ravel()
    return FakeProfiles(user_ptr=user_ptr, item_ids=items, ratings=ratings)
