"""The attacker's own recommender: matrix factorisation by alternating least squares, and how fakes move it.

One weighted problem has both kinds of surrogate in it. With x_u and y_i the vectors of user u and item i,

    min  c1 sum_(u,i) rated (p_ui - x_u.y_i)^2  +  c0 sum_(u,i) unrated (x_u.y_i)^2  +  reg (|X|^2 + |Y|^2)

``explicit`` has c0 = 0, c1 = 1 and p the rating (the MF of PGA and TNA); ``implicit`` has c0 = 1, c1 = 1 + alpha and
p = 1 (WRMF: Hu, Koren, Volinsky. Collaborative Filtering for Implicit Feedback Datasets. ICDM 2008).

A fake v that rates item i to the degree m_vi in [0, 1], with value p_vi, adds the weight c0 + (c1 - c0) m_vi and the
pull c1 m_vi p_vi; both are linear in m, and a whole rating at m = 1. It moves the items in two hops: its ratings give
x_v, and x_v moves every y_i that it weighs. Further hops (real users, then items again) are left out, as in all attacks
of this family (B. Li et al. Data Poisoning Attacks on Factorization-Based Collaborative Filtering. NIPS 2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from recbole_robust.types import AttackerView

CHUNK_RATINGS = 2**16  # ratings whose factors are gathered at once: 8 MiB at 32 factors


@dataclass(frozen=True)
class Ratings:
    """Rated items by row, padded in chunks of rows of similar length. Shape: ``ptr`` ``(n_rows + 1,)``."""

    ptr: NDArray[np.int64]
    ids: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, matrix: csr_matrix) -> Ratings:
        return cls(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data.astype(np.float64))

    def chunks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
        """Yield rows, the positions of their ratings and which of these are no padding: ``(B,)``, two of ``(B, L)``."""
        lengths = np.diff(self.ptr)
        order = np.argsort(lengths, kind="stable")
        order = order[lengths[order] > 0]
        while len(order):
            longest = np.maximum(lengths[order], 1)  # ascending: a chunk costs its last row's length, for each row
            n_rows = max(1, int(np.searchsorted(longest * np.arange(1, len(order) + 1), CHUNK_RATINGS)))
            rows, order = order[:n_rows], order[n_rows:]
            offsets = np.arange(lengths[rows[-1]])
            real = offsets < lengths[rows][:, None]
            yield rows, np.where(real, self.ptr[rows][:, None] + offsets, 0), real


class Surrogate:
    """A fitted surrogate and the normal equations of its items.

    Args:
        view: what the attacker knows.
        kind: ``explicit`` or ``implicit``.
        n_factors: length d of the vectors.
        reg: weight of the squared norms.
        alpha: implicit weight of a rated pair over an unrated one.
        n_sweeps: sweeps over users and items.
        rng: draws the initial vectors.

    Attributes:
        x: vectors of the users. Shape: ``(n_users, d)``.
        y: vectors of the items. Shape: ``(n_items, d)``.
        c0, c1: weights of an unrated and of a rated pair.
    """

    def __init__(
        self,
        view: AttackerView,
        kind: str,
        *,
        n_factors: int,
        reg: float,
        alpha: float,
        n_sweeps: int,
        rng: np.random.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.reg = reg
        self.c0, self.c1 = (0.0, 1.0) if kind == "explicit" else (1.0, 1.0 + alpha)
        matrix = view.ratings.copy()
        matrix.sort_indices()
        if kind == "implicit":
            matrix.data = np.ones(matrix.nnz)
        self.by_user, self.by_item = Ratings.of(matrix), Ratings.of(matrix.T.tocsr())
        scale = np.sqrt(max(float(matrix.data.mean()), 1e-12) / n_factors)
        self.y = torch.from_numpy(rng.normal(scale, 0.1 * scale, (view.n_items, n_factors))).to(dtype)
        self.x = torch.zeros(view.n_users, n_factors, dtype=dtype)
        for _ in range(n_sweeps):
            self.sweep()

    @property
    def y(self) -> Tensor:
        return self._y

    @y.setter
    def y(self, y: Tensor) -> None:
        self._y = y
        self.unrated = self.reg * torch.eye(y.shape[1], dtype=y.dtype) + self.c0 * y.T @ y  # of a user without ratings

    def sweep(self) -> None:
        """Solve for all users, then for all items."""
        self.x = solve(*self.equations(self.by_user, self.y))
        self.y = solve(*self.equations(self.by_item, self.x))

    def equations(self, ratings: Ratings, factors: Tensor) -> tuple[Tensor, Tensor]:
        """The normal equations A z = b of each row. Shape: ``(n_rows, d, d)`` and ``(n_rows, d)``."""
        n_rows, d = len(ratings.ptr) - 1, factors.shape[1]
        eye = torch.eye(d, dtype=factors.dtype)
        a = (self.reg * eye + self.c0 * factors.T @ factors).repeat(n_rows, 1, 1)
        b = torch.zeros(n_rows, d, dtype=factors.dtype)
        for rows, where, real in ratings.chunks():
            z = factors[torch.from_numpy(ratings.ids[where])] * torch.from_numpy(real).unsqueeze(2)
            values = torch.from_numpy(ratings.values[where]).to(factors.dtype)
            a[rows] += (self.c1 - self.c0) * z.transpose(1, 2) @ z
            b[rows] += self.c1 * (values.unsqueeze(1) @ z).squeeze(1)
        return a, b

    def weight(self, include: Tensor) -> Tensor:
        """The weight of pairs that are rated to a degree. Shape: as ``include``."""
        return self.c0 + (self.c1 - self.c0) * include

    def pull(self, include: Tensor, values: Tensor) -> Tensor:
        """What such pairs add to the right-hand sides, per vector. Shape: as ``include``."""
        return self.c1 * include * values

    def user_equations(self, include: Tensor) -> Tensor:
        """The matrices of fakes with these ratings. Shape: ``include`` ``(..., n_items)``; result ``(..., d, d)``."""
        if include.dim() == 1:
            return self.unrated + (self.c1 - self.c0) * self.y.T @ (include.unsqueeze(1) * self.y)
        return self.unrated + (self.c1 - self.c0) * _weighted_squares(include, self.y)


@dataclass(frozen=True)
class Response:
    """Fakes and the items that they have moved: the state of the two hops that a gradient needs.

    Shape: ``include`` and ``values`` ``(F, C)``, ``x`` ``(F, d)``, ``y`` ``(C, d)``, the factors of the user systems
    ``(F, d, d)``; C counts the items looked at.
    """

    include: Tensor
    values: Tensor
    x: Tensor
    y: Tensor
    user_factors: Tensor
    item_factors: Tensor


def respond(surrogate: Surrogate, a: Tensor, b: Tensor, include: Tensor, values: Tensor) -> Response:
    """The vectors of the fakes, and of all items once these fakes are in the data.

    Args:
        a, b: normal equations of the items without these fakes. Shape: ``(n_items, d, d)``, ``(n_items, d)``.
        include: degrees m in [0, 1]. Shape: ``(F, n_items)``.
        values: ratings p of the fakes. Shape: ``(F, n_items)``.
    """
    pull = surrogate.pull(include, values)
    user_factors = torch.linalg.cholesky(surrogate.user_equations(include))
    x = torch.cholesky_solve((pull @ surrogate.y).unsqueeze(2), user_factors).squeeze(2)
    item_factors = torch.linalg.cholesky(a + _weighted_squares(surrogate.weight(include).T, x))
    y = torch.cholesky_solve((b + pull.T @ x).unsqueeze(2), item_factors).squeeze(2)
    return Response(include, values, x, y, user_factors, item_factors)


def two_hop_gradient(surrogate: Surrogate, response: Response, g: Tensor) -> Tensor:
    """The derivative of a loss by the degrees m, in closed form.

    With Z_i = A_i^-1 g_i: an item moves at once because the fake weighs it more (first hop alone), and all items move
    because the fake's vector does (both hops).

    Args:
        g: derivative of the loss by the moved item vectors. Shape: ``(n_items, d)``.

    Returns:
        Shape: ``(F, n_items)``.
    """
    r, s = response, surrogate
    z = torch.cholesky_solve(g.unsqueeze(2), r.item_factors).squeeze(2)
    weight, pull = s.weight(r.include), s.pull(r.include, r.values)
    xy, xz = r.x @ r.y.T, r.x @ z.T
    gradient = xz * (s.c1 * r.values - (s.c1 - s.c0) * xy)
    h = (pull - weight * xy) @ z - (weight * xz) @ r.y
    q = torch.cholesky_solve(h.unsqueeze(2), r.user_factors).squeeze(2)
    return gradient + (q @ s.y.T) * (s.c1 * r.values - (s.c1 - s.c0) * r.x @ s.y.T)


class ItemState:
    """The items as they stand with the fakes added so far.

    A fake weighs on all items alike where unrated pairs have a weight; that part is one matrix, added when items are
    looked at. Until :meth:`refresh`, ``y`` of an item that no fake has rated lacks it.

    Attributes:
        a, b: normal equations of the items, less the common part. Shape: ``(n_items, d, d)``, ``(n_items, d)``.
        y: vectors of the items. Shape: ``(n_items, d)``.
    """

    def __init__(self, surrogate: Surrogate) -> None:
        self.surrogate = surrogate
        self.a, self.b = surrogate.equations(surrogate.by_item, surrogate.x)
        self.common = torch.zeros_like(self.a[0])
        self.y = solve(self.a, self.b)

    def look_at(self, items: Tensor) -> Focus:
        """These items, to be moved by one more fake. Shape: ``(C,)``."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.a[items] + self.common))
        return Focus(self.surrogate, items, (inverse @ self.b[items].unsqueeze(2)).squeeze(2), inverse)

    def add(self, include: Tensor, values: Tensor) -> None:
        """Put a finished fake into the data."""
        s = self.surrogate
        focus = self.look_at(include.nonzero().squeeze(1))
        moved = focus.respond(include, values)
        own = include[focus.items]
        outer = moved.x.unsqueeze(1) * moved.x
        self.a[focus.items] += (s.c1 - s.c0) * own[:, None, None] * outer
        self.b[focus.items] += s.pull(own, values[focus.items]).unsqueeze(1) * moved.x
        self.common += s.c0 * outer
        self.y[focus.items] = moved.y

    def refresh(self) -> None:
        """Solve for all items again."""
        if self.surrogate.c0:
            self.y = solve(self.a + self.common, self.b)


@dataclass(frozen=True)
class Focus:
    """Some items before one more fake. Shape: ``items`` ``(C,)``, ``y`` ``(C, d)``, ``inverse`` ``(C, d, d)``."""

    surrogate: Surrogate
    items: Tensor
    y: Tensor
    inverse: Tensor

    def respond(self, include: Tensor, values: Tensor) -> RankOne:
        """The fake's vector, and the items once it is in the data.

        With s = x' A^-1 x, w its weight and p its pull (Sherman-Morrison): y' = y + A^-1 x (p - w x.y) / (1 + w s).

        Args:
            include: degrees m in [0, 1]. Shape: ``(n_items,)``.
            values: ratings p. Shape: ``(n_items,)``.
        """
        s = self.surrogate
        factor = torch.linalg.cholesky(s.user_equations(include))
        x = torch.cholesky_solve((s.y.T @ s.pull(include, values)).unsqueeze(1), factor).squeeze(1)
        include, values = include[self.items], values[self.items]
        weight = s.weight(include)
        inverse_x = self.inverse @ x
        denominator = 1 + weight * (inverse_x @ x)
        step = (s.pull(include, values) - weight * (self.y @ x)) / denominator
        return RankOne(x, self.y + step.unsqueeze(1) * inverse_x, factor, inverse_x, denominator)

    def gradient(self, include: Tensor, values: Tensor, moved: RankOne, g: Tensor) -> Tensor:
        """As :func:`two_hop_gradient`, for one fake. Shape: ``g`` ``(C, d)``; result ``(n_items,)``."""
        s, y = self.surrogate, moved.y.detach()
        own_include, own_values = include[self.items], values[self.items]
        weight, pull = s.weight(own_include), s.pull(own_include, own_values)
        z = (self.inverse @ g.unsqueeze(2)).squeeze(2)
        z = z - (weight * (z @ moved.x) / moved.denominator).unsqueeze(1) * moved.inverse_x
        xy, xz = y @ moved.x, z @ moved.x
        h = (pull - weight * xy) @ z - (weight * xz) @ y
        q = torch.cholesky_solve(h.unsqueeze(1), moved.user_factor).squeeze(1)
        gradient = (s.y @ q) * (s.c1 * values - (s.c1 - s.c0) * (s.y @ moved.x))
        gradient[self.items] += xz * (s.c1 * own_values - (s.c1 - s.c0) * xy)
        return gradient


@dataclass(frozen=True)
class RankOne:
    """One fake's vector and the items that it has moved. Shape: ``x`` ``(d,)``, ``y`` ``(C, d)``."""

    x: Tensor
    y: Tensor
    user_factor: Tensor
    inverse_x: Tensor
    denominator: Tensor


def solve(a: Tensor, b: Tensor) -> Tensor:
    """Solve symmetric positive definite systems. Shape: ``(n, d, d)``, ``(n, d)``; result ``(n, d)``."""
    return torch.cholesky_solve(b.unsqueeze(2), torch.linalg.cholesky(a)).squeeze(2)


def _weighted_squares(weights: Tensor, z: Tensor) -> Tensor:
    """sum_j w_ij z_j z_j' for each i. Shape: ``(n, m)``, ``(m, d)``; result ``(n, d, d)``."""
    d = z.shape[1]
    return (weights @ (z.unsqueeze(2) * z.unsqueeze(1)).reshape(len(z), d * d)).view(-1, d, d)
