"""Everything of statistics.py against known answers, brute force and simulation."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from recbole_robust.statistics import (
    Interval,
    attack_works,
    budget_area,
    hierarchical_bootstrap,
    holm,
    paired_effect_size,
    paired_permutation_test,
    student_interval,
    student_quantile,
)

quarters = st.integers(-40, 40).map(lambda n: n / 4)  # sums are exact, so ties are ties


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def brute_force(differences: list[float], alternative: str) -> float:
    observed = sum(differences)
    hits = 0
    for signs in itertools.product((1, -1), repeat=len(differences)):
        total = sum(sign * d for sign, d in zip(signs, differences, strict=True))
        hits += {
            "two-sided": abs(total) >= abs(observed),
            "greater": total >= observed,
            "less": total <= observed,
        }[alternative]
    return hits / 2 ** len(differences)


# -- bootstrap -----------------------------------------------------------------------------------------------------


def test_bootstrap_of_constants_is_the_constant() -> None:
    interval = hierarchical_bootstrap([0.3] * 6, [0, 0, 1, 1, 2, 2], rng=rng())
    assert interval.n_groups == 3 and interval.n == 6
    assert [interval.mean, interval.low, interval.high] == pytest.approx([0.3] * 3, abs=1e-12)


@pytest.mark.parametrize("values, groups", [([0.3], [7]), ([0.3, 0.5, 0.1], [7, 7, 7])])
def test_one_group_has_no_interval(values: list[float], groups: list[int]) -> None:
    interval = hierarchical_bootstrap(values, groups, rng=rng())
    for one in (interval, student_interval(values, groups)):
        assert one.mean == pytest.approx(0.3)
        assert math.isnan(one.low) and math.isnan(one.high)
    assert json.loads(json.dumps(interval.to_json()))["low"] is None


def test_plain_bootstrap_of_two_groups_resamples_the_groups() -> None:
    # The means of two values drawn from {0, 1} with replacement are 0, 1/2 and 1: the interval is [0, 1].
    interval = hierarchical_bootstrap([0.0, 1.0], ["a", "b"], rng=rng(), small_sample=False)
    assert interval == Interval(0.5, 0.0, 1.0, 2, 2)


def test_students_interval_is_that_of_the_means_of_the_groups() -> None:
    values, groups = [0.1, 0.9, 0.6, 0.2, 0.3, 0.4, 0.5], ["a", "a", "b", "c", "c", "c", "c"]
    interval = student_interval(values, groups, level=0.9)
    known = ttest_1samp([0.5, 0.6, 0.35], 0).confidence_interval(0.9)
    assert [interval.low, interval.high] == pytest.approx([known.low, known.high], rel=1e-5)
    assert (interval.mean, interval.n_groups, interval.n) == (pytest.approx(1.45 / 3), 3, 7)
    apart = student_interval([0.0, 1.0] * 3, [0, 0, 1, 1, 2, 2])  # how values of one group differ does not count
    assert [apart.low, apart.mean, apart.high] == pytest.approx([0.5] * 3)


@pytest.mark.parametrize(
    ("values", "groups", "level", "told"),
    [([1.0, 2.0], [0], 0.95, "expected 2 labels"), ([], [], 0.95, "at least one"), ([1.0], [0], 1.0, "0 < level < 1")],
)
def test_students_interval_refuses(values: list[float], groups: list[int], level: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        student_interval(values, groups, level=level)


def test_bounds_cut_the_interval() -> None:
    free = hierarchical_bootstrap([0.02, 0.3], [0, 1], rng=rng())
    cut = hierarchical_bootstrap([0.02, 0.3], [0, 1], rng=rng(), bounds=(0.0, 1.0))
    assert free.low < 0 and cut.low == 0.0 and cut.high == min(free.high, 1.0)


def test_values_vary_within_groups_too() -> None:
    # Both groups have the same mean: only the second stage gives the interval a width.
    interval = hierarchical_bootstrap([0, 1, 0, 1], [0, 0, 1, 1], rng=rng(), small_sample=False)
    assert interval.low < 0.5 < interval.high


def test_groups_of_unequal_size_weigh_by_their_values() -> None:
    values, groups = [1.0, 0.0, 0.0, 0.0], ["b", "a", "a", "a"]
    interval = hierarchical_bootstrap(values, groups, rng=rng(), small_sample=False)
    assert interval.mean == 0.25
    assert interval.low == 0.0 and interval.high == 1.0  # only group a was drawn, or only group b


def test_bootstrap_standard_error_equals_the_known_one() -> None:
    # One value a group: the bootstrap's standard error of the mean is sd / sqrt(n) (sd over n, not n - 1).
    values = rng(5).normal(size=60)
    interval = hierarchical_bootstrap(values, np.arange(60), n_resamples=20_000, rng=rng(), small_sample=False)
    assert (interval.high - interval.low) / 2 / 1.959964 == pytest.approx(values.std() / math.sqrt(60), rel=0.05)


@pytest.mark.parametrize("n_groups, n_within", [(3, 1), (5, 1), (10, 1), (10, 2)])
def test_coverage_is_near_the_level(n_groups: int, n_within: int) -> None:
    generator, n_trials, covered = rng(1), 300, 0
    groups = np.repeat(np.arange(n_groups), n_within)
    for _ in range(n_trials):
        values = generator.normal(size=(n_groups, 1)) + 0.3 * generator.normal(size=(n_groups, n_within))
        interval = hierarchical_bootstrap(values, groups, n_resamples=500, rng=generator)
        covered += interval.low <= 0 <= interval.high
    assert 0.90 <= covered / n_trials <= 0.99


def test_plain_percentile_interval_is_too_narrow_for_three_seeds() -> None:
    generator, covered = rng(2), 0
    for _ in range(200):
        values = generator.normal(size=3)
        interval = hierarchical_bootstrap(values, [0, 1, 2], n_resamples=300, rng=generator, small_sample=False)
        covered += interval.low <= 0 <= interval.high
    assert covered / 200 < 0.85  # why small_sample is the default


@pytest.mark.parametrize("degrees, expected", [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (100, 1.98397)])
def test_student_quantile(degrees: int, expected: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(expected, rel=1e-5)
    assert student_quantile(0.5, degrees) == pytest.approx(0, abs=1e-9)


def test_bootstrap_is_reproducible_and_order_free_of_global_state() -> None:
    values, groups = rng(3).normal(size=20), np.repeat(np.arange(5), 4)
    first = hierarchical_bootstrap(values, groups, rng=rng(9))
    np.random.default_rng(1).random(10)
    assert hierarchical_bootstrap(values, groups, rng=rng(9)) == first
    assert hierarchical_bootstrap(values, groups, rng=rng(10)) != first


def test_bootstrap_of_many_values_goes_in_chunks() -> None:
    groups = np.repeat(np.arange(4), 20_000)
    interval = hierarchical_bootstrap(groups.astype(float), groups, n_resamples=30, rng=rng())
    assert interval.low < interval.mean == 1.5 < interval.high


@pytest.mark.parametrize(
    "values, groups, options",
    [([], [], {}), ([1.0, math.nan], [0, 1], {}), ([1.0, 2.0], [0], {}), ([1.0], [0], {"level": 1.5})],
)
def test_bootstrap_refuses(values: list[float], groups: list[int], options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        hierarchical_bootstrap(values, groups, rng=rng(), **options)  # type: ignore[arg-type]


# -- permutation test ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(quarters, min_size=1, max_size=8), st.sampled_from(["two-sided", "greater", "less"]))
def test_exact_p_equals_brute_force(differences: list[float], alternative: str) -> None:
    p = paired_permutation_test(differences, np.zeros(len(differences)), alternative=alternative, rng=rng())  # type: ignore[arg-type]
    assert p == brute_force(differences, alternative)


def test_five_equal_signs_known_answers() -> None:
    a, b = np.arange(1.0, 6.0), np.zeros(5)
    assert paired_permutation_test(a, b, rng=rng()) == 2 / 32
    assert paired_permutation_test(a, b, alternative="greater", rng=rng()) == 1 / 32
    assert paired_permutation_test(a, b, alternative="less", rng=rng()) == 1.0
    assert paired_permutation_test(a, a, rng=rng()) == 1.0


def test_flipping_by_group_counts_groups_not_pairs() -> None:
    a, b, seeds = np.ones(8), np.zeros(8), [0, 0, 1, 1, 2, 2, 3, 3]
    assert paired_permutation_test(a, b, seeds, alternative="greater", rng=rng()) == 1 / 2**8
    assert paired_permutation_test(a, b, seeds, alternative="greater", flip="group", rng=rng()) == 1 / 2**4
    by_group = paired_permutation_test([1, 2, -5, 1], [0] * 4, ["x", "x", "y", "y"], flip="group", rng=rng())
    assert by_group == brute_force([3, -4], "two-sided")


def test_random_flips_agree_with_the_exact_ones() -> None:
    differences = rng(4).normal(0.25, 1, size=14)
    exact = paired_permutation_test(differences, np.zeros(14), rng=rng())
    doubled = np.concatenate([differences, [0.0]])  # a 15th pair that changes no sum, and so no p-value
    sampled = paired_permutation_test(doubled, np.zeros(15), n_permutations=40_000, rng=rng())
    assert 0.01 < exact < 0.99
    assert sampled == pytest.approx(exact, abs=0.01)
    assert paired_permutation_test(np.ones(40), np.zeros(40), n_permutations=999, rng=rng()) == 1 / 1000


@pytest.mark.parametrize("n", [10, 25])
@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_p_is_uniform_under_the_null(n: int, alternative: str) -> None:
    generator = rng(6)
    p = np.array(
        [
            paired_permutation_test(
                *generator.normal(size=(2, n)), n_permutations=400, alternative=alternative, rng=generator
            )  # type: ignore[arg-type]
            for _ in range(400)
        ]
    )
    for level in (0.05, 0.25, 0.5, 0.75):
        assert np.mean(p <= level) == pytest.approx(level, abs=3.5 * math.sqrt(level * (1 - level) / 400) + 0.005)


def test_test_is_reproducible() -> None:
    a, b = rng(7).normal(size=(2, 30))
    assert paired_permutation_test(a, b, rng=rng(1)) == paired_permutation_test(a, b, rng=rng(1))


@pytest.mark.parametrize(
    "options",
    [
        {"a": [1.0], "b": [1.0, 2.0]},
        {"a": [], "b": []},
        {"a": [1.0], "b": [2.0], "alternative": "bigger"},
        {"a": [1.0], "b": [2.0], "flip": "seed"},
        {"a": [1.0], "b": [2.0], "flip": "group"},
        {"a": [1.0], "b": [2.0], "n_permutations": 0},
    ],
)
def test_permutation_test_refuses(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        paired_permutation_test(**options, rng=rng())  # type: ignore[arg-type]


# -- gate ----------------------------------------------------------------------------------------------------------


def test_gate_passes_a_plain_attack() -> None:
    clean = np.array([0.03, 0.05, 0.04, 0.06, 0.02])
    gate = attack_works(clean, clean + 0.2, range(5), rng=rng())
    assert gate.works and gate.significant and not gate.saturated
    assert gate.lift == pytest.approx(0.2) and gate.p == 1 / 32


def test_gate_stops_saturated_weak_and_harmful_attacks() -> None:
    clean = np.array([0.03, 0.05, 0.04, 0.06, 0.02])
    saturated = attack_works(clean, clean + 0.9, rng=rng())
    assert saturated.significant and saturated.saturated and not saturated.works
    weak = attack_works(clean, clean + np.array([0.1, -0.1, 0.1, -0.1, 0.0]), rng=rng())
    assert not weak.significant and not weak.works
    assert attack_works(clean, clean - 0.02, rng=rng()).p == 1.0


def test_gate_needs_five_pairs() -> None:
    assert not attack_works([0.0] * 4, [0.5] * 4, rng=rng()).significant
    assert attack_works([0.0] * 5, [0.5] * 5, rng=rng()).significant
    assert not attack_works([0.0] * 5, [0.5] * 5, [0, 0, 0, 1, 1], flip="group", rng=rng()).significant


# -- Holm ----------------------------------------------------------------------------------------------------------


def test_holm_known_answer() -> None:
    """By hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not fall below 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2]) and holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float], alpha: float) -> None:
    """The adjusted values against the procedure itself: go up from the smallest, stop at the first that is kept."""
    adjusted, rejected = holm(p), set()
    for step, i in enumerate(np.argsort(p, kind="stable")):
        if p[i] * (len(p) - step) > alpha:
            break
        rejected.add(int(i))
    assert {i for i, value in enumerate(adjusted) if value <= alpha} == rejected
    assert all(after >= before for before, after in zip(p, adjusted, strict=True))
    assert list(holm(p[::-1]))[::-1] == pytest.approx(list(adjusted))


def test_holm_keeps_the_level_of_the_family() -> None:
    generator, n_families = rng(8), 2000
    wrong = sum(holm(generator.random(10)).min() <= 0.05 for _ in range(n_families))
    assert wrong / n_families == pytest.approx(0.05, abs=0.017)


@pytest.mark.parametrize("p", [[-0.1], [1.1], [math.nan]])
def test_holm_refuses(p: list[float]) -> None:
    with pytest.raises(ValueError, match="expected numbers in"):
        holm(p)


# -- effect size ---------------------------------------------------------------------------------------------------


def test_effect_size_known_answer() -> None:
    """Differences 1, 2, 3: mean 2, standard deviation 1, two degrees of freedom: 2 (1 - 3/7)."""
    assert paired_effect_size([2, 4, 6], [1, 2, 3]) == pytest.approx(2 * 4 / 7)


@settings(deadline=None)
@given(st.lists(quarters, min_size=2, max_size=10).filter(lambda d: len(set(d)) > 1), st.floats(0.5, 20))
def test_effect_size_changes_sign_with_the_pairs_and_has_no_unit(differences: list[float], scale: float) -> None:
    d, zero = np.array(differences), np.zeros(len(differences))
    g = paired_effect_size(d, zero)
    assert paired_effect_size(zero, d) == pytest.approx(-g)
    assert paired_effect_size(scale * d, zero) == pytest.approx(g)
    assert paired_effect_size(d + 7, zero + 7) == pytest.approx(g, abs=1e-9)


def test_effect_size_is_unbiased_in_small_samples() -> None:
    """What Hedges' correction is for: five pairs, a true effect of 1; without it the mean is 1.25."""
    samples = rng(11).normal(1.0, 1.0, size=(20_000, 5))
    values = [paired_effect_size(sample, np.zeros(5)) for sample in samples]
    assert np.mean(values) == pytest.approx(1.0, abs=0.02)


def test_effect_size_without_spread() -> None:
    assert math.isnan(paired_effect_size([1.0], [0.0]))
    assert paired_effect_size([0.3, 0.4], [0.3, 0.4]) == 0.0
    assert paired_effect_size([0.1, 0.2], [0.3, 0.4]) == -math.inf  # equal but for rounding
    with pytest.raises(ValueError, match="expected pairs"):
        paired_effect_size([1.0], [1.0, 2.0])


# -- area under the budget curve -----------------------------------------------------------------------------------


def test_budget_area_known_answers() -> None:
    assert budget_area([0.01], [0.4]) == pytest.approx(0.2)  # a line through 0
    assert budget_area([0.01, 0.03], [0.3, 0.3]) == pytest.approx((0.01 * 0.15 + 0.02 * 0.3) / 0.03)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8, unique=True), st.floats(0.1, 5))
def test_budget_area_is_a_mean(sizes: list[int], factor: float) -> None:
    """Linear in the lifts, free of the unit of the budget and of the order; a proportional lift gives half of the
    last; a budget in between that lies on the line changes nothing."""
    lifts = [0.01 * size for size in sizes]
    area = budget_area(sizes, lifts)
    assert area == pytest.approx(max(lifts) / 2)
    assert budget_area([factor * size for size in sizes], lifts) == pytest.approx(area)
    assert budget_area(sizes, [factor * lift for lift in lifts]) == pytest.approx(factor * area)
    assert budget_area(sizes[::-1], lifts[::-1]) == pytest.approx(area)
    assert budget_area([200, *sizes], [2.0, *lifts]) == pytest.approx(1.0)


@pytest.mark.parametrize("budgets, lifts", [([1, 1], [0, 0]), ([0, 1], [0, 0]), ([1], [0, 0]), ([1], [math.nan])])
def test_budget_area_refuses(budgets: list[float], lifts: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        budget_area(budgets, lifts)
