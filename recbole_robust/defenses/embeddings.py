"""Where a model's vectors are, how it scores them, and what it loses by them: all that an adversarial loss has to know.

A model is supported by one line of :data:`EMBEDDINGS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_robust.types import SAMPLE_WEIGHT, UserError

Vectors = tuple[Tensor, ...]  # of the users, of the items and, in a pairwise model, of the negative items: (B, d) each


@dataclass(frozen=True)
class Gradient:
    """The gradient of each sample's loss by one of its vectors: ``slope * direction``, which need not be multiplied.

    Shape: direction ``(B, d)``, slope ``(B,)``; None is a slope of 1.
    """

    direction: Tensor
    slope: Tensor | None = None

    def value(self) -> Tensor:
        """Shape: ``(B, d)``."""
        return self.direction if self.slope is None else self.slope[:, None] * self.direction

    def norm(self) -> Tensor:
        """Shape: ``(B,)``."""
        norm = self.direction.norm(dim=1)
        return norm if self.slope is None else norm.mul_(self.slope.abs())

    def times(self, factor: Tensor) -> Gradient:
        """The same times a number a sample. Shape: ``factor`` ``(B,)``."""
        return Gradient(self.direction, factor if self.slope is None else factor * self.slope)

    def added_to(self, x: Tensor) -> Tensor:
        """Shape: ``x`` and the result ``(B, d)``."""
        return x + self.direction if self.slope is None else torch.addcmul(x, self.slope[:, None], self.direction)

    def sum_by(self, ids: Tensor, n_ids: int) -> Tensor:
        """The sum over the samples of each id: a product with the sparse matrix that has the slopes, ids as its rows.

        Shape: ``ids`` ``(B,)``, the result ``(n_ids, d)``.
        """
        slope = self.direction.new_ones(len(ids)) if self.slope is None else self.slope
        places = torch.stack([ids, torch.arange(len(ids), device=ids.device)])
        slopes = torch.sparse_coo_tensor(places, slope, (n_ids, len(ids)), check_invariants=False)
        return torch.sparse.mm(slopes, self.direction)


@dataclass(frozen=True)
class Tables:
    """A model with a user and an item table, scored by the inner product (MF, BPR).

    Its ``forward`` gives the vectors of users and items: those of the loss under way are taken, so that the tables'
    gradient is summed once.
    """

    reduction: str = "mean"  # of the model's own loss over a batch

    def user_and_items(self, model: Any, users: Tensor, items: list[Tensor]) -> Vectors:
        user, item = model.forwarded[0]
        return user, item, *(model.get_item_embedding(item) for item in items[1:])

    def score(self, model: Any, user: Tensor, item: Tensor) -> Tensor:
        return (user * item).sum(dim=1)

    def scores_near(self, model: Any, vectors: Vectors, noise: list[Tensor], rows: Tensor) -> list[Tensor]:
        """See :func:`losses_near`: ``(p + y) . (q + z) = p . q + p . z + y . q + y . z``, the products on all rows."""
        user, y = vectors[0], noise[0]
        scores = []
        for item, z in zip(vectors[1:], noise[1:], strict=True):
            moved = torch.addmm(z @ user.T, y, item.T).add_((y * z).sum(dim=1, keepdim=True))
            scores.append(moved.gather(0, rows).add_(self.score(model, user, item)))
        return scores

    def gradients(self, model: Any, interaction: Any, vectors: Vectors) -> tuple[list[Gradient], Tensor]:
        """See :func:`gradients`: by the scores first, then ``d(p . q) = q dp + p dq``."""
        user, items = vectors[0].detach(), [item.detach() for item in vectors[1:]]
        scores = [self.score(model, user, item) for item in items]
        losses, slopes = losses_of(model, interaction, scores), slopes_of(model, interaction, scores)
        # A pairwise loss is one of the difference of its scores: its slopes are s and -s.
        by_user = items[0] if len(items) == 1 else items[0] - items[1]
        return [Gradient(by_user, slopes[0]), *(Gradient(user, slope) for slope in slopes)], losses


@dataclass(frozen=True)
class Propagated(Tables):
    """A graph model whose ``forward`` gives the propagated tables; those of the loss under way are taken."""

    def user_and_items(self, model: Any, users: Tensor, items: list[Tensor]) -> Vectors:
        user_table, item_table = model.forwarded[0][:2]
        return user_table.index_select(0, users), *(item_table.index_select(0, item) for item in items)


@dataclass(frozen=True)
class NeuMFTables(Tables):
    """NeuMF has two tables a side, one for its product and one for its perceptron: read as one vector."""

    def user_and_items(self, model: Any, users: Tensor, items: list[Tensor]) -> Vectors:
        user = torch.cat([model.user_mf_embedding(users), model.user_mlp_embedding(users)], dim=1)
        return user, *(torch.cat([model.item_mf_embedding(i), model.item_mlp_embedding(i)], dim=1) for i in items)

    def score(self, model: Any, user: Tensor, item: Tensor) -> Tensor:
        size = model.mf_embedding_size
        parts = []
        if model.mf_train:
            parts.append(user[:, :size] * item[:, :size])
        if model.mlp_train:
            parts.append(model.mlp_layers(torch.cat([user[:, size:], item[:, size:]], dim=1)))
        return model.predict_layer(torch.cat(parts, dim=1)).squeeze(-1)

    def scores_near(self, model: Any, vectors: Vectors, noise: list[Tensor], rows: Tensor) -> list[Tensor]:
        scores = []
        for row in rows:
            user, *items = (x + z.index_select(0, row) for x, z in zip(vectors, noise, strict=True))
            scores.append([self.score(model, user, item) for item in items])
        return [torch.stack(of_item) for of_item in zip(*scores, strict=True)]

    def gradients(self, model: Any, interaction: Any, vectors: Vectors) -> tuple[list[Gradient], Tensor]:
        free = [x.detach().requires_grad_() for x in vectors]
        losses = sample_losses(model, interaction, tuple(free))
        return [Gradient(found) for found in torch.autograd.grad(losses.sum(), free)], losses.detach()


EMBEDDINGS: dict[str, Tables] = {
    "MF": Tables(),
    "BPR": Tables(),
    "LightGCN": Propagated(),
    "NGCF": Propagated(),
    "SGL": Propagated(reduction="sum"),
    "NeuMF": NeuMFTables(),
}


def check_model(defense: str, model: str) -> None:
    """Raise a :class:`UserError` that names the supported models unless ``model`` is one."""
    if model not in EMBEDDINGS:
        raise UserError(f"defense: expected one of {', '.join(EMBEDDINGS)} under {defense}, got {model}")


def loss_kind(model: Any, interaction: Any) -> str:
    """``BPR`` where the batch has negative items, ``MSE`` where the model learns ratings, else ``BCE`` on labels."""
    if getattr(model, "NEG_ITEM_ID", None) in interaction:
        return "BPR"
    return "MSE" if hasattr(model, "rating_target") else "BCE"


def lookup(model: Any, interaction: Any) -> tuple[list[Tensor], Vectors]:
    """The ids of a batch (users, items, negative items if there are) and their vectors, with their gradient.

    Shape: ids ``(B,)`` each, vectors ``(B, d)`` each.
    """
    ids = [interaction[model.USER_ID], interaction[model.ITEM_ID]]
    if loss_kind(model, interaction) == "BPR":
        ids.append(interaction[model.NEG_ITEM_ID])
    return ids, EMBEDDINGS[model.defended_name].user_and_items(model, ids[0], ids[1:])


def sample_losses(model: Any, interaction: Any, vectors: Vectors) -> Tensor:
    """The loss of each sample for some vectors. Shape: ``(B,)``."""
    scores = [EMBEDDINGS[model.defended_name].score(model, vectors[0], item) for item in vectors[1:]]
    return losses_of(model, interaction, scores)


def losses_near(model: Any, interaction: Any, vectors: Vectors, noise: list[Tensor], rows: Tensor) -> Tensor:
    """The loss of each sample at candidates near its vectors: candidate k of sample b adds ``noise[rows[k, b]]``.

    Shape: ``noise`` ``(P, d)`` for each of ``vectors``, ``rows`` and the result ``(K, B)``.
    """
    return losses_of(model, interaction, EMBEDDINGS[model.defended_name].scores_near(model, vectors, noise, rows))


def losses_of(model: Any, interaction: Any, scores: list[Tensor]) -> Tensor:
    """BPR, squared error or cross-entropy of each sample, as the model has it, times its weight if any.

    Shape: ``scores`` of the items and, for BPR, of the negative ones, and the result: ``(B,)``, or ``(K, B)`` each.
    """
    kind = loss_kind(model, interaction)
    if kind == "BPR":
        losses = F.softplus(scores[1] - scores[0])
    elif kind == "MSE":
        return model.weigh((scores[0] - model.rating_target(interaction)).pow(2), interaction)
    else:
        losses = F.binary_cross_entropy_with_logits(
            scores[0], interaction[model.LABEL].expand_as(scores[0]), reduction="none"
        )
    return losses * interaction[SAMPLE_WEIGHT] if SAMPLE_WEIGHT in interaction else losses


def slopes_of(model: Any, interaction: Any, scores: list[Tensor]) -> list[Tensor]:
    """The derivative of :func:`losses_of` by each of the scores. Shape: as ``scores``."""
    kind = loss_kind(model, interaction)
    if kind == "MSE":
        return [model.weigh(2.0 * (scores[0] - model.rating_target(interaction)), interaction)]
    if kind == "BPR":
        slope = torch.sigmoid(scores[1] - scores[0])
    else:
        slope = torch.sigmoid(scores[0]) - interaction[model.LABEL]
    if SAMPLE_WEIGHT in interaction:
        slope = slope * interaction[SAMPLE_WEIGHT]
    return [-slope, slope] if kind == "BPR" else [slope]


def gradients(model: Any, interaction: Any, vectors: Vectors) -> tuple[list[Gradient], Tensor]:
    """The gradient of each sample's loss by its own vectors, and the losses; nothing reaches the parameters.

    Shape: one of ``(B, d)`` for each of ``vectors``, and ``(B,)``.
    """
    with torch.enable_grad():
        return EMBEDDINGS[model.defended_name].gradients(model, interaction, vectors)


def reduce(model: Any, losses: Tensor) -> Tensor:
    """The losses of a batch as one number, as the model's own loss reduces them."""
    return losses.sum() if EMBEDDINGS[model.defended_name].reduction == "sum" else losses.mean()
