"""The influence-function attack on top-N recommenders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recbole_robust.attacks.gradient import Audience, SurrogateAttack, starting_fillers
from recbole_robust.attacks.influence import user_influence
from recbole_robust.attacks.profiles import (
    assign_targets,
    require_choice,
    require_number,
)
from recbole_robust.attacks.surrogate import ItemState, Surrogate
from recbole_robust.types import AttackerView, Budget, IntArray

Influence = Literal["highest", "lowest", "random", "all"]
Start = Literal["uniform", "profile"]


@dataclass(frozen=True)
class TNA(SurrogateAttack):
    """Fakes built one by one, each to lift the targets over the lists of the most influential users (S-TNA).

    Reference: M. Fang, N. Z. Gong, J. Liu. Influence Function Based Data Poisoning Attacks to Top-N Recommender
    Systems. WWW 2020.

    Knowledge: white-box; all ratings.

    For the fake at work with degrees w, users S, lists Gamma_u (the top N without rated items), the Wilcoxon-Mann-
    Whitney loss of the paper is

        sum_(u in S) sum_(i in Gamma_u) g(r_ui - r_ut) + eta |w|_1,   g(z) = 1 / (1 + exp(-z / b)),

    a mean over targets where there are several. Projected gradient descent on w in [0, 1]; the fillers are the items
    of the largest w. Their ratings are not w but N(item mean, item sd), as in the paper. The next fake sees the
    finished ones in the data. The paper approximates how items follow the fake; least squares gives it exactly, by an
    update of rank one (``ItemState``).

    Args:
        n_influential: users in S; ``influence: all`` takes everybody (U-TNA). The paper has 400.
        influence: which users are S: those of ``highest`` or ``lowest`` influence on the targets' scores, ``random``
            ones, ``all``. The paper's sign is open to interpretation.
        n_steps: steps of the descent for each fake.
        step_size: how far the largest degree moves in a step.
        momentum: share of the last step that is kept.
        width: b as a share of the margins' standard deviation. The paper's 0.01 stars leaves no gradient.
        eta: weight of the 1-norm.
        start: where a fake's descent starts: at the items of a real user (``profile``), as in the other attacks by
            gradient, or at degrees that are all the same (``uniform``). From there all fakes go to the same fillers.
    """

    n_influential: int = 400
    influence: Influence = "highest"
    n_steps: int = 25
    step_size: float = 0.1
    momentum: float = 0.8
    width: float = 0.5
    eta: float = 0.0
    start: Start = "profile"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("influence", self.influence, Influence)
        require_choice("start", self.start, Start)
        require_number("n_influential", self.n_influential, 1, integer=True)
        require_number("n_steps", self.n_steps, 0, integer=True)
        for key in ("step_size", "width", "eta"):
            require_number(key, getattr(self, key), 0)
        require_number("momentum", self.momentum, 0, 1)

    def choose_fillers(
        self, view: AttackerView, targets: IntArray, budget: Budget, rng: np.random.Generator
    ) -> IntArray:
        """Shape: ``(n_fake_users, n_fillers)``, ascending in each row."""
        items = np.empty((budget.n_fake_users, budget.n_fillers), dtype=np.int64)
        start = items[:, :0] if self.start == "uniform" else starting_fillers(view, targets, budget, rng)
        surrogate = self.fit(view, rng)
        audience = Audience.of(view, surrogate, targets)
        state = ItemState(surrogate)
        group = audience.select(self._influential(view, surrogate, audience, rng))
        values = self.values(view, surrogate, targets)
        ptr, ids = assign_targets(budget, targets)
        for fake in range(budget.n_fake_users):
            own = torch.from_numpy(ids[ptr[fake] : ptr[fake + 1]])
            items[fake] = self._one_fake(state, group, own, values, start[fake], budget.n_fillers, rng)
            include = torch.zeros(view.n_items, dtype=surrogate.y.dtype)
            include[items[fake]] = include[own] = 1.0
            state.add(include, values)
            if (fake + 1) % max(1, budget.n_fake_users // 10) == 0:
                state.refresh()
        return items

    def _influential(
        self, view: AttackerView, surrogate: Surrogate, audience: Audience, rng: np.random.Generator
    ) -> Tensor:
        """The users S, in ascending order: among those who may get a target recommended."""
        open_ = np.flatnonzero(audience.eligible.any(dim=1).numpy())
        n_chosen = min(self.n_influential, len(open_))
        if self.influence == "all":
            chosen = open_
        elif self.influence == "random":
            chosen = rng.choice(open_, n_chosen, replace=False)
        else:
            eligible = audience.eligible.double().numpy()
            score = user_influence(surrogate, view.ratings, eligible, audience.targets.numpy())[open_]
            order = np.argsort(score if self.influence == "lowest" else -score, kind="stable")
            chosen = open_[order[:n_chosen]]
        return torch.from_numpy(np.sort(chosen))

    def _one_fake(
        self, state: ItemState, group: Audience, own: Tensor, values: Tensor, start: IntArray,
        n_fillers: int, rng: np.random.Generator,
    ) -> IntArray:  # fmt: skip
        """The fillers of the next fake, which rates the targets ``own``, against the lists of ``group``.

        Shape: ``start`` ``(n_fillers,)`` or empty; result ``(n_fillers,)``, ascending.
        """
        x = group.x
        lists = group.scores(group.everybody, state.y).topk(min(self.top_k, len(state.y)), dim=1).indices
        looked_at, where = torch.cat([lists.flatten(), own]).unique(return_inverse=True)
        listed, of_own = where[: lists.numel()].view(lists.shape), where[lists.numel() :]
        eligible = group.eligible[:, torch.isin(group.targets, own)]

        n_items = len(state.y)
        focus = state.look_at(looked_at)
        degrees = torch.full((n_items,), n_fillers / n_items, dtype=x.dtype)
        degrees[torch.from_numpy(start)] = 1.0
        # Equal degrees would all move alike where the gradient is 0: a little noise decides between such items.
        degrees += torch.from_numpy(rng.uniform(0, 1e-3, n_items)).to(x.dtype)
        velocity = torch.zeros_like(degrees)
        for _ in range(self.n_steps):
            degrees[group.targets] = 0.0
            degrees[own] = 1.0
            moved = focus.respond(degrees, values)
            y = moved.y.requires_grad_()
            (g,) = torch.autograd.grad(self._wmw(x @ y.T, listed, of_own, eligible), y)
            descent = focus.gradient(degrees, values, moved, g) + self.eta
            descent[group.targets] = 0.0
            velocity = self.momentum * velocity + descent / descent.abs().max().clamp(min=1e-12)
            degrees = (degrees - self.step_size * velocity).clamp(0, 1)
        degrees[group.targets] = -1.0
        return degrees.topk(n_fillers).indices.sort().values.numpy()

    def _wmw(self, scores: Tensor, listed: Tensor, own: Tensor, eligible: Tensor) -> Tensor:
        """The Wilcoxon-Mann-Whitney loss, a mean over users, list places and targets.

        Shape: ``scores`` ``(S, C)``, ``listed`` ``(S, N)`` and ``own`` ``(T,)`` index C, ``eligible`` ``(S, T)``.
        """
        margins = scores.gather(1, listed).unsqueeze(2) - scores[:, own].unsqueeze(1)
        width = self.width * margins.detach().std().clamp(min=1e-8)
        loss = torch.sigmoid(margins / width).mean(dim=1)
        return (torch.where(eligible, loss, 0.0).sum(dim=0) / eligible.sum(dim=0).clamp(min=1)).mean()
