"""The building blocks against brute force: sampling, the rating grid, targets, assembly and the checks."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.sparse import csr_matrix

from recbole_robust.attacks import profiles
from recbole_robust.attacks.profiles import (
    assign_targets,
    build_profiles,
    check_request,
    count_rated,
    discretise,
    most_rated,
    require_number,
    sample_distinct_items,
)
from recbole_robust.types import TARGET_MODES, AttackerView, Budget, UserError


def scale(low: float, high: float, step: float) -> AttackerView:
    return AttackerView(csr_matrix((2, 2)), low, high, step)


# --- sampling ---------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32 - 1),
    n_profiles=st.integers(1, 6),
    candidates=st.lists(st.integers(0, 200), min_size=1, max_size=30, unique=True),
    block=st.integers(1, 64),
    weighted=st.booleans(),
    data=st.data(),
)
def test_sampling_equals_brute_force(seed, n_profiles, candidates, block, weighted, data):
    """One profile at a time: draw its keys, sort the candidates by key, keep the first. The block size is invisible."""
    n_choices = data.draw(st.integers(0, len(candidates)))
    weights = np.arange(1.0, len(candidates) + 1) if weighted else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles, "BLOCK_KEYS", block)
        rng = np.random.default_rng(seed)
        chosen = sample_distinct_items(rng, n_profiles, n_choices, np.array(candidates), weights=weights)
    rng, expected = np.random.default_rng(seed), []
    for _ in range(n_profiles if n_choices else 0):
        if weighted:
            keys = rng.standard_exponential(len(candidates)) / weights
        else:
            keys = rng.random(len(candidates))
        expected.append(sorted([item for _, item in sorted(zip(keys, candidates, strict=True))][:n_choices]))
    np.testing.assert_array_equal(chosen, np.array(expected, dtype=int).reshape(n_profiles, n_choices))


def test_uniform_pairs_are_equally_likely():
    chosen = sample_distinct_items(np.random.default_rng(0), 30_000, 2, np.arange(5))
    counts = np.bincount(chosen[:, 0] * 5 + chosen[:, 1], minlength=25)
    assert stats.chisquare(counts[counts > 0]).pvalue > 1e-3
    assert np.count_nonzero(counts) == 10


def test_weighted_pairs_follow_draws_without_replacement():
    """P({i, j}) = p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j), as drawing one by one gives."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    chosen = sample_distinct_items(np.random.default_rng(0), 30_000, 2, np.arange(4), weights=7 * p)
    first, second = np.triu_indices(4, k=1)
    counts = np.bincount(chosen[:, 0] * 4 + chosen[:, 1], minlength=16)[first * 4 + second]
    pairs = p[first] * p[second] * (1 / (1 - p[first]) + 1 / (1 - p[second]))
    assert stats.chisquare(counts, 30_000 * pairs).pvalue > 1e-3


def test_weight_zero_is_never_drawn():
    weights = np.array([1.0, 0.0, 1.0, 0.0, 1e-9])
    chosen = sample_distinct_items(np.random.default_rng(0), 500, 3, np.arange(5), weights=weights)
    np.testing.assert_array_equal(np.unique(chosen), [0, 2, 4])
    with pytest.raises(UserError, match="at most the 3 items"):
        sample_distinct_items(np.random.default_rng(0), 1, 4, np.arange(5), weights=weights)


# --- the rating grid --------------------------------------------------------------------------------------------------


@given(
    value=st.floats(-20, 20),
    grid=st.sampled_from([(1.0, 5.0, 1.0), (0.5, 5.0, 0.5), (-3.0, 3.0, 2.0), (0.0, 10.0, 0.25)]),
)
def test_discretise_equals_exact_arithmetic(value, grid):
    low, high, step = map(Fraction, grid)
    nearest = low + floor((Fraction(value) - low) / step + Fraction(1, 2)) * step
    expected = float(min(max(nearest, low), high))
    assert discretise([value], scale(*grid))[0] == pytest.approx(expected, abs=1e-12) or _on_an_edge(value, grid)


def _on_an_edge(value: float, grid: tuple[float, float, float]) -> bool:
    """Closer to a half step than floats can tell."""
    return abs((value - grid[0]) / grid[2] % 1 - 0.5) < 1e-9


def test_halves_go_up():
    np.testing.assert_array_equal(discretise([1.5, 2.5, 3.5, 4.5, 0.5], scale(1, 5, 1)), [2, 3, 4, 5, 1])
    np.testing.assert_array_equal(discretise([0.75, 1.25, 4.75], scale(0.5, 5, 0.5)), [1.0, 1.5, 5.0])


def test_grids_without_steps():
    np.testing.assert_array_equal(discretise([-3.0, 0.2, 9.0], scale(1, 1, 0)), [1, 1, 1])
    np.testing.assert_array_equal(discretise([-3.0, 0.2, 9.0], scale(1, 1, 1)), [1, 1, 1])
    np.testing.assert_array_equal(discretise([-3.0, 0.2, 9.0], scale(-1, 1, 0)), [-1, 0.2, 1])


# --- targets ----------------------------------------------------------------------------------------------------------


def _assign_by_hand(n_fakes: int, targets: list[int], mode: str) -> list[list[int]]:
    if mode == "all":
        return [targets for _ in range(n_fakes)]
    if mode == "round_robin":
        return [[targets[k % len(targets)]] for k in range(n_fakes)]
    if n_fakes < len(targets):
        return [block.tolist() for block in np.array_split(targets, n_fakes)]
    blocks = np.array_split(np.arange(n_fakes), len(targets))
    return [[target] for target, block in zip(targets, blocks, strict=True) for _ in block]


@given(
    n_fakes=st.integers(1, 25),
    targets=st.lists(st.integers(0, 99), min_size=1, max_size=12, unique=True),
    mode=st.sampled_from(TARGET_MODES),
)
def test_targets_equal_brute_force(n_fakes, targets, mode):
    target_ptr, target_ids = assign_targets(Budget(n_fakes, 0, mode), np.array(targets))
    by_fake = [target_ids[a:b].tolist() for a, b in pairwise(target_ptr)]
    assert by_fake == _assign_by_hand(n_fakes, targets, mode)
    if mode == "split":
        ratings_each = np.bincount(target_ids, minlength=100)[targets]
        assert ratings_each.min() >= 1  # no target is left out
        assert ratings_each.max() - ratings_each.min() <= 1


# --- assembly and helpers ---------------------------------------------------------------------------------------------


def test_build_by_fakeknown_answer():
    view = AttackerView(csr_matrix((3, 10)), 1.0, 5.0, 1.0)
    fillers, ratings = np.array([[1, 2], [3, 4]]), np.array([[2.0, 3.0], [4.0, 1.0]])
    targets = np.array([7, 8, 9])
    fakes = build_profiles(view, targets, Budget(2, 2, "split"), fillers, ratings)
    np.testing.assert_array_equal(fakes.user_ptr, [0, 4, 7])
    np.testing.assert_array_equal(fakes.item_ids, [1, 2, 7, 8, 3, 4, 9])
    np.testing.assert_array_equal(fakes.ratings, [2, 3, 5, 5, 4, 1, 5])
    nuked = build_profiles(view, targets, Budget(2, 2, "split"), fillers, ratings, intent="nuke")
    np.testing.assert_array_equal(nuked.ratings, [2, 3, 1, 1, 4, 1, 1])


def test_counts_equal_dense_arithmetic(view):
    items = np.array([0, 5, 59])
    rated = view.ratings.toarray() > 0
    np.testing.assert_array_equal(count_rated(view, items), rated[:, items].sum(axis=1))
    expected = [j for _, j in sorted((-count, j) for j, count in enumerate(rated.sum(axis=0)) if j not in items)]
    np.testing.assert_array_equal(most_rated(view, 20, excluded=items), expected[:20])


class _NeedsEverything:
    knowledge = "white-box"


@pytest.mark.parametrize(
    ("targets", "n_fillers", "message"),
    [
        ([], 3, "target_items: expected at least one item, got none"),
        ([1, 1], 3, r"target_items: expected distinct items, got \[1, 1\]"),
        ([60], 3, r"target_items: expected item ids from 0 to 59, got \[60\]"),
        ([-1], 3, "target_items: expected item ids from 0 to 59"),
        ([1.5], 3, "target_items: expected a list of item ids"),
        (["12"], 3, "target_items: expected a list of item ids"),
        ([1, 2], 59, r"n_fillers: expected at most 58 \(60 items less 2 targets\), got 59"),
    ],
)
def test_bad_requests(view, targets, n_fillers, message):
    with pytest.raises(UserError, match=message):
        check_request(_NeedsEverything(), view, targets, Budget(2, n_fillers))


def test_selected_items_need_room_too(view):
    assert check_request(_NeedsEverything(), view, [1], Budget(2, 56), n_selected=3).tolist() == [1]
    with pytest.raises(UserError, match=r"at most 56 .*1 targets and 3 selected items.* got 57"):
        check_request(_NeedsEverything(), view, [1], Budget(2, 57), n_selected=3)


@pytest.mark.parametrize("value", ["3", None, True, float("nan"), float("inf"), -0.1, 1.1])
def test_bad_numbers(value):
    with pytest.raises(UserError, match=r"attack_args\.q: expected a number from 0 to 1, got"):
        require_number("q", value, 0, 1)
