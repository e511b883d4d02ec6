"""PurifyAug around other models: what it leaves as it is, what stands in a table's place, and what learns."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import NeuMF
from toy_splits import split

from recbole_robust import UserError
from recbole_robust.initialisation import build_model
from recbole_robust.model.mutual_learning import softened_kl
from recbole_robust.model.score_opt import score_opt
from recbole_robust.quick_start import run_recbole_robust

BASES = ["MF", "BPR", "LightGCN", "NeuMF"]
PART = importlib.import_module("recbole_robust.model.purify_aug")  # the package's own name for it is the function's
OFF = {"se_heads": 0, "purify_steps": 0}


@pytest.fixture
def models(toy_config):
    """``models(base, key=value, ...)``: PurifyAug around a model, that model itself, both of one seed, and a batch."""

    def make(base, **keys):
        known = {"dropout_prob": 0.0} if base == "NeuMF" else {}
        config, plain = toy_config("PurifyAug", base_model=base, **known, **keys), toy_config(base, **known)
        train = split(plain).train
        rows = train.inter_feat[:80].interaction
        batch = {name: rows[name] for name in ("user_id", "item_id", "rating") if name in rows}
        batch["neg_item_id"] = torch.randint(1, train.item_num, (80,), generator=torch.Generator().manual_seed(1))
        batch["label"] = torch.ones(80)
        return build_model(config, train, train), build_model(plain, train, train), Interaction(batch)

    return make


def all_scores(model):
    with torch.no_grad():
        users, items = torch.arange(1, model.n_users), torch.arange(model.n_items)
        pairs = {"user_id": users.repeat_interleave(len(items)), "item_id": items.repeat(len(users))}
        scores = model.eval().predict(Interaction(pairs))
        if not isinstance(model, NeuMF):
            torch.testing.assert_close(model.full_sort_predict(Interaction({"user_id": users})), scores)
        return scores


def total(losses):
    return sum(losses) if isinstance(losses, tuple) else losses


@pytest.mark.parametrize("base", BASES)
def test_without_gate_and_steps_it_is_the_base_model(models, base):
    model, plain, batch = models(base, **OFF)
    losses = [total(one.train().calculate_loss(batch)) for one in (model, plain)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    for loss in losses:
        loss.backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        name = name.replace("parametrizations.weight.original", "weight").replace("parametrizations.", "")
        if name in theirs:
            torch.testing.assert_close(parameter.grad, theirs[name].grad)
    torch.testing.assert_close(all_scores(model), all_scores(plain), rtol=0, atol=0)


@pytest.mark.parametrize("base", BASES)
def test_it_ranks_as_the_base_model_on_the_purified_tables(models, base):
    model, plain, batch = models(base, se_bias_init=0.0, purify_warmup=0)
    untouched = all_scores(model)
    model.train().on_epoch_start(0)
    model.calculate_loss(batch)  # graph models forget what they have propagated
    model.on_epoch_end(0)
    model.eval()
    with torch.no_grad():
        for (_, theirs), (_, ours) in zip(tables(plain), tables(model), strict=True):
            theirs.weight.copy_(ours.weight)
    scores = all_scores(model)
    torch.testing.assert_close(scores, all_scores(plain))
    assert not torch.equal(scores, untouched)
    torch.testing.assert_close(all_scores(model), scores, rtol=0, atol=0)


def purifier_of(model, name="user_embedding"):
    """A purifier whose denoiser does something, and the table that it purifies."""
    part = dict(model.named_modules())[name]
    purifier = part.parametrizations.weight[0]
    with torch.no_grad():
        for parameter in purifier.denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return purifier, part


def test_a_purified_table_is_the_mean_of_both_views(models):
    """``x_f = (x_p + x_aug) / 2``, and x_aug of predictions is Algorithm 1 from x_p, without noise."""
    model, _, _ = models("BPR", se_bias_init=0.0, purify_warmup=0)
    purifier, part = purifier_of(model)
    model.on_epoch_start(0)
    model.on_epoch_end(0)
    x = part.parametrizations.weight.original.detach()
    x_p = purifier.gate(x)
    assert not torch.allclose(x_p, x)
    standard, keys = (x_p - x_p.mean(0)) / x_p.std(0), {"steps": 5, "lr": 0.2, "weight": 1.0}
    x_m = score_opt(purifier.denoiser.at(0.25), standard, **keys) * x_p.std(0) + x_p.mean(0)
    assert (x_m - x_p).abs().max() > 1e-3
    torch.testing.assert_close(model.eval() and part.weight, (x_p + x_m) / 2)
    trained = model.train() and part.weight
    torch.testing.assert_close(trained, x_p + purifier.move / 2)
    assert (purifier.move - purifier.still_move).abs().max() > 1e-3


def test_predictions_do_not_depend_on_luck_and_the_training_has_noise(models):
    """Two draws of the noise: other moves of the training, as long as eps says; one of predictions."""
    model, _, _ = models("BPR", purify_warmup=0)
    purifier, part = purifier_of(model)
    x = part.parametrizations.weight.original.detach()
    purifier.measure(x)
    moves = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        purifier.augment(x)
        purifier.settle(x)
        moves.append((purifier.move.clone(), purifier.still_move.clone()))
    assert not torch.equal(moves[0][0], moves[1][0]) and torch.equal(moves[0][1], moves[1][1])
    purifier.score_opt = {**purifier.score_opt, "steps": 0}
    purifier.augment(x)  # eta alone
    x_p = purifier.purify(x).detach()
    torch.testing.assert_close(
        purifier.move.norm(dim=1), (0.1 * x_p.pow(2).sum(1).mean().sqrt()).expand(len(x_p)), rtol=1e-3, atol=1e-5
    )


def test_the_denoiser_sees_rows_of_mean_0_and_deviation_1_from_the_first_epoch(models, monkeypatch):
    model, _, batch = models("BPR", purify_warmup=3)
    seen = []
    monkeypatch.setattr(PART, "denoising_loss", lambda denoiser, x, *sigmas: seen.append(x) or x.sum(dim=1) * 0)
    model.train().on_epoch_start(0)
    model.calculate_loss(batch)
    assert len(seen) == 2  # the table of users and that of items
    for rows in seen:
        assert rows.mean(0).abs().max() < 0.4 and (rows.std(0) - 1).abs().max() < 0.4


def test_mutual_learning_is_the_kl_of_both_views_from_the_fused_one(models):
    model, _, batch = models("BPR", purify_warmup=0, kl_weight=0.25, kl_T=3.0)
    purifier, part = purifier_of(model)
    model.on_epoch_start(0)
    x, rows = part.parametrizations.weight.original, torch.arange(1, 20)
    x_p = purifier.purify(x[rows])
    x_aug = x_p + purifier.move[rows]
    x_f = (x_p + x_aug) / 2
    expected = softened_kl(x_p, x_f, 3.0) + softened_kl(x_aug, x_f, 3.0)
    torch.testing.assert_close(purifier.losses(x, rows, 3.0)[0], expected)
    losses = []
    for model.kl_weight in (0.25, 0.5):
        torch.manual_seed(0)
        losses.append(model.calculate_loss(batch)[-2])
    torch.testing.assert_close(2 * losses[0], losses[1])
    assert losses[0] > 0


def tables(model):
    return [(name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.Embedding)]


def test_each_loss_moves_its_own_part(models):
    """L_D the denoisers only; the base model's the tables and the gates, never the denoisers."""
    model, _, batch = models("BPR", purify_warmup=0)
    model.on_epoch_start(0)
    *own, kl, loss_d = model.calculate_loss(batch)

    def moved(loss):
        model.zero_grad()
        loss.backward(retain_graph=True)
        return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}

    learns = moved(loss_d)
    assert kl > 0 and learns and all("denoiser" in name for name in learns)
    for loss in (sum(own), kl):
        names = moved(loss)
        assert {
            "user_embedding.parametrizations.weight.original",
            "item_embedding.parametrizations.weight.original",
        } <= names
        assert any("gate" in name for name in names) and not any("denoiser" in name for name in names)


def test_algorithm_1_runs_once_an_epoch_after_the_warm_up_and_is_kept_in_the_checkpoint(models):
    model, _, _ = models("BPR", purify_warmup=2)
    moves = []
    for epoch in range(4):
        model.on_epoch_start(epoch)
        moves.append(model.state_dict()["user_embedding.parametrizations.weight.0.move"].clone())
    assert [bool(move.abs().max() > 0) for move in moves] == [False, False, True, True]
    assert not torch.equal(moves[2], moves[3])
    model.eval()
    other, _, _ = models("BPR", purify_warmup=2, seed=5)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(all_scores(other), all_scores(model), rtol=0, atol=0)


def test_a_run_has_its_base_model_beside_it(data_path, output_dir):
    keys = {"data_path": str(data_path), "output_dir": str(output_dir), "epochs": 2, "topk": [5],
            "base_model": "BPR", "attack": "Average", "target_items": ["i3"], "show_progress": False, "gpu_id": "",
            "purify_warmup": 1}  # fmt: skip
    found = run_recbole_robust("PurifyAug", "toy", config_dict=keys)
    on_disk = json.loads(Path(found["path"]).read_text(encoding="utf-8"))
    assert (on_disk["model"], on_disk["base_model"], on_disk["baseline"]["model"]) == ("PurifyAug", "BPR", "BPR")
    assert on_disk["attacked"]["hit@5"] >= 0 and on_disk["baseline"]["attacked"]["hit@5"] >= 0


@pytest.mark.parametrize(
    "keys, message",
    [
        ({}, "base_model: expected the name of a model, since PurifyAug wraps one, got none"),
        ({"base_model": "BPRR"}, "unknown base_model 'BPRR': did you mean BPR"),
        ({"base_model": "PurifyAug"}, "unknown base_model 'PurifyAug'"),
        ({"base_model": "BPR", "defense": "AT"}, "defense: expected one of MF, BPR, .* under AT, got PurifyAug"),
    ],
)
def test_a_wrong_name_is_one_clear_error(toy_config, keys, message):
    with pytest.raises(UserError, match=message):
        toy_config("PurifyAug", **keys)


@pytest.mark.parametrize("key", ["purify_obj", "purify_opt", "purify_grad"])
def test_a_wrong_choice_is_one_clear_error(models, key):
    with pytest.raises(UserError, match=f"{key}: expected one of .*, got 'other'"):
        models("BPR", **{key: "other"})


@pytest.mark.parametrize("base", ["Pop", "ItemKNN"])
def test_a_model_without_tables_is_refused(toy_config, base):
    config = toy_config("PurifyAug", base_model=base)
    train = split(config).train
    with pytest.raises(
        UserError, match=f"base_model: expected a model with a table of users and one of items, got {base}"
    ):
        build_model(config, train, train)
