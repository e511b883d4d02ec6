"""The recognisers of ATJT: is a sequence, with its target, as somebody left it, or has an item been replaced?

Plain torch. Both return a logit, high where the sequence seems clean. Randomness is an argument: without a generator
nothing is dropped.

Reference:
    Liu et al. "Enhancing Recommendation with Denoising Auxiliary Task." JCST 39(5), 2024. The layers of ``paper`` are
    those of the authors' code, less its user embedding: whom a recogniser weighs it has never seen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

ATTENTION, HEAD = (64, 32), (256, 64)  # widths of the hidden layers, as in the authors' code


def dropped(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Dropout by a generator of one's own, which leaves the global random stream as it is. Shape: any.

    A byte a value decides, eight of one draw: an eighth of the time. So the rate is one of 256.
    """
    kept = max(1, round(256 * (1 - rate)))
    if generator is None or kept == 256:
        return x
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
    draws.random_(-(2**63), None, generator=generator)
    mask = draws.view(torch.uint8)[: x.numel()].view(x.shape) < kept
    return x * mask.to(x.dtype).mul_(256 / kept)


class PReLU(nn.PReLU):
    """torch's, by a rectifier: on a CPU faster than its own kernel, and than a sum of products. Shape: any."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x.relu(), x, self.weight.to(x.dtype))


class Recogniser(nn.Module):
    """Vectors of the items, those of their categories beside them where these are known (as in the authors' code).

    Args:
        n_items: ids run from 1 to ``n_items - 1``; 0 is padding.
        dim: size of its own item vectors, and of the categories'.
        categories: of each item, 0 for none; None: not used. Shape: ``(n_items,)``.
    """

    category_of: Tensor | None

    def __init__(self, n_items: int, dim: int, categories: Tensor | None) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, dim, padding_idx=0)
        self.width = dim if categories is None else 2 * dim
        self.register_buffer("category_of", categories, persistent=False)
        if categories is not None:
            self.categories = nn.Embedding(int(categories.max()) + 1, dim, padding_idx=0)

    def vectors(self, items: Tensor) -> Tensor:
        """Shape: any -> ``(..., width)``."""
        if self.category_of is None:
            return self.items(items)
        return torch.cat([self.items(items), self.categories(self.category_of[items])], dim=-1)


class TargetAttentionRecogniser(Recogniser):
    """``paper``: attention of the target to the history's items, one by one, without softmax; blind to their order.

    Args:
        n_items: ids run from 1 to ``n_items - 1``; 0 is padding.
        dim: size of its own item vectors; the authors' 8.
        dropout: between the layers of the attention; the authors' 0.5.
        mean_pool: the mean of the history beside its weighted sum. Not in the authors' code.
        categories: as in :class:`Recogniser`.

    Shape:
        - Input: sequences ``(B, L)``, lengths and targets ``(B,)``
        - Output: logits ``(B,)``
    """

    def __init__(
        self,
        n_items: int,
        dim: int = 16,
        dropout: float = 0.5,
        mean_pool: bool = True,
        categories: Tensor | None = None,
    ) -> None:
        super().__init__(n_items, dim, categories)
        self.dropout, self.mean_pool = dropout, mean_pool
        self.compare = nn.Linear(4 * self.width, ATTENTION[0])
        self.attend = nn.ModuleList([PReLU(), nn.Linear(*ATTENTION), PReLU()])
        self.score = nn.Linear(ATTENTION[1], 1)
        self.head = nn.Sequential(
            nn.Linear((3 if mean_pool else 2) * self.width, HEAD[0]), PReLU(),
            nn.Linear(*HEAD), PReLU(), nn.Linear(HEAD[1], 1),
        )  # fmt: skip
        _initialise(self)

    def forward(
        self, sequences: Tensor, lengths: Tensor, targets: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        # Only what is no padding, as one long list: short histories in long rows cost what they are.
        row, place = (torch.arange(sequences.shape[1], device=lengths.device) < lengths[:, None]).nonzero(as_tuple=True)
        h, target = self.vectors(sequences[row, place]), self.vectors(targets)
        attention = self._attention(h, target, row, generator)
        weighted = torch.zeros_like(target).index_add(0, row, (attention * h).to(target.dtype))
        pooled = [weighted, target]
        if self.mean_pool:
            sums = torch.zeros_like(target).index_add(0, row, h)
            pooled.append(sums / lengths[:, None].clamp(min=1))
        return self.head(torch.cat(pooled, dim=1)).squeeze(1)

    def _attention(self, h: Tensor, target: Tensor, row: Tensor, generator: torch.Generator | None) -> Tensor:
        """The weight of each item, by a network on ``[h, t, h - t, h * t]``. Shape: ``(n, d)`` -> ``(n, 1)``.

        The first layer is taken apart, since the difference is in the blocks of ``h`` and ``t``: three blocks do.
        """
        of_h, of_t, of_difference, of_product = self.compare.weight.chunk(4, dim=1)
        blocks = torch.cat([of_h + of_difference, of_t - of_difference, of_product], dim=1)
        t = target.index_select(0, row)  # backwards faster than target[row]
        x = nn.functional.linear(torch.cat([h, t, h * t], dim=1), blocks, self.compare.bias)
        for layer in self.attend:
            x = layer(x)
            if isinstance(layer, PReLU):
                x = dropped(x, self.dropout, generator)
        return self.score(x)


class GRURecogniser(Recogniser):
    """``gru``: a two-way GRU along the history and the target at its end, its states max-pooled; it knows the order.

    Not in the paper. It learns in fewer steps and costs several times as much a step.

    Args:
        n_items: ids run from 1 to ``n_items - 1``; 0 is padding.
        dim: size of its own item vectors, and of the states each way.
        dropout: of the pooled states.
        categories: as in :class:`Recogniser`.

    Shape:
        - Input: sequences ``(B, L)``, lengths and targets ``(B,)``
        - Output: logits ``(B,)``
    """

    def __init__(self, n_items: int, dim: int = 16, dropout: float = 0.5, categories: Tensor | None = None) -> None:
        super().__init__(n_items, dim, categories)
        self.dropout = dropout
        self.gru = nn.GRU(self.width, dim, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(2 * dim, HEAD[1]), PReLU(), nn.Linear(HEAD[1], 1))
        _initialise(self)

    def forward(
        self, sequences: Tensor, lengths: Tensor, targets: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        whole = torch.cat([sequences, torch.zeros_like(targets)[:, None]], dim=1)
        whole = whole.scatter(1, lengths[:, None], targets[:, None])
        packed = pack_padded_sequence(self.vectors(whole), (lengths + 1).cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, padding_value=-torch.inf)
        return self.head(dropped(states.amax(dim=1), self.dropout, generator)).squeeze(1)


def _initialise(recogniser: nn.Module) -> None:
    """Xavier's uniform values for all matrices, as in the authors' code; the padding item is zero."""
    for name, parameter in recogniser.named_parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        elif "bias" in name:
            nn.init.zeros_(parameter)
    with torch.no_grad():
        for table in (layer for layer in recogniser.children() if isinstance(layer, nn.Embedding)):
            table.weight[0] = 0


def build_recogniser(
    name: str, n_items: int, dim: int, dropout: float, mean_pool: bool, categories: Tensor | None = None
) -> nn.Module:
    """The recogniser ``paper`` or ``gru``."""
    if name == "paper":
        return TargetAttentionRecogniser(n_items, dim, dropout, mean_pool, categories)
    return GRURecogniser(n_items, dim, dropout, categories)
