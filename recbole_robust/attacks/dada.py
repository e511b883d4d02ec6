"""The difficulty and diversity aware attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_robust.attacks.gradient import Audience, GradientAttack, boundary
from recbole_robust.attacks.profiles import require_number


@dataclass(frozen=True)
class DADA(GradientAttack):
    """Win the users who are easy to win, and spread the gain over many of them.

    Reference: H. Li, S. Di, L. Chen. Revisiting Injective Attacks on Recommender Systems. NeurIPS 2022.

    Knowledge: white-box; all ratings.

    With q_ut the chance that t is above user u's list boundary (a sigmoid of the margin, at most 1/2: beyond that the
    user is won), and D_ut how much the fakes have raised the score of t already, over the users not yet won,

        J = mean_ut [ -log(1 - q_ut) + diversity * sigmoid(beta (D_ut - min_u D_ut)) ].

    The first term weighs easy users more, where a cross-entropy weighs hopeless ones; the second is concave where it
    is used, so that a user who has gained weighs less. The one public code (a pull request to recad) minimises both,
    which buries its targets. Scales follow the data: the margins are divided by half their standard deviation, beta by
    that of the gains.

    Args:
        diversity: weight of the second term.
    """

    diversity: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("diversity", self.diversity, 0)

    def objective(self, scores: Tensor, audience: Audience, users: slice) -> Tensor:
        own = scores[:, audience.targets]
        margin = own - boundary(scores.detach(), self.top_k)
        gain = own - audience.before[users]
        open_ = audience.eligible[users] & (margin < 0)
        if not open_.any():
            return (0.0 * torch.where(audience.eligible[users], own, 0.0)).sum()
        lost = torch.where(open_, margin, 0.0)
        won = torch.sigmoid(lost / (0.5 * _spread(margin, open_)))
        least = torch.where(open_, gain, torch.inf).detach().amin(dim=0)
        rise = torch.where(open_, gain - least, 0.0) / (0.5 * _spread(gain, open_))
        value = -torch.log1p(-won) + self.diversity * torch.sigmoid(rise)
        return audience.mean(torch.where(open_, value, 0.0), users)


def _spread(values: Tensor, among: Tensor) -> Tensor:
    """The standard deviation of some entries, as a constant; 1 where they do not spread."""
    spread = values.detach()[among].std(unbiased=False)
    return torch.where(spread > 1e-5, spread, 1.0)  # stars: below is rounding, which differs from CPU to CPU
