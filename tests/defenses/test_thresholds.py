"""From scores to flags: known answers of the robust z, the cap, counts and shares, ties, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_robust.defenses.thresholds import Threshold, robust_z
from recbole_robust.types import UserError


def flag(scores, judged=None, seed: int = 0, **settings) -> list[int]:
    """The rows that are flagged."""
    scores = np.asarray(scores, dtype=float)
    judged = np.ones(len(scores), dtype=bool) if judged is None else np.asarray(judged, dtype=bool)
    return np.flatnonzero(Threshold(**settings).flag(scores, judged, np.random.default_rng(seed))).tolist()


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 2, 3, 4, 100], np.array([-2, -1, 0, 1, 97]) / 1.4826),  # median 3, MAD 1
        ([0, 0, 0, 0, 10], np.array([0, 0, 0, 0, 10]) / (1.2533 * 2)),  # MAD 0: the mean deviation is 2
        ([7, 7, 7], [0, 0, 0]),
        ([7], [0]),
        ([], []),
    ],
)
def test_robust_z_known_answers(scores, expected):
    np.testing.assert_allclose(robust_z(np.array(scores, dtype=float)), expected)


def test_robust_z_is_the_standard_score_of_normal_data_whatever_its_unit():
    values = np.random.default_rng(0).standard_normal(20_000)
    z = robust_z(values)
    assert z.std() == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(robust_z(40 - 0.0 + 3 * values), z, atol=1e-9)
    np.testing.assert_allclose(robust_z(-values), -z, atol=1e-9)
    polluted = np.concatenate([values, np.full(1000, 1e6)])  # 5 % that a mean would follow
    np.testing.assert_allclose(robust_z(polluted)[:-1000], z, atol=0.35)


def test_auto_flags_outliers_on_the_high_side_only():
    scores = np.random.default_rng(0).uniform(0, 1, 100)
    scores[[4, 50]] = 9
    scores[[5, 51]] = -9
    assert flag(scores) == [4, 50]
    assert flag(scores[:4]) == []


def test_auto_depends_on_its_limit():
    scores = [1, 2, 3, 4, 5, 6, 7, 8, 9, 18]  # median 5.5, MAD 2.5: z of the last is 3.37
    assert flag(scores, mad_threshold=3.3) == [9]
    assert flag(scores, mad_threshold=3.4) == []


def test_auto_never_flags_more_than_the_cap():
    scores = np.concatenate([np.linspace(0, 1, 80), np.arange(100, 120)])
    assert flag(scores, max_flagged=1) == list(range(80, 100))
    assert flag(scores) == list(range(90, 100)), "a tenth, the highest"
    assert flag(scores, max_flagged=0) == []


def test_users_without_ratings_are_neither_flagged_nor_in_the_median():
    scores = np.concatenate([np.linspace(1, 2, 50), [9.0], np.full(200, 9.0)])
    judged = np.arange(251) <= 50
    for settings in ({}, {"n_flag": 1}, {"n_flag": 0.02}):
        assert flag(scores, judged, **settings) == [50]
    assert len(flag(scores, judged, n_flag=250)) == 51
    assert flag(scores, np.zeros(251), n_flag=3) == []


@pytest.mark.parametrize(("n_flag", "n_flagged"), [(1, 1), (100, 100), (1000, 100), (0.29, 29), (0.001, 0), (0.5, 50)])
def test_counts_and_shares(n_flag, n_flagged):
    scores = np.random.default_rng(1).permutation(100)
    assert flag(scores, n_flag=n_flag) == sorted(np.argsort(-scores)[:n_flagged])


def test_ties_are_decided_by_the_generator_not_by_the_order_of_the_rows():
    """Fakes often come last: an order of rows would be a label."""
    counts = np.zeros(10)
    for seed in range(500):
        counts[flag(np.ones(10), n_flag=3, seed=seed)] += 1
    assert counts.sum() == 1500
    assert np.abs(counts - 150).max() < 45  # 4.4 standard deviations
    assert flag(np.ones(10), n_flag=3, seed=7) == flag(np.ones(10), n_flag=3, seed=7)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("n_flag", "all", "auto, a count of at least 1 or a share below 1, got 'all'"),
        ("n_flag", 0, "auto, a count of at least 1 or a share below 1, got 0"),
        ("n_flag", 1.0, "auto, a count of at least 1 or a share below 1, got 1.0"),
        ("n_flag", True, "auto, a count of at least 1 or a share below 1, got True"),
        ("n_flag", None, "auto, a count of at least 1 or a share below 1, got None"),
        ("mad_threshold", -1, "a number of at least 0, got -1"),
        ("mad_threshold", float("nan"), "a number of at least 0, got nan"),
        ("max_flagged", 1.5, "a number from 0 to 1, got 1.5"),
        ("max_flagged", "10%", "a number from 0 to 1, got '10%'"),
    ],
)
def test_bad_settings_are_one_clear_line(key, value, expected):
    with pytest.raises(UserError) as error:
        Threshold(**{key: value})
    assert str(error.value) == f"defense_args.{key}: expected {expected}"
