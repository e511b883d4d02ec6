"""Denoising losses: noise has large losses early in the training, so these samples count for less or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from recbole_robust.criterion_tap import SampleLosses, attach
from recbole_robust.defenses.checks import require_number
from recbole_robust.defenses.defended import Loss
from recbole_robust.types import UserError


@dataclass(frozen=True)
class Denoising:
    """What both have in common: the mean over a batch is taken by the defense."""

    kind: ClassVar[str] = "loss"

    def check(self, model: str, explicit: bool) -> None:
        if explicit:
            raise UserError(
                f"defense: expected a model of implicit feedback under {type(self).__name__}, got {model}, which "
                "learns ratings; --model=PCMF --pcmf_penalty=trim drops the largest errors there"
            )

    def attach(self, model: Any) -> None:
        def reduce(samples: SampleLosses) -> Tensor | None:
            found = self.reduce(samples, int(model.defense_step))
            model.defense_step += 1  # here: some trainers of RecBole call other losses than calculate_loss
            return found

        attach(model).reduce = reduce

    def loss(self, model: Any, interaction: Any, own_loss: Loss) -> Loss:
        return own_loss  # the tap is in it

    def reduce(self, samples: SampleLosses, step: int) -> Tensor | None:
        """The loss of a batch out of its samples', None: their mean; ``step`` counts the batches before it."""
        raise NotImplementedError


@dataclass(frozen=True)
class TCE(Denoising):
    """Truncated cross-entropy: the positives of the largest losses are dropped, in a share that grows from 0.

    ``drop_rate`` is a share of the batch, negatives included, as in the authors' code: with one negative a positive,
    twice that share of the positives. Pairwise models drop the pairs of the largest losses.

    Reference: W. Wang, F. Feng, X. He, L. Nie, T.-S. Chua. Denoising Implicit Feedback for Recommendation. WSDM 2021
    (eq. 4-5).

    Args:
        drop_rate: share dropped in the end, 0 to below 1. (Default: 0.2)
        n_gradual: batches until then. (Default: 30000)
        exponent: 1 is a straight ramp; the authors' reaches ``drop_rate ** exponent`` and jumps: ours does not.
            (Default: 1)
    """

    drop_rate: float = 0.2
    n_gradual: int = 30000
    exponent: float = 1.0

    def __post_init__(self) -> None:
        require_number("drop_rate", self.drop_rate, 0, 0.99)
        require_number("n_gradual", self.n_gradual, 1, integer=True)
        require_number("exponent", self.exponent, 1e-6)

    def reduce(self, samples: SampleLosses, step: int) -> Tensor | None:
        losses = samples.losses
        rate = self.drop_rate * min(1.0, step / self.n_gradual) ** self.exponent
        n_dropped = min(len(losses) - int((1 - rate) * len(losses)), int(samples.is_positive.sum()))
        if n_dropped == 0:
            return None
        suspects = losses.detach().masked_fill(~samples.is_positive, -torch.inf)
        kept = torch.ones_like(losses).index_fill_(0, suspects.topk(n_dropped).indices, 0.0)
        return (losses * kept).sum() / (len(losses) - n_dropped)


@dataclass(frozen=True)
class RCE(Denoising):
    """Reweighted cross-entropy: a sample weighs ``p ** alpha``, p the probability the model gives to its label.

    For a positive that is ``sigmoid(y) ** alpha``, for a negative ``(1 - sigmoid(y)) ** alpha``; for a pair the
    probability that it is ranked rightly. Since its loss is ``-log p``, that is ``exp(-alpha * loss)``, a constant.

    Reference: W. Wang, F. Feng, X. He, L. Nie, T.-S. Chua. Denoising Implicit Feedback for Recommendation. WSDM 2021
    (eq. 6-8).

    Args:
        alpha: 0 weighs all alike. (Default: 0.2)
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        require_number("alpha", self.alpha, 0)

    def reduce(self, samples: SampleLosses, step: int) -> Tensor | None:
        if self.alpha == 0:
            return None
        return (samples.losses * torch.exp(-self.alpha * samples.losses.detach())).mean()
