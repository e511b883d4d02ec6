"""What the attacks by gradient share: a fitted surrogate, an objective on its scores, projected ascent on the fillers.

PGA, RevAdv and DADA are one loop with three objectives; each file has its own. TNA uses the same surrogate, one fake
after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from recbole_robust.attacks.profiles import (
    assign_targets,
    build_profiles,
    check_request,
    draw_ratings,
    require,
    require_choice,
    require_number,
)
from recbole_robust.attacks.surrogate import Surrogate, respond, two_hop_gradient
from recbole_robust.attacks.templates import copy_templates
from recbole_robust.randomness import one_thread
from recbole_robust.types import AttackerView, Budget, FakeProfiles, IntArray, Knowledge

SurrogateKind = Literal["auto", "explicit", "implicit"]
CHUNK_SCORES = 2**22  # scores of genuine users held at once: 16 MiB


@dataclass(frozen=True)
class Audience:
    """The genuine users whose lists the attack is after, as the surrogate sees them.

    Attributes:
        x: their vectors. Shape: ``(n_users, d)``.
        targets: Shape: ``(T,)``.
        eligible: whether a user has not rated a target. Shape: ``(n_users, T)``.
        before: scores of the targets without any fake. Shape: ``(n_users, T)``.
        seen: positions (user, item) of all rated pairs, by user. Shape: two of ``(n_ratings,)``.
    """

    x: Tensor
    targets: Tensor
    eligible: Tensor
    before: Tensor
    seen: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, view: AttackerView, surrogate: Surrogate, targets: IntArray) -> Audience:
        items = torch.from_numpy(targets)
        eligible = torch.from_numpy(view.ratings[:, targets].toarray() == 0)
        users = np.repeat(np.arange(view.n_users), np.diff(view.ratings.indptr))
        seen = torch.from_numpy(users), torch.from_numpy(view.ratings.indices.astype(np.int64))
        return cls(surrogate.x, items, eligible, surrogate.x @ surrogate.y[items].T, seen)

    @cached_property
    def first_seen(self) -> Tensor:
        """Where each user's rows of ``seen`` begin. Shape: ``(n_users + 1,)``."""
        return torch.searchsorted(self.seen[0], torch.arange(len(self.x) + 1))

    def chunks(self, n_items: int) -> Iterator[slice]:
        """Yield slices of users whose scores fit in the memory set aside for them."""
        step = max(1, CHUNK_SCORES // n_items)
        for start in range(0, len(self.x), step):
            yield slice(start, min(start + step, len(self.x)))

    def scores(self, users: slice, y: Tensor) -> Tensor:
        """Scores of all items, -inf where rated. Shape: ``(n_chunk, n_items)``."""
        first, last = self.first_seen[users.start], self.first_seen[users.stop]
        pairs = self.seen[0][first:last] - users.start, self.seen[1][first:last]
        scores = self.x[users] @ y.T
        return scores.index_put(pairs, torch.tensor(-torch.inf, dtype=scores.dtype))

    def select(self, users: Tensor) -> Audience:
        """Some of the users, renumbered in this order. Shape: ``users`` ``(n,)``, ascending."""
        row_of = torch.full((len(self.x),), -1)
        row_of[users] = torch.arange(len(users))
        rows = row_of[self.seen[0]]
        here = rows >= 0
        seen = rows[here], self.seen[1][here]
        return Audience(self.x[users], self.targets, self.eligible[users], self.before[users], seen)

    @property
    def everybody(self) -> slice:
        return slice(0, len(self.x))

    def mean(self, values: Tensor, users: slice) -> Tensor:
        """The share that these users have in the mean over eligible users, and then over targets.

        Shape: ``values`` ``(n_chunk, T)``, finite where eligible.
        """
        shares = self.eligible[users] / (self.eligible.sum(dim=0) * len(self.targets)).clamp(min=1)
        return (torch.where(self.eligible[users], values, 0.0) * shares).sum()


@dataclass(frozen=True)
class SurrogateAttack:
    """What the attacks that fit a surrogate share: its hyper-parameters, and that they choose fillers only.

    Fillers are rated N(item mean, item sd) and targets highest, as in the average attack.

    Args:
        surrogate: ``explicit`` (ratings by ALS), ``implicit`` (WRMF), ``auto``: explicit where there are ratings.
        n_factors: length of the vectors.
        reg: weight of their squared norms.
        alpha: implicit: weight of a rated pair over an unrated one.
        n_sweeps: sweeps of alternating least squares.
        top_k: length of the recommendation lists that the attack aims at.
    """

    surrogate: SurrogateKind = "auto"
    n_factors: int = 32
    reg: float = 40.0
    alpha: float = 10.0
    n_sweeps: int = 10
    top_k: int = 50

    knowledge: ClassVar[Knowledge] = "white-box"

    def __post_init__(self) -> None:
        require_choice("surrogate", self.surrogate, SurrogateKind)
        for key, low in (("n_factors", 1), ("n_sweeps", 1), ("top_k", 1)):
            require_number(key, getattr(self, key), low, integer=True)
        require_number("reg", self.reg, 0)
        require(self.reg > 0, "reg", "a number above 0", self.reg)
        require_number("alpha", self.alpha, 0)

    def __call__(
        self, view: AttackerView, target_items: ArrayLike, budget: Budget, *, rng: np.random.Generator
    ) -> FakeProfiles:
        targets = check_request(self, view, target_items, budget)
        with one_thread():
            items = self.choose_fillers(view, targets, budget, rng)
        ratings = draw_ratings(rng, view.item_means[items], view.item_stds[items], view, items.shape)
        return build_profiles(view, targets, budget, items, ratings).check(view)

    def choose_fillers(
        self, view: AttackerView, targets: IntArray, budget: Budget, rng: np.random.Generator
    ) -> IntArray:
        """Shape: ``(n_fake_users, n_fillers)``."""
        raise NotImplementedError

    def fit(self, view: AttackerView, rng: np.random.Generator) -> Surrogate:
        kind = self.surrogate
        if kind == "auto":
            kind = "explicit" if view.rating_min < view.rating_max else "implicit"
        return Surrogate(view, kind, n_factors=self.n_factors, reg=self.reg, alpha=self.alpha, n_sweeps=self.n_sweeps,
                         rng=rng)  # fmt: skip

    @staticmethod
    def values(view: AttackerView, surrogate: Surrogate, targets: IntArray) -> Tensor:
        """What a fake rates each item: its mean, the targets highest; 1 for an implicit one. Shape: ``(n_items,)``."""
        values = np.ones(view.n_items) if surrogate.c0 else view.item_means.copy()
        values[targets] = 1.0 if surrogate.c0 else view.rating_max
        return torch.from_numpy(values).to(surrogate.y.dtype)


@dataclass(frozen=True)
class GradientAttack(SurrogateAttack):
    """Projected gradient ascent on which items the fakes rate, through the two hops of the surrogate.

    A fake starts as a copy of a real user's items. Each step takes the ``n_fillers`` items of the highest degree,
    looks at the surrogate with exactly these fakes in it, and moves the degrees (which stay continuous) along the
    gradient there; the best fakes seen, by the surrogate's hit ratio of the targets, are the attack. Where that is the
    same (0 at every step, with few fakes a target): by how far they are believed, then by how near the lists the
    targets are.

    Args:
        n_steps: steps of the ascent.
        step_size: how far the degree of the best item of a fake moves in a step.
        momentum: share of the last step that is kept.
    """

    n_steps: int = 15
    step_size: float = 0.2
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("n_steps", self.n_steps, 0, integer=True)
        require_number("step_size", self.step_size, 0)
        require_number("momentum", self.momentum, 0, 1)

    def objective(self, scores: Tensor, audience: Audience, users: slice) -> Tensor:
        """What is to grow: this chunk's part of a mean over users and targets.

        Shape: ``scores`` ``(n_chunk, n_items)``, -inf where the user has rated the item; a scalar.
        """
        raise NotImplementedError

    def trust(self, view: AttackerView, rated_targets: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The weight that the victim gives the fakes' ratings, as a function of their fillers; None: all of it.

        Shape: ``rated_targets``, the fillers (1 where rated) and the weights are ``(n_fake_users, n_items)``.
        """
        return None

    def choose_fillers(
        self, view: AttackerView, targets: IntArray, budget: Budget, rng: np.random.Generator
    ) -> IntArray:
        """Shape: ``(n_fake_users, n_fillers)``, ascending in each row."""
        n_fakes, n_fillers = budget.n_fake_users, budget.n_fillers
        start = starting_fillers(view, targets, budget, rng)
        if not n_fillers or not self.n_steps:
            return start
        surrogate = self.fit(view, rng)
        audience = Audience.of(view, surrogate, targets)
        a, b = surrogate.equations(surrogate.by_item, surrogate.x)
        values = self.values(view, surrogate, targets)
        rated_targets = torch.zeros(n_fakes, view.n_items, dtype=surrogate.y.dtype)
        ptr, ids = assign_targets(budget, targets)
        rated_targets[torch.from_numpy(np.repeat(np.arange(n_fakes), np.diff(ptr))), torch.from_numpy(ids)] = 1.0

        trust = self.trust(view, rated_targets)
        degrees = torch.zeros_like(rated_targets).scatter_(1, torch.from_numpy(start), 1.0)
        degrees[:, audience.targets] = -torch.inf
        velocity = torch.zeros_like(degrees)
        best, fillers = (-1.0, 0.0, 0.0), torch.from_numpy(start)
        for step in range(self.n_steps + 1):
            chosen = degrees.topk(n_fillers, dim=1).indices
            include = torch.zeros_like(rated_targets).scatter_(1, chosen, 1.0).requires_grad_(trust is not None)
            believed = rated_targets if trust is None else rated_targets * trust(include)
            response = respond(surrogate, a, b, (include + believed).detach(), values)
            hits, margin, gradient = self._look(response.y, audience)
            if (found := (hits, float(believed.detach().sum()), margin)) > best:
                best, fillers = found, chosen
            if step < self.n_steps:
                ascent = two_hop_gradient(surrogate, response, gradient)
                if trust is not None:
                    ascent += torch.autograd.grad((ascent * believed).sum(), include)[0]
                ascent[:, audience.targets] = 0.0
                ascent /= ascent.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
                velocity = self.momentum * velocity + ascent
                degrees += self.step_size * velocity
        return fillers.sort(dim=1).values.numpy()

    def _look(self, y: Tensor, audience: Audience) -> tuple[float, float, Tensor]:
        """The targets' hit ratio with these item vectors, their mean distance from the end of a user's list (below 0
        where they are not in it), and the derivative of the objective by the vectors.
        """
        y = y.detach().requires_grad_()
        hits = margin = 0.0
        for users in audience.chunks(len(y)):
            scores = audience.scores(users, y)
            self.objective(scores, audience, users).backward()
            distance = margins(scores.detach(), audience.targets, self.top_k)
            hits += float(audience.mean((distance >= 0).to(scores.dtype), users))
            margin += float(audience.mean(torch.where(distance.isfinite(), distance, 0.0), users))  # inf: a list of all
        assert y.grad is not None
        return hits, margin, y.grad


def starting_fillers(view: AttackerView, targets: IntArray, budget: Budget, rng: np.random.Generator) -> IntArray:
    """Items of real users, as in a copied profile. Shape: ``(n_fake_users, n_fillers)``."""
    return view.ratings.indices[copy_templates(view, targets, budget, rng)].astype(np.int64)


def margins(scores: Tensor, targets: Tensor, k: int) -> Tensor:
    """How far a target is above the k-th best; in the list: 0 or more. ``(B, n_items)``, ``(T,)`` -> ``(B, T)``."""
    return scores[:, targets] - boundary(scores, k)


def boundary(scores: Tensor, k: int) -> Tensor:
    """The k-th best score of each user. Shape: ``(B, 1)``."""
    return scores.topk(min(k, scores.shape[1]), dim=1).values[:, -1:]
