"""PCMF: the closed forms of the error matrix, when it is MF, and what wrong ratings do to it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from recbole.data.interaction import Interaction
from torch.nn import functional as F

from recbole_robust.model.mf import MF
from recbole_robust.model.pcmf import PCMF, PENALTIES, keep_by_cell, keep_by_user, keep_untrimmed, robust_loss
from recbole_robust.types import UserError

IS_MF = [("cell", {"pcmf_tau": float("inf")}), ("user", {"pcmf_tau": float("inf")}),
         ("correntropy", {"pcmf_tau": float("inf")}), ("trim", {"pcmf_trim_rate": 0.0})]  # fmt: skip


def fit(model, rows, epochs=20, batch_size=None, optimiser=torch.optim.Adam, lr=0.05):
    """Some epochs in fixed order, with the hooks of our trainer."""
    optimiser = optimiser(model.parameters(), lr)
    for epoch in range(epochs):
        if isinstance(model, PCMF):
            model.on_epoch_start(epoch)
        for start in range(0, len(rows), batch_size or len(rows)):
            loss = model.calculate_loss(rows[start : start + (batch_size or len(rows))])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if isinstance(model, PCMF):
            model.on_epoch_end(epoch)
    return model


def gradient(model, rows):
    """The gradient of both tables by the loss of one batch, as one vector."""
    model.zero_grad()
    model.calculate_loss(rows).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def changed(rows, place, by):
    """The rows with one rating changed."""
    columns = {name: column.clone() for name, column in rows.interaction.items()}
    columns["rating"][place] += by
    return Interaction(columns)


# --- the closed forms ------------------------------------------------------------------------------------------------


@pytest.fixture
def residual():
    return torch.randn(200, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def test_minimising_over_the_errors_of_cells_gives_huber_s_loss(residual):
    tau = torch.tensor(0.7, dtype=torch.double)
    residual.requires_grad_()
    kept = keep_by_cell(residual.detach(), tau)
    loss = robust_loss(residual, kept)
    assert torch.allclose(loss, 2 * F.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=0.7))
    (found,) = torch.autograd.grad(loss.sum(), residual)
    assert torch.allclose(found, 2 * residual.detach().clamp(-0.7, 0.7))
    errors = torch.linspace(-5, 5, 20_001, dtype=torch.double)  # E by brute force
    for e, value in zip(residual[:20].detach(), loss[:20].detach(), strict=True):
        assert ((e - errors).square() + 2 * tau * errors.abs()).min() == pytest.approx(value.item(), abs=1e-6)


def test_minimising_over_the_errors_of_a_user_shrinks_the_profile(residual):
    """No errors of a user are better than those of the closed form, and robust_loss is their value."""
    tau, n = torch.tensor(0.7, dtype=torch.double), len(residual)

    def value(errors):
        return (residual - errors).square().sum() + 2 * tau * n**0.5 * errors.norm()

    kept = keep_by_user(residual, tau, residual.square().mean().sqrt())
    best = value(residual - kept)
    assert robust_loss(residual, kept).sum() == pytest.approx(best.item())
    assert kept.square().mean().sqrt() == pytest.approx(0.7)
    torch.manual_seed(0)
    for size in (0.001, 0.1, 1.0):
        for other in (0, residual, -kept, torch.randn_like(residual)):
            assert value(residual - kept + size * other) >= best
    assert value(torch.zeros_like(residual)) > best and value(residual) > best
    assert torch.equal(keep_by_user(residual, tau, torch.tensor(0.6)), residual)  # a user below tau has no errors


def test_trim_drops_the_largest(residual):
    kept = keep_untrimmed(residual, 0.1)
    assert (kept == 0).sum() == 20
    assert residual[kept == 0].abs().min() >= kept.abs().max()
    assert torch.equal(kept[kept != 0], residual[kept != 0])


def test_correntropy_forgets_huge_residuals():
    kept = PENALTIES["correntropy"](torch.tensor([0.01, 1.0, 100.0]), tau=torch.tensor(1.0))
    assert kept[0] == pytest.approx(0.01, rel=1e-3) and kept[1] == pytest.approx(0.6065, rel=1e-3) and kept[2] == 0


# --- when it is MF ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("penalty", "keys"), IS_MF)
def test_without_errors_it_is_mf_bit_for_bit(build, ratings, penalty, keys):
    rows = ratings.inter_feat
    mf, model = build(MF, reg_weight=0.01), build(PCMF, reg_weight=0.01, pcmf_penalty=penalty, pcmf_warmup=0, **keys)
    assert torch.equal(mf.calculate_loss(rows), model.calculate_loss(rows))
    assert torch.equal(gradient(mf, rows), gradient(model, rows))
    for trained in (mf, model):
        fit(trained, rows, epochs=4, batch_size=300, optimiser=torch.optim.Adagrad, lr=1.0)
    assert model.is_warm and torch.isfinite(model.scale)
    assert torch.equal(gradient(mf, rows), gradient(model, rows))
    assert torch.equal(mf.user_embedding.weight, model.user_embedding.weight)
    assert torch.equal(mf.item_embedding.weight, model.item_embedding.weight)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_warm_up_is_mf_and_what_follows_is_not(build, ratings, penalty):
    mf, model = build(MF), build(PCMF, pcmf_penalty=penalty, pcmf_warmup=3)
    for epochs, same in ((3, True), (5, False)):
        weights = [fit(m, ratings.inter_feat, epochs).user_embedding.weight for m in (mf, model)]
        assert torch.equal(*weights) is same


def test_sample_weights_count(build, ratings):
    rows = ratings.inter_feat[:50]
    rows.update(Interaction({"sample_weight": torch.full((50,), 3.0)}))
    model = build(PCMF)
    assert model.weighs_samples
    assert model.calculate_loss(rows).item() == pytest.approx(3 * model.calculate_loss(ratings.inter_feat[:50]).item())


# --- the buffers -----------------------------------------------------------------------------------------------------


def test_the_buffers_are_those_of_the_whole_epoch(build, ratings):
    """Several batches, unchanged vectors: users' norms are those of all their residuals, and of this epoch only."""
    model, rows = build(PCMF), ratings.inter_feat
    fit(model, rows, epochs=1)
    fit(model, rows, epochs=1, batch_size=300, lr=0.0)
    with torch.no_grad():
        residual = model.predict(rows) / model.rating_scale - model.rating_target(rows)
    for user in (1, 30, 60):
        expected = residual[rows["user_id"] == user].square().mean().sqrt()
        assert model.user_rms[user].item() == pytest.approx(expected.item(), rel=1e-4)
    assert model.user_rms[0] == 0  # the padding id has no ratings
    expected = 1.4826 * (residual - residual.median()).abs().median()
    assert model.scale.item() == pytest.approx(expected.item(), rel=0.1)  # a mean over batches


def test_the_scale_ignores_a_minority(build, ratings):
    rows, scales = ratings.inter_feat, []
    for by in (0.0, 1000.0):
        model = fit(build(PCMF), changed(rows, slice(0, 50), by), epochs=1, lr=0.0)
        scales.append(model.scale.item())
    assert scales[1] == pytest.approx(scales[0], rel=0.1)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_save_and_load_go_on_alike(build, ratings, penalty):
    model = fit(build(PCMF, pcmf_penalty=penalty, pcmf_warmup=1), ratings.inter_feat, epochs=4)
    other = build(PCMF, pcmf_penalty=penalty, pcmf_warmup=1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.scale, model.scale) and torch.equal(other.user_rms, model.user_rms)
    for m in (model, other):
        m.on_epoch_start(4)
    assert torch.equal(gradient(model, ratings.inter_feat), gradient(other, ratings.inter_feat))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_perfect_fit_is_no_division_by_zero(build, ratings, penalty):
    rows = ratings.inter_feat
    model = build(PCMF, pcmf_penalty=penalty, pcmf_warmup=0, rating_scale=1.0)
    with torch.no_grad():
        for table in (model.user_embedding, model.item_embedding):
            table.weight.fill_(0.125)
        fitted = Interaction({**rows.interaction, "rating": model.predict(rows)})
    fit(model, fitted, epochs=2)
    assert model.scale == 0 and all(p.isfinite().all() for p in model.parameters())


# --- what wrong ratings do -------------------------------------------------------------------------------------------


def influence(model, rows, by):
    """How far one wrong rating moves the gradient, buffers and all."""
    found = []
    for corrupted in (rows, changed(rows, 7, by)):
        fit(model, corrupted, epochs=1, lr=0.0)
        model.on_epoch_start(model.warmup) if isinstance(model, PCMF) else None
        found.append(gradient(model, corrupted))
    return (found[1] - found[0]).norm().item()


@pytest.mark.parametrize("penalty", PENALTIES)
def test_one_wrong_rating_has_a_bounded_influence(build, ratings, penalty):
    rows = ratings.inter_feat
    of_mf = [influence(build(MF), rows, by) for by in (-100.0, -1000.0)]
    assert of_mf[1] / of_mf[0] == pytest.approx(10.0, rel=0.05)
    ours = [influence(build(PCMF, pcmf_penalty=penalty), rows, by) for by in (-100.0, -1000.0)]
    assert 0 < ours[1] < 1.3 * ours[0]
    assert ours[1] < 0.03 * of_mf[1]


@pytest.fixture(scope="module")
def planted():
    """2,400 ratings of rank 3 by 100 users of 60 items, little noise; 3 users rate at random, three times as widely."""
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(n, 3, generator=generator) for n in (101, 61))
    cells = torch.randperm(100 * 60, generator=generator)[:2400]
    user, item = cells // 60 + 1, cells % 60 + 1
    rating = (p[user] * q[item]).sum(1) + 0.1 * torch.randn(2400, generator=generator)
    wrong = user <= 3
    rating[wrong] = 9 * torch.randn(int(wrong.sum()), generator=generator)
    rows = Interaction({"user_id": user, "item_id": item, "rating": rating})
    users, items = torch.meshgrid(torch.arange(4, 101), torch.arange(1, 61), indexing="ij")
    clean = Interaction({"user_id": users.flatten(), "item_id": items.flatten()})
    truth = (p[clean["user_id"]] * q[clean["item_id"]]).sum(1)
    return SimpleNamespace(
        rows=rows, clean=clean, truth=truth, inter_feat=rows, num={"user_id": 101, "item_id": 61}.get
    )


@pytest.mark.parametrize(("penalty", "share"), [("cell", 0.1), ("user", 0.1), ("trim", 0.7)])
def test_planted_low_rank_with_wrong_users(build, planted, penalty, share):
    """The clean users' cells, most of them unseen: the error of a few wrong users is kept out of the items.

    Correntropy is left out: it has local minima, and ends in one here, no better than MF.
    """

    def rmse(model_class, **keys):
        model = build(model_class, planted, embedding_size=3, rating_scale="none", **keys)
        fit(model, planted.rows, 200)
        with torch.no_grad():
            return (model.predict(planted.clean) - planted.truth).square().mean().sqrt().item()

    of_mf = rmse(MF)
    assert of_mf > 0.5
    assert rmse(PCMF, pcmf_penalty=penalty) < share * of_mf


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pcmf_penalty": "huber"}, "pcmf_penalty: expected one of cell, user, trim, correntropy, got 'huber'"),
        ({"loss_type": "BPR"}, "loss_type: expected MSE"),
    ],
)
def test_wrong_choices(build, keys, message):
    with pytest.raises(UserError, match=message):
        build(PCMF, **keys)


@pytest.mark.parametrize(
    ("key", "value"), [("pcmf_tau", 0), ("pcmf_tau", -1), ("pcmf_trim_rate", 1.5), ("pcmf_warmup", -1)]
)
def test_wrong_numbers(toy_config, key, value):
    with pytest.raises(UserError, match=f"{key}: expected"):
        toy_config("PCMF", **{key: value})


def test_tau_may_be_infinite_and_ratings_are_needed(toy_config):
    assert toy_config("PCMF", pcmf_tau=float("inf"))["pcmf_tau"] == float("inf")
    with pytest.raises(UserError, match="loss_type: expected one of MSE, got 'BPR'"):
        toy_config("PCMF", loss_type="BPR")


def test_every_key_of_the_yaml_is_read(plain_config, model_keys, ratings):
    config = plain_config("PCMF")
    PCMF(config, ratings)
    assert set(model_keys("PCMF")) <= config.asked


def test_it_is_attacked_beside_mf(run, trainings):
    result = run("PCMF", attack="Average", n_fake_users=8, n_fillers=6, target_items=["i3"], pcmf_warmup=1)
    assert trainings == ["PCMF clean", "PCMF attacked", "MF clean", "MF attacked"]
    assert result["protocol"] == "apt" and result["attacked"]["targethr@10"] >= 0
