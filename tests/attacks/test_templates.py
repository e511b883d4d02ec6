"""Copying from templates against brute force; its laws as an attack stand with CopyProfile and AUSH."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recbole_robust.attacks.templates import choose_in_rows, copy_ratings, expand_rows, template_users


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.data())
def test_expanded_rows_are_slices(lengths, data):
    row_ptr = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=12)), dtype=np.int64)
    index, positions = expand_rows(row_ptr.astype(np.int32), rows)
    expected = [(k, p) for k, row in enumerate(rows) for p in range(row_ptr[row], row_ptr[row + 1])]
    assert list(zip(index, positions, strict=True)) == expected


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 9), min_size=1, max_size=300), st.booleans())
def test_choice_is_that_of_the_smallest_keys(seed, lengths, weighted):
    """One row at a time: sort its entries by key, keep the first."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    n_wanted = np.random.default_rng(seed + 1).integers(0, 8, len(lengths))
    weights = np.arange(1.0, len(rows) + 1) if weighted else None
    chosen = choose_in_rows(np.random.default_rng(seed), rows, n_wanted, weights)
    rng = np.random.default_rng(seed)
    keys = rng.standard_exponential(len(rows)) / weights if weighted else rng.random(len(rows))
    expected = [i for r, n in enumerate(n_wanted) for i in sorted(np.flatnonzero(rows == r), key=lambda i: keys[i])[:n]]
    np.testing.assert_array_equal(chosen, np.array(expected, dtype=int))


def test_weights_are_odds():
    """One of three entries, of weights 1, 2 and 5: an eighth, a quarter, the rest."""
    rows, weights = np.repeat(np.arange(8000), 3), np.tile([1.0, 2.0, 5.0], 8000)
    chosen = choose_in_rows(np.random.default_rng(0), rows, np.ones(8000, dtype=int), weights)
    assert stats.chisquare(np.bincount(chosen % 3), [1000, 2000, 5000]).pvalue > 1e-3


def test_templates_are_long_enough(view):
    excluded = np.array([0, 1, 30])
    n_others = np.delete(view.ratings.toarray() > 0, excluded, axis=1).sum(axis=1)
    for n_fillers in (0, 20, 30, n_others.max()):
        np.testing.assert_array_equal(template_users(view, excluded, n_fillers), np.flatnonzero(n_others >= n_fillers))
    np.testing.assert_array_equal(template_users(view, excluded, n_others.max() + 1), np.arange(view.n_users))


def test_copies_are_the_templates_own(view):
    users, excluded = np.array([5, 5, 17, 60]), np.array([0, 1, 30])
    positions = copy_ratings(view, users, excluded, 15, np.random.default_rng(0))
    assert (np.searchsorted(view.ratings.indptr, positions, side="right") - 1 == users[:, None]).all()
    items = view.ratings.indices[positions]
    assert (np.diff(items) > 0).all() and not np.isin(items, excluded).any()
    assert (items[0] != items[1]).any()
