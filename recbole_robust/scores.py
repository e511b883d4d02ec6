"""How much a profile stands out: pure functions of rating matrices, for detectors and for an attack's stealth.

A score sees the ratings of all users, genuine and fake, and no labels; a user without a rating scores 0. The work is
done on the stored ratings: no array is ever ``n_users x n_items`` or ``n_users x n_users``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags, vstack
from scipy.sparse.linalg import LinearOperator, svds
from scipy.special import rel_entr
from scipy.stats import rankdata

from recbole_robust.types import AttackerView, FakeProfiles, FloatArray, IntArray

BLOCK_PAIRS = 2**22  # pairs of users looked at together: at most about 200 MiB
CHUNK_RATINGS = 2**21  # ratings of pairs of users whose shared items are looked at together: about 100 MiB
N_SAMPLED_USERS = 2000  # evenly spaced users are enough for a median
Length = Literal["count", "chance"]
N_OTHERS = 10  # raters of an item beside one, of whom a mean can be told
N_INTERVALS = 10  # continuous ratings are compared in this many equal intervals


# --- scores: one value a user -----------------------------------------------------------------------------------------


def popularity(ratings: csr_matrix) -> FloatArray:
    """Mean log popularity (number of ratings) of the items of a profile.

    A statistic without a suspicious side: random fillers put fakes far below genuine users, popular ones above them.

    Shape: ``(n_users, n_items)`` to ``(n_users,)``.
    """
    return _user_means(ratings, np.log(_item_counts(ratings)[ratings.indices]))


def rating_deviation(ratings: csr_matrix, rarity: int = 1) -> FloatArray:
    """Mean deviation of a profile's ratings from their items' means: ``mean_i |r_ui - mean_i| / n_i^rarity``.

    ``rarity`` 1 (default) is RDMA, rating deviation from mean agreement, in which a deviation counts for more on an
    item of few ratings ``n_i``; 2 is WDMA, its weighted form; 0 is the plain mean absolute deviation. Higher is more
    suspicious.

    Reference: P.-A. Chirita, W. Nejdl, C. Zamfir. Preventing Shilling Attacks in Online Recommender Systems. WIDM 2005
    (RDMA). R. Burke, B. Mobasher, C. Williams, R. Bhaumik. Classification Features for Attack Detection in
    Collaborative Recommender Systems. KDD 2006 (WDMA).

    Shape: ``(n_users, n_items)`` to ``(n_users,)``.
    """
    counts = _item_counts(ratings).astype(np.float64)
    sums = np.bincount(ratings.indices, weights=ratings.data, minlength=ratings.shape[1])
    means = sums / np.maximum(counts, 1)
    deviations = np.abs(ratings.data - means[ratings.indices])
    return _user_means(ratings, deviations / counts[ratings.indices] ** rarity)


def pca_loading(ratings: csr_matrix, n_components: int = 3) -> FloatArray:
    """Sum of a user's squared loadings on the first principal components, the users being the variables.

    Each user's row, an absent rating counting as 0, is standardised over the items. PCA-VarSelect flags the users of
    the *smallest* sums: fakes resemble too many users to be distinctive. The squares make it free of the arbitrary
    signs of eigenvectors (SDLib's and RecAD's variant depends on them). A user who rated nothing, or all items alike,
    has no variance and scores 0.

    Reference: B. Mehta, W. Nejdl. Unsupervised Strategies for Shilling Detection and Robust Collaborative Filtering.
    User Modeling and User-Adapted Interaction 19, 2009.

    Shape: ``(n_users, n_items)`` to ``(n_users,)``, in [0, 1].
    """
    n_users, n_items = ratings.shape
    n_components = min(n_components, min(ratings.shape) - 1)
    means = _user_sums(ratings, ratings.data) / n_items
    stds = np.sqrt(np.maximum(_user_sums(ratings, ratings.data**2) / n_items - means**2, 0.0))
    scale = np.divide(1.0, stds, out=np.zeros(n_users), where=stds > 1e-9)
    if n_components < 1 or not scale.any():
        return np.zeros(n_users)
    # Z = diag(scale) (ratings - means 1'), which is dense, is never made: only its products with vectors are.
    columns = ratings.T.tocsr()
    standardised = LinearOperator(
        shape=ratings.shape,
        dtype=np.float64,
        matvec=lambda v: scale * (ratings @ v.ravel() - means * v.sum()),
        rmatvec=lambda v: columns @ (scale * v.ravel()) - means @ (scale * v.ravel()),
    )
    start = np.random.default_rng(0).standard_normal(min(ratings.shape))  # ARPACK's own start differs from call to call
    left, _, _ = svds(standardised, k=n_components, v0=start)
    return (left**2).sum(axis=1)


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
    top, rarity = _top_ratings(ratings, top_rating), _rarity(ratings, idf_power)
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
    items with more than ten top ratings).

    The evidence is ``s_uv = sum_j idf_j^3 / sqrt(l_u l_v)`` over the items j that both gave the top rating, with the
    terms of :func:`co_rating` and the length ``chance``; i itself counts by ``own_share``. theta is what hardly any
    user's mean of the 20 largest ``s_uv`` exceeds: the square of median + 3 robust standard deviations of its root,
    over the users who have any. A few fakes move neither theta nor q.

    Reference: none known; the project's own.

    Args:
        low, high: where ``a_uvi`` begins to rise and where it is 1, in units of theta.
        own_share: 0 to 1. At 0 two users with nothing in common but i are strangers, whatever i is, and fakes with one
            target each go unseen; at 1 the few fans of a rare item may be taken for a group.
        usual: share of the top ratings with no more than the usual behind them, 0 to 1; at 0 nothing is usual, q = 0.
            Fakes that push more than the rest of all top ratings make themselves usual.

    Shape: ``(n_users, n_items)`` to ``(n_ratings,)``, in the order of ``ratings.data``.
    """
    n_users, n_items = ratings.shape
    if ratings.nnz == 0 or n_users < 2:
        return np.zeros(ratings.nnz)
    top, rarity = _top_ratings(ratings, top_rating), _rarity(ratings, idf_power)
    norm = 1.0 / np.sqrt(_lengths(ratings, top, rarity, "chance"))
    normed = csr_matrix(diags(norm) @ top)
    sample = np.arange(0, n_users, max(1, n_users // N_SAMPLED_USERS))
    n_neighbours = min(n_neighbours, n_users - 1)
    closest = np.array([_mean_of_largest(s, n_neighbours) for _, s in _shared_by_user(normed, rarity, sample)])
    theta = _upper_limit(closest[closest > 0])  # in sparse data most users share nothing with anybody
    count = np.zeros(ratings.nnz)
    if theta == 0:
        return count
    places = np.repeat(np.arange(n_users), np.diff(ratings.indptr)) * n_items + ratings.indices
    order = np.argsort(places, kind="stable")
    places = places[order]
    for user, other, evidence in _pairs_above(normed, rarity, low * theta):
        on = top[user].multiply(top[other]).tocoo()  # what the two of a pair both gave the top rating
        user, other = user[on.row], other[on.row]
        own = rarity[on.col] * norm[user] * norm[other]
        alike = np.clip(((evidence[on.row] - (1 - own_share) * own) / theta - low) / (high - low), 0.0, 1.0)
        np.add.at(count, order[np.searchsorted(places, user * n_items + on.col)], alike)
    others = np.maximum(_item_counts(top) - 1, 0)[ratings.indices]
    told = (ratings.data >= _top_of(ratings, top_rating)) & (others >= min(N_OTHERS, max(others.max(), 1)))
    q = np.quantile(count[told] / others[told], usual) if usual > 0 and told.any() else 0.0
    return np.maximum(count - q * others, 0.0)


# --- what a score is worth --------------------------------------------------------------------------------------------


def auc(scores: FloatArray, is_fake: NDArray[np.bool_]) -> float:
    """Probability that a fake user scores higher than a genuine one, ties counting half; NaN where one kind is missing.

    Shape: both ``(n_users,)``.
    """
    is_fake = np.asarray(is_fake, dtype=bool)
    n_fake = int(is_fake.sum())
    n_genuine = len(is_fake) - n_fake
    if n_fake == 0 or n_genuine == 0:
        return float("nan")
    rank_sum = rankdata(scores)[is_fake].sum()
    return float((rank_sum - n_fake * (n_fake + 1) / 2) / (n_fake * n_genuine))


def two_sided_auc(scores: FloatArray, is_fake: NDArray[np.bool_]) -> float:
    """The AUC of a detector that knows on which side of the genuine users the fakes are: ``max(auc, 1 - auc)``.

    Never below .5, so that chance alone gives a little more: about .54 with 28 fakes, .52 with 181.
    """
    one_sided = auc(scores, is_fake)
    return max(one_sided, 1 - one_sided)


def rating_distribution_distance(fakes: csr_matrix, genuine: csr_matrix, levels: FloatArray) -> dict[str, float]:
    """Distance of the fakes' ratings from the genuine ones, item by item, over {unrated, each level}.

    ``tvd`` is ``mean_i sum_k |p_ik - q_ik| / 2``, ``js`` the mean Jensen-Shannon divergence to base 2, with ``p_ik``
    (``q_ik``) the share of fake (genuine) users whose rating of item i is level k; both in [0, 1]. Items that nobody
    rated count, with distance 0. A few fakes have coarse shares, and are at some distance whatever they rate: compare
    attacks of one size.

    Reference: the similarity evaluation of C. Lin et al. Attacking Recommender Systems with Augmented User Profiles.
    CIKM 2020.

    Args:
        levels: the ratings there are, ascending; a rating counts as the nearest. Shape: ``(n_levels,)``.

    Shape: ``fakes`` and ``genuine`` are ``(n_fakes, n_items)`` and ``(n_genuine, n_items)``.
    """
    p, q = _rating_shares(fakes, levels), _rating_shares(genuine, levels)
    middle = (p + q) / 2
    js = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / (2 * np.log(2))
    return {"tvd": float(np.abs(p - q).sum(axis=1).mean() / 2), "js": float(js.mean())}


def stealth(view: AttackerView, profiles: FakeProfiles) -> dict[str, float | None]:
    """How well fake profiles hide among the genuine users of ``view``.

    ``popularity_auc``, ``deviation_auc`` (RDMA), ``pca_auc`` and ``co_rating_auc`` are two-sided: .5 is hidden, 1 given
    away by that statistic alone. ``tvd`` and ``js`` are the distances of :func:`rating_distribution_distance`.
    ``deviation_auc`` is None (null in JSON) where the data have one rating only: implicit data. Genuine users without a
    training rating are left out.
    """
    genuine = view.ratings[np.diff(view.ratings.indptr) > 0]
    fakes = profiles.to_csr(view.n_items)
    everyone = csr_matrix(vstack([genuine, fakes]))
    is_fake = np.arange(everyone.shape[0]) >= genuine.shape[0]
    found: dict[str, float | None] = {
        "popularity_auc": two_sided_auc(popularity(everyone), is_fake),
        "deviation_auc": None,
        "pca_auc": two_sided_auc(pca_loading(everyone), is_fake),
        "co_rating_auc": two_sided_auc(co_rating(everyone, top_rating=view.rating_max), is_fake),
    }
    if view.rating_max > view.rating_min:
        found["deviation_auc"] = two_sided_auc(rating_deviation(everyone), is_fake)
    return {**found, **rating_distribution_distance(fakes, genuine, rating_levels(view))}


def rating_levels(view: AttackerView) -> FloatArray:
    """The ratings of a view's grid; equally spaced ones where ratings are continuous (``rating_step`` 0).

    Shape: ``(n_levels,)``, ascending.
    """
    low, high, step = view.rating_min, view.rating_max, view.rating_step
    if high == low:
        return np.array([low])
    return np.linspace(low, high, (round((high - low) / step) if step > 0 else N_INTERVALS) + 1)


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
    by_chance = top @ (rarity * _item_counts(ratings) / ratings.shape[0])
    return np.where(by_chance > 0, by_chance, 1.0)


def _rarity(ratings: csr_matrix, power: float) -> FloatArray:
    """``log(n_users / n_i)^power``. Shape: ``(n_items,)``."""
    return np.log(ratings.shape[0] / np.maximum(_item_counts(ratings), 1)) ** power


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


def _item_counts(ratings: csr_matrix) -> IntArray:
    return np.bincount(ratings.indices, minlength=ratings.shape[1])


def _user_sums(ratings: csr_matrix, values: FloatArray) -> FloatArray:
    """Sums of one value a stored rating. Shape: ``(nnz,)`` to ``(n_users,)``."""
    rows = np.repeat(np.arange(ratings.shape[0]), np.diff(ratings.indptr))
    return np.bincount(rows, weights=values, minlength=ratings.shape[0]).astype(np.float64)


def _user_means(ratings: csr_matrix, values: FloatArray) -> FloatArray:
    return _user_sums(ratings, values) / np.maximum(np.diff(ratings.indptr), 1)


def _rating_shares(ratings: csr_matrix, levels: FloatArray) -> FloatArray:
    """Share of the users with each rating of each item, column 0: unrated. Shape: ``(n_items, n_levels + 1)``."""
    n_users, n_items = ratings.shape
    nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, ratings.data, side="right")
    cells = np.bincount(ratings.indices * len(levels) + nearest, minlength=n_items * len(levels))
    cells = cells.reshape(n_items, len(levels))
    # Counted before it is divided: one less a sum of shares may fall below 0.
    return np.column_stack([n_users - cells.sum(axis=1), cells]) / max(n_users, 1)
