"""AT, VAT, PamaCF and GDA: what their perturbations are, and what they leave alone."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from recbole_robust import UserError
from recbole_robust.data.load import prepare
from recbole_robust.defenses import AT, GDA, VAT, PamaCF, defended
from recbole_robust.defenses.adversarial import along, by_row
from recbole_robust.defenses.embeddings import (
    EMBEDDINGS,
    Gradient,
    NeuMFTables,
    gradients,
    lookup,
    losses_near,
    losses_of,
    reduce,
    sample_losses,
    slopes_of,
)
from recbole_robust.initialisation import build_model
from recbole_robust.trainer import get_trainer

DEFENSES = [AT(), AT(delta="sample"), AT(direction="random"), VAT(), PamaCF(), GDA(), GDA(mode="da1"), GDA(mode="both")]
MODELS = {
    "MF": {"weight_decay": 0.0},
    "BPR": {},
    "LightGCN": {"reg_weight": 0.0, "n_layers": 1},
    "NGCF": {"reg_weight": 0.0, "node_dropout": 0.0, "message_dropout": 0.0, "hidden_size_list": [8]},
    "SGL": {"reg_weight": 0.0, "ssl_weight": 0.0, "n_layers": 1},
    "NeuMF": {"dropout_prob": 0.0, "mf_embedding_size": 4, "mlp_embedding_size": 6, "mlp_hidden_size": [8]},
}
each_defense = pytest.mark.parametrize("defense", DEFENSES, ids=repr)
each_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def setting(toy_config):
    """A defended model on the toy data, its first batch, and what a loss of it looks up."""

    def make(name, defense, **keys):
        config = toy_config(name, **{"embedding_size": 8, "train_batch_size": 256, **MODELS[name], **keys})
        loader = prepare(config)[0]
        train = loader._dataset
        model = build_model(config, train, train, defended(config.model_class, defense))
        model.train()
        return config, loader, model, next(iter(loader))

    return make


def looked_up(model, batch):
    """Ids and vectors, as inside the loss."""
    model.forwarded = []
    type(model).__mro__[1].calculate_loss(model, batch)
    found = lookup(model, batch)
    model.forwarded = None
    return found


def moved(defense, model, batch):
    ids, vectors = looked_up(model, batch)
    return ids, vectors, [m - x for m, x in zip(defense.moved(model, batch, ids, vectors), vectors, strict=True)]


def gradient_of(loss, model):
    total = sum(loss) if isinstance(loss, tuple) else loss
    found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros(()) if g is None else g for g in found]


# --- any model --------------------------------------------------------------------------------------------------------


def test_every_supported_model_is_tested():
    assert list(EMBEDDINGS) == list(MODELS)


@each_model
def test_the_losses_of_the_samples_are_the_models_own(name, setting):
    """Their mean (for SGL, their sum) is what the model calls its loss: look-ups and scores are the right ones."""
    _, _, model, batch = setting(name, AT(weight=0))
    own = model.calculate_loss(batch).sum()  # some have shape (1,)
    _, vectors = looked_up(model, batch)
    assert_close(reduce(model, sample_losses(model, batch, vectors)), own, rtol=1e-5, atol=1e-6)


@each_model
@each_defense
def test_weight_0_is_no_defense(name, defense, setting):
    """Bit for bit, the random numbers too."""
    trained = []
    for weightless in (replace(defense, weight=0, start_epoch=0), None):
        config, loader, model, _ = setting(name, weightless or AT(weight=0))
        if weightless is None:
            model = build_model(config, loader._dataset, loader._dataset)
        torch.manual_seed(1)
        trainer = get_trainer(config)(config, model)
        trainer._train_epoch(loader, 0)
        trained.append([*model.parameters(), torch.rand(3)])
    assert all(torch.equal(ours, plain) for ours, plain in zip(*trained, strict=True))


@each_model
@each_defense
def test_eps_0_adds_the_loss_once_more(name, defense, setting):
    """Then the update has the direction of the undefended one."""
    nothing = {"sigma": 0.0} if isinstance(defense, GDA) else {}
    _, _, model, batch = setting(name, replace(defense, eps=0.0, weight=0.5, start_epoch=0, **nothing))
    loss = model.calculate_loss(batch)
    *own, adversarial = loss
    assert_close(adversarial, 0.5 * sum(own).sum(), rtol=1e-5, atol=1e-6)
    for ours, plain in zip(gradient_of(loss, model), gradient_of(sum(own), model), strict=True):
        assert_close(ours, 1.5 * plain, rtol=1e-4, atol=1e-6)


@each_model
@each_defense
def test_the_perturbed_loss_is_larger_and_moves_the_model(name, defense, setting):
    _, _, model, batch = setting(name, replace(defense, eps=0.1, start_epoch=0))
    *own, adversarial = model.calculate_loss(batch)
    if getattr(defense, "direction", "gradient") == "gradient" and getattr(defense, "mode", "da2") != "da1":
        assert adversarial > sum(own)
    reached = [float(g.abs().sum()) for g in gradient_of(adversarial, model)]
    assert all(math.isfinite(g) for g in reached) and sum(g > 0 for g in reached) >= 2


def test_it_begins_with_its_epoch(setting):
    _, _, model, batch = setting("MF", AT(start_epoch=3))
    for epoch, n_parts in ((0, 1), (2, 1), (3, 2), (9, 2)):
        model.on_epoch_start(epoch)
        loss = model.calculate_loss(batch)
        assert (len(loss) if isinstance(loss, tuple) else 1) == n_parts


@pytest.mark.parametrize("model", ["ItemKNN", "MultiVAE", "SASRec", "DCN"])
def test_other_models_are_refused(model, toy_config):
    with pytest.raises(UserError, match=rf"defense: expected one of MF, BPR, .* under GDA, got {model}"):
        toy_config(model, defense="GDA")


def test_sample_weights_weigh_the_adversarial_loss(setting):
    _, _, model, batch = setting("MF", AT())
    _, vectors = looked_up(model, batch)
    plain = sample_losses(model, batch, vectors)
    batch.interaction["sample_weight"] = torch.linspace(0, 2, len(plain))
    assert_close(sample_losses(model, batch, vectors), plain * torch.linspace(0, 2, len(plain)))
    by_hand = NeuMFTables.gradients(EMBEDDINGS["MF"], model, batch, vectors)[0]
    for found, expected in zip(gradients(model, batch, vectors)[0], by_hand, strict=True):
        assert_close(found.value(), expected.value())


@pytest.mark.parametrize("name", ["MF", "BPR", "LightGCN"])
def test_the_gradient_by_the_scores_is_autograds(name, setting):
    """The short way of the product models against the general one."""
    _, _, model, batch = setting(name, AT())
    _, vectors = looked_up(model, batch)
    by_autograd, losses = NeuMFTables.gradients(EMBEDDINGS[name], model, batch, vectors)
    found, found_losses = gradients(model, batch, vectors)
    assert_close(found_losses, losses)
    for ours, expected in zip(found, by_autograd, strict=True):
        assert_close(ours.value(), expected.value(), rtol=1e-5, atol=1e-8)
        assert_close(ours.norm(), expected.value().norm(dim=1), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["MSE", "BPR", "BCE"])
def test_slopes_are_the_derivatives_of_the_losses(kind, weighted):
    batch = {"label": torch.tensor([0.0, 1.0, 1.0]), "sample_weight": torch.tensor([0.5, 0.0, 2.0])}
    if kind == "BPR":
        batch["neg_item_id"] = torch.zeros(3)
    if not weighted:
        del batch["sample_weight"]
    model = SimpleNamespace(USER_ID="user_id", ITEM_ID="item_id", NEG_ITEM_ID="neg_item_id", LABEL="label")
    if kind == "MSE":
        model.rating_target = lambda interaction: torch.tensor([1.0, 3.0, 5.0])
        model.weigh = lambda losses, interaction: losses * interaction.get("sample_weight", torch.ones(3))
    scores = [torch.randn(3, requires_grad=True) for _ in range(2 if kind == "BPR" else 1)]
    expected = torch.autograd.grad(losses_of(model, batch, scores).sum(), scores)
    for found, derivative in zip(slopes_of(model, batch, scores), expected, strict=True):
        assert_close(found, derivative)


# --- AT ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MF", "BPR"])
@pytest.mark.parametrize("delta", ["row", "sample"])
def test_each_perturbation_has_length_eps(name, delta, setting):
    _, _, model, batch = setting(name, AT())
    for part in moved(AT(eps=0.3, delta=delta), model, batch)[2]:
        assert_close(part.norm(dim=1), torch.full((len(part),), 0.3), rtol=1e-4, atol=1e-5)


def test_a_row_has_one_perturbation_and_a_sample_its_own(setting):
    _, _, model, batch = setting("BPR", AT())
    ids, vectors, deltas = moved(AT(eps=0.3, delta="row"), model, batch)
    steps = gradients(model, batch, vectors)[0]
    user = ids[0].mode().values
    rows = deltas[0][ids[0] == user]
    assert len(rows) > 1
    assert_close(rows, rows[:1].expand_as(rows))
    total = steps[0].value()[ids[0] == user].sum(dim=0)
    assert_close(rows[0], 0.3 * total / total.norm(), rtol=1e-4, atol=1e-5)
    both = set(ids[1].tolist()) & set(ids[2].tolist())  # items that are positive here and negative there: one row
    item = next(iter(both))
    here, there = deltas[1][ids[1] == item], deltas[2][ids[2] == item]
    assert_close(here[0], there[0])
    samples = moved(AT(eps=0.3, delta="sample"), model, batch)[2][0][ids[0] == user]
    assert not torch.allclose(samples, samples[:1].expand_as(samples))


def test_the_gradient_is_a_worse_direction_than_a_random_one(setting):
    _, _, model, batch = setting("BPR", AT())
    _, vectors = looked_up(model, batch)

    def loss_under(defense):
        return float(sample_losses(model, batch, defense.moved(model, batch, lookup_ids, vectors)).mean())

    lookup_ids = looked_up(model, batch)[0]
    for delta in ("row", "sample"):
        worst = loss_under(AT(eps=0.05, delta=delta))
        random = [loss_under(AT(eps=0.05, delta=delta, direction="random")) for _ in range(20)]
        assert all(worst > other for other in random)


def test_moving_the_user_along_the_gradient_is_the_worst_in_the_ball(setting):
    """The BPR loss falls with the score, which is linear in the user: no other vector of that length is worse."""
    _, _, model, batch = setting("BPR", AT())
    _, (user, item, negative), deltas = moved(AT(eps=0.3, delta="sample"), model, batch)
    worst = sample_losses(model, batch, (user + deltas[0], item, negative))
    for _ in range(20):
        other = along(torch.zeros_like(user), Gradient(torch.randn_like(user)), torch.tensor(0.3))
        assert (sample_losses(model, batch, (user + other, item, negative)) <= worst + 1e-6).all()


def test_no_gradient_no_perturbation():
    opposite = Gradient(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))
    (still,) = by_row([torch.tensor([3, 3])], 5, [opposite], [torch.tensor(5.0)])
    assert_close(still, torch.zeros(2, 2))
    flat = Gradient(torch.tensor([[1.0, 2.0]]), torch.zeros(1))
    assert_close(along(torch.ones(1, 2), flat, torch.tensor(5.0)), torch.ones(1, 2))


def test_a_gradient_with_a_slope_is_its_value():
    direction, slope, x = torch.randn(7, 3), torch.randn(7), torch.randn(7, 3)
    ids, factor = torch.tensor([4, 0, 4, 2, 0, 0, 1]), torch.rand(7)
    by_hand = torch.zeros(5, 3)
    for gradient in (Gradient(direction), Gradient(direction, slope)):
        value = gradient.value()
        assert_close(gradient.norm(), value.norm(dim=1))
        assert_close(gradient.times(factor).value(), factor[:, None] * value)
        assert_close(gradient.added_to(x), x + value)
        assert_close(gradient.sum_by(ids, 5), by_hand.index_add(0, ids, value))


def test_relative_eps_scales_with_the_vectors(setting):
    _, _, model, batch = setting("MF", AT())
    before = moved(AT(eps=0.5, relative=True), model, batch)[2]
    with torch.no_grad():
        for table in (model.user_embedding, model.item_embedding):
            table.weight *= 3
    after = moved(AT(eps=0.5, relative=True), model, batch)[2]
    for part, larger in zip(before, after, strict=True):
        assert_close(larger.norm(dim=1).mean(), 3 * part.norm(dim=1).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "expected"), [("MF", 0.05), ("BPR", 0.5), ("NeuMF", 0.5)])
def test_eps_of_none_is_the_authors(name, expected, setting):
    _, _, model, batch = setting(name, AT())
    user = moved(AT(delta="sample"), model, batch)[2][0]
    assert_close(user.norm(dim=1).median(), torch.tensor(expected), rtol=1e-3, atol=1e-4)


# --- VAT and PamaCF ---------------------------------------------------------------------------------------------------


def lengths(defense, model, batch):
    ids, _, deltas = moved(defense, model, batch)
    return ids[0], deltas[0].norm(dim=1) / defense.eps


def test_equal_users_are_perturbed_as_by_at(setting):
    """Equal losses (VAT) and equal norms (PamaCF) give coefficient 1."""
    _, _, model, batch = setting("BPR", AT())
    with torch.no_grad():
        model.user_embedding.weight.copy_(torch.nn.functional.normalize(model.user_embedding.weight, dim=1))
    plain, personal = AT(eps=0.3, delta="sample"), PamaCF(eps=0.3)
    for found, expected in zip(moved(personal, model, batch)[2], moved(plain, model, batch)[2], strict=True):
        assert_close(found, expected, rtol=1e-4, atol=1e-6)
    users = batch["user_id"]
    assert_close(VAT().vulnerability(users, None, torch.full((len(users),), 0.7)), torch.ones(len(users)))


def test_vat_perturbs_well_fitted_users_more(setting):
    _, _, model, batch = setting("BPR", AT())
    with torch.no_grad():
        model.user_embedding.weight *= 30  # at the start all losses are as good as log 2
    _, vectors = looked_up(model, batch)
    losses = sample_losses(model, batch, vectors).detach()
    users, length = lengths(VAT(eps=0.3), model, batch)
    mean_loss = torch.stack([losses[users == user].mean() for user in users])
    order = mean_loss.argsort()
    assert (length[order].diff() <= 1e-4).all()
    assert length.max() - length.min() > 0.2
    assert length.min() > 2 * torch.sigmoid(torch.tensor(-1.0)) - 1e-4 and length.max() < 2 + 1e-4
    over_users = torch.stack([losses[users == user].mean() for user in users.unique()]).mean()
    assert_close(length, 2 * torch.sigmoid(over_users / mean_loss - 1), rtol=1e-3, atol=1e-4)


def test_pamacf_perturbs_large_users_more_whatever_the_scale(setting):
    _, _, model, batch = setting("BPR", AT())
    users, length = lengths(PamaCF(eps=0.3), model, batch)
    squares = model.user_embedding.weight[users].pow(2).sum(dim=1).detach()
    assert (length[squares.argsort()].diff() >= -1e-4).all()
    assert_close(length, 2 * torch.sigmoid(squares / squares.mean() - 1), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        model.user_embedding.weight *= 5
    assert_close(lengths(PamaCF(eps=0.3), model, batch)[1], length, rtol=1e-3, atol=1e-4)


# --- GDA --------------------------------------------------------------------------------------------------------------


class Linear:
    """All that :func:`sample_losses` asks of a BPR model; near one point its loss is as good as linear."""

    USER_ID, ITEM_ID, NEG_ITEM_ID, defended_name, defense_epoch = "user_id", "item_id", "neg_item_id", "BPR", None


def test_gda_is_a_penalty_on_the_norm_of_the_gradient():
    """For small noise and K candidates, the largest loss is on average the loss + sigma c_K |gradient|."""
    torch.manual_seed(0)
    n, d = 50, 4
    user, item, negative = torch.zeros(n, d), torch.ones(n, d), torch.ones(n, d)
    user += torch.tensor([1.0, -2.0, 0.5, 3.0])
    item = item * 0 + torch.tensor([0.3, 0.1, -0.2, 0.4])
    batch, vectors = {"user_id": torch.zeros(n), "neg_item_id": None}, (user, item, negative)
    mean_square = torch.stack([x.pow(2).mean() for x in vectors]).mean().sqrt()
    steps, losses = gradients(Linear(), batch, vectors)
    norm = torch.cat([step.value()[:1] for step in steps], dim=1).norm()
    for k, c in ((1, 0.0), (2, 0.5642), (5, 1.1630), (10, 1.5388), (20, 1.8675)):
        defense = GDA(mode="da1", sigma=1e-3, n_candidates=k)
        batches = [defense.moved(Linear(), batch, [torch.zeros(n, dtype=torch.long)], vectors) for _ in range(500)]
        rise = torch.stack([sample_losses(Linear(), batch, place) - losses for place in batches]).mean()
        found = rise / (1e-3 * mean_square * norm)
        assert abs(float(found) - c) < 0.05 * max(c, 0.2)
    place = GDA(mode="da2", eps=0.01, sigma=0.0).moved(Linear(), batch, [torch.zeros(n, dtype=torch.long)], vectors)
    assert_close((sample_losses(Linear(), batch, place) - losses).mean(), 0.01 * norm, rtol=0.05, atol=0)


def test_gda_takes_the_worst_of_its_candidates(setting):
    _, _, model, batch = setting("BPR", AT())
    ids, vectors = looked_up(model, batch)
    for defense in (GDA(eps=0.1, sigma=0.5), GDA(mode="da1", sigma=0.5), GDA(eps=0.1, mode="both", sigma=0.5)):
        torch.manual_seed(3)
        chosen = sample_losses(model, batch, defense.moved(model, batch, ids, vectors))
        for k in range(1, 5):  # its first k candidates are those of k alone: their rows are drawn one after the other
            torch.manual_seed(3)
            fewer = replace(defense, n_candidates=k, mode="da1" if defense.mode == "both" else defense.mode)
            assert (sample_losses(model, batch, fewer.moved(model, batch, ids, vectors)) <= chosen + 1e-5).all(), k


@pytest.mark.parametrize("model", ["MF", "BPR", "NeuMF"])
def test_the_losses_near_are_those_of_moved_vectors(model, setting):
    """The products that are taken apart, and label or negative item of each sample."""
    _, _, model, batch = setting(model, GDA())
    _, vectors = looked_up(model, batch)
    noise = [torch.randn(7, x.shape[1]) for x in vectors]
    rows = torch.randint(7, (3, len(vectors[0])))
    for row, found in zip(rows, losses_near(model, batch, vectors, noise, rows), strict=True):
        expected = sample_losses(model, batch, tuple(x + z[row] for x, z in zip(vectors, noise, strict=True)))
        assert_close(found, expected, rtol=1e-4, atol=1e-5)


# --- bad hyper-parameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AT(eps=-1), "defense_args.eps: expected a number of at least 0, got -1"),
        (lambda: AT(eps="big"), "defense_args.eps: expected a number of at least 0, got 'big'"),
        (lambda: AT(weight=math.nan), "defense_args.weight: expected a number of at least 0, got nan"),
        (lambda: AT(start_epoch=1.5), "defense_args.start_epoch: expected an integer of at least 0, got 1.5"),
        (lambda: AT(delta="table"), "defense_args.delta: expected one of row, sample, got 'table'"),
        (lambda: VAT(scale=-2), "defense_args.scale: expected a number of at least 0, got -2"),
        (lambda: GDA(n_candidates=0), "defense_args.n_candidates: expected an integer of at least 1, got 0"),
        (lambda: GDA(mode="da3"), "defense_args.mode: expected one of da1, da2, both, got 'da3'"),
    ],
)
def test_a_bad_hyper_parameter_is_named(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == message
