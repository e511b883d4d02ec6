"""PurifyAugMF: the property tests of its specification, and of each option."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import recbole
import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_robust.model import score_opt as algorithm1
from recbole_robust.model.ddpm import ddpm, fixed_draws, posterior
from recbole_robust.model.denoiser import Denoiser, RunningMoments, denoising_loss
from recbole_robust.model.mf import MF
from recbole_robust.model.mutual_learning import limit_kl, softened_kl
from recbole_robust.model.purifyaug_mf import PurifyAugMF
from recbole_robust.model.score_opt import diffused_kl, fresh_noise, score_opt, shared_noise, t_star
from recbole_robust.model.se_gate import SEGate
from recbole_robust.types import UserError

REDUCED = {
    "se_bias_init": -1e4,
    "adv": "none",
    "purify_steps": 0,
    "kl_mode": "off",
}


class GaussianDenoiser:
    """The best denoiser of N(mu, variance): ``D(x) = c x + (1 - c) mu``."""

    def __init__(self, mu=0.3, variance=1.0, sigma=0.5):
        self.mu, self.sigma = mu, sigma
        self.c_skip = variance / (variance + sigma**2)

    def __call__(self, x):
        return self.c_skip * x + (1 - self.c_skip) * self.mu

    def linearise(self, x):
        return self(x), lambda w: self.c_skip * w


def random_denoiser(dim=6, hidden=24):
    """A denoiser with random weights, the last layer too."""
    torch.manual_seed(3)
    denoiser = Denoiser(dim, hidden)
    nn.init.normal_(denoiser.output.weight, std=0.3)
    nn.init.normal_(denoiser.output.bias, std=0.3)
    return denoiser


def train(model, ratings, steps=12, rows=400, first_epoch=5, table_lr=10.0):
    """Some steps, Adagrad on the tables and Adam on the networks; the losses of each step."""
    tables = [model.user_embedding.weight, model.item_embedding.weight]
    networks = [p for p in model.parameters() if all(p is not t for t in tables)]
    optimisers = [
        torch.optim.Adagrad(tables, table_lr, initial_accumulator_value=0.1),
        torch.optim.Adam(networks, 1e-3),
    ]
    model.train()
    model.on_epoch_start(first_epoch)
    history = []
    for _ in range(steps):
        losses = model.calculate_loss(ratings.inter_feat[:rows])
        for optimiser in optimisers:
            optimiser.zero_grad()
        sum(losses).backward()
        for optimiser in optimisers:
            optimiser.step()
        history.append([loss.item() for loss in losses])
    return torch.tensor(history)


@pytest.fixture(scope="session")
def build(build, model_keys):
    """As everywhere; PurifyAugMF with the keys of the paper, its fuse MLP as a residual."""
    paper = {**model_keys("PurifyAugMF-literal"), "fuse_residual": True}
    return lambda model, *dataset, **keys: build(model, *dataset, **{**(paper if model is PurifyAugMF else {}), **keys})


@pytest.fixture
def awake(build, ratings):
    """``awake(key=value, ...)``: a model whose every part does something, in evaluation mode; nothing is trained."""

    def make(**keys):
        model = build(PurifyAugMF, **keys)
        with torch.no_grad():
            for table in (model.user_embedding, model.item_embedding):
                table.weight.normal_(0.1, 0.3)
            for name, parameter in model.named_parameters():
                if name.startswith(("denoiser", "fuse_mlp", "head")):
                    parameter.add_(0.1 * torch.randn_like(parameter))
            model.moments.update(model.purify(ratings.inter_feat["user_id"], ratings.inter_feat["item_id"]))
        return model.eval()

    return make


def all_scores(model, users=None):
    users = torch.arange(model.n_users) if users is None else users
    with torch.no_grad():
        return model.full_sort_predict(Interaction({"user_id": users})).view(len(users), -1)


# --- 1. reduction to MF ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{"fuse": "mlp"}, {"fuse": "mean", "head": "sum"}, {"se_heads": 0}])
def test_without_gate_noise_steps_and_mutual_learning_it_is_mf(build, ratings, keys):
    mf, model = build(MF), build(PurifyAugMF, **{**REDUCED, **keys})
    assert torch.equal(mf.user_embedding.weight, model.user_embedding.weight)  # the same seed, the same tables
    assert torch.equal(mf.item_embedding.weight, model.item_embedding.weight)
    fused, kl, _ = model.calculate_loss(ratings.inter_feat)
    expected = mf.calculate_loss(ratings.inter_feat)
    expected.backward()
    fused.backward()
    assert kl == 0
    assert torch.allclose(fused, expected, atol=1e-6)
    for table in ("user_embedding", "item_embedding"):
        assert torch.allclose(getattr(model, table).weight.grad, getattr(mf, table).weight.grad, atol=1e-6)
    users = Interaction({"user_id": torch.arange(61)})
    assert torch.allclose(model.eval().full_sort_predict(users), mf.full_sort_predict(users), atol=1e-5)
    assert torch.allclose(model.predict(ratings.inter_feat), mf.predict(ratings.inter_feat), atol=1e-5)


# --- 2, 3, 9. Algorithm 1 --------------------------------------------------------------------------------------------


def test_algorithm_1_ends_in_the_fixed_point_of_a_gaussian_prior():
    denoiser, x_a = GaussianDenoiser(mu=0.3, sigma=0.5), torch.full((1, 4), 2.0)
    c = denoiser.c_skip
    limit = ((1 - c) ** 2 * 0.3 + c**2 * x_a) / ((1 - c) ** 2 + c**2)
    assert limit[0, 0].item() == pytest.approx(1.900, abs=1e-3)
    assert torch.allclose(score_opt(denoiser, x_a, steps=200, lr=0.2), limit, atol=1e-5)
    # on the way it shrinks by the contraction rate, each step
    one, two = (score_opt(denoiser, x_a, steps=m, lr=0.2) - limit for m in (1, 2))
    assert torch.allclose(two / one, torch.full_like(one, 1 - 2 * 0.2 * ((1 - c) ** 2 + c**2)), atol=1e-4)


def test_algorithm_1_with_fresh_noise_has_the_same_mean():
    torch.manual_seed(0)
    x_a = torch.full((20_000, 4), 2.0)
    x = score_opt(GaussianDenoiser(), x_a, steps=40, lr=0.2, noise=fresh_noise(x_a, 40))
    assert x.mean().item() == pytest.approx(1.900, abs=0.01)


def test_the_objectives_differ_as_they_should():
    x_a = torch.full((1, 4), 2.0)
    far = {
        o: score_opt(GaussianDenoiser(), x_a, steps=2000, lr=0.2, objective=o).mean().item() for o in ("diff", "mse")
    }
    assert far["diff"] == pytest.approx(0.3, abs=1e-3)  # without an anchor everything becomes the mean
    c = GaussianDenoiser().c_skip
    assert far["mse"] == pytest.approx(((1 - c) ** 2 * 0.3 + 2.0) / ((1 - c) ** 2 + 1), abs=1e-4)
    loose = score_opt(GaussianDenoiser(), x_a, steps=500, lr=0.2, weight=0.0)
    assert torch.allclose(loose, score_opt(GaussianDenoiser(), x_a, steps=500, lr=0.2, objective="diff"))
    adam = score_opt(GaussianDenoiser(), x_a, steps=2000, lr=0.01, optimiser="adam")
    assert adam.mean().item() == pytest.approx(1.900, abs=1e-3)
    first = score_opt(GaussianDenoiser(), x_a, steps=1, lr=0.01, optimiser="adam")
    assert torch.allclose(x_a - first, torch.full_like(x_a, 0.01), atol=1e-6)  # Adam's first step has length lr


@pytest.mark.parametrize("objective", ["sr", "diff", "mse"])
@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_skip_is_exact_for_a_gaussian(objective, variance):
    torch.manual_seed(0)
    denoiser, x_a = GaussianDenoiser(variance=variance), torch.randn(50, 6)
    noise = fresh_noise(x_a, 5)
    exact, skip = (
        score_opt(denoiser, x_a, steps=5, lr=0.2, objective=objective, gradient=g, noise=noise)
        for g in ("exact", "skip")
    )
    assert torch.allclose(exact, skip, atol=1e-6)


def test_an_untrained_denoiser_is_gaussian_so_skip_is_exact_there_and_not_after_training():
    x_a = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))

    def gap(denoiser):
        exact, skip = (score_opt(denoiser.at(0.5), x_a, steps=5, lr=0.2, gradient=g) for g in ("exact", "skip"))
        return (exact - skip).abs().max()

    assert gap(Denoiser(6, 24)) < 1e-6
    assert gap(random_denoiser()) > 1e-3


@pytest.mark.parametrize("objective", ["sr", "diff", "mse"])
def test_the_step_is_the_gradient_that_autograd_finds(objective):
    torch.manual_seed(1)
    denoiser, x_a, start = random_denoiser(), torch.randn(20, 6), 0.5
    noise = fresh_noise(x_a, 2)
    sigma = torch.tensor([[start]])
    x, expected = x_a.clone(), []
    for e1, e2 in noise:
        x = x.detach().requires_grad_()
        denoised = denoiser(x + start * e1, sigma)
        loss = (denoised - x).pow(2).sum()
        if objective == "sr":
            loss = loss + 0.7 * (denoised - denoiser(x_a + start * e2, sigma).detach()).pow(2).sum()
        elif objective == "mse":
            loss = loss + 0.7 * (x - x_a).pow(2).sum()
        x = x - 0.2 * torch.autograd.grad(loss, x)[0]
        expected.append(x)
    with torch.no_grad():
        got = score_opt(denoiser.at(start), x_a, steps=2, lr=0.2, objective=objective, weight=0.7, noise=noise)
    assert torch.allclose(got, expected[-1], atol=1e-5)


def test_rows_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    denoiser, x_a = random_denoiser().at(0.5), torch.randn(40, 6)
    noise = fresh_noise(x_a, 5)
    whole = score_opt(denoiser, x_a, steps=5, lr=0.2, noise=noise)
    parts = [
        score_opt(denoiser, x_a[rows], steps=5, lr=0.2, noise=[(e1[rows], e2[rows]) for e1, e2 in noise])
        for rows in (slice(0, 1), slice(1, 13), slice(13, 40))
    ]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)


def test_fresh_noise_is_standard_normal_and_new_to_a_row_at_every_step():
    torch.manual_seed(0)
    noise = torch.stack([e for pair in fresh_noise(torch.zeros(3000, 8), 5) for e in pair])  # (10, B, dim)
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(1.0, abs=0.02)
    across_steps = torch.einsum("srd,trd->st", noise, noise) / (3000 * 8)
    assert torch.allclose(across_steps, torch.eye(10), atol=0.03)


def test_shared_noise_is_one_draw_for_all():
    x = torch.zeros(9, 8)
    torch.manual_seed(5)
    noise = shared_noise(x, 3)
    torch.manual_seed(6)
    again = shared_noise(x, 3)
    assert all(torch.equal(a, b) for one, two in zip(noise, again, strict=True) for a, b in zip(one, two, strict=True))
    assert noise[0][0].shape == (1, 8) and noise[0] is noise[2]
    assert not torch.equal(noise[0][0], noise[0][1])


# --- 10. the denoiser ------------------------------------------------------------------------------------------------


def fit(denoiser, draw, steps):
    optimiser = torch.optim.Adam(denoiser.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        denoising_loss(denoiser, draw(), 0.02, 2.0).mean().backward()
        optimiser.step()
    return denoiser


def error_at(denoiser, x, sigma):
    with torch.no_grad():
        noisy = x + sigma * torch.randn_like(x)
        return (denoiser.at(sigma)(noisy) - x).pow(2).mean().item()


def test_the_denoiser_learns_a_gaussian():
    torch.manual_seed(0)
    denoiser = Denoiser(4, 32)
    nn.init.normal_(denoiser.output.weight, std=0.3)  # it starts at the answer: put it elsewhere first
    assert error_at(denoiser, torch.randn(5000, 4), 0.5) > 0.23
    fit(denoiser, lambda: torch.randn(256, 4), steps=500)
    assert error_at(denoiser, torch.randn(20_000, 4), 0.5) == pytest.approx(0.2, rel=0.1)


def test_the_denoiser_learns_what_no_affine_map_can():
    torch.manual_seed(0)

    def signs(n):
        return torch.randint(0, 2, (n, 1)).mul(2.0).sub(1).expand(n, 4)  # (1, 1, 1, 1) or its negative

    denoiser = fit(Denoiser(4, 32), lambda: signs(256), steps=300)
    assert error_at(denoiser, signs(5000), 0.5) < 0.5 * 0.5**2 / (4 + 0.5**2)  # of the best affine one, a Wiener filter


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0])
def test_every_noise_level_weighs_the_same(sigma):
    torch.manual_seed(0)
    losses = denoising_loss(Denoiser(8, 16), torch.randn(20_000, 8), sigma, sigma)
    assert losses.shape == (20_000,)
    assert losses.mean().item() == pytest.approx(1.0, abs=0.02)  # the start is the best denoiser of a Gaussian


def test_one_noise_level_is_the_denoiser_and_its_pullback_is_the_jacobian():
    denoiser, x, w = random_denoiser(), torch.randn(30, 6), torch.randn(30, 6)
    for sigma in (0.02, 0.5, 2.0):
        x = x.detach().requires_grad_()
        expected = denoiser(x, torch.full((30, 1), sigma))
        (gradient,) = torch.autograd.grad(expected, x, w)
        fixed = denoiser.at(sigma)
        denoised, pullback = fixed.linearise(x.detach())
        assert torch.allclose(denoised, expected, atol=1e-5)
        assert torch.allclose(fixed(x.detach()), expected, atol=1e-5)
        assert torch.allclose(pullback(w), gradient, atol=1e-5)


def test_running_moments_start_at_the_first_batch_and_then_move_slowly():
    torch.manual_seed(0)
    moments, first, second = RunningMoments(3, 0.01), 5 + 2 * torch.randn(4000, 3), torch.randn(4000, 3)
    moments.update(first)
    assert torch.allclose(moments.mean, first.mean(0)) and torch.allclose(moments.std, first.std(0))
    z = moments.standardise(first)
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-5) and torch.allclose(z.std(0), torch.ones(3), atol=1e-5)
    assert torch.allclose(moments.restore(z), first, atol=1e-5)
    moments.update(second)
    assert torch.allclose(moments.mean, 0.99 * first.mean(0) + 0.01 * second.mean(0))
    before = moments.mean.clone()
    moments.update(torch.full((1, 3), 99.0))  # one row has no spread
    assert torch.equal(moments.mean, before)


# --- 5. what the losses may touch ------------------------------------------------------------------------------------


def test_the_denoising_loss_moves_the_denoiser_only(build, ratings):
    model = build(PurifyAugMF)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    tables = model.user_embedding.weight.clone(), model.item_embedding.weight.clone()
    for _ in range(10):
        optimiser.zero_grad()
        model.calculate_loss(ratings.inter_feat)[2].backward()
        optimiser.step()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {name for name, _ in model.named_parameters() if name.startswith("denoiser")}
    assert torch.equal(model.user_embedding.weight, tables[0]) and torch.equal(model.item_embedding.weight, tables[1])


@pytest.mark.parametrize("backprop", ["straight_through", "detach", "unroll"])
def test_the_other_losses_do_not_move_the_denoiser(awake, ratings, backprop):
    model = awake(purify_backprop=backprop).train()
    model.zero_grad(set_to_none=True)
    fused, kl, _ = model.calculate_loss(ratings.inter_feat)
    (fused + kl).backward()
    assert all(p.grad is None for p in model.denoiser.parameters())
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("denoiser"))


def test_backpropagation_through_algorithm_1(awake):
    model, x_p = awake(), torch.randn(12, 64).mul(0.1).requires_grad_()
    views = {}
    for model.backprop in ("detach", "straight_through", "unroll"):
        views[model.backprop] = model.augment(x_p, x_p)
    assert torch.allclose(views["detach"], views["straight_through"], atol=1e-6)
    assert torch.allclose(views["detach"], views["unroll"], atol=1e-6)
    assert not views["detach"].requires_grad
    (gradient,) = torch.autograd.grad(views["straight_through"].sum(), x_p)
    assert torch.equal(gradient, torch.ones(12, 64))
    (gradient,) = torch.autograd.grad(views["unroll"][:, 7].sum(), x_p)
    step = torch.zeros(12, 64)
    step[:, 5] = 0.01
    with torch.no_grad():
        difference = (model.augment(x_p + step, x_p)[:, 7] - model.augment(x_p - step, x_p)[:, 7]) / 0.02
    assert torch.allclose(gradient[:, 5], difference, atol=2e-4)
    assert gradient[:, 5].abs().max() > 1e-3


def test_a_row_of_weight_zero_is_no_row(awake, ratings):
    model = awake(adv="none", purify_steps=0).train()  # nothing random, nothing of the batch
    feat = ratings.inter_feat
    weight = torch.ones(len(feat))
    weight[100:] = 0.0
    weighted = Interaction({**feat.interaction, "sample_weight": weight})
    model.denoising = False
    model.moments.momentum = 0.0
    full, part = model.calculate_loss(weighted), model.calculate_loss(feat[:100])
    for one, two in zip(full, part, strict=True):
        assert torch.allclose(one * len(feat), two * 100, rtol=1e-4, atol=1e-6)


# --- 2 to 5 of the paper: the gate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("excite", ["head", "dim"])
def test_the_gate_removes_a_part_and_never_turns_a_sign(excite):
    torch.manual_seed(0)
    gate, x = SEGate(24, 6, excite=excite, bias_init=-1.0), torch.randn(100, 24) * 5
    s, x_p = gate.share(x).expand(-1, 6, 4).reshape(100, 24), gate(x)
    assert (s > 0).all() and (s < 1).all()
    assert torch.allclose(x_p, x - s * x)
    assert (x_p.sign() == x.sign()).all() and (x_p.abs() < x.abs()).all()
    one_a_head = (s.unflatten(-1, (6, 4)) == s.unflatten(-1, (6, 4))[..., :1]).all()
    assert one_a_head == (excite == "head")
    assert torch.allclose(gate.squeeze(x)[:, 2], x[:, 8:12].mean(1))
    assert torch.equal(SEGate(24, 6, bias_init=float("-inf"))(x), x)
    assert torch.allclose(SEGate(24, 6)(0.01 * x), 0.01 * x * (1 - 1 / (1 + math.exp(3))), rtol=0.01)


# --- 6 of the paper: the attacked view -------------------------------------------------------------------------------


@pytest.mark.parametrize("adv", ["fgm", "fgsm", "gauss"])
def test_the_noise_has_its_length_and_the_gradients_raise_the_loss(awake, ratings, adv):
    model = awake(adv=adv, adv_eps=0.1)
    feat = ratings.inter_feat
    target = model.rating_target(feat)
    with torch.no_grad():  # as in the evaluation
        x_p = model.purify(feat["user_id"], feat["item_id"])
        x_a = model.attack(x_p, target)
        radius = 0.1 * x_p.pow(2).sum(1).mean().sqrt()
        assert torch.allclose((x_a - x_p).norm(dim=1), radius.expand(len(feat)), rtol=1e-3)

        def loss(x):
            return (model.score(model.fuse(x, x)) - target).pow(2)

        raised = (loss(x_a) > loss(x_p)).float().mean()
    if adv != "gauss":
        assert raised > 0.97
    assert x_a.requires_grad is False


# --- 6. the noise level ----------------------------------------------------------------------------------------------


def test_diffusion_brings_two_distributions_together_always():
    torch.manual_seed(0)
    clean, attacked = torch.randn(4096, 8), 0.5 + 1.7 * torch.randn(4096, 8)
    sigma = torch.linspace(0, 5, 60)
    kl = diffused_kl(clean, attacked, sigma)
    assert (kl[1:] < kl[:-1]).all() and kl[-1] > 0
    a, b = clean.std(0), attacked.std(0)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(clean.mean(0), a), normal(attacked.mean(0), b)).sum()
    assert torch.allclose(kl[0], expected, rtol=1e-4)


def test_a_stronger_attack_needs_no_less_noise():
    torch.manual_seed(0)
    clean, direction = torch.randn(4096, 8), torch.randn(4096, 8)
    chosen = [t_star(clean, clean + eps * direction, 0.3, 0.02, 20.0, cap=20.0) for eps in (0.2, 0.5, 1.0, 2.0, 4.0)]
    assert chosen == sorted(chosen) and chosen[0] < chosen[-1]
    for eps, sigma in zip((0.2, 4.0), (chosen[0], chosen[-1]), strict=True):
        kl = diffused_kl(clean, clean + eps * direction, torch.tensor([0.0, sigma, sigma / 1.3]))
        assert kl[1] <= 0.3 * kl[0] < kl[2]
    assert t_star(clean, clean + direction, 0.001, 0.02, 2.0) == 1.0  # capped


def test_the_noise_level_is_chosen_once_an_epoch_and_kept_in_the_checkpoint(build, ratings):
    model = build(PurifyAugMF, t_star="kl_ratio", kl_ratio=0.8, adv_eps=0.5)
    model.on_epoch_start(0)
    model.calculate_loss(ratings.inter_feat)
    assert model.sigma.item() == 0.5  # in the warm-up nothing is attacked
    model.on_epoch_start(5)
    model.calculate_loss(ratings.inter_feat)
    chosen = model.sigma.item()
    assert 0.02 <= chosen <= 1.0 and chosen != 0.5
    nn.init.normal_(model.user_embedding.weight)
    model.calculate_loss(ratings.inter_feat)
    assert model.sigma.item() == chosen
    assert model.state_dict()["sigma"].item() == chosen


# --- 7. mutual learning ----------------------------------------------------------------------------------------------


def test_the_divergence_has_its_limit_and_is_zero_only_for_equal_vectors():
    torch.manual_seed(0)
    p, f = torch.randn(10, 64, dtype=torch.double), torch.randn(10, 64, dtype=torch.double)
    assert torch.allclose(softened_kl(p, f, 1000.0), limit_kl(p, f), rtol=1e-2)
    delta = p - f
    assert torch.allclose(limit_kl(p, f), (delta - delta.mean(1, keepdim=True)).pow(2).sum(1) / (2 * 64))
    assert (softened_kl(p, p + 3, 2.0).abs() < 1e-12).all()  # softmax does not see a shift
    assert (softened_kl(p, f, 2.0) > 0).all()
    expected = torch.nn.functional.kl_div((f / 2).log_softmax(1), (p / 2).softmax(1), reduction="none").sum(1) * 4
    assert torch.allclose(softened_kl(p, f, 2.0), expected)


def test_both_sides_of_mutual_learning_learn(awake):
    model = awake()
    views = [torch.randn(5, 64).requires_grad_() for _ in range(3)]
    model.mutual_loss(*views).sum().backward()
    assert all(view.grad.abs().sum() > 0 for view in views)
    x_p, x_aug, x_f = (view.detach() for view in views)
    both = softened_kl(x_p, x_f, 2.0) + softened_kl(x_aug, x_f, 2.0)
    assert torch.allclose(model.mutual_loss(x_p, x_aug, x_f), both)
    model.kl_weight = 0.25
    assert torch.allclose(model.mutual_loss(x_p, x_aug, x_f), 0.25 * both)


# --- what goes into its parts ----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """What Algorithm 1 and the t* rule are called with."""
    calls = {"score_opt": [], "t_star": []}
    for name, seen in calls.items():
        real = getattr(algorithm1, name)

        def spied(*args, real=real, seen=seen, **keys):
            seen.append((args, keys))
            return real(*args, **keys)

        monkeypatch.setattr(algorithm1, name, spied)
    return calls


def test_the_training_has_fresh_noise_and_its_own_gradient(build, ratings, asked):
    model = build(PurifyAugMF, purify_grad="exact", eval_purify_grad="skip", eval_noise="zero")
    train(model, ratings, steps=2)
    all_scores(model.eval(), torch.tensor([1]))
    (_, first), (_, second), *_, (_, predicting) = asked["score_opt"]
    assert first["gradient"] == "exact" and predicting["gradient"] == "skip" and predicting["noise"] is None
    assert first["noise"][0][0].shape == (400, 64) and not torch.equal(first["noise"][0][0], second["noise"][0][0])
    assert not torch.equal(*first["noise"][0]) and not torch.equal(first["noise"][0][0], first["noise"][1][0])


def test_the_noise_level_is_chosen_from_the_clean_view_and_the_attacked_one(build, ratings, asked):
    """eq. (8): KL(p || q), p of x_p, q of x_a. In units of x_p only p has deviation 1."""
    model = build(PurifyAugMF, t_star="kl_ratio", adv="gauss", adv_eps=3.0)
    train(model, ratings, steps=1)
    ((clean, attacked, *_), _), *_ = asked["t_star"]
    assert (clean.std(0) - 1).abs().max() < 0.01 and attacked.std(0).min() > 2


def test_a_sample_that_weighs_nothing_is_in_no_loss(build, ratings):
    model = build(PurifyAugMF).train()
    model.on_epoch_start(5)
    feat, weight = ratings.inter_feat[:200], torch.ones(200)
    weight[100:] = 0
    torch.manual_seed(1)
    whole = model.calculate_loss(Interaction({**feat.interaction, "sample_weight": weight}))
    seen = []
    model.weigh = lambda losses, interaction: seen.append(losses) or losses
    model.batch = 0
    torch.manual_seed(1)
    model.calculate_loss(feat)
    assert len(seen) == 3 and all(losses.shape == (200,) for losses in seen)
    for found, losses in zip(whole, seen, strict=True):
        torch.testing.assert_close(found, losses[:100].sum() / 200, rtol=1e-3, atol=1e-7)


def test_the_ridge_term_is_added(build, ratings):
    feat, model = ratings.inter_feat[:100], build(PurifyAugMF, purify_steps=0, adv="none")
    plain = model.calculate_loss(feat)[0]
    model.reg_weight = 0.5
    u, v = model.user_embedding(feat["user_id"]), model.item_embedding(feat["item_id"])
    torch.testing.assert_close(model.calculate_loss(feat)[0], plain + 0.5 * (u.pow(2).sum() + v.pow(2).sum()) / 100)


# --- the DDPM purifier (eq. 7) ---------------------------------------------------------------------------------------


def test_a_step_back_is_drawn_from_the_posterior_of_bayes_rule():
    """q(x_{t-1} | x_t, x_0) ~ q(x_t | x_{t-1}) q(x_{t-1} | x_0), integrated on a grid."""
    before, alpha, x_0, x_t = 0.7, 0.8, 1.3, 0.4
    grid = torch.linspace(-6, 8, 40001, dtype=torch.double)
    log = -((x_t - math.sqrt(alpha) * grid) ** 2) / (2 * (1 - alpha))
    log = log - (grid - math.sqrt(before) * x_0) ** 2 / (2 * (1 - before))
    weight = (log - log.max()).exp()
    weight /= weight.sum()
    mean, variance = posterior(torch.tensor([x_0]), torch.tensor([x_t]), alpha, alpha * before)
    assert mean.item() == pytest.approx((weight * grid).sum().item(), abs=1e-5)
    assert variance == pytest.approx((weight * (grid - mean.item()) ** 2).sum().item(), abs=1e-5)


def test_a_chain_of_one_step_is_the_denoiser():
    x_a, e = torch.randn(9, 4), torch.randn(9, 4)
    found = ddpm(lambda s: GaussianDenoiser(sigma=s), x_a, sigma=0.5, sigma_min=0.02, steps=1, noise=[e])
    assert torch.allclose(found, GaussianDenoiser(sigma=0.5)(x_a + 0.5 * e), atol=1e-6)


def test_a_long_chain_leaves_the_data_as_they_are_distributed_and_draws_the_rest_to_them():
    """Clean data keep mean and variance; what lies 4 off comes nearer, by more the more noise there was."""
    torch.manual_seed(0)
    far, moved = 4 + 0.3 * torch.ones(40_000, 1), []
    for sigma in (0.5, 1.0, 2.0):
        chain = {"sigma": sigma, "sigma_min": 0.002, "steps": 60}
        clean = 0.3 + torch.randn(40_000, 1)
        noise = [torch.randn_like(clean) for _ in range(60)]
        found = ddpm(lambda s: GaussianDenoiser(sigma=s), clean, **chain, noise=noise)
        assert abs(found.mean() - 0.3) < 0.03 and abs(found.std() - 1) < 0.08
        moved.append(ddpm(lambda s: GaussianDenoiser(sigma=s), far, **chain, noise=noise).mean() - 0.3)
        assert moved[-1] == pytest.approx(4 / (1 + sigma**2), rel=0.02)  # E[x_0 | x_sigma] of the prior N(.3, 1)
    assert moved == sorted(moved, reverse=True)


def test_fixed_noise_is_another_draw_at_each_step_and_pushes_nobody():
    """The same twice; a chain along one and the same draw would move everything by several of its lengths."""
    clean = torch.randn(20_000, 64)
    noise = fixed_draws(clean, 20)
    assert all(torch.equal(*pair) for pair in zip(noise, fixed_draws(clean, 20), strict=True))
    assert noise[0].shape == (1, 64) and not torch.equal(noise[0], noise[1])
    moved = {}
    for name, draws in (("fixed", noise), ("one", [noise[0]] * 20)):
        found = ddpm(lambda s: GaussianDenoiser(0.0, sigma=s), clean, sigma=0.5, sigma_min=0.02, steps=20, noise=draws)
        moved[name] = (found - clean).mean(dim=0).pow(2).mean().sqrt()
    assert moved["fixed"] < 0.7 < 1.2 < moved["one"]


@pytest.mark.parametrize("backprop", ["straight_through", "detach", "unroll"])
def test_the_model_learns_and_predicts_through_the_chain(build, ratings, awake, backprop):
    model = build(PurifyAugMF, purifier="ddpm", purify_backprop=backprop)
    assert train(model, ratings, steps=4).isfinite().all()
    model, x_p = awake(purifier="ddpm", purify_steps=3), torch.randn(9, 64)
    z = model.moments.standardise(x_p)
    expected = model.moments.restore(ddpm(model.denoiser.at, z, sigma=0.5, sigma_min=0.02, steps=3))
    assert torch.allclose(model.augment(x_p, x_p), expected, atol=1e-6)


# --- 4, 8. prediction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "sum"])
def test_the_factorised_gate_is_the_dense_one(awake, head):
    model = awake(infer_mode="se", head=head, se_bias_init=0.0)
    user, item = torch.meshgrid(torch.arange(61), torch.arange(81), indexing="ij")
    with torch.no_grad():
        dense = model.score(model.purify(user.reshape(-1), item.reshape(-1))) * 5
    assert torch.allclose(all_scores(model).reshape(-1), dense, atol=1e-5)
    without = awake(infer_mode="se", head=head, se_heads=0)
    with torch.no_grad():
        dense = without.score(without.purify(user.reshape(-1), item.reshape(-1))) * 5
    assert torch.allclose(all_scores(without).reshape(-1), dense, atol=1e-5)


@pytest.mark.parametrize(
    "keys",
    [{}, {"eval_noise": "shared"}, {"eval_purify_grad": "skip"}, {"pair_op": "concat"}, {"infer_mode": "se"},
     {"purifier": "ddpm"}],
)  # fmt: skip
def test_chunks_change_nothing(awake, ratings, keys):
    model = awake(pair_chunk=10**6, **keys)
    whole = all_scores(model)
    model.pair_chunk = 97
    assert torch.allclose(all_scores(model), whole, atol=1e-5)
    feat = ratings.inter_feat
    with torch.no_grad():
        assert torch.allclose(model.predict(feat), whole[feat["user_id"], feat["item_id"]], atol=1e-5)


def test_reranking_all_items_is_the_exact_ranking(awake):
    exact = all_scores(awake())
    assert torch.allclose(all_scores(awake(infer_mode="rerank", rerank_topk=81)), exact, atol=1e-5)


def test_reranking_some_items_is_exact_for_them_and_leaves_the_others_below_in_their_order(awake, ratings):
    """The best are those that a user has not rated: of the others no evaluation ranks any."""
    exact, model = all_scores(awake()), awake(infer_mode="rerank", rerank_topk=20)
    scores, first = all_scores(model), all_scores(awake(infer_mode="se"))
    feat = ratings.inter_feat
    rated = torch.zeros_like(exact, dtype=torch.bool).index_put((feat["user_id"], feat["item_id"]), torch.tensor(True))
    chosen = torch.zeros_like(rated).scatter(1, first.masked_fill(rated, -torch.inf).topk(20, dim=1).indices, True)
    assert rated.sum(1).max() > 5 and not (chosen & rated).any()
    assert torch.allclose(scores[chosen], exact[chosen], atol=1e-5)
    below, above = scores.masked_fill(chosen, -torch.inf), scores.masked_fill(~chosen, torch.inf)
    assert (below.max(1).values < above.min(1).values).all()
    assert torch.equal(below.argsort(dim=1)[:, 20:], first.masked_fill(chosen, -torch.inf).argsort(dim=1)[:, 20:])


def test_a_pinned_item_is_ranked_by_the_whole_path_among_the_best_and_by_the_gate_below(awake):
    exact, model = all_scores(awake()), awake(infer_mode="rerank", rerank_topk=20)
    without = all_scores(model)
    model.pinned_items = pinned = torch.tensor([3, 40, 55])
    scores, first = all_scores(model), all_scores(awake(infer_mode="se"))
    least = without.topk(20, dim=1).values[:, -1:]
    above = exact[:, pinned] > least
    assert above.any() and not above.all()
    assert torch.allclose(scores[:, pinned][above], exact[:, pinned][above], atol=1e-5)
    assert torch.equal(scores[:, pinned][~above], without[:, pinned][~above])
    others = torch.ones_like(exact, dtype=torch.bool)
    others[:, pinned] = False
    assert torch.equal(scores[others], without[others])
    ranks = [(one[:, None, :] > one[:, pinned, None]).sum(dim=2)[~above] for one in (scores, first)]
    assert (ranks[0] - ranks[1]).float().abs().mean() < 15  # not above everybody else, as once: 20 of 81


def test_reranking_for_nothing_leaves_the_ranks_of_pinned_items(awake, ratings):
    """With the fusion that ends where the gate does, the whole path is the gate's score."""
    keys = {"fuse": "mean", "head": "sum", "purify_steps": 0}
    plain, model = all_scores(awake(infer_mode="se", **keys)), awake(infer_mode="rerank", rerank_topk=10, **keys)
    model.pinned_items = pinned = torch.tensor([3, 40, 55])
    rated = ratings.inter_feat["user_id"], ratings.inter_feat["item_id"]
    masked = [one.index_put(rated, torch.tensor(-torch.inf)) for one in (plain, all_scores(model))]
    ranks = [(one[:, None, :] > one[:, pinned, None]).sum(dim=2) for one in masked]
    assert ranks[0].float().std() > 10 and torch.equal(*ranks)


def test_predictions_are_made_without_noise_unless_it_is_asked_for(awake):
    model = awake()
    x_p = torch.randn(9, 64)
    z = model.moments.standardise(x_p)
    fixed = model.denoiser.at(0.5)
    for model.eval_noise, noise in (("zero", None), ("shared", shared_noise(z, 5))):
        expected = model.moments.restore(score_opt(fixed, z, steps=5, lr=0.2, noise=noise))
        assert torch.allclose(model.augment(x_p, x_p), expected, atol=1e-6)


@pytest.mark.parametrize("keys", [{}, {"eval_noise": "shared"}, {"infer_mode": "rerank"}, {"infer_mode": "se"}])
def test_predictions_are_the_same_twice_and_draw_no_random_numbers(awake, keys):
    model = awake(**keys)
    state = torch.get_rng_state()
    first = all_scores(model)
    assert torch.equal(first, all_scores(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(all_scores(model, torch.tensor([5, 60])), first[[5, 60]], atol=1e-5)


def test_predictions_are_in_stars(build, ratings):
    model = build(PurifyAugMF, fuse="mean", purify_steps=0)
    train(model, ratings, steps=60)
    feat = ratings.inter_feat[:400]
    with torch.no_grad():
        assert (model.eval().predict(feat) - feat["rating"]).abs().mean() < 0.5


def test_a_checkpoint_has_all_that_predicts(build, ratings):
    model = build(PurifyAugMF, t_star="kl_ratio", kl_ratio=0.8)
    train(model, ratings)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert {"moments.mean", "moments.var", "moments.n_batches", "sigma", "purifying"} <= set(state)
    torch.manual_seed(99)
    other = build(PurifyAugMF)
    other.load_state_dict(state)
    assert torch.equal(all_scores(other.eval()), all_scores(model.eval()))


def test_a_checkpoint_of_the_warm_up_is_evaluated_without_algorithm_1(build, ratings):
    model = build(PurifyAugMF, fuse="mean", head="sum", se_heads=0)
    train(model, ratings, first_epoch=0)
    other = build(PurifyAugMF, fuse="mean", head="sum", se_heads=0)
    other.load_state_dict(model.state_dict())
    dots = 5 * model.user_embedding.weight @ model.item_embedding.weight.T
    assert torch.allclose(all_scores(other.eval()), dots, atol=1e-4)
    other.on_epoch_start(5)
    assert not torch.allclose(all_scores(other), dots, atol=1e-2)


# --- training --------------------------------------------------------------------------------------------------------


def test_the_schedule(build, ratings):
    model = build(PurifyAugMF, denoiser_warmup=2, purify_warmup=5, fuse_residual=False)
    calls = []
    augment, model.augment = model.augment, lambda *args: calls.append(1) or augment(*args)
    seen = []
    for epoch in range(7):
        model.on_epoch_start(epoch)
        _, kl, loss_d = model.calculate_loss(ratings.inter_feat)
        seen.append((bool(loss_d > 0), bool(kl > 0), len(calls)))
    assert seen == [(e >= 2, e >= 5, max(0, e - 4)) for e in range(7)]


def test_algorithm_1_on_every_third_batch(build, ratings):
    model = build(PurifyAugMF, purify_every=3)
    calls = []
    augment, model.augment = model.augment, lambda *args: calls.append(1) or augment(*args)
    for _ in range(7):
        model.calculate_loss(ratings.inter_feat)
    assert len(calls) == 3


@pytest.mark.parametrize(
    "keys",
    [
        {"pair_op": "concat"},
        {"pair_op": "sum", "head": "sum"},
        {"se_excite": "dim"},
        {"se_heads": 0, "adv": "gauss"},
        {"adv": "fgsm", "purify_obj": "diff"},
        {"purify_obj": "mse", "purify_grad": "skip"},
        {"purify_opt": "adam", "purify_lr": 0.01},
        {"purify_backprop": "unroll"},
        {"purify_backprop": "detach", "kl_mode": "mse"},
        {"fuse_residual": False, "kl_mode": False},
        {"fuse": "mean", "t_star": "kl_ratio", "kl_ratio": 0.5},
        {"reg_weight": 1e-3, "denoiser_hidden": 32, "se_reduction": 4},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)
def test_every_option_learns(build, ratings, keys):
    model = build(PurifyAugMF, **keys)
    # The protocol's rate suits products of small vectors, of which it takes many; sums of them need less.
    history = train(model, ratings, table_lr=10.0 if model.pair_op == "hadamard" else 0.01)
    assert history.isfinite().all()
    assert history[-1, 0] < 0.9 * history[0, 0]
    assert all_scores(model.eval()).isfinite().all()


def test_half_precision_is_switched_off_inside(build, ratings):
    model = build(PurifyAugMF)
    plain = [torch.manual_seed(1) and model.calculate_loss(ratings.inter_feat)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain.append(torch.manual_seed(1) and model.calculate_loss(ratings.inter_feat))
    assert all(torch.allclose(a, b, rtol=1e-3) and b.dtype == torch.float32 for a, b in zip(*plain, strict=True))


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"purify_obj": "dif"}, "purify_obj: expected one of sr, diff, mse, got 'dif'"),
        ({"loss_type": "BPR"}, "loss_type"),
        ({"se_heads": 7}, "se_heads: expected a divisor of 64, got 7"),
        ({"infer_mode": "rerank", "pair_op": "concat"}, "infer_mode"),
        ({"purify_backprop": "unroll", "purify_opt": "adam"}, "unroll needs"),
        ({"kl_mode": True}, "kl_mode"),
        ({"purifier": "vae"}, "purifier: expected one of score_opt, ddpm, got 'vae'"),
    ],
)
def test_a_wrong_value_is_one_clear_error(build, keys, message):
    with pytest.raises(UserError, match=message):
        build(PurifyAugMF, **keys)


def test_the_literal_preset_pins_keys_of_the_model(build, model_keys, ratings):
    literal, default = model_keys("PurifyAugMF-literal"), model_keys("PurifyAugMF")
    assert set(literal) <= set(default)
    of_the_paper = ("pair_", "head", "se_", "adv", "denoiser_", "sigma_", "ema_", "purify_", "t_star", "kl_", "fuse")
    assert {key for key in default if key.startswith(of_the_paper)} - {"pair_chunk"} <= set(literal)
    assert not literal["group_weights"] and literal["train_neg_sample_args"] is None
    assert train(build(PurifyAugMF, **literal), ratings, steps=3).isfinite().all()


def test_every_key_of_the_yaml_is_read(plain_config, model_keys, ratings):
    config = plain_config("PurifyAugMF")
    PurifyAugMF(config, ratings)
    assert set(model_keys("PurifyAugMF")) - config.asked == {
        *("net_learning_rate", "net_weight_decay"),  # the trainer's
        # Of the rows, not of the model:
        *(f"group_{key}" for key in ("weights", "low", "high", "own_share", "usual", "evidence")),
    }


# --- 11. accuracy on real data ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def movielens():
    """ML-100K (in RecBole's own package) with one random rating a user held out: data set and held-out items."""
    path = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
    log = pd.read_csv(path, sep="\t").sample(frac=1, random_state=0)
    columns = [torch.from_numpy(pd.factorize(log.iloc[:, i], sort=True)[0] + 1) for i in (0, 1)]
    user, item, rating = *columns, torch.from_numpy(log.iloc[:, 2].to_numpy()).float()
    held_out = torch.from_numpy(~log.iloc[:, 0].duplicated().to_numpy())
    feat = Interaction({"user_id": user[~held_out], "item_id": item[~held_out], "rating": rating[~held_out]})
    sizes = {"user_id": 944, "item_id": 1683}
    relevant = torch.zeros(944, dtype=torch.long).scatter(0, user[held_out], item[held_out])
    return SimpleNamespace(inter_feat=feat, rating_range=(1.0, 5.0), num=sizes.get, relevant=relevant)


def hit_at_50(build, dataset, model_class, **keys):
    """The recipe of the protocol apt: 25 epochs, batches of 4,096."""
    model = build(model_class, dataset, **keys)
    tables = [model.user_embedding.weight, model.item_embedding.weight]
    networks = [p for p in model.parameters() if all(p is not t for t in tables)]
    optimisers = [torch.optim.Adagrad(tables, 10.0, initial_accumulator_value=0.1)]
    optimisers += [torch.optim.Adam(networks, 1e-3)] if networks else []
    for epoch in range(25):
        if networks:
            model.on_epoch_start(epoch)
        for rows in torch.randperm(len(dataset.inter_feat)).split(4096):
            losses = model.calculate_loss(dataset.inter_feat[rows])
            for optimiser in optimisers:
                optimiser.zero_grad()
            (sum(losses) if isinstance(losses, tuple) else losses).backward()
            for optimiser in optimisers:
                optimiser.step()
    with torch.no_grad():
        users = Interaction({"user_id": torch.arange(944)})
        scores = model.eval().full_sort_predict(users).view(944, 1683)
    scores[dataset.inter_feat["user_id"], dataset.inter_feat["item_id"]] = -torch.inf
    scores[:, 0] = -torch.inf
    top = scores.topk(50, dim=1).indices
    return (top == dataset.relevant[:, None]).any(dim=1)[1:].float().mean().item()


@pytest.fixture(scope="module")
def floor(build, movielens):
    """0.9 of the accuracy of MF: a defense that wins by destroying accuracy is none."""
    return 0.9 * hit_at_50(build, movielens, MF)


@pytest.mark.slow
def test_it_keeps_the_accuracy_of_mf_without_the_fuse_mlp(build, movielens, floor):
    assert hit_at_50(build, movielens, PurifyAugMF, fuse="mean") > floor > 0.15


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True, reason="measured: a trained fuse MLP halves hit@50, with or without what comes before it"
)
def test_it_keeps_the_accuracy_of_mf(build, movielens, floor):
    assert hit_at_50(build, movielens, PurifyAugMF) > floor
