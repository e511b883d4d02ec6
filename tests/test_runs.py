"""Whole runs: every kind of victim, selection, held-out rows, replayed poison, the same numbers twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from toy_splits import ATTACK, VICTIMS, numbers, split

from recbole_robust import Average
from recbole_robust.config import Config
from recbole_robust.data import load
from recbole_robust.quick_start import make_card, train_and_evaluate
from recbole_robust.trainer import RobustTrainerMixin

# --- victims -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", VICTIMS)
def test_attacked_victims(run, trainings, model):
    result = run(model, **{**VICTIMS[model], **ATTACK, "epochs": 3})
    assert trainings == [f"{model} clean", f"{model} attacked"]
    assert result["protocol"] == "recbole"
    for block in (result["clean"], result["attacked"]):
        for name in ("targethr@10", "hit@10", "recall@10", "ndcg@10", "tailhit@10", "itemcoverage@10"):
            assert 0 <= block[name] <= 1, name
    assert ("auc" in result["clean"]) == (model in ("DIN", "DCN"))
    assert result["clean"] != result["attacked"], "the fakes have been learned from"


def test_an_attack_lifts_its_targets(run):
    result = run(**{**ATTACK, "n_fake_users": 40, "n_fillers": 10, "epochs": 12})
    assert result["lift"]["targethr@10"] > 0.1
    assert result["lift"]["targetrank"] < 0


# --- selection, held-out rows, cards --------------------------------------------------------------------------------


def test_tuning_selects_without_the_test_rows_and_fits_on_all_others(data_path, output_dir, monkeypatch):
    fits, evaluated = [], []

    def pairs(part) -> set[tuple[int, int]]:
        rows = part.inter_feat
        return set(zip(rows["user_id"].tolist(), rows["item_id"].tolist(), strict=True))

    fit, evaluate = RobustTrainerMixin.fit, RobustTrainerMixin.evaluate

    def noted_fit(self, train_data, valid_data=None, **options):
        fits.append((len(train_data._dataset.inter_feat), len(valid_data._dataset.inter_feat), self.epochs))
        return fit(self, train_data, valid_data, **options)

    def noted_evaluate(self, eval_data, **options):
        evaluated.append(pairs(eval_data._dataset) if eval_data else set())
        return evaluate(self, eval_data, **options)

    monkeypatch.setattr(RobustTrainerMixin, "fit", noted_fit)
    monkeypatch.setattr(RobustTrainerMixin, "evaluate", noted_evaluate)
    keys = {"data_path": str(data_path), "output_dir": str(output_dir), "use_gpu": False, "log_tensorboard": False,
            "show_progress": False, "epochs": 6, "stopping_step": 0, "topk": [10],
            "valid_metric": "NDCG@10"}  # fmt: skip
    config = Config("MF", "toy", config_dict={**keys, "tune": True})
    outcome = train_and_evaluate(config)
    plain = split(config.derive(tune=False))
    n_train, n_test = len(plain.train.inter_feat), len(plain.test.inter_feat)
    (rows, n_valid, epochs), (final_rows, final_valid, final_epochs) = fits
    assert (rows, n_valid, epochs) == (n_train - 80, 80, 6)
    assert (final_rows, final_valid) == (n_train, 0), "the final fit has all rows"
    assert final_epochs == outcome.extra["best_epoch"] + 1
    test_rows = pairs(plain.test)
    assert len(test_rows) == n_test == 80
    assert [bool(rows & test_rows) for rows in evaluated] == [False] * (len(evaluated) - 1) + [True], "once, at the end"
    assert evaluated[-1] == test_rows
    assert outcome.valid_metrics.keys() >= {"ndcg@10"}
    again = train_and_evaluate(Config("MF", "toy", config_dict={**keys, "epochs": final_epochs, "cache_clean": False}))
    assert again.metrics == outcome.metrics


def test_the_exact_test_rows_of_a_file(run, tmp_path):
    heldout = tmp_path / "test.inter"
    lines = Path(__file__).parents[1].joinpath("dataset/toy/toy.inter").read_text().splitlines()[1:]
    rows = [tuple(line.split("\t")[:2]) for line in lines[::17]]
    heldout.write_text("\n".join(["user_id:token\titem_id:token", *("\t".join(row) for row in rows)]) + "\n")
    one, two = (run(heldout_file=str(heldout), seed=seed) for seed in (1, 2))
    assert one["split_hash"] != run()["split_hash"]
    config = Config("MF", "toy", config_dict={"data_path": str(Path(__file__).parents[1] / "dataset"), "use_gpu": False,
                                              "heldout_file": str(heldout)})  # fmt: skip
    test = split(config).test
    found = [(test.id2token("user_id", int(u)), test.id2token("item_id", int(i)))
             for u, i in zip(test.inter_feat["user_id"], test.inter_feat["item_id"], strict=True)]  # fmt: skip
    assert sorted(found) == sorted(rows)
    assert one["clean"] != two["clean"], "the seed still makes the vectors"


def test_a_card_is_replayed_on_another_model(run):
    original = run(**ATTACK)
    card = original["poison"]["card"]
    keys = {"compare_clean": False, "poison": card}
    same = run("MF", **keys)
    assert same["attacked"] == original["attacked"]
    assert same["attack"] == "Average", "the card says what it is"
    other = run("BPR", **keys)
    assert other["poison"]["hash"] == original["poison"]["hash"]
    assert other["target_items"] == ["i3", "i40"]
    assert other["poison"]["n_fake_users"] == 8


def test_a_changed_card_of_the_same_name_is_another_run(run, tmp_path):
    card = Path(run(**ATTACK)["poison"]["card"])
    copy = tmp_path / "card"
    shutil.copytree(card, copy)
    first = run(poison=str(copy), compare_clean=False)
    shutil.rmtree(copy)
    shutil.copytree(run(**{**ATTACK, "n_fillers": 3})["poison"]["card"], copy)
    assert run(poison=str(copy), compare_clean=False)["path"] != first["path"]


# --- determinism ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["MF", "NeuMF"])
def test_twice_the_same_numbers(run, output_dir, model):
    results = []
    for n in range(2):
        load._loaded.clear()
        torch.rand(n)
        results.append(run(model, **ATTACK, **VICTIMS.get(model, {}), output_dir=str(output_dir / str(n))))
    assert numbers(results[0]) == numbers(results[1])
    assert results[0]["poison"]["hash"] == results[1]["poison"]["hash"]


def test_an_attack_that_draws_more_changes_no_clean_number(run, output_dir, monkeypatch):
    plan = Average.__call__

    def burning(self, view, target_items, budget, *, rng):
        profiles = plan(self, view, target_items, budget, rng=rng)
        rng.random(1000)
        torch.rand(1000)
        return profiles

    first = run("BPR", **ATTACK, output_dir=str(output_dir / "1"))
    monkeypatch.setattr(Average, "__call__", burning)
    second = run("BPR", **ATTACK, output_dir=str(output_dir / "2"))
    assert numbers(first) == numbers(second)


def test_the_fingerprint_of_a_split_is_that_of_its_genuine_rows(toy_config):
    config = toy_config("MF", **ATTACK)
    clean = train_and_evaluate(config.derive(target_items=["i3", "i40"], epochs=1))
    attacked = train_and_evaluate(config.derive(epochs=1), make_card(config))
    other = train_and_evaluate(toy_config("MF", seed=7, epochs=1))
    assert clean.extra["split_hash"] == attacked.extra["split_hash"] != other.extra["split_hash"]
