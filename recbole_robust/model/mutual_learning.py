"""The divergences of mutual learning between two vectors of a pair (eq. 11 of PurifyAugMF).

Reference:
    Zhang et al. "Deep Mutual Learning." CVPR 2018; Hinton et al. "Distilling the Knowledge in a Neural Network." 2015.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def softened_kl(p: Tensor, f: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(p / T) || softmax(f / T))`` a row; T^2 makes up for the 1 / T^2 of the gradients.

    Shape: ``(B, dim)`` each -> ``(B,)``.
    """
    p, f = F.log_softmax(p / temperature, dim=-1), F.log_softmax(f / temperature, dim=-1)
    return temperature**2 * (p.exp() * (p - f)).sum(dim=-1)


def limit_kl(p: Tensor, f: Tensor, temperature: float = float("inf")) -> Tensor:
    """The limit of :func:`softened_kl` as T grows: half the variance of ``p - f`` over the dimensions, a row.

    Shape: ``(B, dim)`` each -> ``(B,)``.
    """
    return 0.5 * (p - f).var(dim=-1, unbiased=False)
