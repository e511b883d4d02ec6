"""Adversarial losses: the loss of a batch once more, on vectors moved to where it is worst.

``L = loss + weight * loss(x + delta)`` with ``x`` the vectors of the users and items of a batch (the propagated ones of
a graph model) and ``delta`` a constant: :class:`AT`, :class:`VAT` and :class:`PamaCF` differ in its length only,
:class:`GDA` draws candidates at random and takes the worst. Nothing is perturbed in an evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from recbole_robust.defenses.checks import require_choice, require_number
from recbole_robust.defenses.defended import Loss, add, is_on
from recbole_robust.defenses.embeddings import (
    Gradient,
    Vectors,
    check_model,
    gradients,
    lookup,
    loss_kind,
    losses_near,
    reduce,
    sample_losses,
)

Delta = Literal["row", "sample"]
Direction = Literal["gradient", "random"]
POOL = 16  # noise vectors that GDA draws for a batch, at least; a sample takes neighbouring ones, from a random place
EPS_OF = {"MSE": 0.05, "BPR": 0.5, "BCE": 0.5}  # the authors': of APT's explicit AT, and of AMF


@dataclass(frozen=True)
class Adversarial:
    """What the four have in common; see the module.

    Args:
        eps: length of a perturbation (L2, in the unit of the vectors); None: 0.05 for ratings, 0.5 else.
            (Default: None)
        weight: of the adversarial loss. (Default: 1)
        start_epoch: epochs without it, at the beginning. (Default: 5)
        relative: multiply ``eps`` by the mean norm of the batch's vectors, so that it means the same whatever their
            scale. (Default: False)
    """

    eps: float | None = None
    weight: float = 1.0
    start_epoch: int = 5
    relative: bool = False

    kind: ClassVar[str] = "loss"
    takes_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.eps is not None:
            require_number("eps", self.eps, 0)
        require_number("weight", self.weight, 0)
        require_number("start_epoch", self.start_epoch, 0, integer=True)

    def check(self, model: str, explicit: bool) -> None:
        check_model(type(self).__name__, model)

    def attach(self, model: Any) -> None: ...

    def loss(self, model: Any, interaction: Any, own_loss: Loss) -> Loss:
        if self.weight == 0 or not is_on(model, self.start_epoch):
            return own_loss
        with torch.autocast(interaction[model.USER_ID].device.type, enabled=False):  # half precision loses gradients
            ids, vectors = lookup(model, interaction)
            moved = self.moved(model, interaction, ids, vectors)
            return add(own_loss, self.weight * reduce(model, sample_losses(model, interaction, moved)))

    def moved(self, model: Any, interaction: Any, ids: list[Tensor], vectors: Vectors) -> Vectors:
        """The vectors with their perturbations, which are constants. Shape: as ``vectors``, each ``(B, d)``."""
        raise NotImplementedError

    def lengths(self, model: Any, interaction: Any, vectors: Vectors) -> list[Tensor]:
        """``eps`` for each of the vectors' parts, on their scale where it is relative. Shape: scalars."""
        eps = EPS_OF[loss_kind(model, interaction)] if self.eps is None else self.eps
        if not self.relative:
            return [x.new_tensor(eps) for x in vectors]
        return [eps * x.detach().norm(dim=1).mean() for x in vectors]


@dataclass(frozen=True)
class AT(Adversarial):
    """Adversarial training: the vectors move along the gradient of the loss, all by the same length.

    Reference: X. He, Z. He, X. Du, T.-S. Chua. Adversarial Personalized Ranking for Recommendation. SIGIR 2018
    (eq. 8-12). On ratings: the AT row of C. Wu et al. (SIGIR 2021), from their code.

    Args:
        delta: ``row``, as the authors: one perturbation for a row of a table, along the sum of its gradients over the
            batch; ``sample``: one for each sample, as VAT's and PamaCF's code. (Default: ``row``)
        direction: ``gradient``, or ``random``, the authors' control. (Default: ``gradient``)
    """

    delta: Delta = "row"
    direction: Direction = "gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("delta", self.delta, Delta)
        require_choice("direction", self.direction, Direction)

    def moved(self, model: Any, interaction: Any, ids: list[Tensor], vectors: Vectors) -> Vectors:
        if self.direction == "random":
            steps = [Gradient(torch.randn_like(x)) for x in vectors]
        else:
            steps = gradients(model, interaction, vectors)[0]
        lengths = self.lengths(model, interaction, vectors)
        if self.delta == "row":
            moves = by_row(ids[:1], model.n_users, steps[:1], lengths[:1])
            moves += by_row(ids[1:], model.n_items, steps[1:], lengths[1:])  # one row for both kinds of items
            return tuple(moved_to(x, move.add_(x.detach())) for x, move in zip(vectors, moves, strict=True))
        return tuple(along(x, step, eps) for x, eps, step in zip(vectors, lengths, steps, strict=True))


@dataclass(frozen=True)
class VAT(Adversarial):
    """Vulnerability-aware AT: users whose loss is low, the well-fitted ones, get the longer perturbations.

    ``eps_u = eps * scale * sigmoid(mean loss / loss of u - 1)``, for all vectors of a sample of user u; the loss of u
    is the mean of its samples in the batch, the mean is over the users of the batch.

    Reference: K. Zhang, Q. Cao, Y. Wu, F. Sun, H. Shen, X. Cheng. Improving the Shortest Plank: Vulnerability-Aware
    Adversarial Training for Robust Recommender System. RecSys 2024. (The authors sum a user's losses, but draw users,
    each with one sample; RecBole draws interactions, so that a sum would call active users robust.)

    Args:
        scale: coefficients lie between ``scale * sigmoid(-1)`` and ``scale``; 1 at equal losses where it is 2.
            (Default: 2)
    """

    scale: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("scale", self.scale, 0)

    def moved(self, model: Any, interaction: Any, ids: list[Tensor], vectors: Vectors) -> Vectors:
        steps, losses = gradients(model, interaction, vectors)
        coefficient = self.scale * torch.sigmoid(self.vulnerability(ids[0], vectors[0].detach(), losses) - 1)
        lengths = self.lengths(model, interaction, vectors)
        return tuple(along(x, step, eps * coefficient) for x, step, eps in zip(vectors, steps, lengths, strict=True))

    def vulnerability(self, users: Tensor, user_vectors: Tensor, losses: Tensor) -> Tensor:
        """1 for a user like the mean, more for one who is more vulnerable. Shape: ``(B,)``."""
        counts = torch.bincount(users)
        means = torch.zeros_like(counts, dtype=losses.dtype).index_add_(0, users, losses) / counts.clamp_min(1)
        mean = means.sum() / counts.count_nonzero()  # over the users of the batch
        return mean / (means[users] + 1e-9)


@dataclass(frozen=True)
class PamaCF(VAT):
    """Personalised magnitudes: users of a large norm get the longer perturbations.

    ``eps_u = eps * scale * sigmoid(|p_u|^2 / mean |p|^2 - 1)``, the mean over the samples of the batch.

    Reference: K. Zhang, Q. Cao, F. Sun, Y. Wu, S. Tao, H. Shen, X. Cheng. Understanding and Improving Adversarial
    Collaborative Filtering for Robust Recommendation. NeurIPS 2024.
    """

    def vulnerability(self, users: Tensor, user_vectors: Tensor, losses: Tensor) -> Tensor:
        squares = user_vectors.pow(2).sum(dim=1)
        return squares / squares.mean().clamp_min(1e-12)


@dataclass(frozen=True)
class GDA(Adversarial):
    """Gaussian data augmentation: of ``n_candidates`` random neighbours of a sample, the one of the largest loss.

    A sample is its vectors side by side. ``da2`` first moves it by ``eps`` along the gradient, ``da1`` does not,
    ``both`` takes the worst of either. Equivalent, for small noise, to a penalty on the norm of the gradient.

    Reference: Z. Wang, X. Chen et al. Robust Recommendation with Adversarial Gaussian Data Augmentation. WWW 2023.
    No code was published; the constants are ours.

    Args:
        n_candidates: neighbours of each sample and kind, from a few noise vectors that the samples of a batch share.
            (Default: 5)
        sigma: standard deviation of the noise, times the root mean square of the batch's vectors. (Default: 0.1)
        mode: ``da1``, ``da2`` or ``both``. (Default: ``da2``)
    """

    n_candidates: int = 5
    sigma: float = 0.1
    mode: Literal["da1", "da2", "both"] = "da2"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("n_candidates", self.n_candidates, 1, integer=True)
        require_number("sigma", self.sigma, 0)
        require_choice("mode", self.mode, Literal["da1", "da2", "both"])

    def moved(self, model: Any, interaction: Any, ids: list[Tensor], vectors: Vectors) -> Vectors:
        x = [vector.detach() for vector in vectors]
        squares = torch.stack([torch.dot(part.flatten(), part.flatten()) for part in x])  # half the time of a norm
        rms = squares.sum().sqrt() / math.sqrt(sum(part.numel() for part in x))
        n_rows = max(POOL, 2 * self.n_candidates)
        noise = [self.sigma * rms * torch.randn(n_rows, x.shape[1], device=x.device, dtype=x.dtype) for x in vectors]
        centres = [x] if self.mode != "da2" else []
        if self.mode != "da1":
            steps = self._steps(model, interaction, vectors)
            centres.append([step.added_to(part) for part, step in zip(x, steps, strict=True)])
        second, row = self._worst(model, interaction, centres, noise)
        places = []
        for z, *parts in zip(noise, *centres, strict=True):
            centre = parts[0] if len(parts) == 1 else torch.where(second[:, None], parts[1], parts[0])
            places.append(z.index_select(0, row).add_(centre))
        return tuple(moved_to(vector, place) for vector, place in zip(vectors, places, strict=True))

    def _steps(self, model: Any, interaction: Any, vectors: Vectors) -> list[Gradient]:
        """From the vectors to the second centre of candidates: along the gradient of the sample, ``eps`` in all."""
        steps = gradients(model, interaction, vectors)[0]
        norm = torch.stack([step.norm().square_() for step in steps]).sum(dim=0).sqrt_()  # norm(dim=0) is slow
        eps = torch.stack(self.lengths(model, interaction, vectors)).mean() / norm.clamp_min_(1e-12)
        return [step.times(eps) for step in steps]

    @torch.no_grad()
    def _worst(
        self, model: Any, interaction: Any, centres: list[list[Tensor]], noise: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The candidate of the largest loss of each sample: whether it is around the second of two centres, and its
        row of the noise. Shape: ``(B,)`` each.
        """
        n_rows, n_samples = len(noise[0]), len(centres[0][0])
        found = []
        for centre in centres:
            first = torch.randint(n_rows, (n_samples,), device=noise[0].device)
            rows = first + torch.arange(self.n_candidates, device=first.device)[:, None]
            rows = torch.where(rows < n_rows, rows, rows - n_rows)  # the remainder, which is slow
            loss, best = losses_near(model, interaction, tuple(centre), noise, rows).max(dim=0)
            found.append((loss, rows.gather(0, best[None])[0]))
        (loss, row), *others = found
        second = torch.zeros_like(loss, dtype=torch.bool)
        for other_loss, other_row in others:
            second = other_loss > loss
            row = torch.where(second, other_row, row)
        return second, row


# --- parts ------------------------------------------------------------------------------------------------------------


class _MovedTo(torch.autograd.Function):
    """``x + delta`` where ``delta = place - x`` is a constant, without another two arrays of that shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor) -> Tensor:
        return place.view_as(place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


def moved_to(x: Tensor, place: Tensor) -> Tensor:
    return _MovedTo.apply(x, place)  # type: ignore[no-any-return]


def along(x: Tensor, step: Gradient, length: Tensor) -> Tensor:
    """``x`` moved by ``length`` in the direction of ``step``, row by row; not at all where the step is zero.

    Shape: ``(B, d)``, a gradient by it, ``(B,)`` or a scalar; returns ``(B, d)``.
    """
    return step.times(length / step.norm().clamp_min(1e-12)).added_to(x)


def by_row(ids: list[Tensor], n_ids: int, steps: list[Gradient], lengths: list[Tensor]) -> list[Tensor]:
    """``length`` in the direction of the sum of all steps of the same id, at each of them; zero where that sum is.

    Shape: ``(B,)``, a gradient by ``(B, d)`` and a scalar each; returns ``(B, d)`` each.
    """
    rows = sum(step.sum_by(of_step, n_ids) for step, of_step in zip(steps, ids, strict=True))
    assert isinstance(rows, Tensor)
    norms = rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return [(rows * (length / norms)).index_select(0, at) for length, at in zip(lengths, ids, strict=True)]
