"""The tap sees the samples' losses where a criterion saw their mean, and changes nothing by itself."""

from __future__ import annotations

import pytest
import torch
from recbole.model.loss import BPRLoss, EmbLoss
from torch import nn
from torch.testing import assert_close

from recbole_robust import UserError
from recbole_robust.criterion_tap import CriterionTap, attach, sample_losses

LABELS = (torch.arange(12) % 3 == 0).float()
CALLS = {
    "bpr": (BPRLoss(), (torch.randn(12), torch.randn(12))),
    "bpr, a column": (BPRLoss(), (torch.randn(12, 1), torch.randn(12, 1))),
    "logits": (nn.BCEWithLogitsLoss(), (torch.randn(12), LABELS)),
    "probabilities": (nn.BCELoss(), (torch.rand(12), LABELS)),
    "classes": (nn.CrossEntropyLoss(), (torch.randn(12, 5), torch.arange(12) % 5)),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_mean_of_the_samples_is_the_criterions(call):
    criterion, args = CALLS[call]
    samples = sample_losses(criterion, *args)
    assert samples.losses.shape == samples.is_positive.shape == (12,)
    assert_close(samples.losses.mean(), criterion(*args))
    expected = LABELS > 0 if args[1] is LABELS else torch.ones(12, dtype=torch.bool)
    assert torch.equal(samples.is_positive, expected)


@pytest.mark.parametrize("call", CALLS)
def test_a_tap_without_a_reduction_is_the_criterion(call):
    criterion, args = CALLS[call]
    tap = CriterionTap(criterion)
    assert torch.equal(tap(*args), criterion(*args))
    tap.reduce = lambda samples: None
    assert torch.equal(tap(*args), criterion(*args))
    tap.reduce = lambda samples: samples.losses.max()
    assert torch.equal(tap(*args), sample_losses(criterion, *args).losses.max())


class Model(nn.Module):
    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 2)
        for name, child in children.items():
            setattr(self, name, child)


def test_it_takes_the_criterions_place():
    model = Model(mf_loss=BPRLoss(), reg_loss=EmbLoss())
    keys = list(model.state_dict())
    assert attach(model) is model.mf_loss
    assert isinstance(model.reg_loss, EmbLoss) and list(model.state_dict()) == keys


def test_the_criterion_of_the_recommendation_comes_first():
    """FEARec has contrastive criteria beside it, over all pairs of a batch."""
    model = Model(aug_nce_fct=nn.CrossEntropyLoss(), loss_fct=nn.CrossEntropyLoss())
    assert attach(model) is model.loss_fct and isinstance(model.aug_nce_fct, nn.CrossEntropyLoss)


@pytest.mark.parametrize(
    ("children", "got"),
    [
        ({}, "none"),
        ({"loss_function": nn.CrossEntropyLoss()}, "none"),
        ({"a": BPRLoss(), "b": nn.BCELoss()}, "a, b"),
        ({"a": nn.BCELoss(reduction="none")}, "none"),
    ],
)
def test_no_criterion_or_several_are_refused(children, got):
    with pytest.raises(UserError, match=rf"expected one criterion .* got {got} in this one"):
        attach(Model(**children))
