"""From what a recogniser says of sequences to the weights of their losses; and who weighs whom. Without RecBole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The constants of splitmix64, as signed 64-bit integers.
_STEP, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685

MOST_NOISE = 0.95  # of a log that is still worth learning from


def sequence_weights(
    logits: Tensor, temperature: float = 1.0, floor: float = 0.0, least_odds: Tensor | float | None = None
) -> Tensor:
    """``w = floor + (1 - floor) p``, in single precision; ``p`` tells how clean a sequence seems.

    It is the recogniser's ``sigmoid(logit / temperature)``, or with ``least_odds``, which no noise falls below (see
    :func:`odds_of_noise`), the part of its odds that noise does not explain, ``max(0, 1 - least_odds / odds)``.

    Shape: ``(B,)``, ``least_odds`` too if it is a tensor -> ``(B,)``.
    """
    logits = logits.float() / temperature
    if least_odds is None:
        return floor + (1 - floor) * torch.sigmoid(logits)
    return floor + (1 - floor) * torch.relu(1 - least_odds * torch.exp(-logits.clamp(min=-80)))


def odds_of_noise(noise_share: Tensor, noisy_seq_ratio: float) -> Tensor:
    """The odds that a recogniser gives to a noisy sequence, of which it has seen some that were said to be clean.

    A share ``r`` of its sequences was made noisy, with density n; the others are the log as it is, of which a share
    ``rho`` is noisy, too. So what it learns are the odds ``(1 - r) / r * ((1 - rho) c + rho n) / n``, with the density
    c of what is clean, and ``P(clean) = 1 - rho (1 - r) / (r odds)``: learning from positive and unlabelled examples
    (Elkan and Noto, KDD 2008), if real noise looks as the artificial. Shape: any.
    """
    return noise_share * (1 - noisy_seq_ratio) / noisy_seq_ratio


def most_noise(of_log: Tensor, of_noise: Tensor) -> float:
    """The largest share of noise that a log can hold, by the logits of its sequences and of noisy ones.

    Were a share ``rho`` of the log like the noisy ones, below any threshold at least ``rho`` times their part of them
    would be in the log: ``rho <= P(log below) / P(noisy below)`` (Blanchard, Lee and Scott, JMLR 2010). The least of
    these ratios counts, at thresholds with 5 to 50 % of the noisy ones below, and at most :data:`MOST_NOISE`: where
    nothing tells one from the other all is left a small weight, the same for all, instead of none.

    Shape: two of ``(n,)`` -> scalar.
    """
    parts = torch.arange(1, 11, device=of_noise.device, dtype=torch.double) / 20
    thresholds = torch.quantile(of_noise.double(), parts)
    below = (of_log.double()[:, None] < thresholds).double().mean(dim=0)
    return float((below / parts).min().clamp(max=MOST_NOISE))


def calibration(of_log: Tensor, of_noise: Tensor, noisy_seq_ratio: float) -> tuple[float, float]:
    """Scale and shift of a recogniser's logits: ``scale * logit + shift`` is as sure as it is right.

    It has learned its own sequences by heart, and is too sure of others. Logistic regression on logits of others, as
    they are in the log and made noisy, says what they are worth (Platt 1999; Guo et al., ICML 2017); the shift makes
    them the log of the odds where a share ``noisy_seq_ratio`` is made noisy, as in its learning. One that knows nothing
    has scale 0: then all weigh the same.

    Shape: two of ``(n,)`` -> two scalars.
    """
    from sklearn.linear_model import LogisticRegression  # here, for the few that ask for it

    logits = torch.cat([of_log, of_noise]).double().cpu().numpy()[:, None]
    regression = LogisticRegression(C=1e6, class_weight="balanced")  # so the prior is the ratio's alone
    fitted = regression.fit(logits, [1] * len(of_log) + [0] * len(of_noise))
    scale, shift = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    prior = math.log((1 - noisy_seq_ratio) / noisy_seq_ratio)
    return (scale, shift + prior) if scale > 0 else (0.0, prior)


def weighted_mean(losses: Tensor, weights: Tensor, normalize: bool = True) -> Tensor:
    """``L_R = sum w l / sum w``; without ``normalize`` the mean of ``w l``. Weights that are all 0 give 0.

    Its derivative to ``w_i`` is ``(l_i - L_R) / sum w``: what is hard for the recommender loses weight.

    Shape: two of ``(B,)`` -> scalar.
    """
    losses = losses.float()
    if not normalize:
        return (weights * losses).mean()
    return (weights * losses).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)


def group_means(weights: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """The mean weight of each group, 1 where it has none. Shape: two of ``(B,)`` -> ``(n_groups,)``."""
    zeros = torch.zeros(n_groups, device=weights.device)
    sums = zeros.index_add(0, groups, weights)
    counts = zeros.index_add(0, groups, torch.ones_like(weights))
    return torch.where(counts > 0, sums / counts.clamp(min=1), 1.0)


def per_group(weights: Tensor, groups: Tensor, means: Tensor) -> Tensor:
    """The weights over the mean of their group. Shape: two of ``(B,)``, ``means`` ``(n_groups,)`` -> ``(B,)``."""
    return weights / means.clamp(min=torch.finfo(torch.float32).tiny)[groups]


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
