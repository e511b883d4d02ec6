"""Group evidence: who shares with whom what hardly anybody likes. For detectors, weights, and attackers who know them.

Fakes that push the same targets share them. Pure functions of rating matrices, without labels; the work is done on the
stored ratings: no array is ever ``n_users x n_items`` or ``n_users x n_users``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix, diags

from recbole_robust.types import FloatArray, IntArray

BLOCK_PAIRS = 2**22  # pairs of users looked at together: at most about 200 MiB
CHUNK_RATINGS = 2**21  # ratings of pairs of users whose shared items are looked at together: about 100 MiB
N_SAMPLED_USERS = 2000  # evenly spaced users are enough for a median
N_OTHERS = 10  # raters of an item beside one, of whom a mean can be told
Length = Literal["count", "chance"]


def co_rating(
    ratings: csr_matrix,
    n_neighbours: int = 20,
    top_rating: float | None = None,
    *,
    idf_power: float = 3.0,
    length: Length = "count",
    length_power: float = 0.5,
) -> FloatArray:
    """How much of its top ratings on rarely rated items a profile shares with its closest users (group evidence).

    ``score_u = mean of the 20 largest G_uv, v != u, over sqrt(l_u)`` with ``G_uv`` the sum of ``idf_i^3`` over the
    items that u and v both gave the top rating, ``idf_i = log(n_users / n_i)``, ``n_i`` the number of an item's
    ratings and ``l_u`` a user's length. Fakes that push the same targets share them. Higher is more suspicious.

    Args:
        top_rating: what counts as one; None: the highest rating there is.
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
    if ratings.nnz == 0 or n_users < 2:
        return scores
    top, rarity = _top_ratings(ratings, top_rating), rarity_of(ratings, idf_power)
    n_neighbours = min(n_neighbours, n_users - 1)
    for user, shared in _shared_by_user(top, rarity, np.arange(n_users)):
        scores[user] = _mean_of_largest(shared, n_neighbours)
    return scores / _lengths(ratings, top, rarity, length) ** length_power


# --- one value a rating -----------------------------------------------------------------------------------------------


def coordinated_raters(
    ratings: csr_matrix,
    n_neighbours: int = 20,
    top_rating: float | None = None,
    *,
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
    terms of :func:`co_rating` and the length ``chance``; i itself counts by ``own_share``. theta is what hardly any
    user's mean of the 20 largest ``s_uv`` exceeds: the square of median + 3 robust standard deviations of its root,
    over the users who have any. A few fakes move neither theta nor q.

    Reference: none known; the project's own.

    Args:
        low, high: where ``a_uvi`` begins to rise and where it is 1, in units of theta.
        own_share: 0 to 1. At 0 two users with nothing in common but i are strangers, whatever i is, and fakes with one
            target each go unseen; at 1 the few fans of a rare item may be taken for a group.
        usual: share of the votes for no more than that, 0 to 1; at 0 nothing is usual, q = 0. Fakes that are more than
            1 - usual of all users make themselves usual: at 0.95 and 6 % fakes nothing weighs less.

    Shape: ``(n_users, n_items)`` to ``(n_ratings,)``, in the order of ``ratings.data``.
    """
    count, others, limits = _alike(
        ratings, n_neighbours, top_rating, idf_power=idf_power, low=low, high=high, own_share=own_share, usual=usual
    )
    return np.maximum(count - limits.usual * others, 0.0)


@dataclass(frozen=True)
class Limits:
    """theta and q of :func:`coordinated_raters`: what hardly any user's evidence exceeds, and a usual mean of a_uvi."""

    theta: float
    usual: float


def limits_of(ratings: csr_matrix, top_rating: float | None = None, **keys: float) -> Limits:
    """The limits that :func:`coordinated_raters` finds with these arguments."""
    given = {"idf_power": 3.0, "low": 0.3, "high": 1.0, "own_share": 0.5, "usual": 0.95, **keys}
    return _alike(ratings, 20, top_rating, **given)[2]


def _alike(
    ratings: csr_matrix,
    n_neighbours: int,
    top_rating: float | None,
    *,
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
    top, rarity = _top_ratings(ratings, top_rating), rarity_of(ratings, idf_power)
    norm = 1.0 / np.sqrt(_lengths(ratings, top, rarity, "chance"))
    normed = csr_matrix(diags(norm) @ top)
    sample = np.arange(0, n_users, max(1, n_users // N_SAMPLED_USERS))
    n_neighbours = min(n_neighbours, n_users - 1)
    closest = np.array([_mean_of_largest(s, n_neighbours) for _, s in _shared_by_user(normed, rarity, sample)])
    theta = _upper_limit(closest[closest > 0])  # in sparse data most users share nothing with anybody
    if theta == 0:
        return count, others, Limits(0.0, 0.0)
    places = np.repeat(np.arange(n_users), np.diff(ratings.indptr)) * n_items + ratings.indices
    order = np.argsort(places, kind="stable")
    places = places[order]
    for user, other, evidence in _pairs_above(normed, rarity, low * theta):
        on = top[user].multiply(top[other]).tocoo()  # what the two of a pair both gave the top rating
        user, other = user[on.row], other[on.row]
        own = rarity[on.col] * norm[user] * norm[other]
        alike = np.clip(((evidence[on.row] - (1 - own_share) * own) / theta - low) / (high - low), 0.0, 1.0)
        np.add.at(count, order[np.searchsorted(places, user * n_items + on.col)], alike)
    others = np.maximum(item_counts(top) - 1, 0)[ratings.indices]
    told = (ratings.data >= _top_of(ratings, top_rating)) & (others >= min(N_OTHERS, max(others.max(), 1)))
    if usual == 0 or not told.any():
        return count, others, Limits(theta, 0.0)
    users = np.repeat(np.arange(n_users), np.diff(ratings.indptr))[told]
    return count, others, Limits(theta, _quantile_by_user(count[told] / others[told], users, usual))


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


def _shared_by_user(top: csr_matrix, weights: FloatArray, users: IntArray) -> Iterator[tuple[int, FloatArray]]:
    """For each of ``users`` the own place among them, and the values of :func:`_shared` that are stored.

    Row by row: most pairs share nothing, and a dense block would cost ten times as much.
    """
    for first, block in _shared(top, weights, users):
        for row in range(block.shape[0]):
            yield first + row, block.data[block.indptr[row] : block.indptr[row + 1]]


def _mean_of_largest(values: FloatArray, n: int) -> float:
    """The mean of the n largest of some values >= 0, absent ones being 0."""
    return float((np.partition(values, -n)[-n:] if len(values) > n else values).sum() / n)


def _pairs_above(
    normed: csr_matrix, weights: FloatArray, limit: float
) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """Chunks of the pairs whose value of :func:`_shared` exceeds ``limit``: user, other and value, ``(n_pairs,)``."""
    lengths = np.diff(normed.indptr)
    for first, block in _shared(normed, weights, np.arange(normed.shape[0])):
        above = np.flatnonzero(block.data > limit)
        user = np.searchsorted(block.indptr, above, side="right") - 1 + first
        other, value = block.indices[above].astype(np.int64), block.data[above]
        chunk_of = np.cumsum(lengths[user] + lengths[other]) // CHUNK_RATINGS
        for chunk in np.split(np.arange(len(above)), np.flatnonzero(np.diff(chunk_of)) + 1):
            if len(chunk):
                yield user[chunk], other[chunk], value[chunk]


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
