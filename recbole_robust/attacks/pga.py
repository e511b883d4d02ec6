"""The projected gradient ascent attack on matrix factorisation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from recbole_robust.attacks.gradient import Audience, GradientAttack


@dataclass(frozen=True)
class PGA(GradientAttack):
    """Raise the targets' predicted ratings (the paper's integrity attack with weight on the targets alone).

    Reference: B. Li, Y. Wang, A. Singh, Y. Vorobeychik. Data Poisoning Attacks on Factorization-Based Collaborative
    Filtering. NIPS 2016 (PGA; the utility R^int).

    Knowledge: white-box; all ratings. The surrogate stands for the victim's factorisation.
    """

    def objective(self, scores: Tensor, audience: Audience, users: slice) -> Tensor:
        return audience.mean(scores[:, audience.targets], users)
