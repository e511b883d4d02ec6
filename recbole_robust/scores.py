"""How much a profile stands out: pure functions of rating matrices, for detectors and for an attack's stealth.

A score sees the ratings of all users, genuine and fake, and no labels; a user without a rating scores 0. The work is
done on the stored ratings: no array is ever ``n_users x n_items`` or ``n_users x n_users``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from scipy.sparse.linalg import LinearOperator, svds
from scipy.special import rel_entr
from scipy.stats import rankdata

from recbole_robust.group_evidence import co_rating, item_counts
from recbole_robust.types import AttackerView, FakeProfiles, FloatArray

N_INTERVALS = 10  # continuous ratings are compared in this many equal intervals


# --- scores: one value a user -----------------------------------------------------------------------------------------


def popularity(ratings: csr_matrix) -> FloatArray:
    """Mean log popularity (number of ratings) of the items of a profile.

    A statistic without a suspicious side: random fillers put fakes far below genuine users, popular ones above them.

    Shape: ``(n_users, n_items)`` to ``(n_users,)``.
    """
    return _user_means(ratings, np.log(item_counts(ratings)[ratings.indices]))


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
    counts = item_counts(ratings).astype(np.float64)
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
