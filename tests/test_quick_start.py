"""From a configuration to result.json: what is run, what is reused, what stands in the file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from toy_splits import FAMILIES, SMALL, split

from recbole_robust import Average, UserError, quick_start
from recbole_robust.config import Config
from recbole_robust.data import load
from recbole_robust.quick_start import make_card, run_recbole_robust, train_and_evaluate
from recbole_robust.trainer import RobustTrainerMixin

DESIGN_KEYS = """schema_version command model base_model dataset protocol attack defense seed config split_hash poison clean
attacked lift per_target baseline detection n_genuine best_epoch seconds peak_memory_mib device threads versions""".split()
FURTHER_KEYS = ["valid", "target_items", "machine"]  # what selection saw; the targets of a clean run; the processor
ATTACK = {"attack": "Average", "n_fake_users": 8, "n_fillers": 6, "target_items": ["i3", "i40"]}
SEQUENTIAL = {"train_neg_sample_args": None}
VICTIMS = {
    "BPR": {}, "LightGCN": {}, "NeuMF": {"mlp_hidden_size": [8]}, "SASRec": {**SMALL, **SEQUENTIAL},
    "GRU4Rec": {**SMALL, **SEQUENTIAL}, "DIN": {**SMALL, **FAMILIES["DIN"], "eval_step": 3}, "DCN": {**SMALL, **FAMILIES["DCN"]},
}  # fmt: skip


@pytest.fixture
def run(data_path, output_dir):
    """Run a model on the toy data: few epochs, quiet, into the test's own folder."""

    def go(model="MF", files=None, **keys):
        quiet = {"use_gpu": False, "show_progress": False, "log_tensorboard": False, "save_checkpoint": False}
        places = {"data_path": str(data_path), "output_dir": str(output_dir)}
        return run_recbole_robust(model, "toy", files, {**places, **quiet, "epochs": 2, "topk": [5, 10], **keys})

    return go


@pytest.fixture
def trainings(monkeypatch) -> list[str]:
    """The label of every training that is really done."""
    done = []
    fit = RobustTrainerMixin.fit

    def noted(self, *args, **options):
        done.append(self.label)
        return fit(self, *args, **options)

    monkeypatch.setattr(RobustTrainerMixin, "fit", noted)
    return done


def numbers(result) -> dict[str, object]:
    return {key: result[key] for key in ("clean", "attacked", "lift", "per_target", "split_hash", "valid")}


# --- the file ------------------------------------------------------------------------------------------------------


def test_the_keys_of_result_json(run):
    result = run(**ATTACK)
    path = Path(result.pop("path"))
    on_disk = json.loads(path.read_text())
    assert on_disk == json.loads(json.dumps(result))
    assert sorted(on_disk) == sorted(DESIGN_KEYS + FURTHER_KEYS)
    assert on_disk["poison"].keys() == {"card", "hash", "n_fake_users", "n_fillers", "target_items"}
    assert on_disk["seconds"].keys() == {"attack", "train", "evaluate", "total"}
    assert on_disk["per_target"].keys() == {"i3", "i40"}
    assert on_disk["per_target"]["i3"].keys() == {"clean", "attacked"}
    assert on_disk["per_target"]["i3"]["clean"]["popularity"] > 0
    assert on_disk["n_genuine"] == 80
    assert (on_disk["attack"], on_disk["poison"]["n_fake_users"], on_disk["poison"]["n_fillers"]) == ("Average", 8, 6)
    for metric in ("targethr@10", "targethr_all@5", "targethr_eligible@10", "targetndcg@5", "targetrank", "recall@10",
                   "ndcg@5", "hit@10", "tailhit@10", "itemcoverage@10", "rmse", "mae"):  # fmt: skip
        assert metric in on_disk["clean"], metric
    assert path.parent.name.startswith("MF-toy-Average-none-2020-")
    assert len(path.parent.name.split("-")[-1]) == 12
    assert Path(on_disk["poison"]["card"]).is_file()
    assert "output_dir" not in on_disk["config"]


def test_lift_is_attacked_minus_clean(run):
    result = run(**ATTACK)
    for block in (result, run("MF", baseline="BPR", **ATTACK)["baseline"]):
        assert block["lift"].keys() == block["clean"].keys() == block["attacked"].keys()
        for name, value in block["lift"].items():
            assert value == block["attacked"][name] - block["clean"][name] or math.isnan(value)


def test_a_clean_run_has_nulls_for_what_was_not_run(run):
    result = run()
    assert result["clean"] is not None
    for key in ("attack", "poison", "attacked", "lift", "baseline", "detection", "defense"):
        assert result[key] is None, key
    assert len(result["target_items"]) > 0, "the targets are measured in clean data too"
    assert result["per_target"][result["target_items"][0]].keys() == {"clean"}


def test_the_clean_training_can_be_left_out(run, trainings):
    result = run(compare_clean=False, **ATTACK)
    assert result["clean"] is result["lift"] is None
    assert trainings == ["MF attacked"]


def test_everything_is_inside_the_output_folder(run, output_dir, tmp_path, monkeypatch):
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    run("BPR", log_tensorboard=True, save_checkpoint=True, **ATTACK)
    assert not list(cwd.iterdir())
    kinds = {path.name for path in output_dir.iterdir() if not path.name.startswith("BPR-")}
    assert kinds == {"cards", "clean", "log", "log_tensorboard", "saved"}
    assert len(list((output_dir / "saved").glob("*.pth"))) == 2


@pytest.mark.parametrize(
    "keys",
    [
        {**ATTACK, "n_fillers": 1000},
        {**ATTACK, "target_items": ["i3", "no such item"]},
        {**ATTACK, "topk": [99]},
        {"tune": True, "eval_args": {"split": {"RS": [8, 1, 1]}, "order": "RO", "group_by": "user", "mode": "full"}},
        {"poison": "no/such/card.json"},
    ],
)
def test_a_mistake_leaves_nothing_behind(run, output_dir, keys):
    with pytest.raises(UserError) as raised:
        run(**keys)
    assert "\n" not in str(raised.value)
    assert not output_dir.exists()


def test_without_labels_a_model_that_needs_them_says_so(run, output_dir):
    with pytest.raises(UserError, match="DCN learns labels, expected a column label:float or a threshold"):
        run("DCN")
    assert not output_dir.exists()


# --- reuse ---------------------------------------------------------------------------------------------------------


def test_an_equal_run_is_reused_until_forced(run, trainings):
    first = run(**ATTACK)
    assert trainings == ["MF clean", "MF attacked"]
    assert run(**ATTACK) == first
    assert len(trainings) == 2
    again = run(**ATTACK, force=True)
    assert len(trainings) == 4, "neither the file nor the clean cache is taken"
    assert again["path"] == first["path"]
    assert numbers(again) == numbers(first)


def test_display_keys_make_no_other_run_and_all_others_do(run, data_path, tmp_path):
    path = run(**ATTACK)["path"]
    assert run(**ATTACK, worker=0, state="ERROR")["path"] == path
    others = [run(**{**ATTACK, **change})["path"] for change in (
        {"seed": 1}, {"n_fillers": 5}, {"epochs": 1}, {"compare_clean": False}, {"target_items": ["i3"]},
        {"attack_args": {"shrink": 5.0}})]  # fmt: skip
    assert len({path, *others}) == 7


def test_other_data_of_the_same_name_are_another_run(run, trainings, tmp_path, data_path):
    first = run(data_path=str(data_path))
    folder = tmp_path / "other" / "toy"
    folder.mkdir(parents=True)
    lines = (data_path / "toy" / "toy.inter").read_text().splitlines()
    (folder / "toy.inter").write_text("\n".join(lines[:-3]) + "\n")
    second = run(data_path=str(tmp_path / "other"))
    assert second["path"] != first["path"]
    assert len(trainings) == 2, "nor is the clean training taken from the cache"


def test_a_damaged_result_file_is_named(run):
    path = Path(run()["path"])
    path.write_text("{")
    with pytest.raises(UserError, match="--force runs again"):
        run()
    assert run(force=True)["clean"]


def test_clean_trainings_are_used_again_across_attacks_and_targets(run, trainings, output_dir):
    cached = [run(**ATTACK), run(**{**ATTACK, "attack": "Random"}), run(**{**ATTACK, "target_items": ["i5"]})]
    assert trainings.count("MF clean") == 1
    assert len(list((output_dir / "clean").iterdir())) == 1
    fresh = [run(**ATTACK, cache_clean=False, force=True), run(**{**ATTACK, "attack": "Random"}, cache_clean=False, force=True),
             run(**{**ATTACK, "target_items": ["i5"]}, cache_clean=False, force=True)]  # fmt: skip
    assert trainings.count("MF clean") == 4
    for one, other in zip(cached, fresh, strict=True):
        assert numbers(one) == numbers(other)


@pytest.mark.parametrize("model", ["BPR", "SASRec", "DIN"])
def test_a_clean_training_from_the_cache_gives_the_same_numbers(run, trainings, model):
    """DIN's evaluation draws negatives: the same ones, whether or not a training has drawn before."""
    keys = {**VICTIMS[model], "eval_step": 1}
    first = run(model, **keys)
    load._loaded.clear()
    second = run(model, **keys, baseline="none", rating_metrics=["MAE"])
    assert second["path"] != first["path"]
    assert trainings == [f"{model} clean"]
    assert second["clean"] == first["clean"]
    assert second["best_epoch"] == first["best_epoch"]
    assert second["valid"] == first["valid"]


def test_selection_by_a_target_metric_depends_on_the_targets(run, trainings):
    keys = {"metrics": ["Recall", "TargetHR"], "valid_metric": "TargetHR@10"}
    run("BPR", **keys, target_items=["i3"])
    run("BPR", **keys, target_items=["i5"])
    assert trainings == ["BPR clean"] * 2


def test_what_is_no_cached_training_is_trained_again(run, output_dir, trainings):
    first = run()
    (cached,) = (output_dir / "clean").iterdir()
    cached.write_bytes(b"nonsense")
    assert run(baseline="none")["clean"] == first["clean"]
    assert len(trainings) == 2


# --- baselines -----------------------------------------------------------------------------------------------------


def test_baselines(run, trainings):
    tiny = {"purify_warmup": 5, "denoiser_hidden": 8, "embedding_size": 8}
    result = run("PurifyAugMF", **ATTACK, **tiny)
    assert result["baseline"]["model"] == "MF"
    assert result["baseline"].keys() == {"model", "defense", "clean", "attacked", "lift"}
    assert trainings == ["PurifyAugMF clean", "PurifyAugMF attacked", "MF clean", "MF attacked"]
    alone = run("MF", embedding_size=8, **ATTACK)
    assert alone["baseline"] is None
    assert alone["attacked"] == result["baseline"]["attacked"], "the same protocol, keys and poison"
    assert alone["clean"] == result["baseline"]["clean"]
    assert run("PurifyAugMF", **ATTACK, **tiny, baseline="none")["baseline"] is None
    other = run("MF", baseline="BPR", **ATTACK)
    assert other["baseline"]["model"] == "BPR"
    assert other["baseline"]["clean"].keys() >= {"targethr@10", "hit@10"}


def test_an_unknown_baseline(run, output_dir):
    with pytest.raises(UserError, match="'Nobody'"):
        run(baseline="Nobody", **ATTACK)


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
            "show_progress": False, "epochs": 6, "stopping_step": 0, "topk": [10], "valid_metric": "NDCG@10"}  # fmt: skip
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
    rows = [("u0", "i28"), ("u1", "i30")]
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
    copy = tmp_path / "card.json"
    copy.write_bytes(card.read_bytes())
    first = run(poison=str(copy), compare_clean=False)
    copy.write_bytes(Path(run(**{**ATTACK, "n_fillers": 3})["poison"]["card"]).read_bytes())
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
    assert quick_start.BASELINES["PurifyAugMF"] == "MF"
