"""APT: adversarial poisoning training, users of our own whose profiles lower the empirical risk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.special import log_softmax
from torch import Tensor

from recbole_robust.defenses.checks import require_choice, require_number
from recbole_robust.defenses.squared_error import SquaredError, conjugate_gradients, lissa, partition
from recbole_robust.types import DefenderView, FakeProfiles, FloatArray, IntArray, UserError

InverseHessian = Literal["lissa", "cg", "none"]


@dataclass(frozen=True)
class APT:
    """Adversarial poisoning training: at some epochs, ERM users are put among the training rows.

    ``min_Theta min_(D*: |D*| = n_erm_users) R(D u D*; Theta)``, in turns: the ERM users D* rate the items whose higher
    ratings would lower the risk R on D, the training goes on with D and D*, and the next ones replace them. D is all
    that the defender has, poison included. By how much a rating r of item i by a user like a fake one moves the risk is

        I_i = -h^T (d/dr) grad loss = 2/n_items sum_(u: references) (q_i . h_u + h_i . p_u),   h = H^-1 grad R,

    where the fake one's loss is the mean squared error over all items, and the references, in its place, are the users
    of the shortest rating vectors. An ERM user rates ``n_selected`` items of I_i < 0, drawn by

        p_i ~ exp(temperature I_i / min I),   r_i = round(Normal(mean_i, std_i)) + rating_shift.

    Reference: C. Wu, D. Lian, Y. Ge, Z. Zhu, E. Chen, S. Yuan. Fight Fire with Fire: Towards Robust Recommender Systems
    via Adversarial Poisoning Training. SIGIR 2021. Constants and steps are those of the authors' code
    (Daftstone/APT), in closed form instead of by differentiating twice. In place of a fresh draw for every step,
    ``lissa`` goes round the batches of one random partition. The code's sigmoid around R and a ridge of 1e-12 in H
    are left out: the first scales all I_i alike.

    I is no exact influence. H is indefinite, and after the authors' iterations h still has a cosine of .80 (ML-100K)
    or 1.00 (ML-1M) with the gradient. And I is that of users with the references' vectors, while ERM users begin at
    random ones, as the authors' do: they lower the risk by their choice of items only as far as training turns them.

    Args:
        n_erm_users: ERM users at a time; 0 is no defense. (Default: 50)
        start_epoch: first epoch (from 0) with ERM users. (Default: 15)
        every: epochs from one draw to the next. (Default: 2)
        n_selected: items an ERM user rates; all of negative influence where they are fewer. (Default: 400)
        temperature: 0 draws them uniformly, more prefers the most negative influence. (Default: 20)
        rating_shift: added to their ratings, in units of the highest rating. (Default: 0.2)
        n_reference_users: users whose vectors stand for those of fakes. (Default: 10)
        ihvp: how H^-1 is applied: ``lissa``, a Neumann series over batches; ``cg``, damped conjugate gradients over all
            rows; ``none``, h is the gradient. Where H is too far from positive, so is h. (Default: ``lissa``)
        n_iterations: of ``lissa``, and at most of ``cg``. (Default: 1000)
        batch_size: ratings in a batch of ``lissa``, at most. (Default: 16384)
    """

    n_erm_users: int = 50
    start_epoch: int = 15
    every: int = 2
    n_selected: int = 400
    temperature: float = 20.0
    rating_shift: float = 0.2
    n_reference_users: int = 10
    ihvp: InverseHessian = "lissa"
    n_iterations: int = 1000
    batch_size: int = 16384

    kind: ClassVar[str] = "training"

    def __post_init__(self) -> None:
        for key, low in {"n_erm_users": 0, "start_epoch": 0, "every": 1, "n_selected": 1}.items():
            require_number(key, getattr(self, key), low, integer=True)
        require_number("temperature", self.temperature, 0)
        require_number("rating_shift", self.rating_shift, -1, 1)
        require_choice("ihvp", self.ihvp, InverseHessian)
        for key in ("n_reference_users", "n_iterations", "batch_size"):
            require_number(key, getattr(self, key), 1, integer=True)

    def check(self, model: str, explicit: bool) -> None:
        if model != "MF" or not explicit:
            got = "MF with loss_type BPR" if model == "MF" else model
            raise UserError(f"defense: expected MF with loss_type MSE under APT, got {got}")

    def attach(self, model: Any) -> None:
        if model.imputes:
            raise UserError("train_neg_sample_args: expected none under APT, whose risk is that of observed ratings")
        model.erm_users = None
        model.other_parameter_name = [*getattr(model, "other_parameter_name", []), "erm_users"]  # goes to checkpoints

    def is_due(self, epoch: int) -> bool:
        return self.n_erm_users > 0 and epoch >= self.start_epoch and (epoch - self.start_epoch) % self.every == 0

    @torch.no_grad()
    def __call__(self, model: Any, view: DefenderView, *, rng: np.random.Generator) -> FakeProfiles:
        """The ERM users for the model as it is. Shape: ``view.ratings`` is ``(n_users, n_items)``."""
        n_users, n_items = view.ratings.shape
        p = model.user_embedding.weight.detach()[1 : n_users + 1]  # no padding, no ERM users
        q = model.item_embedding.weight.detach()[1 : n_items + 1]
        influence = self.influence(view.ratings / model.rating_scale, p, q, rng)
        return self.profiles(influence.double().cpu().numpy(), view, rng)

    def influence(self, ratings: csr_matrix, p: Tensor, q: Tensor, rng: np.random.Generator) -> Tensor:
        """I of every item. Shape: ``(n_users, n_items)``, ``(n_users, d)``, ``(n_items, d)`` to ``(n_items,)``."""
        risk = SquaredError(ratings, p, q)
        h = gradient = risk.gradient()
        if self.ihvp == "cg":
            h = conjugate_gradients(risk, gradient, self.n_iterations)
        elif self.ihvp == "lissa":
            h = lissa(partition(ratings, p, q, self.batch_size, rng), gradient, self.n_iterations)
        return mixed_derivative(p, q, h, smallest_profiles(ratings, self.n_reference_users))

    def profiles(self, influence: FloatArray, view: DefenderView, rng: np.random.Generator) -> FakeProfiles:
        """Profiles of items of negative influence. Shape: ``(n_items,)``."""
        length = min(self.n_selected, int((influence < 0).sum()))
        log_p = log_probabilities(influence, self.temperature)
        # The largest of log p + Gumbel noise are a draw without replacement by p, which may be as small as it likes.
        drawn = [
            np.sort(np.argsort(-(log_p + rng.gumbel(size=len(log_p))), kind="stable")[:length])
            for _ in range(self.n_erm_users)
        ]
        items = np.concatenate(drawn).astype(np.int64)
        mean, std = item_statistics(view)
        ratings = to_grid(rng.normal(mean[items], std[items]), view)
        ratings = to_grid(ratings + self.rating_shift * view.rating_max, view)
        return FakeProfiles(np.arange(self.n_erm_users + 1) * length, items, ratings)


# --- parts --------------------------------------------------------------------------------------------------------


def smallest_profiles(ratings: csr_matrix, n_users: int) -> IntArray:
    """The users with ratings whose rating vectors have the smallest norm. Shape: at most ``(n_users,)``."""
    rows = np.repeat(np.arange(ratings.shape[0]), np.diff(ratings.indptr))
    norms = np.bincount(rows, weights=ratings.data**2, minlength=ratings.shape[0])
    norms[np.diff(ratings.indptr) == 0] = np.inf  # a detector may have taken them all
    return np.argsort(norms, kind="stable")[: min(n_users, int(np.isfinite(norms).sum()))]


def mixed_derivative(p: Tensor, q: Tensor, h: Tensor, references: IntArray) -> Tensor:
    """``-h^T (d/dr_i) grad loss_u``, the sum over the references u: the ratings that they have do not matter.

    Shape: ``(n_users, d)``, ``(n_items, d)``, ``(n_users + n_items, d)``; returns ``(n_items,)``.
    """
    h_p, h_q = h.split([len(p), len(q)])
    chosen = torch.from_numpy(references).to(p.device)
    return 2 / len(q) * (q @ h_p[chosen].sum(dim=0) + h_q @ p[chosen].sum(dim=0))


def log_probabilities(influence: FloatArray, temperature: float) -> FloatArray:
    """The logarithm of how likely an item is drawn: -inf where the influence is not negative. Shape: ``(n_items,)``."""
    negative = influence < 0
    if not negative.any():
        return np.full(len(influence), -np.inf)
    return log_softmax(np.where(negative, temperature * influence / influence.min(), -np.inf))


def item_statistics(view: DefenderView) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of each item's ratings; unrated items: the highest rating and 0, as the authors'."""
    items, ratings, n_items = view.ratings.indices, view.ratings.data, view.ratings.shape[1]
    counts = np.bincount(items, minlength=n_items)
    mean = np.bincount(items, weights=ratings, minlength=n_items) / np.maximum(counts, 1)
    square = np.bincount(items, weights=(ratings - mean[items]) ** 2, minlength=n_items)
    return np.where(counts > 0, mean, view.rating_max), np.sqrt(square / np.maximum(counts, 1))


def to_grid(ratings: FloatArray, view: DefenderView) -> FloatArray:
    """The nearest ratings that the scale has. Shape: ``(n,)``."""
    low, step = view.rating_min, view.rating_step
    if step:
        ratings = low + step * np.round((ratings - low) / step)
    return np.clip(ratings, low, view.rating_max)
