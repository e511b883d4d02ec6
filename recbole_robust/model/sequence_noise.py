"""Artificial noise for the recogniser of ATJT: sequences with an item replaced at random, labelled. Plain torch.

Reference:
    Liu et al. "Enhancing Recommendation with Denoising Auxiliary Task." JCST 39(5), 2024: subsets of the users'
    sequences are replaced at random, noisy and clean ones side by side in a batch (Fig. 2a).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Corrupted(NamedTuple):
    """A batch of sequences of which some are noisy.

    Shape: ``sequences`` ``(B, L)``, ``targets`` and ``is_clean`` (float: 1 untouched, 0 noisy) ``(B,)``.
    """

    sequences: Tensor
    targets: Tensor
    is_clean: Tensor


@dataclass(frozen=True)
class SequenceCorruptor:
    """Replaces items in ``floor(B * ratio)`` of the sequences of a batch, drawn anew at every call.

    A new item is never the padding and never the one that it replaces (the authors' code allows both, and so labels
    untouched sequences noisy). Every valid position is as likely as any other. Padding, lengths and inputs stay.

    Args:
        n_items: ids run from 1 to ``n_items - 1``; 0 is padding. At least 3.
        ratio: share of the sequences that are made noisy; the paper's 1:1 is 0.5.
        n_replaced: items replaced in such a sequence, as a count (the authors' code: 1) or, below 1, as a share of its
            length, rounded up. A shorter sequence loses all that it has.
        target_prob: how likely it is the target that is replaced instead of the history. The paper: never.
        popularity: how often each item is drawn as a replacement; None: all alike. Shape: ``(n_items,)``.
    """

    n_items: int
    ratio: float = 0.5
    n_replaced: float = 1
    target_prob: float = 0.0
    popularity: Tensor | None = None

    def __call__(self, sequences: Tensor, lengths: Tensor, targets: Tensor, *, generator: torch.Generator) -> Corrupted:
        """The batch with noise in it.

        Shape: ``sequences`` ``(B, L)``, padded by 0 on the right; ``lengths`` and ``targets`` ``(B,)``.
        """
        n, device = len(sequences), sequences.device
        rows = torch.randperm(n, generator=generator, device=device)[: int(n * self.ratio + 1e-9)]
        sequences, targets = sequences.clone(), targets.clone()
        is_clean = torch.ones(n, device=device).index_fill_(0, rows, 0.0)
        if self.target_prob:
            is_target = torch.rand(len(rows), generator=generator, device=device) < self.target_prob
            hit = rows[is_target]
            targets[hit] = self._other_than(targets[hit], generator)
            rows = rows[~is_target]
        part = sequences[rows]
        places = self._places(part.shape, lengths[rows], generator)
        part[places] = self._other_than(part[places], generator)
        sequences[rows] = part
        return Corrupted(sequences, targets, is_clean)

    def _places(self, shape: torch.Size, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """Which positions are replaced: of each row the wanted number of valid ones. Shape: ``(n, L)``, bool."""
        counts = torch.full_like(lengths, int(self.n_replaced)) if self.n_replaced >= 1 else (
            (self.n_replaced * lengths - 1e-6).ceil().long()
        )  # fmt: skip
        position = torch.arange(shape[1], device=lengths.device)
        keys = torch.rand(shape, generator=generator, device=lengths.device)
        keys = keys.masked_fill(position >= lengths[:, None], 2.0)  # behind all valid ones
        rank = torch.empty(shape, dtype=torch.long, device=lengths.device)
        rank.scatter_(1, keys.argsort(dim=1), position.expand(shape))
        return rank < torch.minimum(counts, lengths)[:, None]

    def _other_than(self, items: Tensor, generator: torch.Generator) -> Tensor:
        """Items of 1 to ``n_items - 1``, each another than the given one. Shape: ``(n,)``."""
        if self.popularity is None:
            drawn = torch.randint(1, self.n_items - 1, items.shape, generator=generator, device=items.device)
            return drawn + (drawn >= items)
        weights = self.popularity.to(items.device, torch.float).clamp(min=1e-6).index_fill(
            0, torch.zeros(1, dtype=torch.long, device=items.device), 0.0
        )  # fmt: skip
        drawn, again = items.clone(), torch.arange(len(items), device=items.device)
        while len(again):
            drawn[again] = torch.multinomial(weights, len(again), replacement=True, generator=generator)
            again = again[drawn[again] == items[again]]
        return drawn
