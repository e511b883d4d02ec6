"""The squared error of a matrix factorisation as a function of its vectors: gradient, Hessian, inverse of the Hessian.

Nothing is differentiated twice and nothing is as large as users x items: a product with the Hessian is one sampled
product of the two tables (the scores of the observed pairs) and four sparse ones.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

DAMPING = 1e-3  # of cg, beside curvatures of 2 n_u |q|^2 / n: about .002 for an active user of MovieLens
TOLERANCE = 1e-3  # of cg, on the norm of its residual beside that of the gradient


class SquaredError:
    """The mean of ``e_ui^2 = (p_u . q_i - r_ui)^2`` over some ratings: its gradient, and products with its Hessian.

    Both are stacked, users above items: ``(n_users + n_items, d)``. With E the sparse matrix of the errors and Z that
    of ``z_ui = q_i . v_u + p_u . v_i``, they are ``2/n [E Q; E^T P]`` and ``2/n [Z Q + E V_Q; Z^T P + E^T V_P]``.

    Shape: ``ratings`` ``(n_users, n_items)`` with n stored values, ``p`` ``(n_users, d)``, ``q`` ``(n_items, d)``.
    """

    def __init__(self, ratings: csr_matrix, p: Tensor, q: Tensor) -> None:
        self.p, self.q, self.factor = p, q, 2 / max(1, ratings.nnz)
        by_user = csr_matrix((np.arange(ratings.nnz), ratings.indices, ratings.indptr), shape=ratings.shape)
        by_item = by_user.T.tocsr()
        self.order = torch.from_numpy(by_item.data).long().to(p.device)  # of the values, sorted by items
        with warnings.catch_warnings():  # torch says once that such matrices are new
            warnings.simplefilter("ignore", UserWarning)
            self.by_user, self.by_item = (
                sparse(
                    torch.from_numpy(pattern.indptr.astype(np.int32)).to(p.device),
                    torch.from_numpy(pattern.indices.astype(np.int32)).to(p.device),
                    torch.zeros(ratings.nnz, device=p.device, dtype=p.dtype),
                    pattern.shape,
                )
                for pattern in (by_user, by_item)
            )
        self.errors = self._both_ways(self._scores(p, q) - torch.from_numpy(ratings.data).to(p))

    def _scores(self, left: Tensor, right: Tensor) -> Tensor:
        """The inner products of the observed pairs, sorted by users. Shape: ``(n,)``."""
        return torch.sparse.sampled_addmm(self.by_user, left, right.T, beta=0.0).values()

    def _both_ways(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """A sparse matrix and its transpose (torch would sort the values at every product)."""
        return with_values(self.by_user, values), with_values(self.by_item, values[self.order])

    def gradient(self) -> Tensor:
        e, e_t = self.errors
        return self.factor * torch.cat([e @ self.q, e_t @ self.p])

    def hessian_product(self, v: Tensor) -> Tensor:
        """``H v``. Shape: ``v`` and the result are ``(n_users + n_items, d)``."""
        v_p, v_q = v.split([len(self.p), len(self.q)])
        z, z_t = self._both_ways(self._scores(torch.cat([self.p, v_p], dim=1), torch.cat([v_q, self.q], dim=1)))
        e, e_t = self.errors
        return self.factor * torch.cat([z @ self.q + e @ v_q, z_t @ self.p + e_t @ v_p])


def sparse(starts: Tensor, others: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(starts, others, values, shape, check_invariants=False)


def with_values(pattern: Tensor, values: Tensor) -> Tensor:
    """A sparse matrix that has its values where another one has."""
    return sparse(pattern.crow_indices(), pattern.col_indices(), values, (pattern.shape[0], pattern.shape[1]))


def partition(
    ratings: csr_matrix, p: Tensor, q: Tensor, batch_size: int, rng: np.random.Generator
) -> list[SquaredError]:
    """The ratings in random batches of equal size, at most ``batch_size`` each."""
    n_batches = -(-ratings.nnz // batch_size) or 1
    batch_of = rng.permutation(ratings.nnz) % n_batches
    users = np.repeat(np.arange(ratings.shape[0]), np.diff(ratings.indptr))
    batches = []
    for batch in range(n_batches):
        here = np.flatnonzero(batch_of == batch)
        part = csr_matrix((ratings.data[here], (users[here], ratings.indices[here])), shape=ratings.shape)
        batches.append(SquaredError(part, p, q))
    return batches


def lissa(batches: list[SquaredError], g: Tensor, n_iterations: int) -> Tensor:
    """``sum_(k=0..n_iterations) (I - H)^k g``, H that of one batch after another; g where H is too far from positive.

    With eigenvalues from 0 to 2 no term is longer than g: a longer sum has followed negative ones.
    """
    h = g
    for k in range(n_iterations):
        h = h + g - batches[k % len(batches)].hessian_product(h)
    return h if h.norm() <= (n_iterations + 1) * g.norm() else g


def conjugate_gradients(risk: SquaredError, g: Tensor, n_iterations: int) -> Tensor:
    """``(H + DAMPING)^-1 g``, as far as the curvature is positive; g where it is not from the start."""
    h, residual, step = torch.zeros_like(g), g, g
    square = residual.pow(2).sum()
    for k in range(n_iterations):
        product = risk.hessian_product(step) + DAMPING * step
        curvature = (step * product).sum()
        if not curvature > 0:
            return h if k else g
        alpha = square / curvature
        h, residual = h + alpha * step, residual - alpha * product
        square, previous = residual.pow(2).sum(), square
        if square.sqrt() <= TOLERANCE * g.norm():
            break
        step = residual + square / previous * step
    return h
