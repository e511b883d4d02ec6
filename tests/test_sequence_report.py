"""What a run says of its training sequences: recognition in result.json, weights in a file, and the oracle's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from toy_splits import SMALL, make_run, split

from recbole_robust import UserError
from recbole_robust.checkpoint import load_checkpoint
from recbole_robust.cli import render
from recbole_robust.data.instances import instances_of
from recbole_robust.data.load import prepare
from recbole_robust.data.weighting import oracle_weighted
from recbole_robust.defending import under_defenses
from recbole_robust.initialisation import build_model
from recbole_robust.types import SAMPLE_WEIGHT

ATJT = {**SMALL, "base_model": "SASRec", "recogniser_dim": 4, "recogniser_pretrain_steps": 10, "baseline": "none"}
NOISE = {"noise_ratio": 0.3, "noise_strength": 0.5}
STAGES = {"base_model": "S3Rec", "pretrain_epochs": 1,
          "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]}}  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_weights_are_written_with_what_is_known_of_the_noise(run, tmp_path, suffix):
    path = tmp_path / "deep" / f"weights.{suffix}"
    result = run("ATJT", **ATJT, **NOISE, export_weights=str(path))
    table = pd.read_csv(path) if suffix == "csv" else pd.read_parquet(path)
    assert list(table) == ["user", "position", "item", "weight", "history_noise", "target_noise"]
    is_noisy = table["target_noise"] | (table["history_noise"] > 0)
    found = result["recognition"]["clean"]
    assert found["n_sequences"] == len(table) and found["n_noisy"] == is_noisy.sum() > 50
    assert found["auc"] == pytest.approx(roc_auc_score(is_noisy, -table["weight"]), abs=1e-6)
    for name in ("auc", "ap", "effective_size"):
        assert result["clean"][f"recognition_{name}"] == found[name]
    assert f"recognition AUC {found['auc']:.3f}" in render(result)
    stored = {**result, "recognition": {"clean": {**found, "auc": None}}}  # nan where all sequences are noisy
    assert "recognition AUC -, mean weight" in render(stored)


def test_weights_that_have_gone_are_written_again(run, tmp_path):
    path = tmp_path / "weights.csv"
    result = run("ATJT", **ATJT, **NOISE, export_weights=str(path))
    written = path.read_bytes()
    assert run("ATJT", **ATJT, **NOISE, export_weights=str(path))["seconds"] == result["seconds"]
    path.unlink()
    run("ATJT", **ATJT, **NOISE, export_weights=str(path))
    assert path.read_bytes() == written


def test_positions_are_places_in_the_log(toy_config):
    """The item at a position of the exported table is the one that the user's log has there."""
    train = split(toy_config("SASRec", **SMALL, train_neg_sample_args=None)).train
    found = instances_of(train)
    log = pd.read_csv(f"{train.dataset_path}/toy.inter", sep="\t").sort_values("timestamp:float", kind="stable")
    by_user = log.groupby("user_id:token")["item_id:token"].apply(list)
    for user in np.unique(found.users)[:20]:
        rows = found.users == user
        assert [by_user[user][p] for p in found.positions[rows]] == found.items[rows].tolist()
        assert found.positions[rows].tolist() == list(range(1, len(by_user[user]) - 2))


def test_nothing_is_told_without_noise_or_without_recognisers(run):
    assert run("ATJT", **ATJT)["recognition"] is None
    assert run("ATJT", **ATJT, **NOISE, atjt_weights="uniform")["recognition"] is None
    assert run("SASRec", **SMALL, train_neg_sample_args=None, **NOISE)["recognition"] is None


def test_fakes_are_told_in_the_file_and_are_not_in_the_report(run, tmp_path):
    path = tmp_path / "weights.csv"
    result = run("ATJT", **ATJT, **NOISE, attack="Bandwagon", n_fake_users=5, n_fillers=5, target_items=["i3"],
                 export_weights=str(path))  # fmt: skip
    table = pd.read_csv(path)
    assert table["is_fake"].sum() > 10 and table.loc[table["is_fake"], "user"].nunique() == 5
    found = result["recognition"]
    assert found["attacked"]["n_sequences"] == found["clean"]["n_sequences"] == (~table["is_fake"]).sum()


@pytest.mark.parametrize("keys", [{"atjt_weights": "uniform"}, {"noisy_seq_ratio": 0.0}])
def test_there_must_be_weights_to_export(toy_config, keys):
    with pytest.raises(UserError, match="export_weights: expected ATJT with learned weights, got ATJT"):
        toy_config("ATJT", **ATJT, **keys, export_weights="weights.csv")


def test_the_oracle_knows_the_noise(toy_config):
    config = toy_config("ATJT", **ATJT, **NOISE, atjt_weights="oracle")
    loader = prepare(config)[0]
    rows = oracle_weighted(loader)._dataset.inter_feat
    expected = ~instances_of(loader._dataset).is_noisy
    assert 0 < expected.sum() < len(expected) and np.array_equal(rows[SAMPLE_WEIGHT].numpy(), expected)
    assert SAMPLE_WEIGHT not in loader._dataset.inter_feat
    model = build_model(config, loader._dataset, loader._dataset).eval()
    assert model.auxiliary is None
    batch = next(iter(oracle_weighted(loader)))
    keep = batch[batch[SAMPLE_WEIGHT] > 0]
    del keep.interaction[SAMPLE_WEIGHT]
    torch.testing.assert_close(model.calculate_loss(batch), model.calculate_loss(keep))


@pytest.mark.parametrize("model", ["MF", "SASRec"])
def test_no_other_model_is_told_the_noise(toy_config, model):
    """The key is ATJT's; elsewhere it is ignored, with a warning, and so are the flags."""
    config = toy_config(model, **SMALL, **NOISE, atjt_weights="oracle")
    train = under_defenses(config, prepare(config)[0])[1]._dataset
    assert train.noise_flags is not None and SAMPLE_WEIGHT not in train.inter_feat


def test_the_oracle_runs(run):
    for base in ("SASRec", "DIN"):
        found = run("ATJT", **{**ATJT, "base_model": base}, **NOISE, atjt_weights="oracle")
        assert found["recognition"] is None and 0 <= found["clean"]["hit@5"] <= 1


def test_both_stages_of_s3rec_in_one_run(run, output_dir, toy_config):
    """The pre-trained weights are the plain model's, bit for bit, and the second stage starts from them."""
    keys = {**ATJT, **STAGES, "baseline": "auto", "save_checkpoint": True}
    found = run("ATJT", **keys)
    assert found["baseline"]["model"] == "S3Rec"
    first = {}
    for path in (output_dir / "saved").glob("*.pth"):
        state = load_checkpoint(str(path))
        if not any(name.startswith("auxiliary") for name in state["state_dict"]):
            first.setdefault(state["model"], []).append(state["state_dict"])
    assert len(first["ATJT"]) == 1 and len(first["S3Rec"]) == 2
    (ours,) = first["ATJT"]
    assert any(all(torch.equal(ours[name], theirs[name]) for name in ours) for theirs in first["S3Rec"])


def test_the_first_stage_leaves_no_file_where_none_is_wanted(run, output_dir):
    run("ATJT", **{**ATJT, **STAGES})
    assert not list((output_dir / "saved").glob("*.pth"))


def test_one_stage_of_s3rec_is_recboles(toy_config):
    run = make_run(toy_config("ATJT", **{**ATJT, **STAGES}, train_stage="pretrain"))
    run.fit(saved=False)
    assert run.trainer.model.auxiliary is None and len(run.trainer.train_loss_dict) == 1
