"""Intervals, paired tests, effect sizes, the attack-strength gate: the one module that reports count with.

The unit of a target metric is the (seed, target set) pair, that of accuracy the seed: result files have no values of
single users. ``groups`` names the seed of each value: values of one seed share a split, initial vectors and a clean
training, so they are not independent.

Reference:
    B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993 (chapters 13 and 15).
    T. Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69(4), 2015 (section 3.2:
    percentile intervals are too narrow for small samples, by how much, and the correction by Student's quantile).
    S. Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6(2), 1979.
    J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd edition, 1988 (d_z).
    L. V. Hedges, Distribution Theory for Glass's Estimator of Effect Size and Related Estimators, Journal of
    Educational Statistics 6(2), 1981 (the correction for small samples).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Alternative = Literal["two-sided", "greater", "less"]
Flip = Literal["pair", "group"]

EXACT_LIMIT = 14  # at most 2**14 sign vectors are enumerated
_CHUNK = 1_000_000  # numbers drawn at once, so that memory stays small however many users there are


@dataclass(frozen=True)
class Interval:
    """A mean and its interval, in the unit of the values.

    Attributes:
        mean: mean of all values.
        low: lower end; nan where fewer than two groups leave nothing to resample.
        high: upper end; nan like ``low``.
        n_groups: number of groups (seeds).
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n_groups: int
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """The fields as JSON values: nan becomes None."""
        low, high = (None if math.isnan(value) else value for value in (self.low, self.high))
        return {"mean": self.mean, "low": low, "high": high, "n_groups": self.n_groups, "n": self.n}


@dataclass(frozen=True)
class Gate:
    """Whether an attack is strong enough, on the undefended model, for a defense to be judged by it.

    Attributes:
        significant: the lift is above 0 with ``p`` below the level.
        saturated: clean + lift is above the ceiling: there the metric cannot tell attacks (or defenses) apart.
        lift: mean of attacked minus clean (a fraction for hit ratios).
        p: one-sided p-value of the lift.
    """

    significant: bool
    saturated: bool
    lift: float
    p: float

    @property
    def works(self) -> bool:
        """True where a defense may be judged: a significant lift that is not saturated."""
        return self.significant and not self.saturated


def hierarchical_bootstrap(
    values: ArrayLike,
    groups: ArrayLike,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    rng: np.random.Generator,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    small_sample: bool = True,
) -> Interval:
    """Bootstrap the mean in two stages: groups with replacement, then values within each drawn group.

    A plain percentile interval over few seeds is far too narrow (3 seeds: it covers 75 % instead of 95 %). With
    ``small_sample`` its two arms are stretched by ``sqrt(g / (g - 1)) * t / z``, ``g`` the number of groups, ``t`` and
    ``z`` the quantiles of Student's (``g - 1`` degrees of freedom) and of the normal distribution.

    Args:
        values: the measurements.
        groups: the group (seed) of each value.
        n_resamples: bootstrap samples, >= 1.
        level: coverage aimed at, in (0, 1).
        rng: source of all randomness.
        bounds: the range the metric can take; the interval is cut to it.
        small_sample: stretch the interval as above; False gives the plain percentile interval.

    Shape: ``values`` and ``groups`` are ``(n,)``, n >= 1; groups may differ in size.

    Returns:
        The interval; ``low`` and ``high`` are nan with a single group, since one seed says nothing about another.

    Raises:
        ValueError: no values, lengths that differ, a value that is not finite, or an argument out of range.
    """
    sample, inverse, sizes = _in_groups(values, groups)
    if n_resamples < 1 or not 0 < level < 1:
        raise ValueError(f"expected n_resamples >= 1 and 0 < level < 1, got {n_resamples} and {level}")
    n_groups, mean = len(sizes), float(sample.mean())
    if n_groups < 2:
        return Interval(mean, math.nan, math.nan, n_groups, len(sample))

    ordered = sample[np.argsort(inverse, kind="stable")]
    means = _resampled_means(ordered, sizes, n_resamples, rng)
    tail = (1 - level) / 2
    arms = np.quantile(means, [tail, 1 - tail]) - mean
    if small_sample:
        t, z = student_quantile(1 - tail, n_groups - 1), NormalDist().inv_cdf(1 - tail)
        arms = arms * math.sqrt(n_groups / (n_groups - 1)) * t / z
    low, high = np.clip(mean + arms, *bounds)
    return Interval(mean, float(low), float(high), n_groups, len(sample))


def student_interval(values: ArrayLike, groups: ArrayLike, *, level: float = 0.95) -> Interval:
    """Student's interval of the mean over the groups' means: what each group has come to, not how its values differ.

    Args:
        values: the measurements.
        groups: the group (seed) of each value.
        level: coverage aimed at, in (0, 1).

    Shape: ``values`` and ``groups`` are ``(n,)``, n >= 1; each group counts once, whatever its size.

    Returns:
        The interval around the mean of the means; ``low`` and ``high`` are nan with a single group.

    Raises:
        ValueError: no values, lengths that differ, a value that is not finite, or a level out of range.
    """
    sample, inverse, sizes = _in_groups(values, groups)
    if not 0 < level < 1:
        raise ValueError(f"expected 0 < level < 1, got {level}")
    means = np.bincount(inverse, weights=sample) / sizes
    n_groups, mean = len(means), float(means.mean())
    if n_groups < 2:
        return Interval(mean, math.nan, math.nan, n_groups, len(sample))
    arm = student_quantile((1 + level) / 2, n_groups - 1) * float(means.std(ddof=1)) / math.sqrt(n_groups)
    return Interval(mean, mean - arm, mean + arm, n_groups, len(sample))


def paired_permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    n_permutations: int = 10_000,
    alternative: Alternative = "two-sided",
    flip: Flip = "pair",
    rng: np.random.Generator,
) -> float:
    """Sign-flip test of the mean of ``a - b``.

    Exchangeable under the null hypothesis: the two labels ("a", "b") within each unit. With ``flip="pair"`` a unit is
    one (seed, target set) pair, so the pairs are taken to be independent of one another; with ``flip="group"`` all
    pairs of a group (seed) swap together, which asks for no independence within a seed but needs more seeds: g groups
    cannot give a one-sided p below ``2**-g``.

    Every sign vector is counted where there are at most 14 units (the p-value is exact, ``rng`` unused); else
    ``n_permutations`` random ones, and ``p = (1 + hits) / (1 + n_permutations)``, which is never 0.

    Args:
        a: one measurement of each pair.
        b: the other one.
        groups: the group (seed) of each pair; used with ``flip="group"`` only.
        n_permutations: random sign vectors, >= 1.
        alternative: ``two-sided``, ``greater`` (a above b) or ``less``.
        flip: what swaps together, ``pair`` or ``group``.
        rng: source of all randomness.

    Shape: ``a``, ``b`` and ``groups`` are ``(n,)``, n >= 1.

    Raises:
        ValueError: no pairs, lengths that differ, a value that is not finite, groups missing, or an unknown option.
    """
    first, second = _checked(a), _checked(b)
    if len(first) != len(second):
        raise ValueError(f"expected pairs, got {len(first)} and {len(second)} values")
    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(f"alternative: expected two-sided, greater or less, got {alternative!r}")
    if n_permutations < 1:
        raise ValueError(f"n_permutations: expected at least 1, got {n_permutations}")
    differences = _units(first - second, groups, flip)
    if alternative == "less":
        differences = -differences

    observed, slack = differences.sum(), 1e-12 * np.abs(differences).sum()

    def hits(signs: NDArray[np.int8]) -> int:
        sums = signs @ differences
        if alternative == "two-sided":
            return int(np.count_nonzero(np.abs(sums) >= abs(observed) - slack))
        return int(np.count_nonzero(sums >= observed - slack))

    n = len(differences)
    if n <= EXACT_LIMIT:
        codes = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return hits((1 - 2 * codes).astype(np.int8)) / 2**n
    count = 0
    step = max(1, _CHUNK // n)
    for start in range(0, n_permutations, step):
        shape = (min(step, n_permutations - start), n)
        count += hits(2 * rng.integers(0, 2, size=shape, dtype=np.int8) - 1)
    return (1 + count) / (1 + n_permutations)


def attack_works(
    clean: ArrayLike,
    attacked: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    alpha: float = 0.05,
    ceiling: float = 0.9,
    n_permutations: int = 10_000,
    flip: Flip = "pair",
    rng: np.random.Generator,
) -> Gate:
    """The gate every defense passes first: did the attack move the *undefended* model, and is there room left above?

    Args:
        clean: target metric of the undefended model on clean data, a fraction.
        attacked: the same on poisoned data, paired with ``clean``.
        groups: the seed of each pair.
        alpha: level of the one-sided test of attacked > clean.
        ceiling: clean + lift above it is called saturated.
        n_permutations: as in :func:`paired_permutation_test`.
        flip: as in :func:`paired_permutation_test`.
        rng: source of all randomness.

    Shape: all are ``(n,)``, n >= 1. Fewer than five pairs cannot be significant at 0.05.

    Raises:
        ValueError: as :func:`paired_permutation_test`.
    """
    before, after = _checked(clean), _checked(attacked)
    p = paired_permutation_test(
        after, before, groups, n_permutations=n_permutations, alternative="greater", flip=flip, rng=rng
    )
    return Gate(p < alpha, float(after.mean()) > ceiling, float(after.mean() - before.mean()), p)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust the p-values of a family of tests, so that comparing each with alpha keeps the family's level alpha.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below one that was smaller before,
    and none exceeds 1. It asks for no independence of the tests.

    Shape: ``(m,)``, m >= 0, in any order -> ``(m,)`` in the same order.

    Raises:
        ValueError: a value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64).ravel()
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError("p_values: expected numbers in [0, 1]")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def paired_effect_size(a: ArrayLike, b: ArrayLike) -> float:
    """Hedges' g of paired differences: Cohen's d_z, the mean of ``a - b`` in units of its standard deviation (n - 1),
    times ``1 - 3 / (4 (n - 1) - 1)``, without which few pairs overstate it.

    It says how reliably the two differ from pair to pair, not how far they are apart: a small difference that is the
    same in every pair is a large effect. So a report shows it beside the difference, never in its place.

    Shape: ``a`` and ``b`` are ``(n,)``, n >= 1.

    Returns:
        g; nan for one pair; with equal differences 0 where they are 0, else an infinity of their sign.

    Raises:
        ValueError: no pairs, lengths that differ, or a value that is not finite.
    """
    first, second = _checked(a), _checked(b)
    if len(first) != len(second):
        raise ValueError(f"expected pairs, got {len(first)} and {len(second)} values")
    differences = first - second
    degrees, mean = len(differences) - 1, float(differences.mean())
    if not degrees:
        return math.nan
    spread = float(differences.std(ddof=1))
    scale = float(np.abs(first).max() + np.abs(second).max())
    if spread <= 1e-12 * scale:  # rounding alone
        return 0.0 if abs(mean) <= 1e-12 * scale else math.copysign(math.inf, mean)
    return mean / spread * (1 - 3 / (4 * degrees - 1))


def budget_area(budgets: ArrayLike, lifts: ArrayLike) -> float:
    """The area under a budget curve over the largest budget: the mean lift over all budgets from none to the largest.

    Between two budgets the lift is a straight line (trapezoids), and without fakes it is 0. It has the unit of the
    lifts; where the lift is proportional to the budget, it is half of the last one. Areas are comparable only where
    the largest budget is the same.

    Args:
        budgets: attack sizes, all > 0 and different, in any order.
        lifts: the lift at each of them.

    Shape: both are ``(n,)``, n >= 1.

    Raises:
        ValueError: lengths that differ, a value that is not finite, or budgets that are not > 0 and different.
    """
    sizes, values = _checked(budgets), _checked(lifts)
    if len(sizes) != len(values):
        raise ValueError(f"lifts: expected {len(sizes)} values, one a budget, got {len(values)}")
    order = np.argsort(sizes)
    x, y = np.concatenate([[0.0], sizes[order]]), np.concatenate([[0.0], values[order]])
    steps = np.diff(x)
    if not np.all(steps > 0):
        raise ValueError("budgets: expected numbers above 0, all different")
    return float(np.sum(steps * (y[1:] + y[:-1]) / 2) / x[-1])


def student_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's distribution for ``0.5 <= p < 1``, by integration over ``arctan(t / sqrt(degrees))``."""
    angles = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angles) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(math.sqrt(degrees) * np.tan(np.interp(2 * p - 1, mass / mass[-1], angles)))


def _resampled_means(
    ordered: NDArray[np.float64], sizes: NDArray[Any], n_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means of two-stage resamples; ``ordered`` holds the groups one after another. Shape: ``(n_resamples,)``."""
    n_groups, widest = len(sizes), int(sizes.max())
    starts = np.cumsum(sizes) - sizes
    step = max(1, _CHUNK // (n_groups * widest))
    means = np.empty(n_resamples)
    for start in range(0, n_resamples, step):
        stop = min(start + step, n_resamples)
        drawn = rng.integers(n_groups, size=(stop - start, n_groups))
        counts = sizes[drawn][..., None]
        offsets = (rng.random((stop - start, n_groups, widest)) * counts).astype(np.int64)
        inside = np.arange(widest) < counts
        picked = np.where(inside, ordered[starts[drawn][..., None] + offsets], 0.0)
        means[start:stop] = picked.sum(axis=(1, 2)) / counts.sum(axis=(1, 2))
    return means


def _units(differences: NDArray[np.float64], groups: ArrayLike | None, flip: Flip) -> NDArray[np.float64]:
    """The differences that swap sign independently: the pairs', or their sums over each group."""
    if flip == "pair":
        return differences
    if flip != "group":
        raise ValueError(f"flip: expected pair or group, got {flip!r}")
    labels = np.asarray(groups).ravel()
    if groups is None or len(labels) != len(differences):
        raise ValueError("groups: flip='group' needs the group of each pair")
    _, inverse = np.unique(labels, return_inverse=True)
    return np.bincount(inverse, weights=differences).astype(np.float64)


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    if not len(array) or not np.all(np.isfinite(array)):
        raise ValueError("expected at least one value, all of them finite")
    return array


def _in_groups(values: ArrayLike, groups: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """The values, the index of each one's group, and the sizes of the groups."""
    sample, labels = _checked(values), np.asarray(groups).ravel()
    if len(labels) != len(sample):
        raise ValueError(f"groups: expected {len(sample)} labels, one a value, got {len(labels)}")
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return sample, inverse, sizes
