"""The denoiser of PurifyAugMF, how it is trained, and the standardised space that it works in.

Reference:
    Karras et al. "Elucidating the Design Space of Diffusion-Based Generative Models." NeurIPS 2022, table 1 (EDM
    preconditioning); Vincent. "A Connection Between Score Matching and Denoising Autoencoders." 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NOISE_FEATURES = 16


class RunningMoments(nn.Module):
    """Running mean and variance of each dimension, and the maps to and from the space where they are 0 and 1.

    Noise levels mean something only in units of the data's spread, and that of embeddings drifts tenfold in training.
    The first batch sets the moments; later ones move them by ``momentum``. They are buffers: a checkpoint has them.

    Shape:
        mean ``(dim,)``, var ``(dim,)``; inputs and outputs ``(..., dim)``.
    """

    mean: Tensor
    var: Tensor
    n_batches: Tensor

    def __init__(self, dim: int, momentum: float = 0.01, eps: float = 1e-12):
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))
        self.register_buffer("n_batches", torch.tensor(0))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Moves the moments towards those of a batch. Shape: ``(B, dim)``."""
        if x.shape[0] < 2:  # one row has no spread
            return
        first = (self.n_batches == 0).to(x)  # a number on the device: a branch would wait for it
        weight = first + (1 - first) * self.momentum
        var, mean = torch.var_mean(x, dim=0)
        self.mean.lerp_(mean, weight)
        self.var.lerp_(var, weight)
        self.n_batches += 1

    @property
    def std(self) -> Tensor:
        return (self.var + self.eps).sqrt()

    def standardise(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def restore(self, z: Tensor) -> Tensor:
        return torch.addcmul(self.mean, z, self.std)


class DenoiserAt:
    """``D(.; sigma)`` at one noise level, with its parameters held constant: what Algorithm 1 differentiates.

    At a fixed sigma the noise features are a bias and ``c_in`` is part of the weights, so that ``D(x) = c_skip x +
    c_out (W2 silu(A x + b) + b2)``. Its backward pass is written out because only the input's gradient is wanted: it
    is 1.7 times faster than autograd here, and it does not care for ``torch.no_grad``.
    """

    def __init__(self, sigma: float, a: Tensor, b: Tensor, w2: Tensor, b2: Tensor):
        self.sigma = sigma
        self.c_skip = 1 / (1 + sigma**2)
        c_out = sigma / math.sqrt(1 + sigma**2)
        self.a, self.b, self.w2, self.b2 = a, b, c_out * w2, c_out * b2

    def __call__(self, x: Tensor) -> Tensor:
        """Shape: ``(B, dim)`` -> ``(B, dim)``."""
        return self._output(x, torch.addmm(self.b, x, self.a.T))

    def linearise(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """``D(x)`` and the map ``w -> J^T w`` with ``J = dD/dx``. Shape: ``(B, dim)`` each."""
        h = torch.addmm(self.b, x, self.a.T)
        return self._output(x, h), lambda w: (self.c_skip * w).addmm_(silu_pullback(w @ self.w2, h), self.a)

    def _output(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.add(self.b2, x, alpha=self.c_skip).addmm_(F.silu(h), self.w2.T)


def silu_pullback(w: Tensor, h: Tensor) -> Tensor:
    """``w * silu'(h)``."""
    if torch.is_grad_enabled():  # torch's own kernel has no derivative
        gate = torch.sigmoid(h)
        return w * gate * (1 + h * (1 - gate))
    return torch.ops.aten.silu_backward(w, h)


class Denoiser(nn.Module):
    """``D(x; sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4)`` on standardised data, F an MLP with one hidden layer.

    ``c_skip = 1 / (1 + sigma^2)``, ``c_out = sigma / sqrt(1 + sigma^2)``, ``c_in = 1 / sqrt(1 + sigma^2)``. F starts at
    zero, where D is the best denoiser of a standard Gaussian.

    Shape:
        - x: ``(B, dim)``; sigma: ``(B, 1)``
        - Output: ``(B, dim)``
    """

    frequencies: Tensor

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.input = nn.Linear(dim, hidden)
        self.noise = nn.Linear(NOISE_FEATURES, hidden, bias=False)
        self.output = nn.Linear(hidden, dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("frequencies", 2 * math.pi * torch.logspace(-1, 2, NOISE_FEATURES // 2, base=2.0))

    def _noise_features(self, sigma: Tensor) -> Tensor:
        angles = sigma.log() / 4 * self.frequencies
        return self.noise(torch.cat((angles.cos(), angles.sin()), dim=-1))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        scale = (1 + sigma**2).rsqrt()
        h = F.silu(self.input(scale * x) + self._noise_features(sigma))
        return scale**2 * x + sigma * scale * self.output(h)

    @torch.no_grad()
    def at(self, sigma: float) -> DenoiserAt:
        bias = self.input.bias + self._noise_features(self.frequencies.new_tensor([sigma]))
        weight = self.input.weight / math.sqrt(1 + sigma**2)
        return DenoiserAt(sigma, weight, bias, self.output.weight.detach(), self.output.bias.detach())


def denoising_loss(denoiser: Denoiser, x: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """Denoising score matching (eq. 10 without its constant term): ``w(s) mean_d (D(x + s e; s) - x)^2`` a row.

    ``s = sigma_min^(1-t) sigma_max^t`` with ``t ~ U(0, 1)`` a row, ``e ~ N(0, I)``, ``w(s) = (1 + s^2) / s^2``.
    ``x`` must not carry gradients: shrinking x to zero would minimise this loss.

    Shape:
        - x: ``(B, dim)``, standardised
        - Output: ``(B,)``
    """
    t = torch.rand(x.shape[0], 1, device=x.device)
    sigma = sigma_min ** (1 - t) * sigma_max**t
    error = denoiser(x + sigma * torch.randn_like(x), sigma) - x
    return ((1 + sigma**2) / sigma**2 * error.pow(2)).mean(dim=1)
