"""Group evidence: who shares with whom what hardly anybody likes. For detectors, weights, and attackers who know them.

Fakes that push the same targets share them. Pure functions of rating matrices, without labels; the work is done on the
stored ratings: no array is ever ``n_users x n_items`` or ``n_users x n_users``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy.sparse import csr_matrix, diags
from scipy.special import kl_div

from recbole_robust.types import FloatArray, IntArray

BLOCK_PAIRS = 2**22  # pairs of users looked at together: at most about 200 MiB
CHUNK_RATINGS = 2**21  # ratings of pairs of users whose shared items are looked at together: about 100 MiB
N_SAMPLED_USERS = 2000  # evenly spaced users are enough for a median
N_OTHERS = 10  # raters of an item beside one, of whom a mean can be told
Length = Literal["count", "chance"]
Kind = Literal["idf", "surprise"]
Evidence = Literal["idf", "surprise", "either"]


def co_rating(
    ratings: csr_matrix,
    n_neighbours: int = 20,
    top_rating: float | None = None,
    *,
    evidence: Kind = "idf",
    idf_power: float = 3.0,
    length: Length = "count",
    length_power: float = 0.5,
) -> FloatArray:
    """How much of its top ratings on rarely rated items a profile shares with its closest users (group evidence).

    ``score_u = mean of the 20 largest G_uv, v != u, over sqrt(l_u)`` with ``G_uv`` the sum of ``idf_i^3`` over the
    items that u and v both gave the top rating, ``idf_i = log(n_users / n_i)``, ``n_i`` the number of an item's
    ratings and ``l_u`` a user's length. Fakes that push the same targets share them. Higher is more suspicious.

    With ``evidence="surprise"`` it is the mean of the 20 largest ``s_uv`` (:class:`_Surprise`), whatever the length.

    Args:
        top_rating: what counts as one; None: the highest rating there is.
        evidence: ``idf`` (above; what follows is for it alone) or ``surprise``.
        idf_power: the 3 above.
        length: ``l_u`` is the number of u's top ratings (``count``), or what u shares with anybody by chance
            (``chance``): the sum over u's top ratings of ``idf_i^3 n_i / n_users``. Popular items, which fakes can
            rate highest to look like everybody, add to the first and hardly to the second.
        length_power: that of ``l_u``, the root above.

    Reference: none known; the idf weighting is this project's own.

    Shape: ``(n_users, n_items)`` to ``(n_users,)``.
    """
    n_users = ratings.shape[0]
    scores = np.zeros(n_users)
    _check_kind(evidence)
    if ratings.nnz == 0 or n_users < 2:
        return scores
    top, n_neighbours = _top_ratings(ratings, top_rating), min(n_neighbours, n_users - 1)
    measure: Measure
    if evidence == "surprise":
        measure, lengths = _Surprise(top), np.ones(n_users)
    else:
        measure = _Rarity(ratings, idf_power, np.ones(n_users))
        lengths = _lengths(ratings, top, measure.weights, length) ** length_power
    for user, values in _evidence_by_user(top, measure, np.arange(n_users)):
        scores[user] = _mean_of_largest(values, n_neighbours)
    return scores / lengths


# --- one value a rating -----------------------------------------------------------------------------------------------


def coordinated_raters(
    ratings: csr_matrix,
    n_neighbours: int = 20,
    top_rating: float | None = None,
    *,
    evidence: Evidence = "idf",
    idf_power: float = 3.0,
    low: float = 0.3,
    high: float = 1.0,
    own_share: float = 0.5,
    usual: float = 0.95,
) -> FloatArray:
    """How many others stand behind a rating as one voice with its user (group evidence).

    A group that pushes its targets together is one voice; fans who have nothing else in common are none. With u's top
    rating of i,

        c_ui = max(0, sum_v a_uvi - q (m_i - 1))

    over the others, v, of the m_i users who gave i the top rating; 0 where u has rated i lower. How far u and v act
    like one, ``a_uvi`` in [0, 1], rises from 0 to 1 as their evidence goes from ``low * theta`` to ``high * theta``.
    Fans of an item share others, too: q, the mean of a_uvi over v that few top ratings exceed, is usual (told from the
    items with more than ten top ratings, or else with the most; each user has one vote, however many ratings). On clean
    data 6 % of the top ratings of MovieLens-100K weigh 1 / (1 + c) < .6, and 7 % of those of MovieLens-1M.

    The evidence is ``s_uv = sum_j idf_j^3 / sqrt(l_u l_v)`` over the items j that both gave the top rating, with the
    terms of :func:`co_rating` and the length ``chance``, or else :class:`_Surprise`; i itself counts by ``own_share``.
    ``either``: c_ui is the larger of those by the two, each with its own theta and q.
    theta is what hardly any user's mean of the 20 largest ``s_uv`` exceeds: the square of median + 3 robust standard
    deviations of its root, over the users who have any. A few fakes move neither theta nor q.

    Reference: none known; the project's own.

    Args:
        evidence: ``idf``, ``surprise`` or ``either``.
        low, high: where ``a_uvi`` begins to rise and where it is 1, in units of theta.
        own_share: 0 to 1. At 0 two users with nothing in common but i are strangers, whatever i is, and fakes with one
            target each go unseen; at 1 the few fans of a rare item may be taken for a group.
        usual: share of the votes for no more than that, 0 to 1; at 0 nothing is usual, q = 0. Fakes that are more than
            1 - usual of all users make themselves usual: at 0.95 and 6 % fakes nothing weighs less.

    Shape: ``(n_users, n_items)`` to ``(n_ratings,)``, in the order of ``ratings.data``.
    """
    keys: dict[str, Any] = {"low": low, "high": high, "own_share": own_share, "usual": usual}
    found = np.zeros(ratings.nnz)
    for kind in kinds_of(evidence):
        count, others, limits = _alike(ratings, n_neighbours, top_rating, evidence=kind, idf_power=idf_power, **keys)
        found = np.maximum(found, count - limits.usual * others)
    return found


def kinds_of(evidence: Evidence) -> tuple[Kind, ...]:
    """The kinds of evidence that count: both where it is ``either``."""
    return get_args(Kind) if evidence == "either" else (evidence,)


@dataclass(frozen=True)
class Limits:
    """theta and q of :func:`coordinated_raters`: what hardly any user's evidence exceeds, and a usual mean of a_uvi."""

    theta: float
    usual: float


def limits_of(ratings: csr_matrix, top_rating: float | None = None, **keys: Any) -> Limits:
    """The limits that :func:`coordinated_raters` finds with these arguments; ``evidence`` is one of the two kinds."""
    given = {"evidence": "idf", "idf_power": 3.0, "low": 0.3, "high": 1.0, "own_share": 0.5, "usual": 0.95, **keys}
    return _alike(ratings, 20, top_rating, **given)[2]


def _alike(
    ratings: csr_matrix,
    n_neighbours: int,
    top_rating: float | None,
    *,
    evidence: Kind,
    idf_power: float,
    low: float,
    high: float,
    own_share: float,
    usual: float,
) -> tuple[FloatArray, IntArray, Limits]:
    """For each rating the sum of a_uvi and m_i - 1, and the limits. Shape: ``(n_ratings,)`` each."""
    n_users, n_items = ratings.shape
    count, others = np.zeros(ratings.nnz), np.zeros(ratings.nnz, dtype=np.int64)
    if ratings.nnz == 0 or n_users < 2:
        return count, others, Limits(0.0, 0.0)
    top = _top_ratings(ratings, top_rating)
    measure = _measure(ratings, top, evidence, idf_power)
    sample = np.arange(0, n_users, max(1, n_users // N_SAMPLED_USERS))
    n_neighbours = min(n_neighbours, n_users - 1)
    closest = np.array([_mean_of_largest(s, n_neighbours) for _, s in _evidence_by_user(top, measure, sample)])
    theta = _upper_limit(closest[closest > 0])  # in sparse data most users share nothing with anybody
    if theta == 0:
        return count, others, Limits(0.0, 0.0)
    places = _rows(ratings) * n_items + ratings.indices
    order = np.argsort(places, kind="stable")
    places = places[order]
    for user, other, shared in _pairs_above(top, measure, low * theta):
        on = top[user].multiply(top[other]).tocoo()  # what the two of a pair both gave the top rating
        user, other = user[on.row], other[on.row]
        found = measure(shared[on.row] - (1 - own_share) * measure.weights[on.col], user, other)
        alike = np.clip((found / theta - low) / (high - low), 0.0, 1.0)
        np.add.at(count, order[np.searchsorted(places, user * n_items + on.col)], alike)
    others = np.maximum(item_counts(top) - 1, 0)[ratings.indices]
    told = (ratings.data >= _top_of(ratings, top_rating)) & (others >= min(N_OTHERS, max(others.max(), 1)))
    if usual == 0 or not told.any():
        return count, others, Limits(theta, 0.0)
    shares = count[told] / others[told]
    return count, others, Limits(theta, _quantile_by_user(shares, _rows(ratings)[told], usual))


# --- evidence of a pair -----------------------------------------------------------------------------------------------


class _Rarity:
    """``idf``: the rarity of what two users share, over what they can be expected to share.

    Rare items count so much that in sparse data, where most users have a rating or two, a single one in common is more
    than ten common targets of 3 % of the users: there it sees no fakes.

    Shape: weights ``(n_items,)``, norm ``(n_users,)``.
    """

    def __init__(self, ratings: csr_matrix, power: float, norm: FloatArray) -> None:
        self.weights, self.norm = rarity_of(ratings, power), norm

    def __call__(self, shared: FloatArray, user: IntArray, other: IntArray) -> FloatArray:
        return shared * self.norm[user] * self.norm[other]


class _Surprise:
    """``surprise``: how little chance explains what two users share, in nats.

    ``s_uv = S log(S / L) - S + L`` where ``S > L``, else 0: minus the logarithm of Chernoff's bound of ``P(X >= S)``, S
    the number of items that both gave the top rating, X Poisson with mean ``L``. That is what they would share if top
    ratings fell on items by popularity alone: ``sum of m_i over u's items * t_v / M``, m_i an item's top ratings, t_v a
    user's, M all of them, or the same from v's side; L is the geometric mean of the two. It has no parameters.

    Shape: weights ``(n_items,)``, ones; root ``(n_users,)``, of which two make L.
    """

    def __init__(self, top: csr_matrix) -> None:
        counts, self.weights = item_counts(top), np.ones(top.shape[1])
        self.root = np.sqrt(np.diff(top.indptr) * (top @ counts) / max(counts.sum(), 1))

    def __call__(self, shared: FloatArray, user: IntArray, other: IntArray) -> FloatArray:
        by_chance = self.root[user] * self.root[other]
        return np.where(shared > by_chance, kl_div(shared, by_chance), 0.0)


Measure = _Rarity | _Surprise


def _measure(ratings: csr_matrix, top: csr_matrix, evidence: Kind, idf_power: float) -> Measure:
    _check_kind(evidence)
    if evidence == "surprise":
        return _Surprise(top)
    return _Rarity(ratings, idf_power, _lengths(ratings, top, rarity_of(ratings, idf_power), "chance") ** -0.5)


def _check_kind(evidence: str) -> None:
    if evidence not in get_args(Kind):
        raise ValueError(f"evidence: expected {' or '.join(get_args(Kind))}, got {evidence!r}")


# --- parts ------------------------------------------------------------------------------------------------------------


def _top_ratings(ratings: csr_matrix, top_rating: float | None) -> csr_matrix:
    """1 where a rating is at least ``top_rating`` (None: the highest there is). Shape: as ``ratings``."""
    is_top = ratings.data >= _top_of(ratings, top_rating)
    top = csr_matrix((is_top.astype(np.float64), ratings.indices, ratings.indptr), shape=ratings.shape, copy=True)
    top.eliminate_zeros()
    return top


def _top_of(ratings: csr_matrix, top_rating: float | None) -> float:
    return float(ratings.data.max()) if top_rating is None else top_rating


def _lengths(ratings: csr_matrix, top: csr_matrix, rarity: FloatArray, length: Length) -> FloatArray:
    """How much a user can be expected to share. Shape: ``(n_users,)``, at least 1 (``count``) or positive."""
    if length == "count":
        return np.maximum(np.diff(top.indptr), 1).astype(np.float64)
    by_chance = top @ (rarity * item_counts(ratings) / ratings.shape[0])
    return np.where(by_chance > 0, by_chance, 1.0)


def rarity_of(ratings: csr_matrix, power: float) -> FloatArray:
    """``log(n_users / n_i)^power``. Shape: ``(n_items,)``."""
    return np.log(ratings.shape[0] / np.maximum(item_counts(ratings), 1)) ** power


def _shared(top: csr_matrix, weights: FloatArray, users: IntArray) -> Iterator[tuple[int, csr_matrix]]:
    """Blocks of ``sum_i top_ui weights_i top_vi`` with v != u: the place of the first of ``users``, and the block.

    Shape: ``(n_users, n_items)``, ``(n_items,)``, ``(n_chosen,)``; a block is ``(n_rows, n_users)``.
    """
    weighted, columns = (top[users] @ diags(weights)).tocsr(), top.T.tocsr()
    n_rows = max(1, BLOCK_PAIRS // top.shape[0])
    for first in range(0, len(users), n_rows):
        block = csr_matrix(weighted[first : first + n_rows] @ columns)
        own = users[first : first + n_rows].astype(block.indices.dtype)
        block.data[block.indices == np.repeat(own, np.diff(block.indptr))] = 0.0
        yield first, block
        del block  # before the next one is made


def _evidence_by_user(top: csr_matrix, measure: Measure, users: IntArray) -> Iterator[tuple[int, FloatArray]]:
    """For each of ``users`` the own place among them, and the evidence of those who share anything with it.

    Row by row: most pairs share nothing, and a dense block would cost ten times as much.
    """
    for first, block in _shared(top, measure.weights, users):
        values = measure(block.data, users[first + _rows(block)], block.indices)
        for row in range(block.shape[0]):
            yield first + row, values[block.indptr[row] : block.indptr[row + 1]]


def _mean_of_largest(values: FloatArray, n: int) -> float:
    """The mean of the n largest of some values >= 0, absent ones being 0."""
    return float((np.partition(values, -n)[-n:] if len(values) > n else values).sum() / n)


def _pairs_above(top: csr_matrix, measure: Measure, limit: float) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """Chunks of the pairs whose evidence exceeds ``limit``: user, other and what they share, ``(n_pairs,)``."""
    lengths = np.diff(top.indptr)
    for first, block in _shared(top, measure.weights, np.arange(top.shape[0])):
        user = _rows(block) + first
        above = np.flatnonzero(measure(block.data, user, block.indices) > limit)
        user, other, shared = user[above], block.indices[above].astype(np.int64), block.data[above]
        chunk_of = np.cumsum(lengths[user] + lengths[other]) // CHUNK_RATINGS
        for chunk in np.split(np.arange(len(above)), np.flatnonzero(np.diff(chunk_of)) + 1):
            if len(chunk):
                yield user[chunk], other[chunk], shared[chunk]


def _rows(matrix: csr_matrix) -> IntArray:
    """The row of each stored value. Shape: ``(n_stored,)``."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def _upper_limit(means: FloatArray) -> float:
    """The square of median + 3 robust standard deviations (1.4826 MAD) of the roots; 0 of none."""
    if not len(means):
        return 0.0
    roots = np.sqrt(means)
    median = np.median(roots)
    return float(median + 3 * 1.4826 * np.median(np.abs(roots - median))) ** 2


def _quantile_by_user(values: FloatArray, users: IntArray, share: float) -> float:
    """The quantile of values of which each user's, together, have one vote: who has more has no more say."""
    votes, order = 1.0 / np.bincount(users)[users], np.argsort(values, kind="stable")
    up_to = np.cumsum(votes[order])
    return float(values[order][min(np.searchsorted(up_to, share * up_to[-1]), len(values) - 1)])


def item_counts(ratings: csr_matrix) -> IntArray:
    return np.bincount(ratings.indices, minlength=ratings.shape[1])
