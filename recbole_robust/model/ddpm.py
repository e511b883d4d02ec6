"""The other purifier of the paper: noise is added and taken away step by step (DDPM, eq. 7; DiffPure).

Reference:
    Ho, Jain, Abbeel. "Denoising Diffusion Probabilistic Models." NeurIPS 2020, eq. (6) and (7), which the paper prints
    as its eq. (7) without the bars; Nie et al. "Diffusion Models for Adversarial Purification." ICML 2022 (DiffPure).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recbole_robust.model.score_opt import FixedDenoiser


def ddpm(
    denoiser_at: Callable[[float], FixedDenoiser],
    x_a: Tensor,
    *,
    sigma: float,
    sigma_min: float,
    steps: int,
    noise: Sequence[Tensor] | None = None,
) -> Tensor:
    """Adds noise to x_a up to sigma, then goes back to none in ``steps`` steps of the reverse chain.

    In the variance-preserving terms of eq. (7) the level sigma is ``abar = 1 / (1 + sigma^2)``, and ``x_t = sqrt(abar)
    (x + sigma e)``. A step from abar to abar' (alpha = abar / abar') draws from the posterior q(x_t' | x_t, x_0) at the
    denoiser's guess of x_0; the last one takes the guess itself. The levels fall from sigma to sigma_min by equal
    factors.

    Arguments:
        denoiser_at: D(.; s) for a level s; standardised data.
        x_a (Tensor): what is purified.
        sigma (float): t*, where the chain begins.
        sigma_min (float): the last level; of one step it is sigma.
        steps (int): M, at least 1.
        noise: a draw a step, independent of one another; None is no noise: the chain of the means.

    Shape:
        - x_a: ``(B, dim)``; noise ``(B, dim)`` or ``(1, dim)``
        - Output: ``(B, dim)``
    """
    ratio = min(sigma_min / sigma, 1.0) ** (1 / max(steps - 1, 1))
    levels = [sigma * ratio**step for step in range(steps)]
    drawn = [0.0] * steps if noise is None else noise
    abar = 1 / (1 + sigma**2)
    x_t = math.sqrt(abar) * (x_a + sigma * drawn[0])
    for step, level in enumerate(levels[:-1], start=1):
        guess = denoiser_at(level)(x_t / math.sqrt(abar))
        nearer = 1 / (1 + levels[step] ** 2)
        alpha = abar / nearer
        mean, variance = posterior(guess, x_t, alpha, abar)
        x_t, abar = mean + math.sqrt(variance) * drawn[step], nearer
    return denoiser_at(levels[-1])(x_t / math.sqrt(abar))


def fresh_draws(x: Tensor, steps: int) -> list[Tensor]:
    """New noise for each row and step. Shape: ``(B, dim)`` each."""
    return [torch.randn_like(x) for _ in range(steps)]


def fixed_draws(x: Tensor, steps: int, seed: int = 0) -> list[Tensor]:
    """The same draws for all rows, another at each step, always: rankings do not depend on luck. ``(1, dim)`` each."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(steps, 1, x.shape[1], generator=generator).to(x))


def posterior(x_0: Tensor, x_t: Tensor, alpha: float, abar: float) -> tuple[Tensor, float]:
    """Mean and variance of q(x_{t-1} | x_t, x_0) (eq. 7). Shape: ``(B, dim)`` each -> ``(B, dim)``."""
    before, beta = abar / alpha, 1 - alpha
    mean = (math.sqrt(before) * beta * x_0 + math.sqrt(alpha) * (1 - before) * x_t) / (1 - abar)
    return mean, beta * (1 - before) / (1 - abar)
