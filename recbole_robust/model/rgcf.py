"""RGCF: a graph recommender that learns how reliable each interaction is, and drops those that are not.

Reference:
    Tian et al. "Learning to Denoise Unreliable Interactions for Graph Collaborative Filtering." SIGIR 2022, and the
    authors' code (ChangxinTian/RGCF). properties/model/RGCF.yaml says where ours differs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.init import xavier_uniform_initialization
from recbole.model.loss import BPRLoss, EmbLoss
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_robust.model.bipartite_graph import BipartiteGraph, products_at

POOL_FACTOR = 10  # candidates for each new edge, in the authors' code
EPSILON = 1e-7  # theirs too: keeps the row of a node without edges at zero


def _forget_propagated(model: RGCF, *_) -> None:
    model.propagated = None


class RGCF(GeneralRecommender):
    """Three steps, for all users and items at once in every batch.

    Structure: no vector for an id. ``h_u = sum of W_U[i]`` over the user's items, ``h_i = sum of W_I[u]``.

    Denoising: the weight of an edge is ``(cos(h_u, h_i) + 1) / 2``, and 0 below prune_threshold; the rows of the
    adjacency then sum to one. z is the mean of h and of n_layers propagations. A negative threshold is LightGCN's
    adjacency, with all edges.

    Diversity: aug_ratio more edges, the best by ``h_u . h_i`` of a random pool; z' is propagated on that graph. The
    loss is ``BPR(z) + reg_weight |h| + MIM_weight L_MIM``, where L_MIM asks each user of the batch to be recognised by
    z' among all users, at temperature tau (a sum over the batch).

    Shape:
        user_encoder.weight is W_U ``(n_items, d)``, item_encoder.weight is W_I ``(n_users, d)``; h and z
        ``(n_users + n_items, d)``; edge weights ``(2 n_pairs,)``, as in :class:`BipartiteGraph`.
    """

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.n_layers = config["n_layers"]
        self.reg_weight, self.require_pow = config["reg_weight"], config["require_pow"]
        self.prune_threshold, self.aug_ratio = config["prune_threshold"], config["aug_ratio"]
        self.MIM_weight, self.tau = config["MIM_weight"], config["tau"]
        self.aug_every = config["rgcf_aug_every"]
        user, item = (dataset.inter_feat[field].to(self.device) for field in (self.USER_ID, self.ITEM_ID))
        self.graph = BipartiteGraph(user, item, self.n_users, self.n_items)
        self.ones = torch.ones(len(self.graph.rows), device=self.device)
        self.user_encoder = nn.Embedding(self.n_items, config["embedding_size"])
        self.item_encoder = nn.Embedding(self.n_users, config["embedding_size"])
        self.mf_loss, self.reg_loss = BPRLoss(), EmbLoss()
        self.apply(xavier_uniform_initialization)
        self.batch = 0
        self.diversity: tuple[BipartiteGraph, Tensor] | None = None
        self.propagated: tuple[Tensor, Tensor] | None = None
        self.register_load_state_dict_post_hook(_forget_propagated)

    # --- structure and denoising --------------------------------------------------------------------------------------

    def ego(self) -> Tensor:
        """h of all nodes."""
        return self.graph.neighbour_sum(self.ones, torch.cat((self.item_encoder.weight, self.user_encoder.weight)))

    def reliability(self, h: Tensor) -> Tensor:
        """The weights of the edges in [0, 1], the same in both directions."""
        weights = (self.graph.edge_products(F.normalize(h, dim=1)) + 1.0) / 2.0
        return weights.masked_fill(weights < self.prune_threshold, 0.0) if self.prune_threshold > 0 else weights

    def adjacency(self, h: Tensor) -> Tensor:
        """The normalised weights of the edges."""
        rows, cols, degree = self.graph.rows, self.graph.cols, self.graph.degree
        if self.prune_threshold < 0:
            return (degree[rows] * degree[cols]).to(h.dtype).rsqrt()
        weights = self.reliability(h)
        return weights / (self.graph.row_sums(weights) + EPSILON)[rows]

    def propagate(self, h: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean of h and of what n_layers steps make of it."""
        layers = [h]
        for _ in range(self.n_layers):
            layers.append(step(layers[-1]))
        return torch.stack(layers).mean(dim=0)

    def forward(self) -> tuple[Tensor, Tensor]:
        """z of the users ``(n_users, d)`` and of the items ``(n_items, d)``."""
        h = self.ego()
        adjacency = self.adjacency(h)
        return self._split(self.propagate(h, lambda x: self.graph.neighbour_sum(adjacency, x)))

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[: self.n_users], z[self.n_users :]

    # --- diversity ----------------------------------------------------------------------------------------------------

    def on_epoch_start(self, epoch: int) -> None:
        self.batch = 0

    @torch.no_grad()
    def draw_diversity(self, h: Tensor, adjacency: Tensor) -> tuple[BipartiteGraph, Tensor]:
        """The new edges and their weight, the median of the adjacency. Pairs with the padding id are not drawn."""
        n_new = int(self.aug_ratio * len(self.graph.pairs))
        user, item = (
            torch.randint(1, n, (POOL_FACTOR * n_new,), device=h.device) for n in (self.n_users, self.n_items)
        )
        pool = torch.unique(user * self.n_items + item)  # sorted by user
        pool = pool[~self.graph.has(pool)]
        user, item = pool // self.n_items, pool % self.n_items
        offsets = F.pad(torch.bincount(user, minlength=self.n_users).cumsum(0), (1, 0))
        best = products_at(offsets, item, *self._split(h)).topk(min(n_new, len(pool))).indices
        return BipartiteGraph(user[best], item[best], self.n_users, self.n_items), adjacency.median()

    def diverse(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """z': the propagation with the new edges. Gradients go through h only."""
        adjacency = adjacency.detach()
        every = self.batch + 1 if self.aug_every == "epoch" else self.aug_every  # epoch: due at batch 0 only
        if self.diversity is None or self.batch % every == 0:
            self.diversity = self.draw_diversity(h, adjacency)
        self.batch += 1
        new, weight = self.diversity
        weights = weight.expand(len(new.rows))
        total = (self.graph.row_sums(adjacency) + weight * new.degree + EPSILON).unsqueeze(1)

        def step(x: Tensor) -> Tensor:
            return (self.graph.neighbour_sum(adjacency, x) + new.neighbour_sum(weights, x)) / total

        return self.propagate(h, step)

    def mutual_information_loss(self, user: Tensor, z: Tensor, z_aug: Tensor) -> Tensor:
        """``- sum over the batch of log softmax_k(cos(z_u, z'_k) / tau)`` at k = u; the padding id is no user."""
        user, count = torch.unique(user, return_counts=True)
        cosine = F.normalize(z.index_select(0, user), dim=1) @ F.normalize(z_aug[1 : self.n_users], dim=1).T
        return (F.cross_entropy(cosine / self.tau, user - 1, reduction="none") * count).sum()

    # --- what RecBole calls -------------------------------------------------------------------------------------------

    loss_terms = ("BPR loss", "mutual information")

    def calculate_loss(self, interaction) -> tuple[Tensor, Tensor]:
        """BPR with its ridge term, and L_MIM."""
        self.propagated = None
        user = interaction[self.USER_ID]
        positive, negative = (interaction[field] + self.n_users for field in (self.ITEM_ID, self.NEG_ITEM_ID))
        h = self.ego()
        adjacency = self.adjacency(h)
        z = self.propagate(h, lambda x: self.graph.neighbour_sum(adjacency, x))
        # index_select, since the gradient of z[user] is summed in another order on every run of several threads.
        of_user, liked, other = (z.index_select(0, nodes) for nodes in (user, positive, negative))
        loss = self.mf_loss((of_user * liked).sum(dim=1), (of_user * other).sum(dim=1))
        if self.reg_weight:
            rows = (h.index_select(0, nodes) for nodes in (user, positive, negative))
            ridge = self.reg_loss(*rows, require_pow=self.require_pow)
            loss = loss + self.reg_weight * ridge.squeeze()
        if not self.MIM_weight:
            return loss, torch.zeros_like(loss)
        return loss, self.MIM_weight * self.mutual_information_loss(user, z, self.diverse(h, adjacency))

    def train(self, mode: bool = True) -> RGCF:
        """As any module's, and so is ``eval()``; both drop the propagated vectors of earlier weights."""
        self.propagated = None
        return super().train(mode)

    def _evaluated(self) -> tuple[Tensor, Tensor]:
        """:meth:`forward`, once an evaluation."""
        if self.training:
            return self.forward()
        if self.propagated is None:
            with torch.no_grad():
                self.propagated = self.forward()
        return self.propagated

    def predict(self, interaction) -> Tensor:
        user_z, item_z = self._evaluated()
        return (user_z[interaction[self.USER_ID]] * item_z[interaction[self.ITEM_ID]]).sum(dim=1)

    def full_sort_predict(self, interaction) -> Tensor:
        user_z, item_z = self._evaluated()
        return (user_z[interaction[self.USER_ID]] @ item_z.T).view(-1)
