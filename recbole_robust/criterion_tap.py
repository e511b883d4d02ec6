"""CriterionTap: the losses of a RecBole model sample by sample, and a mean of them that someone else chooses.

Most models of RecBole hand their scores to one criterion, a child module that returns a mean. The tap takes its place:
the model does not notice, its regularisation and its other losses stay as they are, and its ``state_dict`` too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from recbole.model.loss import BPRLoss
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_robust.types import SAMPLE_WEIGHT, UserError

FIRST_CHOICE = "loss_fct"  # what RecBole's sequential models call the criterion of the recommendation itself


@dataclass(frozen=True)
class SampleLosses:
    """What a criterion would have averaged.

    Attributes:
        losses: minus the logarithm of the probability that the model gives to what was observed. Shape: ``(B,)``.
        is_positive: of the samples, those that somebody interacted with; the others are sampled negatives.
            Shape: ``(B,)``.
    """

    losses: Tensor
    is_positive: Tensor


class CriterionTap(nn.Module):
    """Stands where a criterion stood; ``reduce`` makes one number of the samples' losses.

    No ``reduce``, or one that returns None, leaves it to the criterion.
    """

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion
        self.reduce: Callable[[SampleLosses], Tensor | None] | None = None

    def forward(self, *args: Tensor) -> Tensor:
        found = None if self.reduce is None else self.reduce(sample_losses(self.criterion, *args))
        return self.criterion(*args) if found is None else found

    @contextlib.contextmanager
    def reducing(self, reduce: Callable[[SampleLosses], Tensor | None]) -> Iterator[None]:
        """Inside this block the loss is what ``reduce`` makes of the samples'."""
        self.reduce = reduce
        try:
            yield
        finally:
            self.reduce = None


def sample_losses(criterion: nn.Module, *args: Tensor) -> SampleLosses:
    """The losses that a call of ``criterion`` averages, one by one."""
    if isinstance(criterion, BPRLoss):
        positive, negative = args
        losses = -torch.log(criterion.gamma + torch.sigmoid(positive - negative))
        return SampleLosses(losses.flatten(), torch.ones_like(losses, dtype=torch.bool).flatten())
    scores, target = args
    if isinstance(criterion, nn.CrossEntropyLoss):
        losses = F.cross_entropy(scores, target, weight=criterion.weight, reduction="none")
        return SampleLosses(losses, torch.ones_like(losses, dtype=torch.bool))
    bce = F.binary_cross_entropy_with_logits if isinstance(criterion, nn.BCEWithLogitsLoss) else F.binary_cross_entropy
    return SampleLosses(bce(scores, target, reduction="none").flatten(), target.flatten() > 0)


def _can_be_tapped(name: str, child: nn.Module) -> bool:
    if isinstance(child, nn.CrossEntropyLoss):  # over the items; GCMC's is over two classes, positive and negative
        return name == FIRST_CHOICE and child.reduction == "mean"
    return isinstance(child, BPRLoss) or (
        isinstance(child, nn.BCEWithLogitsLoss | nn.BCELoss) and child.reduction == "mean"
    )


def attach(model: nn.Module) -> CriterionTap:
    """Put a tap in the place of the model's criterion and return it.

    Raises:
        UserError: no criterion that can be tapped, or several.
    """
    if any(isinstance(child, CriterionTap) for child in model.children()):
        raise UserError("model: expected one whose samples nothing weighs yet, got one under ATJT or a defense already")
    found = {name: child for name, child in model.named_children() if _can_be_tapped(name, child)}
    if FIRST_CHOICE in found:
        found = {FIRST_CHOICE: found[FIRST_CHOICE]}
    if len(found) != 1:
        got = ", ".join(found) or "none"
        raise UserError(
            f"model: expected one criterion (BPR, BCE or cross-entropy) whose samples can be weighed, as in BPR, "
            f"NeuMF, LightGCN, DIN or SASRec, got {got} in this one"
        )
    (name, criterion), *_ = found.items()
    tap = CriterionTap(criterion)
    setattr(model, name, tap)
    return tap


def weigh_samples(model: nn.Module) -> None:
    """Let a model of RecBole take ``sample_weight``: each sample's loss is multiplied by its own.

    A sampled negative weighs what the row does that it was drawn for. The mean stays over the number of samples, so
    that weight 1 is no weight.

    Raises:
        UserError: no criterion that can be tapped, or several.
    """
    tap = attach(model)
    calculate_loss: Callable[[Any], Any] = model.calculate_loss  # type: ignore[assignment]

    def weighing(interaction: Any) -> Any:
        def reduce(samples: SampleLosses) -> Tensor:
            return (interaction[SAMPLE_WEIGHT] * samples.losses).mean()

        with tap.reducing(reduce):
            return calculate_loss(interaction)

    model.calculate_loss = weighing  # type: ignore[assignment]
    model.weighs_samples = True  # type: ignore[assignment]
