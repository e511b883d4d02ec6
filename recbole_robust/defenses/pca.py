"""Principal components of the users: fakes resemble too many users to stand out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import svds

from recbole_robust.defenses.checks import require_choice, require_number
from recbole_robust.defenses.thresholds import Threshold
from recbole_robust.scores import pca_loading
from recbole_robust.types import DefenderView, Detection, FloatArray

Variant = Literal["mehta", "sdlib"]

LEAST_LOADING = 1e-12  # squares of rounding errors are below: all the same


@dataclass(frozen=True)
class PCA(Threshold):
    """PCA-VarSelect: flag the users of the smallest loadings on the first principal components.

    Reference: B. Mehta, W. Nejdl. Unsupervised Strategies for Shilling Detection and Robust Collaborative Filtering.
    User Modeling and User-Adapted Interaction 19, 2009. Parity: ``method/PCASelectUsers.py`` of SDLib (Coder-Yu), which
    RecAD has too.

    ``mehta`` standardises each user over the items and takes the users as variables; the score is minus the logarithm
    of :func:`recbole_robust.scores.pca_loading`, which does not depend on the signs of the components. ``sdlib``
    divides each item by its standard deviation (no centring), takes the items as variables, with components V, and
    scores ``-sum_j (x_u^2 . v_j)``: the signs of V decide it, so each component is turned to have its largest entry
    positive. It is there to compare with; SDLib flags as many as there are fakes, and its scores have no outliers.

    It finds random fillers (Random, Average), which nobody rates together; it is weak against fillers of real users.
    Where the data are small or sparse the fakes are a principal component themselves (the targets that they share), and
    score as the least suspicious of all: AUC 0 on Yelp with 992 fakes.

    Args:
        variant: ``mehta`` or ``sdlib``. (Default: ``mehta``)
        n_components: principal components, >= 1. (Default: 3, as in the paper and in SDLib)
        mad_threshold: see :class:`Threshold`. (Default: 4)
    """

    mad_threshold: float = 4.0
    variant: Variant = "mehta"
    n_components: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("variant", self.variant, Variant)
        require_number("n_components", self.n_components, 1, integer=True)

    def __call__(self, view: DefenderView, *, rng: np.random.Generator) -> Detection:
        """Shape: ``view.ratings`` is ``(n_users, n_items)``. Users without a rating score as the least suspicious."""
        if self.variant == "mehta":
            scores = -np.log(np.maximum(pca_loading(view.ratings, self.n_components), LEAST_LOADING))
        else:
            scores = -_sdlib_distances(view.ratings, self.n_components)
        judged = np.diff(view.ratings.indptr) > 0
        scores[~judged] = scores[judged].min() if judged.any() else 0.0
        return Detection(scores, self.flag(scores, judged, rng))


def _sdlib_distances(ratings: csr_matrix, n_components: int) -> FloatArray:
    """``sum_j x_u^2 . v_j`` with the first eigenvectors v_j of the items' Gram matrix, columns of unit deviation.

    Shape: ``(n_users, n_items)`` to ``(n_users,)``.
    """
    n_users = ratings.shape[0]
    squared = ratings.multiply(ratings).tocsr()
    means, mean_squares = (np.asarray(part.sum(axis=0)).ravel() / n_users for part in (ratings, squared))
    stds = np.sqrt(np.maximum(mean_squares - means**2, 0.0))
    n_components = min(n_components, min(ratings.shape) - 1)
    if n_components < 1 or ratings.nnz == 0:
        return np.zeros(n_users)
    scaled = (ratings @ diags(1 / np.where(stds > 1e-9, stds, 1.0))).tocsr()
    start = np.random.default_rng(0).standard_normal(min(ratings.shape))  # ARPACK's own start differs from call to call
    _, _, components = svds(scaled, k=n_components, v0=start)
    largest = components[np.arange(n_components), np.abs(components).argmax(axis=1)]
    distances: FloatArray = squared @ (components * np.sign(largest)[:, None]).sum(axis=0)
    return distances
