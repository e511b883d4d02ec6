"""ATJT around other models: what it leaves as it is, whose gradients go where, and who weighs whom (P1 to P18)."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import recbole
import torch
import yaml
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import SASRec
from torch.testing import assert_close
from toy_splits import SMALL, make_run, split

from recbole_robust import UserError
from recbole_robust.checkpoint import load_checkpoint
from recbole_robust.data.load import prepare
from recbole_robust.initialisation import build_model
from recbole_robust.model.sequence_weights import weighted_mean
from recbole_robust.properties_path import properties_dir
from recbole_robust.quick_start import run_recbole_robust
from recbole_robust.registry import recbole_models
from recbole_robust.types import SAMPLE_WEIGHT

MODELS = Path(recbole.__file__).parent / "model"
FEATURES = {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "user": ["user_id", "age", "gender"],
                         "item": ["item_id", "year", "class"]}}  # fmt: skip
CONTEXT = {"DCN", "WideDeep"}  # of those below
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0}
BASES = {
    "SASRec": {},
    "GRU4Rec": {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 2}},
    "DIN": FEATURES,
    "DCN": {"cross_layer_num": 2, "train_neg_sample_args": {"distribution": "uniform", "sample_num": 2}},
}
MORE = {"FEARec": {"n_layers": 2}, "WideDeep": {}}  # in some tests only
RECOGNISER = {"recogniser_dim": 4, "recogniser_pretrain_steps": 0}
BATCHES = {"train_batch_size": 600, "eval_batch_size": 100000, "save_checkpoint": False}


@pytest.fixture
def config_of(toy_config):
    """``config_of(base, key=value, ...)``: ATJT around a base; ``plain=True``: the base itself, as in its baseline."""

    def make(base: str, plain: bool = False, **keys):
        keys = {**SMALL, **BATCHES, **{**BASES, **MORE}.get(base, {}), **keys}
        if plain:
            return toy_config(f"Seq{base}" if base in CONTEXT else base, **keys)
        return toy_config("ATJT", base_model=base, **{**RECOGNISER, **keys})

    return make


@pytest.fixture
def model_of(config_of):
    """``model_of(base, key=value, ...)``: a model as the trainer gets it, and the first training batch."""

    def make(base: str, plain: bool = False, **keys):
        config = config_of(base, plain, **keys)
        loader = prepare(config)[0]
        train = loader._dataset
        return build_model(config, train, train), next(iter(loader))

    return make


def total(losses):
    return sum(losses) if isinstance(losses, tuple) else losses


def copy_of(batch: Interaction) -> Interaction:
    return Interaction({name: batch[name].clone() for name in batch.columns})


def base_state(model) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith("auxiliary")}


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# --- what stays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
def test_it_starts_from_the_base_models_values_under_its_names(model_of, base):
    (model, _), (plain, _) = model_of(base), model_of(base, plain=True)
    assert same(base_state(model), plain.state_dict())
    assert any(name.startswith("auxiliary") for name in model.state_dict())


@pytest.mark.parametrize(
    ("base", "off"),
    [(base, {"atjt_warmup": 2}) for base in [*BASES, *MORE]]
    + [("SASRec", {"atjt_weights": "uniform"}), ("DCN", {"atjt_weights": "uniform"})]
    + [("DIN", {"noisy_seq_ratio": 0.0}), ("FEARec", {"noisy_seq_ratio": 0.0})]
    + [("SASRec", {"atjt_warmup": 2, "clip_grad_norm": {"max_norm": 0.5}})],
)
def test_without_weights_it_is_the_base_model_bit_for_bit(config_of, base, off):
    """P1. With a warm-up as long as the training the recogniser learns all the while, by random numbers of its own."""
    parameters = []
    shared = {key: off[key] for key in ("clip_grad_norm",) if key in off}
    for keys in ({"plain": True, **shared}, off):
        run = make_run(config_of(base, epochs=2, **keys))
        run.fit(saved=False)
        parameters.append(base_state(run.trainer.model))
    assert same(*parameters)


def test_weights_of_one_are_no_weights(model_of):
    """P1: sample weights of 1 go through the tap, and give what the criterion gives."""
    for base in BASES:
        model, batch = model_of(base, atjt_weights="uniform", **NO_DROPOUT)
        plain = total(model.eval().calculate_loss(copy_of(batch)))
        batch[SAMPLE_WEIGHT] = torch.ones(len(batch))
        assert_close(total(model.calculate_loss(batch)), plain, rtol=1e-6, atol=1e-6)


def test_inference_is_the_base_models(model_of):
    """Nothing of the recogniser is asked when the model predicts."""
    model, batch = model_of("SASRec", plain=False)
    plain, _ = model_of("SASRec", plain=True)
    model.auxiliary = None
    assert torch.equal(model.eval().full_sort_predict(batch), plain.eval().full_sort_predict(batch))


# --- the weighted loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "constant"), [*((base, None) for base in BASES), ("DIN", 0.5), ("SASRec", 0.5)])
def test_the_loss_is_the_weighted_mean_of_the_samples_own(model_of, base, constant):
    """P2, P5, P17: the losses of a loop over single sequences; DCN's regulariser beside them, unweighed."""
    model, batch = model_of(base, train_batch_size=24, negative_weight=constant, **NO_DROPOUT)
    model.eval()
    weights = torch.rand(model.joint.positives(batch).users.shape, generator=torch.Generator().manual_seed(0))
    found = model.weighted_loss(copy_of(batch), weights, torch.Generator())
    extra = 0.0
    if base == "DCN":
        extra = model.reg_weight * model.reg_loss(model.cross_layer_w)
        assert extra > 0.001
    alone = torch.stack([super(type(model), model).calculate_loss(batch[[row]]) - extra for row in range(len(batch))])
    n, times = len(weights), model.joint.times
    assert times == {"SASRec": 1, "GRU4Rec": 2, "DIN": 2, "DCN": 3}[base] and len(batch) == n * times
    negatives = weights if constant is None else torch.full_like(weights, constant)
    expected = weighted_mean(alone, torch.cat([weights, *[negatives] * (times - 1)])) + extra
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if constant is None:
        assert_close(model.weighted_loss(copy_of(batch), 7 * weights, torch.Generator()), found)  # P3


@pytest.mark.parametrize("base", ["SASRec", "DIN"])
def test_a_sequence_of_no_weight_does_not_count(model_of, base):
    """P4: whatever stands in that row, and in the row of its negative, no gradient changes."""
    model, batch = model_of(base, **NO_DROPOUT)
    model.eval()
    n = len(batch) // model.joint.times
    weights = torch.ones(n).index_fill_(0, torch.tensor([5]), 0.0)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model.weighted_loss(copy_of(batch), weights, torch.Generator()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        for row in model.joint.rows_of(torch.tensor([5]), n):
            batch["item_id_list"][row, 0] = batch["item_id_list"][row, 0] % 59 + 1
            batch["item_id"][row] = batch["item_id"][row] % 59 + 1
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_negatives_are_where_they_are_expected(model_of):
    """P17, and the assertions: rows in another order are not weighed wrongly but refused."""
    model, batch = model_of("DIN")
    sequences = model.joint.positives(batch)
    n = len(sequences.users)
    assert torch.equal(batch["user_id"][n:], sequences.users) and batch["label"][:n].all()
    assert torch.equal(sequences.targets, batch["item_id"][:n])
    assert torch.equal(model.joint.rows_of(torch.tensor([1, 4]), n), torch.tensor([1, 4, n + 1, n + 4]))
    with pytest.raises(AssertionError, match="expected"):
        model.joint.positives(batch[torch.arange(len(batch)).view(2, n).T.flatten()])


def test_the_model_is_as_it_was_after_a_batch(model_of):
    """P6: no parameter is added by the tap, and it is silent outside the loss."""
    model, batch = model_of("SASRec")
    model.calculate_loss(batch)
    assert model.tap is model.loss_fct and model.tap.reduce is None
    assert not any("criterion" in name for name in model.state_dict())


# --- the recognisers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["SASRec", "DIN"])
def test_no_recogniser_learns_from_whom_it_weighs(model_of, base):
    """P8: with the users of one fold only, L_D gives that fold's recogniser no gradient and every other one some."""
    model, batch = model_of(base, n_folds=3)
    sequences, task = model.joint.positives(batch), model.auxiliary
    for fold in range(3):
        mine = sequences.take((task.folds(sequences.users) == fold).nonzero().squeeze(1))
        model.zero_grad()
        task.loss(mine, torch.Generator().manual_seed(0)).backward()
        moved = [any(p.grad is not None and p.grad.any() for p in one.parameters()) for one in task.recognisers]
        assert moved == [other != fold for other in range(3)]
        weights = task.weights(sequences)
        task.weights(sequences).sum().backward()
        with torch.no_grad():
            task.recognisers[fold].items.weight.add_(0.1)
        changed = task.weights(sequences) != weights
        assert torch.equal(changed, task.folds(sequences.users) == fold)


def test_joint_training_moves_the_recogniser_by_what_the_samples_lose(model_of):
    """P9: d L_R / d w_i = (l_i - L_R) / sum w; detached nothing."""
    model, batch = model_of("SASRec", **NO_DROPOUT)
    model.eval()
    loss_r, _ = model.calculate_loss(copy_of(batch))
    parameters = list(model.auxiliary.parameters())
    joint = torch.autograd.grad(loss_r, parameters, allow_unused=True)
    weights = model.auxiliary.weights(model.joint.positives(batch))
    logits = model.full_sort_predict(batch)
    losses = torch.nn.functional.cross_entropy(logits, batch["item_id"], reduction="none").detach()
    wanted = torch.autograd.grad(weights, parameters, (losses - loss_r.detach()) / weights.detach().sum())
    assert any(gradient.any() for gradient in wanted)
    for found, expected in zip(joint, wanted, strict=True):
        assert_close(found, expected, rtol=1e-3, atol=1e-7)
    model.joint.detach = True
    loss_r, loss_d = model.calculate_loss(copy_of(batch))
    assert torch.autograd.grad(loss_r, parameters, allow_unused=True, retain_graph=True) == (None,) * len(parameters)
    assert any(gradient is not None for gradient in torch.autograd.grad(loss_d, parameters, allow_unused=True))


def test_lambda_scales_the_auxiliary_loss_alone(model_of):
    losses = []
    for lambda_ in (100.0, 10.0):
        model, batch = model_of("SASRec", atjt_lambda=lambda_, **NO_DROPOUT)
        losses.append(model.eval().calculate_loss(batch))
    assert_close(losses[0][0], losses[1][0])
    assert_close(losses[0][1], 10 * losses[1][1])


def test_the_recognisers_have_a_rate_of_their_own(config_of):
    run = make_run(config_of("SASRec", learning_rate=0.003, recogniser_lr=0.5, recogniser_weight_decay=0.25))
    own, theirs = run.trainer.optimizer.param_groups
    assert (own["lr"], theirs["lr"], own["weight_decay"], theirs["weight_decay"]) == (0.003, 0.5, 0.0, 0.25)
    model = run.trainer.model
    assert {id(p) for p in theirs["params"]} == {id(p) for p in model.auxiliary.parameters()}
    assert len(own["params"]) + len(theirs["params"]) == len(list(model.parameters()))


def test_the_norm_of_each_groups_gradient_is_clipped(config_of):
    """By itself: L_D under lambda has by far the larger one, of which nothing is left in the base model's."""
    run = make_run(config_of("SASRec", epochs=1, clip_grad_norm={"max_norm": 0.1}))
    norms = []
    run.trainer.optimizer.register_step_pre_hook(  # after the one that clips
        lambda optimizer, *_: norms.append([
            torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None]).norm()
            for group in optimizer.param_groups
        ])
    )  # fmt: skip
    run.fit(saved=False)
    assert_close(torch.tensor(norms), torch.full((len(norms), 2), 0.1), rtol=1e-3, atol=0)


def test_a_rate_that_breaks_the_recognisers_is_told(model_of):
    model, _ = model_of("SASRec", recogniser_pretrain_steps=5, recogniser_lr=1e30)
    with pytest.raises(UserError, match="recogniser_lr: expected a rate that 5 steps of pre-training stand, got 1e"):
        model.on_epoch_start(0)


def test_pre_training_teaches_the_recognisers_alone(model_of):
    (model, _), (before, _) = model_of("SASRec", recogniser_pretrain_steps=3), model_of("SASRec")
    state = torch.get_rng_state()
    model.eval()
    model.on_epoch_start(0)
    assert model.auxiliary.training  # as after a validation, where a later phase begins: cuDNN asks for it
    assert torch.equal(torch.get_rng_state(), state)
    assert same(base_state(model), base_state(before))
    learned = {name: value.clone() for name, value in model.auxiliary.state_dict().items()}
    assert not same(learned, before.auxiliary.state_dict())
    model.on_epoch_start(1)
    assert same(learned, model.auxiliary.state_dict()), "once"


def test_the_recognisers_see_the_last_items_alone(model_of):
    model, batch = model_of("SASRec", recogniser_history=3)
    seen = model.joint.positives(batch)
    longer = batch["item_length"] > 3
    assert longer.any() and not longer.all()
    for history, n, last in zip(batch["item_id_list"], batch["item_length"], seen.histories, strict=True):
        assert last[last > 0].tolist() == history[:n][-3:].tolist()
    older = copy_of(batch)
    older["item_id_list"][longer, 0] = 1
    weights = model.auxiliary.weights(seen)
    assert torch.equal(model.auxiliary.weights(model.joint.positives(older)), weights)
    everything, _ = model_of("SASRec", recogniser_history=None)
    assert torch.equal(everything.joint.positives(batch).histories, batch["item_id_list"])


@pytest.mark.parametrize("keys", [{"n_folds": 4}, {"recogniser": "gru"}, {"weight_normalize": "fold"},
                                  {"weight_normalize": "item"},
                                  {"weight_normalize": "none", "atjt_detach": True}, {"replace_target_prob": 0.5},
                                  {"replace_by": "popularity", "n_replaced": 0.3, "weight_floor": 0.1},
                                  {"recogniser_category": "class", **FEATURES}])  # fmt: skip
def test_its_options_train(config_of, keys):
    """P18: also with four folds."""
    run = make_run(config_of("SASRec", epochs=1, **keys))
    run.fit(saved=False)
    weights = run.trainer.model.instance_weights()
    assert len(weights) == len(run.splits.train.inter_feat)
    assert (weights > keys.get("weight_floor", 0)).all() and (weights < 1).all() and weights.std() > 0


@pytest.mark.parametrize("balance", ["sum", "fold", "item", "none"])
@pytest.mark.parametrize("share", [None, 0.3])
def test_what_enters_the_loss(model_of, balance, share):
    """Of the recogniser's logits, by hand: the share of noise taken out, the weights over the mean of their group."""
    model, batch = model_of("SASRec", weight_normalize=balance, weight_noise_share=share, weight_floor=0.1,
                            noisy_seq_ratio=0.25, recogniser_pretrain_steps=30, **NO_DROPOUT)  # fmt: skip
    model.on_epoch_start(0)
    model.eval()
    task, found = model.auxiliary, {}
    every = model.training_sequences
    for name, sequences in (("batch", model.joint.positives(batch)), ("every", every)):
        folds = task.folds(sequences.users)
        logits = torch.stack([one(sequences.histories, sequences.lengths, sequences.targets)
                              for one in task.recognisers])[folds, torch.arange(len(folds))]  # fmt: skip
        p = torch.sigmoid(logits) if share is None else (1 - share * 3 / logits.exp()).clamp(min=0)
        found[name] = (0.1 + 0.9 * p, folds, sequences.targets)
    weights, folds, targets = found["batch"]
    assert_close(task.weights(model.joint.positives(batch)), weights, rtol=1e-4, atol=1e-5)
    if balance == "fold":
        weights = weights / torch.stack([weights[folds == fold].mean() for fold in range(2)])[folds]
    if balance == "item":
        of_all, _, of_targets = found["every"]
        weights = weights / torch.stack([of_all[of_targets == target].mean() for target in targets])
    losses = torch.nn.functional.cross_entropy(model.full_sort_predict(batch), batch["item_id"], reduction="none")
    expected = (weights * losses).sum() / (len(losses) if balance == "none" else weights.sum())
    assert_close(model.calculate_loss(copy_of(batch))[0], expected, rtol=1e-4, atol=1e-5)


def test_the_share_of_noise_is_estimated_as_an_epoch_begins(config_of):
    """By each fold's recogniser of the fold's own users, by numbers of its own; it is kept with the weights."""
    run = make_run(config_of("SASRec", weight_noise_share="estimated", recogniser_pretrain_steps=50))
    model = run.trainer.model
    task, sequences = model.auxiliary, model.training_sequences
    assert not task.noise_shares.any()
    state = torch.get_rng_state()
    model.on_epoch_start(0)
    assert torch.equal(torch.get_rng_state(), state)
    shares = task.noise_shares.clone()
    assert (
        ((shares > 0) & (shares < 1)).all()
        and shares[0] != shares[1]
        and "auxiliary.noise_shares" in model.state_dict()
    )
    others = (task.folds(sequences.users) == 1).nonzero().squeeze(1)
    task.look_around(sequences.take(others), torch.Generator().manual_seed(0))  # nobody of fold 0
    assert task.noise_shares[0] == shares[0] and task.noise_shares[1] != 0
    with torch.no_grad():
        task.recognisers[0].head[-1].bias.add_(3.0)  # the threshold goes along: no share depends on the level
    model.on_epoch_start(1)
    again = task.noise_shares.clone()
    with torch.no_grad():
        task.recognisers[0].head[-1].bias.add_(3.0)
    model.on_epoch_start(1)
    assert_close(task.noise_shares, again)


def test_the_logits_are_calibrated_on_users_that_the_recogniser_has_not_learned_from(config_of):
    """Each by the users of its fold. Ten times as sure it weighs as before; the calibration is kept with it."""
    keys = {"weight_temperature": "estimated", "weight_noise_share": 0.2}
    run = make_run(config_of("SASRec", **keys, recogniser_pretrain_steps=50))
    model = run.trainer.model
    task = model.auxiliary
    state = torch.get_rng_state()
    model.on_epoch_start(0)
    assert torch.equal(torch.get_rng_state(), state) and "auxiliary.calibrations" in model.state_dict()
    weights, scales = model.instance_weights(), task.calibrations[:, 0].clone()
    assert (scales > 0).all() and scales[0] != scales[1] and weights.std() > 0
    with torch.no_grad():
        for recogniser in task.recognisers:
            recogniser.head[-1].weight.mul_(10.0)
            recogniser.head[-1].bias.mul_(10.0)
    task.look_around(model.training_sequences, model.joint.generator("epoch 0, shares"))
    assert_close(task.calibrations[:, 0], scales / 10, rtol=0.01, atol=0)
    assert_close(model.instance_weights(), weights, rtol=0, atol=0.005)
    before = task.calibrations.clone()
    others = (task.folds(model.training_sequences.users) == 1).nonzero().squeeze(1)
    task.look_around(model.training_sequences.take(others), torch.Generator().manual_seed(0))
    assert torch.equal(task.calibrations[0], before[0]) and not torch.equal(task.calibrations[1], before[1])


def test_calibrated_recognisers_tell_the_noise_of_the_log_together(config_of):
    """One share for all folds, also for those whose recogniser cannot tell it; where none can, all weigh 1."""
    keys = {"weight_temperature": "estimated", "weight_noise_share": "estimated"}
    run = make_run(config_of("SASRec", **keys, recogniser_pretrain_steps=50))
    task, sequences = run.trainer.model.auxiliary, run.trainer.model.training_sequences
    run.trainer.model.on_epoch_start(0)
    assert 0 < task.noise_shares[0] == task.noise_shares[1] < 1
    folds = task.folds(sequences.users)
    for fold, others in ((0, True), (1, False)):
        with torch.no_grad():
            task.recognisers[fold].head[-1].weight.mul_(-1.0)  # it is wrong now, and worth nothing
        task.look_around(sequences, torch.Generator().manual_seed(0))
        assert task.calibrations[fold, 0] == 0 and bool(task.calibrations[:, 0].any()) is others
        weights = run.trainer.model.instance_weights()
        assert_close(weights[folds == fold], (1 - task.noise_shares[fold]).expand((folds == fold).sum()))
    assert_close(weights, torch.ones_like(weights))


def test_the_preset_weighs_an_items_sequences_beside_each_other(config_of):
    """What each item's sequences weigh together is how many they are, whatever the recogniser thinks of the item."""
    config = config_of("SASRec", preset="corrected", epochs=2, recogniser_pretrain_steps=50)
    wanted = {"weight_noise_share": "estimated", "weight_normalize": "item", "atjt_detach": True}
    assert {key: config[key] for key in wanted} == wanted
    run = make_run(config)
    run.fit(saved=False)
    model = run.trainer.model
    model.on_epoch_start(2)  # which estimates the noise, and takes the items' means
    weights, sequences = model.instance_weights(), model.training_sequences
    assert weights.min() < 0.5 and (weights >= 0).all() and (weights < 1).all()
    balanced = model.auxiliary.balanced(weights, sequences)
    sums, counts = (torch.zeros(run.splits.train.item_num).index_add(0, sequences.targets, part)
                    for part in (balanced, torch.ones_like(balanced)))  # fmt: skip
    sparse = model.auxiliary.item_means <= 0.02 * weights.mean() * 1.001  # nothing there seems clean
    assert_close(sums[~sparse], counts[~sparse], atol=1e-3, rtol=1e-3)
    assert (~sparse).sum() > 20 and (sums <= counts * 1.001).all()


def test_the_calibrated_preset_is_the_corrected_one_calibrated(config_of):
    files = [properties_dir() / "model" / f"ATJT-{name}.yaml" for name in ("corrected", "calibrated")]
    corrected, calibrated = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in files)
    assert calibrated == {**corrected, "weight_temperature": "estimated"}
    assert config_of("SASRec", preset="calibrated")["weight_temperature"] == "estimated"


@pytest.mark.parametrize("keys", [{"recogniser_category": "age", **FEATURES}, {"recogniser_category": "class"}])
def test_categories_are_those_of_the_items(model_of, keys):
    with pytest.raises(UserError, match="recogniser_category: expected a token field of the items"):
        model_of("SASRec", **keys)


# --- the phased schedule ----------------------------------------------------------------------------------------------


def test_a_phase_has_its_fold_and_its_recogniser(config_of):
    """In phase g the base model learns from the users of fold g, and recogniser g from the others."""
    config = config_of("SASRec", atjt_schedule="phased", epochs=4, recogniser_pretrain_steps=1, **NO_DROPOUT)
    run = make_run(config)
    model, seen = run.trainer.model, []
    loss, task = model.weighted_loss, model.auxiliary
    model.weighted_loss = lambda rows, *rest: seen.append(rows["user_id"]) or loss(rows, *rest)
    for epoch in range(4):
        before = [[p.clone() for p in one.parameters()] for one in task.recognisers]
        seen.clear()
        run.trainer._train_epoch(run.loaders[0], epoch)
        fold = epoch // 2
        assert (task.folds(torch.cat(seen)) == fold).all()
        assert len(torch.cat(seen)) == (task.folds(run.splits.train.inter_feat["user_id"]) == fold).sum()
        moved = [
            any(not torch.equal(a, b) for a, b in zip(old, one.parameters(), strict=True))
            for old, one in zip(before, task.recognisers, strict=True)
        ]
        assert moved == [fold == 0, fold == 1]


def test_a_batch_without_the_phases_fold_leaves_the_base_model_where_it_is(config_of):
    """Adam would go on by its momentum from a gradient of zeros."""
    run = make_run(config_of("SASRec", atjt_schedule="phased", epochs=4, n_folds=3, **NO_DROPOUT))
    model, optimizer = run.trainer.model, run.trainer.optimizer
    batch = next(iter(run.loaders[0]))
    model.on_epoch_start(0)
    folds = model.auxiliary.folds(batch["user_id"])
    moved = []
    for rows in (folds >= 0, folds != model.joint.phase):
        before = {name: value.clone() for name, value in model.named_parameters()}
        optimizer.zero_grad()
        total(model.calculate_loss(batch[rows.nonzero().squeeze(1)])).backward()
        optimizer.step()
        moved.append({name for name, value in model.named_parameters() if not torch.equal(value, before[name])})
    theirs = {name for name in moved[0] if name.startswith("auxiliary.recognisers.0")}
    assert theirs and moved[0] > theirs and moved[1] == theirs


def test_a_last_batch_of_another_fold_teaches_nothing(model_of):
    """One sequence that neither the base model nor a recogniser learns from: a loss of 0 that can be taken back."""
    model, batch = model_of("SASRec", atjt_schedule="phased", epochs=4)
    model.on_epoch_start(0)
    other = (model.auxiliary.folds(batch["user_id"]) != model.joint.phase).nonzero().squeeze(1)
    terms = model.calculate_loss(batch[other[:1]])
    assert len(terms) == len(model.loss_terms) == 2
    sum(terms).backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_every_fold_has_its_phase(config_of):
    """Whatever the number of epochs: no fold is left out, and no validation stops the training before."""
    for epochs, n_folds in ((6, 4), (10, 7), (4, 4)):
        config = config_of("SASRec", atjt_schedule="phased", epochs=epochs, n_folds=n_folds)
        assert config["eval_step"] == 0
        joint = make_run(config).trainer.model.joint
        phases = set()
        for joint.epoch in range(epochs):
            phases.add(joint.phase)
        assert phases == set(range(n_folds))


# --- models without a criterion to tap --------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["BERT4Rec", "RepeatNet"])
def test_a_model_that_cannot_be_tapped_is_refused_with_the_way_around(config_of, base):
    """P16."""
    config = config_of(base, **NO_DROPOUT)
    train = split(config).train
    with pytest.raises(UserError, match=rf"base_model: expected .* got {base} .*--atjt_per_sample=resample") as raised:
        build_model(config, train, train)
    assert "\n" not in str(raised.value)
    run = make_run(config_of(base, atjt_per_sample="resample", epochs=1))
    run.fit(saved=False)
    assert run.trainer.model.instance_weights().std() > 0


@pytest.mark.parametrize("n_calls", [0, 2])
def test_a_criterion_that_does_not_see_each_sample_once_is_refused(config_of, monkeypatch, n_calls):
    """P16: what no look at the model's parts can tell shows in its first batch."""
    loss = SASRec.calculate_loss
    monkeypatch.setattr(SASRec, "calculate_loss", lambda self, rows: sum(loss(self, rows) for _ in range(n_calls)))
    run = make_run(config_of("SASRec", epochs=1))
    with pytest.raises(UserError, match=rf"got SASRec \({n_calls} calls for .* samples, .*--atjt_per_sample=resample"):
        run.fit(saved=False)


@pytest.mark.parametrize("base", ["BPR", "CE"])
def test_a_criterion_on_some_samples_is_refused(config_of, monkeypatch, base):
    loss, keys = SASRec.calculate_loss, {"loss_type": base}
    if base == "BPR":
        keys["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": 1}
    monkeypatch.setattr(SASRec, "calculate_loss", lambda self, rows: loss(self, rows[:-1]))
    with pytest.raises(UserError, match=r"got SASRec .*1 calls for 600 samples, losses: .599"):
        make_run(config_of("SASRec", epochs=1, **keys)).fit(saved=False)


def models_of(folder: str) -> list[str]:
    """The models in a folder of RecBole."""
    files = {path.stem for path in (MODELS / folder).glob("*.py")}
    return sorted(name for name in recbole_models() if name.lower() in files)


# Their loss is not one criterion over the samples: of masked items, of two decoders, over some of the items.
UNTAPPABLE = {"BERT4Rec", "RepeatNet", "SASRecCPR"}
NEED_MORE = {
    "GRU4RecKG",
    "KSR",
    "GRU4RecCPR",
    "S3Rec",
}  # a knowledge graph, more items, another stage (tested elsewhere)


@pytest.mark.slow
@pytest.mark.parametrize("base", models_of("sequential_recommender"))
def test_every_sequential_model_is_weighed_or_refused(config_of, base):
    """P16 and P6, one epoch on the toy data."""
    if base in NEED_MORE:
        pytest.skip("needs more than the toy data")
    run = partial(make_run, config_of(base, epochs=1, **{**FEATURES, "n_layers": 2}))
    if base in UNTAPPABLE:
        with pytest.raises(UserError, match="--atjt_per_sample=resample"):
            run()
    else:
        run = run()
        run.fit(saved=False)
        assert run.trainer.model.instance_weights().std() > 0
        assert not any("criterion" in key for key in run.trainer.model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("base", sorted({*models_of("context_aware_recommender")} - {"DSSM"}))
def test_every_context_aware_model_is_weighed(config_of, base):
    """P16, as above: they see the sequence under ATJT."""
    run = make_run(config_of(base, epochs=1, **FEATURES))
    run.fit(saved=False)
    assert run.trainer.model.instance_weights().std() > 0


def test_resampling_draws_in_proportion_and_whole_sequences(model_of):
    model, batch = model_of("DIN", atjt_per_sample="resample")
    drawn = []
    for seed in range(20):
        rows = []
        plain = type(model).__mro__[1].calculate_loss
        try:
            type(model).__mro__[1].calculate_loss = lambda _, found, rows=rows: rows.append(found) or torch.zeros(())
            weights = torch.zeros(len(batch) // 2).index_fill_(0, torch.tensor([3]), 1.0)
            weights[7] = 3.0
            model.weighted_loss(batch, weights, torch.Generator().manual_seed(seed))
        finally:
            type(model).__mro__[1].calculate_loss = plain
        n = len(weights)
        assert torch.equal(rows[0]["user_id"][:n], rows[0]["user_id"][n:]) and rows[0]["label"].sum() == n
        drawn.append((rows[0]["item_id"][:n] == batch["item_id"][7]).float().mean())
    assert abs(torch.stack(drawn).mean() - 0.75) < 0.03


@pytest.mark.parametrize("base", ["BPR", "LightGCN", "Pop", "DSSM"])  # a tower each for user and item
def test_a_model_without_sequences_is_refused(toy_config, base):
    with pytest.raises(UserError, match=f"base_model: expected a sequential or context-aware model.* got {base}"):
        toy_config("ATJT", base_model=base)


def test_a_second_weigher_is_refused(config_of):
    config = config_of("SASRec", defense="RCE")
    with pytest.raises(UserError, match="samples nothing weighs yet"):
        run_recbole_robust(config_dict={**config.external_config_dict, "model": "ATJT", "dataset": "toy"})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"atjt_weights": "other"}, "atjt_weights: expected one of learned, uniform, oracle, got 'other'"),
        ({"n_folds": 1}, "n_folds: expected a whole number >= 2, got 1"),
        ({"noisy_seq_ratio": 1.5}, "noisy_seq_ratio: expected 0, or a number in"),
        ({"noisy_seq_ratio": 1.0}, "noisy_seq_ratio: expected 0, or a number in"),
        ({"train_stage": "banana"}, "train_stage: expected one of pretrain, finetune, both"),
        ({"train_stage": "pretrain"}, "train_stage: expected both, since SASRec has no stages, got pretrain"),
        ({"atjt_schedule": "phased", "eval_step": 1}, "eval_step: expected 0 under atjt_schedule phased, got 1"),
        ({"atjt_schedule": "phased", "weight_normalize": "item"}, "weight_normalize: expected sum, fold or none under"),
        (
            {"atjt_schedule": "phased", "epochs": 3, "n_folds": 4},
            "epochs: expected at least the 4 that the phases of 4",
        ),
        ({"atjt_schedule": "phased", "tune": True}, "tune: expected false under atjt_schedule phased"),
        (
            {"atjt_per_sample": "resample", "negative_weight": 0.5},
            "negative_weight: expected none under atjt_per_sample",
        ),
        ({"n_replaced": 1.5}, "n_replaced: expected a whole number >= 1 or a number in"),
        ({"recogniser": "lstm"}, "recogniser: expected one of paper, gru, got 'lstm'"),
        ({"atjt_schedule": "none"}, "atjt_schedule: expected one of batch, phased"),
        ({"recogniser_lr": 0}, "recogniser_lr: expected a number in"),
        ({"negative_weight": -1}, "negative_weight: expected a number in"),
        ({"weight_floor": -1}, "weight_floor: expected a number in"),
        ({"weight_temperature": 0}, "weight_temperature: expected a number"),
        ({"weight_temperature": "cold"}, "weight_temperature: expected a number .* or one of estimated"),
        ({"weight_noise_share": 1.5}, "weight_noise_share: expected a number in"),
        ({"weight_noise_share": "guessed"}, "weight_noise_share: expected a number in .* or one of estimated"),
        ({"export_weights": "weights.txt"}, "export_weights: expected a file that ends in .csv or .parquet"),
    ],
)
def test_a_wrong_value_is_one_clear_error(config_of, keys, message):
    with pytest.raises(UserError, match=message.replace("(", "\\(")):
        config_of("SASRec", **keys)


# --- going on after a break, and whole runs ---------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["SASRec", "DIN"])
def test_a_resumed_training_is_the_uninterrupted_one(config_of, base):
    """P15."""
    keys = {"recogniser_pretrain_steps": 2, "eval_step": 0}
    whole = make_run(config_of(base, epochs=3, **keys))
    whole.fit()
    first = make_run(config_of(base, epochs=2, **keys))
    first.fit()
    second = make_run(config_of(base, epochs=3, **keys))
    second.trainer.resume_checkpoint(first.trainer.saved_model_file)
    second.fit()
    assert same(second.trainer.model.state_dict(), whole.trainer.model.state_dict())
    names = load_checkpoint(whole.trainer.saved_model_file)["state_dict"]
    assert "auxiliary.recognisers.1.items.weight" in names


def test_a_run_has_its_base_model_beside_it(data_path, output_dir):
    keys = {**SMALL, **RECOGNISER, "data_path": str(data_path), "output_dir": str(output_dir), "epochs": 1, "topk": [5],
            "base_model": "DCN", "attack": "Bandwagon", "n_fillers": 5, "target_items": ["i3"], "show_progress": False,
            "gpu_id": "", "cross_layer_num": 2}  # fmt: skip
    found = run_recbole_robust("ATJT", "toy", config_dict=keys)
    on_disk = json.loads(Path(found["path"]).read_text(encoding="utf-8"))
    assert (on_disk["model"], on_disk["base_model"], on_disk["baseline"]["model"]) == ("ATJT", "DCN", "SeqDCN")
    assert on_disk["attacked"]["hit@5"] >= 0 and on_disk["baseline"]["attacked"]["hit@5"] >= 0
