"""TCE and RCE: which samples count, and how much."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from recbole_robust import UserError
from recbole_robust.criterion_tap import SampleLosses
from recbole_robust.data.load import prepare
from recbole_robust.defenses import RCE, TCE, defended
from recbole_robust.initialisation import build_model
from recbole_robust.trainer import get_trainer

POINTWISE = {"dropout_prob": 0.0, "mf_embedding_size": 4, "mlp_embedding_size": 4, "mlp_hidden_size": [8]}
MODELS = {"BPR": {}, "LightGCN": {"n_layers": 1}, "NeuMF": POINTWISE}


def batch_of(n: int = 40, seed: int = 0) -> SampleLosses:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(n, generator=generator, requires_grad=True)
    return SampleLosses(losses, torch.arange(n) < n // 2)


def weights(defense, samples: SampleLosses, step: int) -> torch.Tensor:
    """How much each sample counts: what its loss changes in the loss of the batch."""
    loss = defense.reduce(samples, step)
    return torch.autograd.grad(samples.losses.mean() if loss is None else loss, samples.losses)[0]


# --- TCE --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "n_dropped"), [(0, 0), (5, 4), (10, 8), (1000, 8)])
def test_tce_drops_the_positives_of_the_largest_losses(step, n_dropped):
    samples = batch_of()
    found = weights(TCE(drop_rate=0.2, n_gradual=10), samples, step)
    kept = found > 0
    assert int((~kept).sum()) == n_dropped
    assert_close(found[kept], torch.full((40 - n_dropped,), 1 / (40 - n_dropped)))
    positives = samples.losses[:20].detach()
    assert kept[20:].all()  # negatives stay, however large their loss
    assert set((~kept[:20]).nonzero().flatten().tolist()) == set(positives.argsort()[20 - n_dropped :].tolist())


def test_tce_ramps_without_a_jump():
    rates = []
    for step in range(0, 2001, 100):
        losses = torch.arange(1000.0, requires_grad=True)
        found = weights(TCE(0.4, 1000, exponent=2), SampleLosses(losses, torch.ones(1000, dtype=torch.bool)), step)
        rates.append(float((found == 0).float().mean()))
    assert rates[0] == 0 and rates[5] == pytest.approx(0.1, abs=2e-3) and rates[10:] == pytest.approx([0.4] * 11)
    assert rates == sorted(rates)


def test_tce_never_drops_more_than_the_positives():
    samples = SampleLosses(torch.rand(10, requires_grad=True), torch.arange(10) < 2)
    assert int((weights(TCE(0.9, 1), samples, 1) == 0).sum()) == 2


# --- RCE --------------------------------------------------------------------------------------------------------------


def test_rce_weighs_by_the_probability_of_the_label():
    scores = torch.linspace(-3, 3, 13, requires_grad=True)
    for label in (1.0, 0.0):
        probability = torch.sigmoid(scores if label else -scores)
        losses = -torch.log(probability)
        found = weights(RCE(alpha=0.3), SampleLosses(losses, torch.full((13,), label > 0)), 0)
        assert_close(found, probability.detach() ** 0.3 / 13)


# --- on models --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(toy_config):
    """The parameters after an epoch, and the model."""

    def train(name, defense, n_epochs=1, **keys):
        config = toy_config(name, **{"embedding_size": 8, "train_batch_size": 128, **MODELS[name], **keys})
        loader = prepare(config)[0]
        model_class = defended(config.model_class, defense) if defense else config.model_class
        model = build_model(config, loader._dataset, loader._dataset, model_class)
        torch.manual_seed(0)
        trainer = get_trainer(config)(config, model)
        for epoch in range(n_epochs):
            trainer._train_epoch(loader, epoch)
        return model

    return train


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("defense", [TCE(drop_rate=0), RCE(alpha=0)], ids=repr)
def test_strength_0_is_no_defense(name, defense, trained):
    plain, ours = trained(name, None), trained(name, defense)
    assert [k for k in ours.state_dict() if k != "defense_step"] == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("defense", [TCE(n_gradual=1), RCE(alpha=1)], ids=repr)
def test_they_train_a_model_to_something_else(name, defense, trained):
    plain, ours = trained(name, None, 2), trained(name, defense, 2)
    assert int(ours.defense_step) > 1
    assert not all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in ours.parameters())


def test_the_schedule_goes_on_after_a_checkpoint(trained):
    model = trained("BPR", TCE(), 2)
    other = trained("BPR", TCE(), 0)
    other.load_state_dict(model.state_dict())
    assert int(other.defense_step) == int(model.defense_step) > 0


def test_ratings_have_no_positives(toy_config):
    with pytest.raises(UserError, match="defense: expected a model of implicit feedback under TCE, got MF, which lear"):
        toy_config("MF", defense="TCE")
    assert toy_config("MF", defense="TCE", loss_type="BPR")["defense"] == "TCE"


def test_a_model_without_a_criterion_is_refused(toy_config):
    config = toy_config("SGL", defense="RCE")
    train = prepare(config)[0]._dataset
    with pytest.raises(UserError, match=r"model: expected one criterion .* got none in this one"):
        build_model(config, train, train, defended(config.model_class, RCE()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TCE(drop_rate=1), "defense_args.drop_rate: expected a number from 0 to 0.99, got 1"),
        (lambda: TCE(n_gradual=0), "defense_args.n_gradual: expected an integer of at least 1, got 0"),
        (lambda: TCE(exponent=0), "defense_args.exponent: expected a number of at least 1e-06, got 0"),
        (lambda: RCE(alpha=-0.1), "defense_args.alpha: expected a number of at least 0, got -0.1"),
    ],
)
def test_a_bad_hyper_parameter_is_named(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == message
