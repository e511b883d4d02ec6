"""The trainer: safe checkpoints, parameter groups, hooks, sample weights, going on after a break."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn
from toy_splits import SMALL, average, make_run

from recbole_robust import UserError
from recbole_robust.checkpoint import load_checkpoint, pack_all, save_atomically, unpack
from recbole_robust.model import MF
from recbole_robust.trainer import OptimizerPair, RobustTrainerMixin


def same(left, right) -> bool:
    """Whether two values of a checkpoint are equal, bit for bit, whatever they are."""
    if sp.issparse(left):
        return left.format == right.format and (left != right).nnz == 0
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    return left == right


def weights(run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.trainer.model.state_dict().items()}


# --- checkpoints ---------------------------------------------------------------------------------------------------


class Exploit:
    """Unpickled by a loader that trusts its file, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_checkpoints_load_with_weights_only(toy_config):
    for model in ("BPR", "MF"):
        run = make_run(toy_config(model, epochs=2))
        run.fit()
        state = torch.load(run.trainer.saved_model_file, weights_only=True)
        assert same(state["state_dict"], weights(run)) or state["epoch"] < 1
        assert state["model"] == model


def test_a_crafted_file_is_refused_and_not_run(toy_config, tmp_path):
    run = make_run(toy_config("BPR"))
    mark, path = tmp_path / "mark", tmp_path / "bad.pth"
    for write in (lambda value: torch.save(value, path), lambda value: path.write_bytes(pickle.dumps(value))):
        write({"version": 2, "model": "BPR", "state_dict": Exploit(mark)})
        with pytest.raises(UserError, match="not one of ours"):
            run.trainer.evaluate(run.loaders[2], model_file=str(path))
        assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ({"version": 99}, "expected version 2"),
        ([1, 2], "expected version 2"),
        ({"version": 2, "model": "MF"}, "expected a BPR, got a MF"),
        ({"version": 2}, "expected a BPR, got a None"),
        ({"version": 2, "model": "BPR"}, "KeyError: 'state_dict'"),
        ({"version": 2, "model": "BPR", "state_dict": 5}, "TypeError"),
        ({"version": 2, "model": "BPR", "state_dict": {"x": 1}}, "RuntimeError: .*user_embedding"),
    ],
)
def test_what_is_no_checkpoint_of_ours(toy_config, tmp_path, content, says):
    path = tmp_path / "x.pth"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=says):
        make_run(toy_config("BPR")).trainer.load_weights(str(path))


def test_a_checkpoint_of_another_size_is_refused_in_one_line(toy_config):
    run = make_run(toy_config("BPR", epochs=1))
    run.fit()
    other = make_run(toy_config("BPR", epochs=1), average())
    with pytest.raises(UserError, match="size mismatch") as raised:
        other.trainer.load_weights(run.trainer.saved_model_file)
    assert "\n" not in str(raised.value)


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x.pth"
    with pytest.raises(Exception, match=r"pickle|local"):
        save_atomically({"x": lambda: None}, str(path))

    def lost(*paths):
        raise OSError(errno.EIO, "lost", str(paths[0]), None, str(paths[1]))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lost)
        with pytest.raises(OSError, match="lost") as caught:
            save_atomically({"x": 1}, str(path))
    assert caught.value.filename == str(path)  # not the temporary name
    assert not list(path.parent.iterdir())


def test_values_of_other_parameters_survive(tmp_path):
    sparse = sp.random(6, 5, density=0.4, random_state=1, dtype=np.float32)
    values = {
        "array": np.arange(6.0).reshape(2, 3), "column_major": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "csr": sparse.tocsr(), "csc": sparse.tocsc(), "coo": sparse.tocoo(), "lil": sparse.tolil(),
        "dok": sparse.todok(), "tensor": torch.arange(3), "none": None, "number": 1.5, "numpy_number": np.float32(2.5),
        "word": "x", "flag": True,
        "ripples": {3: [(torch.ones(2), torch.zeros(2)), None]}, "pair": (1, [2, "y"]),
    }  # fmt: skip
    save_atomically({"version": 2, "other": pack_all({**values, "layer": nn.Linear(1, 1)})}, str(tmp_path / "x.pth"))
    packed = load_checkpoint(str(tmp_path / "x.pth"))["other"]
    found = {name: unpack(value, "cpu") for name, value in packed.items()}
    assert "layer" not in found, "sub-modules are in the state_dict"
    for name, value in values.items():
        assert same(value, found[name]), name
        assert type(found[name]) is type(value) or name == "numpy_number", name
    with pytest.raises(TypeError, match="other_parameter x: no safe form for a set"):
        pack_all({"x": {1}})


@pytest.mark.parametrize("model", ["ItemKNN", "EASE", "Pop", "LightGCN"])
def test_models_with_other_parameters_come_back_for_the_evaluation(toy_config, model):
    run = make_run(toy_config(model, epochs=1), average())
    run.fit()
    before = run.test(load_best_model=False)
    fresh = make_run(toy_config(model, epochs=1), average())
    fresh.trainer.eval_collector.data_collect(fresh.loaders[0])
    assert fresh.test(load_best_model=True, model_file=run.trainer.saved_model_file) == before


def test_names_are_unique_and_in_the_output_folder(toy_config, output_dir):
    files = {make_run(toy_config("BPR")).trainer.saved_model_file for _ in range(3)}
    assert len(files) == 3
    assert all(Path(file).parent == output_dir / "saved" for file in files)


def test_nothing_is_written_outside_the_output_folder(toy_config, output_dir, tmp_path, monkeypatch):
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    run = make_run(toy_config("BPR", epochs=1, log_tensorboard=True), average())
    run.fit()
    run.test()
    assert not list(cwd.iterdir())
    assert {path.name for path in output_dir.iterdir()} == {"saved", "log_tensorboard"}
    assert list((output_dir / "log_tensorboard").rglob("events.out.tfevents.*"))


def test_without_validation_the_last_epoch_is_kept(toy_config):
    run = make_run(toy_config("MF", epochs=3))
    run.fit()
    state = load_checkpoint(run.trainer.saved_model_file)
    assert state["epoch"] == run.trainer.best_epoch == 2
    assert same(state["state_dict"], weights(run))


# --- going on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataloader", ["fast", "recbole"])
@pytest.mark.parametrize("model", ["BPR", "MF", "PurifyAugMF", "PurifyAug", "PCMF", "RGCF"])
def test_going_on_after_a_break_is_as_if_there_were_none(toy_config, model, dataloader):
    own = {
        "PurifyAugMF": {"purify_warmup": 1, **({} if dataloader == "fast" else {"train_neg_sample_args": None})},
        "PurifyAug": {"base_model": "BPR", "purify_warmup": 1},
        "PCMF": {"pcmf_warmup": 1, "pcmf_penalty": "user"},
    }
    keys = {"dataloader": dataloader, "train_batch_size": 300, **own.get(model, {})}
    whole = make_run(toy_config(model, epochs=4, **keys))
    whole.fit()
    half = make_run(toy_config(model, epochs=2, **keys))
    half.fit()
    torch.rand(10)
    rest = make_run(toy_config(model, epochs=4, **keys))
    torch.rand(10)
    rest.trainer.resume_checkpoint(half.trainer.saved_model_file)
    start = rest.trainer.start_epoch
    rest.fit()
    if start == 2:  # else the best epoch was the first, and the second one is trained again
        assert list(rest.trainer.train_loss_dict) == [2, 3]
    assert same(weights(rest), weights(whole))
    assert rest.trainer.best_valid_score == whole.trainer.best_valid_score
    assert rest.trainer.best_valid_result == whole.trainer.best_valid_result
    assert rest.trainer.best_epoch == whole.trainer.best_epoch


def test_going_on_after_the_end_changes_nothing(toy_config):
    run = make_run(toy_config("MF", epochs=2))
    run.fit()
    again = make_run(toy_config("MF", epochs=2))
    again.trainer.resume_checkpoint(run.trainer.saved_model_file)
    again.fit()
    assert load_checkpoint(run.trainer.saved_model_file)["epoch"] == again.trainer.best_epoch == 1
    assert same(weights(again), weights(run))


def test_weights_alone_are_not_enough_to_go_on(toy_config, tmp_path):
    run = make_run(toy_config("MF", epochs=1))
    run.trainer.save_weights(str(tmp_path / "w.pth"), 0, {})
    with pytest.raises(UserError, match="got weights only"):
        run.trainer.resume_checkpoint(tmp_path / "w.pth")


# --- optimisers ----------------------------------------------------------------------------------------------------


def test_the_recipe_for_tables_leaves_networks_to_adam(toy_config):
    keys = {"learning_rate": 3.0, "net_learning_rate": 2e-3, "net_weight_decay": 0.5}
    run = make_run(toy_config("PurifyAugMF", preset="literal", epochs=1, **keys))
    optimizer, model = run.trainer.optimizer, run.trainer.model
    assert isinstance(optimizer, OptimizerPair)
    tables, networks = optimizer.parts["tables"], optimizer.parts["networks"]
    assert (type(tables), type(networks)) == (torch.optim.Adagrad, torch.optim.Adam)
    assert {id(p) for p in tables.param_groups[0]["params"]} == {
        id(model.user_embedding.weight), id(model.item_embedding.weight),
    }  # fmt: skip
    n_all = sum(1 for _ in model.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == n_all, "each parameter once"
    assert (tables.param_groups[0]["lr"], networks.param_groups[0]["lr"]) == (3.0, 2e-3)
    assert (tables.param_groups[0]["weight_decay"], networks.param_groups[0]["weight_decay"]) == (0.0, 0.5)
    before = weights(run)
    run.fit(saved=False)
    moved = {name for name, value in weights(run).items() if not torch.equal(value, before[name])}
    assert "user_embedding.weight" in moved
    assert any(name.startswith("denoiser") or name.startswith("head") for name in moved)


def test_a_model_of_tables_only_has_one_optimiser(toy_config):
    optimizer = make_run(toy_config("MF", net_learning_rate=1e-3)).trainer.optimizer
    assert type(optimizer) is torch.optim.Adagrad


def test_the_accumulator_of_adagrad_starts_where_told(toy_config):
    for start in (0.1, 0.7):
        optimizer = make_run(toy_config("MF", initial_accumulator_value=start, weight_decay=0.25)).trainer.optimizer
        assert optimizer.defaults["weight_decay"] == 0.25
        for parameter in optimizer.param_groups[0]["params"]:
            assert torch.all(optimizer.state[parameter]["sum"] == start)


def test_other_models_keep_recbole_s_optimiser(toy_config):
    assert type(make_run(toy_config("BPR")).trainer.optimizer) is torch.optim.Adam


# --- hooks, weights ------------------------------------------------------------------------------------------------


class Counting(MF):
    """MF that notes when its hooks are called."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.calls: list[tuple[str, int]] = []

    def on_epoch_start(self, epoch):
        self.calls.append(("start", epoch))

    def on_epoch_end(self, epoch):
        self.calls.append(("end", epoch))

    def calculate_loss(self, interaction):
        self.calls.append(("batch", len(interaction)))
        return super().calculate_loss(interaction)


def test_epoch_hooks(toy_config):
    keys = {"loss_type": "MSE", "embedding_size": 4, "train_neg_sample_args": None, "train_batch_size": 10**6}
    run = make_run(toy_config(Counting, protocol="apt", epochs=2, learning_rate=0.1, **keys))
    run.fit(saved=False)
    n = len(run.splits.train.inter_feat)
    assert run.trainer.model.calls == [("start", 0), ("batch", n), ("end", 0), ("start", 1), ("batch", n), ("end", 1)]


def with_sample_weights(config, value):
    run = make_run(config)
    rows = run.splits.train.inter_feat
    rows["sample_weight"] = value(torch.arange(len(rows)))
    return run


def test_weight_one_is_no_weight(toy_config):
    plain = make_run(toy_config("MF", epochs=2))
    weighted = with_sample_weights(toy_config("MF", epochs=2), lambda n: torch.ones(len(n)))
    plain.fit(saved=False)
    weighted.fit(saved=False)
    assert same(weights(plain), weights(weighted))


def test_rows_of_weight_zero_teach_nothing(toy_config):
    run = with_sample_weights(toy_config("MF", epochs=1), lambda n: (n % 2).float())
    before = weights(run)
    rows = run.splits.train.inter_feat
    taught = set(rows["item_id"][rows["sample_weight"] > 0].tolist())
    run.fit(saved=False)
    moved = (weights(run)["item_embedding.weight"] != before["item_embedding.weight"]).any(dim=1)
    assert set(moved.nonzero().squeeze(1).tolist()) == taught
    other = make_run(toy_config("MF", epochs=1))
    other.fit(saved=False)
    assert not same(weights(other), weights(run))


@pytest.mark.parametrize(("model", "keys"), [("BPR", {}), ("MF", {"loss_type": "BPR"}), ("DampedMean", {})])
def test_models_that_do_not_take_weights_refuse_them(toy_config, model, keys):
    run = with_sample_weights(toy_config(model, **keys), lambda n: torch.ones(len(n)))
    with pytest.raises(UserError, match="sample weights: expected a model that takes them"):
        run.fit(saved=False)


def test_the_checkpoint_of_a_pretraining_is_safe_and_starts_the_second_stage(toy_config, output_dir):
    keys = {"train_neg_sample_args": None, "pretrain_epochs": 2, "save_step": 1, "MAX_ITEM_LIST_LENGTH": 6, "epochs": 1,
            "n_layers": 1, "n_heads": 1, "hidden_size": 8, "inner_size": 8, "item_attribute": "class",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]}}  # fmt: skip
    first = make_run(toy_config("S3Rec", train_stage="pretrain", **keys))
    first.fit()
    path = first.trainer.saved_model_file
    assert Path(path).parent == output_dir / "saved"
    torch.load(path, weights_only=True)
    assert first.test().keys() >= {"recall@10", "tailhit@10"}  # a first stage can be measured too
    second = make_run(toy_config("S3Rec", train_stage="finetune", pre_model_path=path, **keys))
    second.fit()
    assert second.test().keys() >= {"recall@10"}


# --- sampled candidates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "BERT4Rec", "FPMC", "STAMP", "FEARec", "TransRec"])
def test_a_sequence_is_encoded_once_for_all_its_candidates(model, toy_config, monkeypatch):
    """The scores are those of RecBole's own path, which encodes it beside each of them."""
    keys = {**SMALL, "n_layers": 2, "train_neg_sample_args": None} if model not in ("FPMC", "TransRec") else SMALL
    sampled = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni20", "group_by": "user"}
    run = make_run(toy_config(model, eval_args=sampled, topk=[5], epochs=1, **keys))
    run.fit(saved=False)
    trainer = run.trainer
    trainer.model.eval()
    trainer.tot_item_num = run.splits.train.item_num
    with torch.no_grad():
        for batch in run.loaders[2]:
            expected = super(RobustTrainerMixin, trainer)._neg_sample_batch_eval(batch)[1]
            monkeypatch.setattr(trainer.model, "predict", None)  # not asked any more
            torch.testing.assert_close(trainer._neg_sample_batch_eval(batch)[1], expected)
            monkeypatch.undo()


def test_a_user_with_several_sequences_is_scored_by_recbole(toy_config):
    split = {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "TO", "mode": "uni20", "group_by": "user"}
    run = make_run(toy_config("SASRec", eval_args=split, topk=[5], epochs=0, train_neg_sample_args=None, **SMALL))
    rows, row_of_candidate, *_ = next(iter(run.loaders[2]))
    assert run.trainer._first_candidates(rows, row_of_candidate) is None
