"""From what a recogniser says of sequences to the weights of their losses; and who weighs whom. Plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

# The constants of splitmix64, as signed 64-bit integers.
_STEP, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


def sequence_weights(logits: Tensor, temperature: float = 1.0, floor: float = 0.0) -> Tensor:
    """``w = floor + (1 - floor) sigmoid(logit / temperature)``, in single precision: how clean a sequence seems.

    Shape: ``(B,)`` -> ``(B,)``.
    """
    return floor + (1 - floor) * torch.sigmoid(logits.float() / temperature)


def weighted_mean(losses: Tensor, weights: Tensor, normalize: bool = True) -> Tensor:
    """``L_R = sum w l / sum w``; without ``normalize`` the mean of ``w l``. Weights that are all 0 give 0.

    Its derivative to ``w_i`` is ``(l_i - L_R) / sum w``: what is hard for the recommender loses weight.

    Shape: two of ``(B,)`` -> scalar.
    """
    losses = losses.float()
    if not normalize:
        return (weights * losses).mean()
    return (weights * losses).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)


def per_fold(weights: Tensor, folds: Tensor, n_folds: int) -> Tensor:
    """The weights over their mean in the fold, so that no fold counts for less because its recogniser is stricter.

    Shape: ``weights`` and ``folds`` ``(B,)`` -> ``(B,)``.
    """
    zeros = torch.zeros(n_folds, device=weights.device)
    sums = zeros.index_add(0, folds, weights)
    counts = zeros.index_add(0, folds, torch.ones_like(weights))
    return weights / (sums / counts.clamp(min=1)).clamp(min=torch.finfo(torch.float32).tiny)[folds]


def effective_size(weights: Tensor) -> float:
    """``(sum w)^2 / (n sum w^2)``: the share of the sequences that the weights leave, 1 where all are equal."""
    weights = weights.double()
    squares = len(weights) * weights.square().sum()
    return float(weights.sum().square() / squares) if squares > 0 else 0.0


def folds_of(users: Tensor, n_folds: int, seed: int) -> Tensor:
    """The fold of each user, by a hash of the id and the seed: the same in every batch, run and split.

    Shape: ``(B,)`` -> ``(B,)``, from 0 to ``n_folds - 1``.
    """
    x = users.long() * _STEP + (seed + 1) * 0x9E3779B9
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return _shifted(x ^ _shifted(x, 31), 33) % n_folds


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shifted right, zeros from the left (torch repeats the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
