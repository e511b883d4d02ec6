"""From a configuration to result.json: what is run, what is reused, what stands in the file."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from toy_splits import ATTACK, SMALL, VICTIMS, numbers

from recbole_robust import UserError, results
from recbole_robust.cli import render
from recbole_robust.data import load

DESIGN_KEYS = """
schema_version command model base_model dataset protocol attack defense seed config split_hash poison clean attacked
lift per_target baseline detection n_genuine best_epoch seconds peak_memory_mib device threads versions
"""
# What selection saw; the targets of a clean run; the processor; how right ATJT's weights are.
FURTHER_KEYS = ["code", "valid", "target_items", "machine", "recognition"]


# --- the file ------------------------------------------------------------------------------------------------------


def test_the_keys_of_result_json(run):
    result = run(**ATTACK)
    path = Path(result.pop("path"))
    on_disk = json.loads(path.read_text())
    assert on_disk == json.loads(json.dumps(result))
    assert sorted(on_disk) == sorted(DESIGN_KEYS.split() + FURTHER_KEYS)
    assert on_disk["poison"].keys() == {
        "card", "hash", "n_fake_users", "n_fillers", "target_items", "reused", "stealth",
    }  # fmt: skip
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
    assert (Path(on_disk["poison"]["card"]) / "poison.json").is_file()
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
    for key in ("attack", "poison", "attacked", "lift", "baseline", "detection", "recognition", "defense"):
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
        {"poison": "no/such/card"},
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


def test_a_run_of_other_sources_runs_again(run, trainings):
    first = run(**ATTACK)
    path = Path(first.pop("path"))
    for other in ({**first, "code": "0" * 12}, {key: value for key, value in first.items() if key != "code"}):
        path.write_text(json.dumps(other))
        del trainings[:]
        again = run(**ATTACK)
        assert trainings[-1] == "MF attacked"
        assert again["code"] == first["code"] and numbers(again) == numbers(first)
        assert results.read(path)["code"] == first["code"]
    path.write_text(json.dumps({"code": "0" * 12, "schema_version": 0}))
    assert numbers(run(**ATTACK)) == numbers(first), "nothing of the older file is read but its code"


def test_the_code_is_of_all_that_a_result_may_depend_on(tmp_path):
    package = tmp_path / "recbole_robust"
    shutil.copytree(Path(results.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    assert results.code_digest(package) == results.CODE
    for name, matters in (("cli.py", False), ("report/page.py", False), ("sweep/trial.py", False), ("trainer.py", True),
                          ("model/purifyaug_mf.py", True), ("data/views.py", True)):  # fmt: skip
        before = results.code_digest(package)
        (package / name).write_text((package / name).read_text() + "\n")
        assert (results.code_digest(package) != before) is matters, name


def replaced_at(result: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The result with another value at a place such as ``poison.n_fillers``."""
    first, _, rest = place.partition(".")
    return {**result, first: replaced_at(result[first], rest, value) if rest else value}


EDITED: dict[str, Any] = {  # place: a value that it cannot have
    "clean": [1, 2], "attacked": "high", "lift": {"hit@5": True}, "baseline": 5, "baseline.model": None, "poison": 5,
    "baseline.clean": {"hit@5": "x"}, "poison.n_fake_users": "many", "poison.n_fillers": [1], "config": None,
    "model": 3, "seed": None, "target_items": "i3", "target_items ": [3], "detection": {"clean": 5}, "attack": {},
    "detection ": {"clean": {"n_flagged": 1}}, "recognition": [1], "recognition ": {"clean": {"auc": "x"}},
    "config.noise_ratio": "some", "clean ": {"hit": 0.5}, "clean  ": {"hit@five": 0.5}, "attacked ": {},
}  # fmt: skip


def test_a_stored_result_that_somebody_edited_is_told(run):
    result = run(**ATTACK, baseline="DampedMean")
    path = Path(result.pop("path"))
    assert result["baseline"], "else its places are not tried"
    for place, value in EDITED.items():
        name = place.strip()
        path.write_text(json.dumps(replaced_at(result, name, value)))
        with pytest.raises(UserError, match=rf"^result file {re.escape(str(path))}: {re.escape(name)}[^\n]*expected"):
            results.read(path)
    path.write_text(json.dumps({**result, "clean": None, "attacked": None}))
    with pytest.raises(UserError, match="clean and attacked: expected one of them at least"):
        results.read(path)
    path.write_text(json.dumps(result))
    assert results.read(path) == result


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
    attacks = [ATTACK, {**ATTACK, "attack": "Random"}, {**ATTACK, "target_items": ["i5"]}]
    cached = [run(**attack) for attack in attacks]
    assert trainings.count("MF clean") == 1
    assert len(list((output_dir / "clean").iterdir())) == 1
    fresh = [run(**attack, cache_clean=False, force=True) for attack in attacks]
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


def test_without_targets_nothing_is_ranked_for_them_and_the_rest_stays(run):
    """``n_targets: 0``: where a model scores pair by pair, a pass over all items takes longer than the training."""
    for keys in ({"model": "MF"}, {"model": "DIN", "protocol": "atjt", "noise_ratio": 0.2, **SMALL}):
        some, none = (run(**keys, baseline="none", epochs=1, n_targets=n) for n in (2, 0))
        assert len(some["target_items"]) == 2 and none["target_items"] == [] and none["per_target"] == {}
        assert none["n_genuine"] == some["n_genuine"] == 80
        assert not any(name.startswith("target") for name in none["clean"])
        if "noise_ratio" not in keys:  # noise spares targets
            assert none["clean"] == {name: v for name, v in some["clean"].items() if not name.startswith("target")}
        assert "targets none" in render(none)
