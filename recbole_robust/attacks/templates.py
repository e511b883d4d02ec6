"""Fillers that a real user has rated together: whom to copy, what to copy, and what to do where that is too short.

Ratings are named by their position in the arrays of a CSR matrix, so that item and rating stay together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from recbole_robust.attacks.profiles import count_rated
from recbole_robust.types import AttackerView, Budget, FloatArray, IntArray, UserError


def template_users(view: AttackerView, excluded: IntArray, n_fillers: int) -> IntArray:
    """The users with at least ``n_fillers`` rated items not in ``excluded``; all users where there is none."""
    long_users = np.flatnonzero(np.diff(view.ratings.indptr) - count_rated(view, excluded) >= n_fillers)
    return long_users if len(long_users) else np.arange(view.n_users)


def copy_templates(
    view: AttackerView, excluded: IntArray, budget: Budget, rng: np.random.Generator, *, n_beside: int = 0
) -> IntArray:
    """Which ratings each fake copies from a random template, as positions. Shape: ``(n_fake_users, n_fillers)``.

    ``n_beside`` of the budget's fillers are not copied: so many fewer columns.
    """
    n_copied = budget.n_fillers - n_beside
    templates = template_users(view, excluded, n_copied)
    users = rng.choice(templates, budget.n_fake_users, replace=budget.n_fake_users > len(templates))
    return copy_ratings(view, users, excluded, n_copied, rng, n_beside=n_beside)


def expand_rows(row_ptr: ArrayLike, rows: IntArray) -> tuple[IntArray, IntArray]:
    """List the entries of some rows of a CSR matrix: for each, its index in ``rows`` and its position in the data.

    Shape: ``row_ptr`` is ``(n_rows + 1,)``; both results are ``(n_entries,)``, the index ascending.
    """
    row_ptr = np.asarray(row_ptr, dtype=np.int64)
    lengths = row_ptr[rows + 1] - row_ptr[rows]
    ends = np.cumsum(lengths)
    index = np.repeat(np.arange(len(rows)), lengths)
    return index, np.repeat(row_ptr[rows] - ends + lengths, lengths) + np.arange(len(index))


def choose_in_rows(
    rng: np.random.Generator, rows: IntArray, n_wanted: IntArray, weights: FloatArray | None = None
) -> IntArray:
    """Choose up to ``n_wanted[r]`` of the entries of each row ``r``, at random and without replacement.

    The keys are those of :func:`recbole_robust.attacks.profiles.sample_distinct_items`.

    Args:
        rows: the row of each entry, ascending. Shape: ``(n_entries,)``.
        weights: positive, of any scale; without them every entry is as likely. Shape: ``(n_entries,)``.

    Returns:
        Indices of the chosen entries, the rows in order.
    """
    keys = rng.random(len(rows)) if weights is None else rng.standard_exponential(len(rows)) / weights
    # One sort by row, then key: positive floats are in the order of their bits, which go below those of the row.
    # That is five times as fast as np.lexsort; the bits of the key that make room are its last.
    n_bits = len(n_wanted).bit_length()
    order = np.argsort((rows << (63 - n_bits)) | (keys.view(np.int64) >> n_bits))
    starts = np.searchsorted(rows, np.arange(len(n_wanted)))
    return order[np.arange(len(rows)) - starts[rows] < n_wanted[rows]]


def copy_ratings(
    view: AttackerView,
    users: IntArray,
    excluded: IntArray,
    n_fillers: int,
    rng: np.random.Generator,
    *,
    weights: FloatArray | None = None,
    n_beside: int = 0,
) -> IntArray:
    """Choose which genuine ratings each fake copies, as positions in the view's data.

    A fake copies its own template. Where that is too short, it is topped up from further users until the budget holds.

    Args:
        users: the template of each fake. Shape: ``(n_fake_users,)``.
        excluded: items that are not copied.
        weights: of the items, positive: how likely an item is among the fillers; without them all are alike.
            Shape: ``(n_items,)``.
        n_beside: fillers of the budget that are not copied; only the error speaks of them.

    Returns:
        Shape: ``(n_fake_users, n_fillers)``, by ascending item in each row.

    Raises:
        UserError: all users together have rated fewer items than a fake needs.
    """
    n_fakes, n_items = len(users), view.n_items
    n_rated = np.count_nonzero(view.item_counts) - np.count_nonzero(view.item_counts[excluded])
    if n_fillers > n_rated:
        raise UserError(
            f"n_fillers: expected at most the {n_rated + n_beside} items that a user has rated, "
            f"got {n_fillers + n_beside}"
        )
    is_excluded = np.zeros(n_items, dtype=bool)
    is_excluded[excluded] = True

    tour = rng.permutation(view.n_users)  # topping up goes round it, one user a turn: so it always ends
    next_user = np.empty_like(tour)
    next_user[tour] = np.roll(tour, -1)
    kept_keys, kept_positions = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    short = np.arange(n_fakes)
    while len(short):  # once where the templates are long enough
        fakes, positions = expand_rows(view.ratings.indptr, users[short])
        fakes, items = short[fakes], view.ratings.indices[positions]
        keys = fakes * n_items + items  # one number a (fake, item)
        is_new = ~is_excluded[items] & ~np.isin(keys, kept_keys)
        fakes, keys, positions, items = fakes[is_new], keys[is_new], positions[is_new], items[is_new]

        missing = n_fillers - np.bincount(kept_keys // n_items, minlength=n_fakes)
        chosen = choose_in_rows(rng, fakes, missing, None if weights is None else weights[items])
        kept_keys = np.concatenate([kept_keys, keys[chosen]])
        kept_positions = np.concatenate([kept_positions, positions[chosen]])
        short = np.flatnonzero(np.bincount(kept_keys // n_items, minlength=n_fakes) < n_fillers)
        users = next_user[users]
    return kept_positions[np.argsort(kept_keys)].reshape(n_fakes, n_fillers)
