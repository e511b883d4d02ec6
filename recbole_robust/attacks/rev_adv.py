"""The revisited adversarial attack."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from recbole_robust.attacks.gradient import Audience, GradientAttack


@dataclass(frozen=True)
class RevAdv(GradientAttack):
    """Raise the log-likelihood of the targets under a softmax over each user's unrated items.

    Reference: J. Tang, H. Wen, K. Wang. Revisiting Adversarially Learned Injection Attacks Against Recommender Systems.
    RecSys 2020, eq. (5). They unroll the surrogate's training; here its least squares are solved, and the derivative is
    that of the solution.

    Knowledge: white-box; all ratings.
    """

    def objective(self, scores: Tensor, audience: Audience, users: slice) -> Tensor:
        return audience.mean(scores.log_softmax(dim=1)[:, audience.targets], users)
