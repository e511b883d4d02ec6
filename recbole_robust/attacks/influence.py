"""Which users' ratings hold the targets up: influence functions of a matrix factorisation."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import LinearOperator, cg

from recbole_robust.attacks.surrogate import Surrogate
from recbole_robust.types import FloatArray, IntArray

CHUNK = 2**14  # pairs whose vectors are gathered at once: they stay in the cache


def user_influence(
    surrogate: Surrogate, ratings: csr_matrix, eligible: FloatArray, targets: IntArray, *, n_iterations: int = 50
) -> FloatArray:
    """How much each user's ratings raise Q, the sum of the targets' scores over the users they may be recommended to.

    With H the Gauss-Newton Hessian of the surrogate's loss and s = H^-1 grad Q, more weight on rating (k, j) of
    residual e moves Q by e (s_xk . y_j + s_yj . x_k); a user's influence is the sum over the own ratings (P. W. Koh,
    P. Liang. Understanding Black-box Predictions via Influence Functions. ICML 2017; TNA, section 4.2). H is never
    built: conjugate gradients need its products only.

    Args:
        ratings: Shape: ``(n_users, n_items)``.
        eligible: 1 where a user may get a target recommended. Shape: ``(n_users, T)``.
        targets: Shape: ``(T,)``.

    Returns:
        Shape: ``(n_users,)``.
    """
    x, y = surrogate.x.double().numpy(), surrogate.y.double().numpy()
    (n_users, d), n_items = x.shape, len(y)
    c0, c1 = surrogate.c0, surrogate.c1
    users, items = np.repeat(np.arange(n_users), np.diff(ratings.indptr)), ratings.indices

    chunks = [slice(start, start + CHUNK) for start in range(0, len(users), CHUNK)]

    def on_pairs(u: FloatArray, v: FloatArray) -> FloatArray:
        return np.concatenate([np.einsum("nd,nd->n", u[users[c]], v[items[c]]) for c in chunks])

    def weighted(data: FloatArray) -> csr_matrix:
        return csr_matrix((data, ratings.indices, ratings.indptr), shape=ratings.shape)

    def product(vector: FloatArray) -> FloatArray:
        vx, vy = vector[: n_users * d].reshape(n_users, d), vector[n_users * d :].reshape(n_items, d)
        z = weighted((c1 - c0) * (on_pairs(vx, y) + on_pairs(x, vy)))
        out_x = z @ y + surrogate.reg * vx
        out_y = z.T @ x + surrogate.reg * vy
        if c0:
            out_x = out_x + c0 * (vx @ (y.T @ y) + x @ (vy.T @ y))
            out_y = out_y + c0 * (vy @ (x.T @ x) + y @ (vx.T @ x))
        return np.concatenate([out_x.ravel(), out_y.ravel()])

    rise_x = eligible @ y[targets]
    rise_y = np.zeros_like(y)
    rise_y[targets] = eligible.T @ x
    size = (n_users + n_items) * d
    right = np.concatenate([rise_x.ravel(), rise_y.ravel()])
    s, _ = cg(LinearOperator((size, size), matvec=product, dtype=np.float64), right, maxiter=n_iterations)
    sx, sy = s[: n_users * d].reshape(n_users, d), s[n_users * d :].reshape(n_items, d)
    scores = on_pairs(x, y)
    value = ratings.data if not c0 else np.ones(len(scores))
    # What a rating adds beyond an unrated pair: c1 (p - s) drawn up, and the c0 s that no longer draws it down.
    residual = c1 * (value - scores) + c0 * scores
    moved = residual * (on_pairs(sx, y) + on_pairs(x, sy))
    return np.bincount(users, weights=moved, minlength=n_users).astype(np.float64)
