"""Fraudulent action propagation: who rates what suspicious users rate becomes suspicious."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix, diags

from recbole_robust.defenses.checks import is_number, require, require_amount, require_choice, require_number
from recbole_robust.defenses.co_rating import CoRating
from recbole_robust.defenses.thresholds import Amount, Threshold
from recbole_robust.scores import rating_deviation
from recbole_robust.types import DefenderView, Detection, FloatArray, IntArray

SeedScore = Literal["co_rating", "deviation"]


@dataclass(frozen=True)
class FAP(Threshold):
    """Suspicion walks from seed users to the items they rate, and from there to those items' other users.

    Reference: Y. Zhang, Y. Tan, M. Zhang, Y. Liu, T.-S. Chua, S. Ma. Catch the Black Sheep: Unified Framework for
    Shilling Attack Detection Based on Fraudulent Action Propagation. IJCAI 2015. Parity: ``method/FAP.py`` of SDLib.

    A rating is an edge of weight ``w_ui = 1 + |r - mean_u| / mean_u + |r - mean_i| / mean_i + |r - mean| / mean``. With
    T_UI the weights divided by their sum over each user, and T_IU by their sum over each item, it repeats

        P_I = T_IU P_U,   P_U = T_UI P_I,   P_U = 1 at the seeds,

    until no entry of P_U changes by ``tolerance``. Stopping early is part of the method: the seeds only give, so that
    in the end everybody whom they reach is at 1. (SDLib looks at rises only; so do we in effect, since P_U never falls
    from its start.) The threshold looks at the logarithm of P_U.

    The published method is told some of the spammers. Here it finds its own seeds, the users of the highest
    ``seed_score``; where ``auto`` finds none, nobody is flagged. ``seed_users`` are known spammers: an oracle, to be
    reported as one, and they count among the flagged.

    Args:
        seed_users: ids of known spammers (0-based rows of the view; those beyond it are passed over), or None to find
            seeds. (Default: None)
        seed_score: ``co_rating`` (:class:`CoRating`) or ``deviation`` (the logarithm of RDMA). (Default: ``co_rating``)
        n_seeds: ``auto`` (its outliers), a count or a share of the users. (Default: ``auto``; SDLib draws 350 of the
            known spammers of Amazon)
        tolerance: of the iteration, > 0. (Default: 0.01, SDLib's)
        max_iterations: where it stops at the latest. (Default: 100)
        mad_threshold: see :class:`Threshold`. (Default: 5)
    """

    mad_threshold: float = 5.0
    seed_users: tuple[int, ...] | None = None
    seed_score: SeedScore = "co_rating"
    n_seeds: Amount = "auto"
    tolerance: float = 0.01
    max_iterations: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed_users is not None:
            seeds = self.seed_users
            is_list = isinstance(seeds, tuple | list | np.ndarray) and len(seeds) > 0
            are_ids = is_list and all(is_number(user, integer=True) and user >= 0 for user in seeds)
            require(are_ids, "seed_users", "a list of user ids from 0 on, or nothing", seeds)
            object.__setattr__(self, "seed_users", tuple(int(user) for user in seeds))  # YAML has lists
        require_choice("seed_score", self.seed_score, SeedScore)
        require_amount("n_seeds", self.n_seeds)
        require(is_number(self.tolerance) and self.tolerance > 0, "tolerance", "a number above 0", self.tolerance)
        require_number("max_iterations", self.max_iterations, 1, integer=True)

    def __call__(self, view: DefenderView, *, rng: np.random.Generator) -> Detection:
        """Shape: ``view.ratings`` is ``(n_users, n_items)``; scores in [0, 1], 1 at the seeds."""
        seeds = self._seeds(view, rng)
        scores = propagate(*transitions(view.ratings), seeds, self.tolerance, self.max_iterations)
        reached = (scores > 0) & (np.diff(view.ratings.indptr) > 0)
        return Detection(scores, self.flag(np.log(np.where(reached, scores, 1.0)), reached, rng))

    def _seeds(self, view: DefenderView, rng: np.random.Generator) -> IntArray:
        """Shape: ``(n_seeds,)``, user ids."""
        n_users = view.ratings.shape[0]
        if self.seed_users is not None:
            known = np.unique(self.seed_users)
            return known[known < n_users]  # the clean data have no fakes
        if self.seed_score == "co_rating":
            return np.flatnonzero(CoRating(n_flag=self.n_seeds)(view, rng=rng).flagged)
        deviation = rating_deviation(view.ratings)
        judged = deviation > 0
        return np.flatnonzero(Threshold(n_flag=self.n_seeds).flag(np.log(np.where(judged, deviation, 1)), judged, rng))


def transitions(ratings: csr_matrix) -> tuple[csr_matrix, csr_matrix]:
    """``(T_UI, T_IU)``: the edge weights, each row divided by its sum; a row without a rating stays empty.

    Shape: ``(n_users, n_items)`` to ``(n_users, n_items)`` and ``(n_items, n_users)``.
    """
    rows = np.repeat(np.arange(ratings.shape[0]), np.diff(ratings.indptr))
    weights = np.ones(ratings.nnz)
    for group in (rows, ratings.indices, np.zeros(ratings.nnz, dtype=np.int64)):
        means = (np.bincount(group, ratings.data) / np.maximum(np.bincount(group), 1))[group]
        # Data whose ratings can be 0 has means of 0: no relative deviation there.
        weights = weights + np.divide(np.abs(ratings.data - means), means, out=np.zeros_like(means), where=means > 0)
    edges = csr_matrix((weights, ratings.indices, ratings.indptr), shape=ratings.shape)
    return _rows_to_one(edges), _rows_to_one(edges.T.tocsr())


def propagate(
    user_item: csr_matrix, item_user: csr_matrix, seeds: IntArray, tolerance: float, max_iterations: int
) -> FloatArray:
    """P_U after the iteration of :class:`FAP`. Shape: ``(n_users,)``, in [0, 1]."""
    p = np.zeros(user_item.shape[0])
    p[seeds] = 1.0
    for _ in range(max_iterations):
        previous, p = p, user_item @ (item_user @ p)
        p[seeds] = 1.0
        if np.abs(p - previous).max(initial=0.0) < tolerance:
            break
    return np.minimum(p, 1.0)


def _rows_to_one(edges: csr_matrix) -> csr_matrix:
    sums = np.asarray(edges.sum(axis=1)).ravel()
    return (diags(np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)) @ edges).tocsr()
