"""What the explicit models share: imputed ratings of sampled pairs, and the weights of samples."""

from __future__ import annotations

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_robust import UserError
from recbole_robust.defenses import APT, AT, defended
from recbole_robust.model import MF, PCMF, PurifyAugMF
from recbole_robust.types import SAMPLE_WEIGHT

SAMPLING = {"distribution": "popularity", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
IMPUTING = {"train_neg_sample_args": SAMPLING, "imputed_rating": 2.0, "imputed_weight": 0.25, "LABEL_FIELD": "label"}


@pytest.fixture
def batch(ratings):
    """100 ratings, and for each an item whose rating (a copy of the other's) must not be read."""
    rows = {name: column[:100].repeat(2) for name, column in ratings.inter_feat.interaction.items()}
    rows["item_id"][100:] = torch.randint(1, 81, (100,), generator=torch.Generator().manual_seed(1))
    return Interaction({**rows, "label": torch.cat([torch.ones(100), torch.zeros(100)])})


@pytest.mark.parametrize("sample_weight", [None, 0.5])
def test_a_sampled_pair_is_taken_to_be_rated_so(build, batch, sample_weight):
    """``mean over all samples of w e^2``: w = 1 (times the sample's weight) and r, or imputed_weight and r_m."""
    model = build(MF, **IMPUTING)
    weight = torch.ones(200)
    if sample_weight:
        weight = torch.linspace(0, 1, 200)
        batch = Interaction({**batch.interaction, SAMPLE_WEIGHT: weight})
    predicted = (model.user_embedding(batch["user_id"]) * model.item_embedding(batch["item_id"])).sum(1)
    observed = (weight * (predicted - batch["rating"] / 5).pow(2))[:100].sum()
    imputed = 0.25 * (weight * (predicted - 2.0 / 5).pow(2))[100:].sum()
    torch.testing.assert_close(model.calculate_loss(batch), (observed + imputed) / 200)


def test_at_weight_0_it_is_the_loss_of_the_ratings(build, batch):
    model = build(MF, **{**IMPUTING, "imputed_weight": 0.0})
    plain = build(MF)
    torch.testing.assert_close(model.calculate_loss(batch), plain.calculate_loss(batch[:100]) / 2)


@pytest.mark.parametrize("model_class", [MF, PCMF, PurifyAugMF])
def test_no_model_of_ratings_reads_the_rating_of_a_sampled_pair(build, batch, model_class):
    other = Interaction({**batch.interaction, "rating": torch.where(batch["label"] > 0, batch["rating"], 77.0)})
    losses = []
    for rows in (batch, other):
        model = build(model_class, **IMPUTING)
        torch.manual_seed(1)
        losses.append(model.calculate_loss(rows))
    torch.testing.assert_close(*losses, rtol=0, atol=0)


def test_an_adversarial_loss_weighs_samples_as_the_model_does(build, batch):
    """With no noise the adversarial term is the model's own loss once more."""
    model = build(defended(MF, AT(eps=0.0, start_epoch=0)), **IMPUTING)
    own, adversarial = model.calculate_loss(batch)
    torch.testing.assert_close(adversarial, own)


def test_apt_wants_observed_ratings_only(build):
    with pytest.raises(UserError, match="train_neg_sample_args: expected none under APT"):
        APT().attach(build(MF, **IMPUTING))
