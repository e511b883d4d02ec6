"""The purification gate of PurifyAugMF: multi-head squeeze and excitation (eq. 2 to 5).

Reference:
    "Exploration & Exploitation: A Unified Framework for Data Purification & Augmentation in Recommendation Systems",
    2025, section on data purification; the block is that of Hu et al. "Squeeze-and-Excitation Networks." CVPR 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SEGate(nn.Module):
    """Removes the share ``S`` of a pair embedding that is noise: ``x_p = x - S * x`` (eq. 5).

    ``x`` is cut into ``n`` heads of ``k = dim / n`` numbers; ``z_h`` is the mean of head ``h`` (eq. 3) and
    ``S = sigmoid(W2 relu(W1 z) + b)`` (eq. 4; the paper writes one symbol for both functions, but a share to remove
    lies in (0, 1)). In SENet the gate says what to keep, here what to remove: ``bias_init`` -3 starts at S = 0.05.

    Arguments:
        dim (int): size of the pair embedding, a multiple of ``heads``.
        heads (int): n.
        reduction (int): W1 has ``max(n / reduction, 2)`` rows.
        excite (str): ``head`` gives one S a head, ``dim`` one a number.
        bias_init (float): b at the start.

    Shape:
        - Input: ``(..., dim)``
        - Output: x_p ``(..., dim)``
    """

    spread: Tensor  # (heads, dim): 1 where a number belongs to a head

    def __init__(self, dim: int, heads: int, reduction: int = 2, excite: str = "head", bias_init: float = -3.0):
        super().__init__()
        self.heads = heads
        self.width = dim // heads
        hidden = max(heads // reduction, 2)
        self.w1 = nn.Linear(heads, hidden, bias=False)
        self.w2 = nn.Linear(hidden, heads if excite == "head" else dim)
        self.excite_dim = excite == "dim"
        self.register_buffer("spread", torch.eye(heads).repeat_interleave(self.width, dim=1), persistent=False)
        nn.init.constant_(self.w2.bias, bias_init)

    def squeeze(self, x: Tensor) -> Tensor:
        """Mean of each head (eq. 3). Shape: ``(..., dim)`` -> ``(..., heads)``."""
        return x.unflatten(-1, (self.heads, self.width)).mean(dim=-1)

    def excite(self, z: Tensor) -> Tensor:
        """S from the heads' means (eq. 4). Shape: ``(..., heads)`` -> ``(..., heads)`` or ``(..., dim)``."""
        return torch.sigmoid(self.w2(torch.relu(self.w1(z))))

    def share(self, x: Tensor) -> Tensor:
        """S. Shape: ``(..., dim)`` -> ``(..., heads, 1)`` or ``(..., heads, width)``, in (0, 1)."""
        return self.excite(self.squeeze(x)).unflatten(-1, (self.heads, -1))

    def forward(self, x: Tensor) -> Tensor:
        """``(1 - S) x``. The means go into W1, so both are one matrix; sums of a few numbers each would take longer."""
        w1 = self.w1.weight.repeat_interleave(self.width, dim=1) / self.width
        keep = 1 - torch.sigmoid(self.w2(torch.relu(F.linear(x, w1))))
        return x * (keep if self.excite_dim else keep @ self.spread)

    def rank(self, u: Tensor, v: Tensor, weight: Tensor) -> Tensor:
        """``sum(weight * (1 - S) * u * v)`` of every pair for ``excite: head``, without making any ``x = u * v``.

        z_h and the head's share of the sum are both inner products of the heads of u and v.

        Shape: u ``(B, dim)``, v ``(I, dim)``, weight ``(dim,)`` -> ``(B, I)``.
        """
        u, v, weight = (t.unflatten(-1, (self.heads, self.width)) for t in (u, v, weight))
        keep = 1 - self.excite(torch.einsum("bhk,ihk->bih", u, v) / self.width)
        return (keep * torch.einsum("bhk,ihk->bih", weight * u, v)).sum(dim=-1)
