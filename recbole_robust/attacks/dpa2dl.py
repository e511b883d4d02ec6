"""The poisoning attack on deep recommenders (DP)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from recbole_robust.attacks.gradient import Audience, SurrogateAttack, SurrogateKind, boundary
from recbole_robust.attacks.profiles import (
    assign_targets,
    require_number,
)
from recbole_robust.attacks.surrogate import Surrogate
from recbole_robust.types import AttackerView, Budget, IntArray


@dataclass(frozen=True)
class DPA2DL(SurrogateAttack):
    """Train a poisoned recommender, and let the fakes click what it would recommend to them ("DP").

    Reference: H. Huang, J. Mu, N. Z. Gong, Q. Li, B. Liu, M. Xu. Data Poisoning Attacks to Deep Learning Based
    Recommender Systems. NDSS 2021.

    Knowledge: white-box; all interactions.

    Fakes are made in blocks. A block starts with its targets alone. The surrogate, these fakes in it, is trained on its
    own loss plus the attack's (with s_u(K) the K-th best score of user u; users who have the target are left out)

            mean_ut max(log sigmoid(s_u(K)) - log sigmoid(s_ut), -kappa),

    and then stands for a recommender that recommends the targets to many. Each fake of the block takes the items of the
    largest sigmoid(s_vj) p_j, and the chance p_j of an item falls by ``discount`` each time one takes it, until all
    have fallen, when all start again at 1: fakes differ. The paper trains a neural model; this is WRMF by gradient.

    Args:
        n_blocks: blocks of fakes (the paper makes the fakes one by one).
        n_epochs: full-batch steps of Adam for each block.
        learning_rate: Adam's.
        attack_weight: weight of the attack's loss beside that of the surrogate (a mean over rated pairs).
        kappa: margin beyond which a user is won.
        discount: what an item's chance is multiplied with when a fake takes it.
        n_audience: users, drawn for each step, whose lists the attack's loss looks at.
    """

    surrogate: SurrogateKind = "implicit"
    n_blocks: int = 10
    n_epochs: int = 20
    learning_rate: float = 0.03
    attack_weight: float = 1.0
    kappa: float = 1.0
    discount: float = 0.9
    n_audience: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("n_blocks", "n_audience"):
            require_number(key, getattr(self, key), 1, integer=True)
        require_number("n_epochs", self.n_epochs, 0, integer=True)
        for key in ("learning_rate", "attack_weight", "kappa"):
            require_number(key, getattr(self, key), 0)
        require_number("discount", self.discount, 0, 1)

    def choose_fillers(
        self, view: AttackerView, targets: IntArray, budget: Budget, rng: np.random.Generator
    ) -> IntArray:
        """Shape: ``(n_fake_users, n_fillers)``, ascending in each row."""
        surrogate = self.fit(view, rng)
        audience = Audience.of(view, surrogate, targets)
        values = self.values(view, surrogate, targets)
        model = Poisoned(surrogate, values)
        model.unit = float((surrogate.x[: self.n_audience] @ surrogate.y.T).std())
        chance = torch.ones(view.n_items, dtype=values.dtype)
        is_target = torch.zeros(view.n_items, dtype=torch.bool)
        is_target[audience.targets] = True
        ptr, ids = assign_targets(budget, targets)
        blocks = np.array_split(np.arange(budget.n_fake_users), min(self.n_blocks, budget.n_fake_users))
        chosen = torch.empty(budget.n_fake_users, budget.n_fillers, dtype=torch.int64)
        for block in blocks:
            own = [torch.from_numpy(ids[ptr[fake] : ptr[fake + 1]]) for fake in block]
            model.enter(own)
            self._train(model, audience, rng)
            scores = torch.sigmoid(model.x_fake[-len(block) :] @ model.y.T / model.unit)
            scores[:, is_target] = -1.0
            for row, fake in enumerate(block.tolist()):
                chosen[fake] = (scores[row] * torch.where(is_target, 1.0, chance)).topk(budget.n_fillers).indices
                chance[chosen[fake]] *= self.discount
                if bool((chance < 1).logical_or(is_target).all()):
                    chance[:] = 1.0
            model.settle([torch.cat([chosen[fake], mine]) for fake, mine in zip(block.tolist(), own, strict=True)])
        return chosen.sort(dim=1).values.numpy()

    def _train(self, model: Poisoned, audience: Audience, rng: np.random.Generator) -> None:
        parameters = [model.x, model.y, model.x_fake]
        for parameter in parameters:
            parameter.requires_grad_()
        adam = torch.optim.Adam(parameters, lr=self.learning_rate)
        for _ in range(self.n_epochs):
            n_users = min(self.n_audience, len(model.x))
            users = torch.from_numpy(np.sort(rng.choice(len(model.x), n_users, replace=False)))
            loss = model.loss() + self.attack_weight * self.attack_loss(model, audience, users)
            adam.zero_grad()
            loss.backward()
            adam.step()
        model.detach()

    def attack_loss(self, model: Poisoned, audience: Audience, users: Tensor) -> Tensor:
        """The attack's loss on some users: a mean over users and targets. Shape: ``users`` ``(B,)``."""
        some = replace(audience.select(users), x=model.x[users])
        scores = some.scores(some.everybody, model.y) / model.unit
        own = torch.where(some.eligible, scores[:, some.targets], 0.0)
        margin = logsigmoid(boundary(scores, self.top_k)) - logsigmoid(own)
        return torch.where(some.eligible, margin.clamp(min=-self.kappa), 0.0).mean()


class Poisoned:
    """A surrogate with fakes in it, trained by gradient.

    Attributes:
        x, y: vectors of users and items. Shape: ``(n_users, d)``, ``(n_items, d)``.
        x_fake: vectors of the fakes so far. Shape: ``(n_fakes, d)``.
    """

    def __init__(self, surrogate: Surrogate, values: Tensor) -> None:
        self.surrogate, self.values = surrogate, values
        self.x, self.y = surrogate.x.clone(), surrogate.y.clone()
        self.x_fake = torch.zeros(0, surrogate.y.shape[1], dtype=values.dtype)
        ratings = surrogate.by_user
        self.users = torch.from_numpy(np.repeat(np.arange(len(self.x)), np.diff(ratings.ptr)))
        self.items = torch.from_numpy(ratings.ids)
        self.ratings = torch.from_numpy(ratings.values).to(values.dtype)
        self.unit = 1.0  # how much of a score is one logit
        self.settled: list[Tensor] = []
        self.open: list[Tensor] = []

    def enter(self, own: list[Tensor]) -> None:
        """Add fakes that have rated these items and no other yet."""
        s = self.surrogate
        include = torch.zeros(len(own), len(self.y), dtype=self.values.dtype)
        for row, items in enumerate(own):
            include[row, items] = 1.0
        b = s.pull(include, self.values) @ self.y
        x = torch.cholesky_solve(b.unsqueeze(2), torch.linalg.cholesky(s.user_equations(include))).squeeze(2)
        self.x_fake, self.open = torch.cat([self.x_fake, x]), own

    def settle(self, items: list[Tensor]) -> None:
        """What the fakes of the open block have rated in the end."""
        self.settled += items
        self.open = []

    def detach(self) -> None:
        self.x, self.y, self.x_fake = self.x.detach(), self.y.detach(), self.x_fake.detach()

    def loss(self) -> Tensor:
        """The surrogate's loss with the fakes in it, by rated pair."""
        s, lists = self.surrogate, [*self.settled, *self.open]
        x = torch.cat([self.x, self.x_fake])
        fakes = torch.repeat_interleave(torch.arange(len(lists)), torch.tensor([len(items) for items in lists]))
        users = torch.cat([self.users, fakes + len(self.x)])
        items = torch.cat([self.items, *lists])
        p = torch.cat([self.ratings, self.values[torch.cat(lists)]])
        scores = (x[users] * self.y[items]).sum(dim=1)
        total = s.c1 * (p - scores).pow(2).sum() + s.reg * (x.pow(2).sum() + self.y.pow(2).sum())
        if s.c0:  # all pairs at the cost of d x d: sum of (x.y)^2 is the product of the two Gram matrices
            total = total + s.c0 * (((x.T @ x) * (self.y.T @ self.y)).sum() - scores.pow(2).sum())
        return total / len(items)
