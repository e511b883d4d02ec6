"""Algorithm 1 of PurifyAugMF: score-based optimisation of an input over a denoiser, and the choice of its noise level.

Reference:
    Zhang, Luo, Zhang. "Enhancing Adversarial Robustness via Score-Based Optimization." NeurIPS 2023 (ScoreOpt);
    "Exploration & Exploitation: A Unified Framework for Data Purification & Augmentation in Recommendation Systems",
    2025, Algorithm 1 and eq. (8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from recbole_robust.arguments import chosen

Noise = Sequence[tuple[Tensor, Tensor]]

OBJECTIVES = ("sr", "diff", "mse")
OPTIMISERS = ("sgd", "adam")


def options_of(config: Any) -> dict[str, Any]:
    """The arguments of :func:`score_opt` that the ``purify_`` keys of a model's configuration name."""
    return {
        "steps": config["purify_steps"],
        "lr": config["purify_lr"],
        "objective": chosen(config, "purify_obj", *OBJECTIVES),
        "weight": config["purify_lambda"],
        "optimiser": chosen(config, "purify_opt", *OPTIMISERS),
    }


class FixedDenoiser(Protocol):
    """``D(.; sigma)`` at one noise level (see :class:`recbole_robust.model.denoiser.DenoiserAt`)."""

    sigma: float
    c_skip: float

    def __call__(self, x: Tensor) -> Tensor: ...

    def linearise(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]: ...


def score_opt(
    denoiser: FixedDenoiser,
    x_a: Tensor,
    *,
    steps: int,
    lr: float,
    objective: str = "sr",
    weight: float = 1.0,
    optimiser: str = "sgd",
    gradient: str = "exact",
    noise: Noise | None = None,
) -> Tensor:
    """Moves ``x_a`` for ``steps`` steps down the gradient, with respect to x, of

    ``|D(x_t) - x|^2 + weight * R``, with ``x_t = x + sigma e1``, ``a_t = x_a + sigma e2`` and
    ``R = |D(x_t) - D(a_t)|^2`` (``sr``, Algorithm 1), ``0`` (``diff``) or ``|x - x_a|^2`` (``mse``, eq. 10).

    The squares are summed over a row, so that rows do not know of each other and the step size does not depend on the
    batch. For a Gaussian prior N(mu, v) and its best denoiser ``D(x) = c x + (1 - c) mu``, ``c = v / (v + sigma^2)``,
    the limit of ``sr`` with weight 1 is ``((1-c)^2 mu + c^2 x_a) / ((1-c)^2 + c^2)``; ``lr < 1`` is always stable.

    Arguments:
        denoiser: D at the noise level sigma; standardised data.
        x_a (Tensor): the start, which also anchors the objective.
        steps (int): M.
        lr (float): step size; ScoreOpt has 0.01 with adam.
        objective (str): ``sr``, ``diff`` or ``mse``.
        weight (float): lambda.
        optimiser (str): ``sgd``, as printed, or ``adam``, as in ScoreOpt's code.
        gradient (str): ``exact``, or ``skip``: the Jacobian of D is taken for c_skip times the identity, which is exact
            for isotropic Gaussian data and needs no backward pass.
        noise: ``steps`` pairs (e1, e2); None is no noise.

    Shape:
        - x_a: ``(B, dim)``; e1, e2: ``(B, dim)`` or ``(1, dim)``
        - Output: ``(B, dim)``; it carries gradients where x_a does.
    """
    x, anchor, anchor_noise = x_a, None, None
    pullback: Callable[[Tensor], Tensor]
    moment1 = moment2 = x_a.new_zeros(())
    for step in range(steps):
        e1, e2 = noise[step] if noise is not None else (None, None)
        x_t = x if e1 is None else torch.add(x, e1, alpha=denoiser.sigma)
        if gradient == "exact":
            denoised, pullback = denoiser.linearise(x_t)
        else:
            denoised, pullback = denoiser(x_t), partial(torch.mul, denoiser.c_skip)
        residual = denoised - x
        cotangent = residual
        if objective == "sr":
            if anchor is None or e2 is not anchor_noise:
                # Without noise the first x_t is x_a itself.
                anchor = denoised if e2 is None else denoiser(torch.add(x_a, e2, alpha=denoiser.sigma))
                anchor_noise = e2
            cotangent = torch.add(residual, denoised - anchor, alpha=weight)
        grad = pullback(cotangent) - residual  # half of it
        if objective == "mse":
            grad = torch.add(grad, x - x_a, alpha=weight)
        if optimiser == "sgd":
            x = torch.sub(x, grad, alpha=2 * lr)
        else:
            moment1 = 0.9 * moment1 + 0.2 * grad
            moment2 = 0.999 * moment2 + 0.004 * grad**2
            scale = (moment2 / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            x = torch.sub(x, moment1 / scale, alpha=lr / (1 - 0.9 ** (step + 1)))
    return x


def fresh_noise(x: Tensor, steps: int) -> Noise:
    """New e1, e2 for each row and step. Shape: ``steps`` pairs of ``(B, dim)``.

    They are windows on one pool of B + 2 steps rows: a row never meets the same vector twice, and only neighbouring
    rows, which do not interact, share some. Drawing 2 steps B rows would take as long as Algorithm 1 itself.
    """
    rows = x.shape[0]
    pool = torch.randn(rows + 2 * steps, x.shape[1], device=x.device, dtype=x.dtype)
    return [(pool[2 * i : 2 * i + rows], pool[2 * i + 1 : 2 * i + 1 + rows]) for i in range(steps)]


def shared_noise(x: Tensor, steps: int, seed: int = 0) -> Noise:
    """One pair e1, e2 for all rows and steps, always the same: rankings do not depend on luck. Shape: ``(1, dim)``."""
    generator = torch.Generator().manual_seed(seed)
    e1, e2 = torch.randn(2, 1, x.shape[1], generator=generator).to(x)
    return [(e1, e2)] * steps


def diffused_kl(clean: Tensor, attacked: Tensor, sigma: Tensor) -> Tensor:
    """KL divergence of the diagonal Gaussians fitted to clean and attacked data, both diffused to sigma (eq. 8).

    It falls as sigma grows, always: eq. (8) cannot choose a noise level without a threshold.

    Shape:
        - clean, attacked: ``(B, dim)``; sigma: ``(S,)``
        - Output: ``(S,)``
    """
    var_p, mean_p = torch.var_mean(clean, dim=0)
    var_q, mean_q = torch.var_mean(attacked, dim=0)
    p, q = var_p + sigma[:, None] ** 2, var_q + sigma[:, None] ** 2
    return 0.5 * ((q / p).log() + (p + (mean_p - mean_q) ** 2) / q - 1).sum(dim=1)


def t_star(
    clean: Tensor, attacked: Tensor, ratio: float, sigma_min: float, sigma_max: float, cap: float = 1.0
) -> float:
    """The smallest of 32 noise levels, in logarithmic steps, where the KL is ``ratio`` of that without noise.

    At most ``cap`` (in units of the data's standard deviation), also where no level reaches the ratio.

    Shape: clean, attacked ``(B, dim)``, standardised.
    """
    grid = torch.logspace(0, 1, 32, base=sigma_max / sigma_min, device=clean.device) * sigma_min
    kl = diffused_kl(clean, attacked, torch.cat((grid.new_zeros(1), grid)))
    reached = grid[kl[1:] <= ratio * kl[0]]
    return min(float(reached[0]) if len(reached) else cap, cap)
