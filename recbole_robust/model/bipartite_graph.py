"""The graph of users and items, with edge weights that may be learned: sums over neighbours and products along edges.

The derivative of a weighted sum over neighbours by its weights is the inner products along the edges, and theirs is a
weighted sum over neighbours. So each is the other's backward pass, and neither a vector for every edge nor a dense
matrix is ever stored. (The sparse tensors of torch make a dense matrix of the first derivative.)
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F


class BipartiteGraph:
    """Every user-item pair as two directed edges, sorted by row; a pair that comes twice counts once.

    Nodes are the users and then the items: user u is row u, item i is row ``n_users + i``.

    Shape:
        user, item ``(n_pairs,)``, sorted; rows, cols and reverse ``(2 n_pairs,)``; offsets ``(n_nodes + 1,)``: where
        each row begins. ``reverse`` is the place of the same pair's other direction.
    """

    def __init__(self, user: Tensor, item: Tensor, n_users: int, n_items: int) -> None:
        self.n_items, self.n_nodes = n_items, n_users + n_items
        self.pairs = torch.unique(user * n_items + item)  # sorted by user, then by item
        self.user, self.item = self.pairs // n_items, self.pairs % n_items
        by_item = torch.argsort(self.item, stable=True)
        node = self.item + n_users
        self.rows = torch.cat((self.user, node[by_item]))
        self.cols = torch.cat((node, self.user[by_item]))
        n_pairs = len(self.pairs)
        self.reverse = torch.cat((torch.argsort(by_item) + n_pairs, by_item))
        self.degree = torch.bincount(self.rows, minlength=self.n_nodes)
        self.offsets = F.pad(self.degree.cumsum(0), (1, 0))

    def has(self, pairs: Tensor) -> Tensor:
        """Which of the pairs ``user * n_items + item`` are edges. Shape: ``(n,)`` -> ``(n,)``."""
        if not len(self.pairs):
            return torch.zeros_like(pairs, dtype=torch.bool)
        return self.pairs[torch.searchsorted(self.pairs, pairs).clamp_(max=len(self.pairs) - 1)] == pairs

    def row_sums(self, values: Tensor) -> Tensor:
        """Shape: ``(2 n_pairs,)`` -> ``(n_nodes,)``."""
        return values.new_zeros(self.n_nodes).index_add(0, self.rows, values)

    def neighbour_sum(self, values: Tensor, x: Tensor) -> Tensor:
        """``y_r = sum_c values_rc x_c``. Shape: ``(2 n_pairs,)`` and ``(n_nodes, d)`` -> ``(n_nodes, d)``."""
        return _NeighbourSum.apply(values, x, self)

    def edge_products(self, x: Tensor) -> Tensor:
        """``x_r . x_c`` of every edge. Shape: ``(n_nodes, d)`` -> ``(2 n_pairs,)``."""
        return _EdgeProducts.apply(x, self)

    def _sum(self, values: Tensor, x: Tensor) -> Tensor:
        return F.embedding_bag(
            self.cols, x, self.offsets, mode="sum", per_sample_weights=values, include_last_offset=True
        )

    def _products(self, left: Tensor, right: Tensor) -> Tensor:
        return products_at(self.offsets, self.cols, left, right)


def products_at(offsets: Tensor, cols: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``left_r . right_c`` at the places of a CSR pattern, without a vector for each of them.

    Shape: ``(n_rows + 1,)``, ``(n,)``, ``(n_rows, d)``, ``(n_cols, d)`` -> ``(n,)``.
    """
    if not len(cols):
        return left.new_zeros(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # "in beta state", "invariant checks are disabled"
        pattern = torch.sparse_csr_tensor(offsets, cols, left.new_zeros(len(cols)), (len(left), len(right)))
    return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()


class _NeighbourSum(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, graph: BipartiteGraph) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.graph = graph
        return graph._sum(values, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (values, x), graph, grad = ctx.saved_tensors, ctx.graph, grads[0].contiguous()
        by_values = graph._products(grad, x) if ctx.needs_input_grad[0] else None
        by_x = graph._sum(values[graph.reverse], grad) if ctx.needs_input_grad[1] else None  # the transposed matrix
        return by_values, by_x, None


class _EdgeProducts(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: BipartiteGraph) -> Tensor:
        ctx.save_for_backward(x)
        ctx.graph = graph
        return graph._products(x, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,), graph = ctx.saved_tensors, ctx.graph
        return graph._sum(grads[0] + grads[0][graph.reverse], x), None
