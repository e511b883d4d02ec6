"""Defenses on the command line and in a run: names, hyper-parameters, detectors before the training, result.json."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from toy_splits import ATTACK, assert_same_rows

from recbole_robust import Average, Poison, UserError, registry
from recbole_robust.cli import main
from recbole_robust.config import Config
from recbole_robust.data.load import prepare
from recbole_robust.data.screening import screened, without_users
from recbole_robust.data.views import defender_view
from recbole_robust.defenses import AT, CoRating
from recbole_robust.properties_path import properties_dir
from recbole_robust.registry import DEFENSES, build_defenses, property_file
from recbole_robust.types import Detection
from recbole_robust.yaml_text import read_yaml

DETECTORS = [name for name, one in DEFENSES.items() if one.kind == "detector"]


# --- names and hyper-parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFENSES)
def test_the_yaml_of_a_defense_is_its_defaults(name):
    content = read_yaml(property_file("defense", name))
    assert list(content) == ["defense_args"]
    assert build_defenses(name, content["defense_args"]) == build_defenses(name)
    assert set(content["defense_args"]) == {field.name for field in fields(DEFENSES[name])}


def test_every_yaml_has_a_defense():
    assert {path.stem for path in (properties_dir() / "defense").glob("*.yaml")} == set(DEFENSES)


def test_several_defenses_have_their_hyper_parameters_by_name(toy_config):
    config = toy_config(defense="CoRating,AT", defense_args={"AT": {"eps": 0.1}})
    built = build_defenses(config["defense"], config["defense_args"])
    assert built.detectors == (CoRating(),) and built.loss == AT(eps=0.1)
    assert toy_config(defense=["CoRating", "AT"])["defense"] == "CoRating,AT"
    config = Config("MF", "toy", None, {"data_path": config["data_path"].rsplit("/toy", 1)[0], "gpu_id": ""},
                    ["--defense=CoRating,AT", "--defense_args.CoRating.n_flag=3"])  # fmt: skip
    built = build_defenses(config["defense"], config["defense_args"])
    assert built.detectors == (CoRating(n_flag=3),) and built.loss == AT()


def test_hyper_parameters_of_several_are_merged_over_all_layers(tmp_path, data_path):
    path = tmp_path / "a.yaml"
    path.write_text("defense: CoRating,AT\ndefense_args: {AT: {eps: 0.1}, CoRating: {n_flag: 3}}\n")
    config = Config("MF", "toy", [path], {"data_path": str(data_path), "defense_args": {"AT": {"weight": 2.0}}},
                    ["--defense_args.AT.start_epoch=1"])  # fmt: skip
    built = build_defenses(config["defense"], config["defense_args"])
    assert built.loss == AT(eps=0.1, weight=2.0, start_epoch=1) and built.detectors == (CoRating(n_flag=3),)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"defense": "TA"}, "unknown defense 'TA': "),
        ({"defense": "AT,TA"}, "unknown defense 'TA': "),
        ({"defense": 3}, "unknown defense '3': "),
        ({"defense": "AT,VAT"}, "defense: expected at most one that changes the loss or the training, got AT, VAT"),
        ({"defense": "AT,AT"}, "defense: expected each name once, got AT, AT"),
        ({"defense": "AT", "defense_args": {"epps": 1}}, "unknown key of AT 'defense_args.epps': did you mean"),
        ({"defense": "AT", "defense_args": {"eps": -1}}, "defense_args.eps: expected a number of at least 0, got -1"),
        ({"defense": "AT,PCA", "defense_args": {"eps": 1}}, "unknown key of several defenses 'defense_args.eps': "),
        ({"defense": "AT,PCA", "defense_args": {"PCA": 1}}, "defense_args.PCA: expected a mapping of hyper-parameters"),
    ],
)
def test_a_mistake_is_one_clear_line(keys, message, toy_config):
    with pytest.raises(UserError) as error:
        toy_config(**keys)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_detectors_refuse_a_knowledge_graph(toy_config):
    with pytest.raises(UserError, match="defense: expected a model without a knowledge graph under CoRating, got KGAT"):
        toy_config("KGAT", defense="CoRating")


def test_the_command_line_exits_with_2(capsys, data_path, output_dir):
    arguments = ["--model=MF", "--dataset=toy", f"--data_path={data_path}", f"--output_dir={output_dir}"]
    assert main([*arguments, "--defense=TCE"]) == 2
    assert "defense: expected a model of implicit feedback under TCE, got MF" in capsys.readouterr().err
    assert not output_dir.exists()


# --- screened rows ----------------------------------------------------------------------------------------------------


@pytest.fixture
def loaders(family_config):
    """The training loaders of a model: clean and poisoned."""

    def make(model: str):
        poison = Poison(Average(), ["i3", "i40"], n_fake_users=8, n_fillers=6)
        return prepare(family_config(model))[0], prepare(family_config(model), poison)[0]

    return make


@pytest.mark.parametrize("model", ["MF", "BPR", "SASRec"])
def test_without_the_fakes_the_rows_are_the_clean_ones(model, loaders):
    clean, poisoned = loaders(model)
    train = poisoned._dataset
    is_fake = np.arange(train.user_num - 1) >= train.user_num - 1 - train.n_fake_users
    assert is_fake.sum() == train.n_fake_users > 0
    loader = screened(poisoned, is_fake)
    assert_same_rows(loader._dataset.inter_feat, clean._dataset.inter_feat)
    assert loader._dataset.n_genuine_rows == len(clean._dataset.inter_feat)
    assert loader._dataset.user_num == train.user_num and type(loader) is type(poisoned)
    for ours, theirs in zip(loader, clean, strict=True):
        assert_same_rows(ours, theirs)


def test_flagged_users_make_no_negative_popular(family_config):
    sampling = {"distribution": "popularity", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
    poison = Poison(Average(), ["i3", "i40"], n_fake_users=8, n_fillers=6)
    clean = prepare(family_config("BPR", train_neg_sample_args=sampling))[0]
    poisoned = prepare(family_config("BPR", train_neg_sample_args=sampling), poison)[0]
    is_fake = np.arange(88) >= 80
    assert poisoned._sampler.prob != clean._sampler.prob
    assert screened(poisoned, is_fake)._sampler.prob == clean._sampler.prob


def test_flagged_users_lose_all_their_rows_and_nobody_else_any(loaders):
    train = loaders("MF")[1]._dataset
    flagged = np.zeros(train.user_num - 1, dtype=bool)
    flagged[[4, 9]] = True
    left = without_users(train, flagged).inter_feat["user_id"]
    before = train.inter_feat["user_id"]
    assert torch.equal(left, before[(before != 5) & (before != 10)])
    with pytest.raises(UserError, match="defense: expected some users to train on, got all 88 flagged"):
        without_users(train, np.ones(88, dtype=bool))


def test_a_defender_sees_no_labels(loaders):
    train = loaders("MF")[1]._dataset
    view = defender_view(train)
    assert set(view.__dataclass_fields__) == {"ratings", "rating_min", "rating_max", "rating_step", "log"}
    assert view.ratings.shape[0] == train.user_num - 1


# --- runs -------------------------------------------------------------------------------------------------------------


class Oracle:
    """Stands in for a detector: flags the users it is told."""

    kind = "detector"

    def __init__(self, flagged):
        self.flagged = flagged

    def __call__(self, view, *, rng):
        flagged = np.zeros(view.ratings.shape[0], dtype=bool)
        flagged[[user for user in self.flagged if user < len(flagged)]] = True
        return Detection(flagged.astype(float), flagged)


@pytest.fixture
def flagging(monkeypatch):
    """Let the detector of the next runs flag some users."""

    def use(users):
        monkeypatch.setattr("recbole_robust.registry.build_defenses",
                            lambda *_: registry.Defenses((Oracle(list(users)),)))  # fmt: skip

    return use


def test_all_fakes_found_is_the_clean_run_bit_for_bit(run, flagging):
    plain = run()
    flagging(range(80, 88))
    found = run(defense="PCA", baseline="none", **ATTACK)
    accuracy = [name for name in plain["clean"] if "target" not in name]
    assert {n: found["attacked"][n] for n in accuracy} == {n: plain["clean"][n] for n in accuracy}
    assert all(value == 0 for value in found["lift"].values())
    assert found["detection"]["attacked"]["recall"] == 1 and found["detection"]["attacked"]["n_genuine_lost"] == 0
    assert found["detection"]["clean"]["n_flagged"] == 0


def test_flagged_genuine_users_stay_in_the_evaluation(run, flagging):
    """Their rows are gone from the training only: who is asked, what is masked and what is popular stay."""
    plain = run("Pop", target_items=["i3"])
    flagging(range(20))
    found = run("Pop", target_items=["i3"], defense="PCA", baseline="none")
    assert found["n_genuine"] == plain["n_genuine"] == 80
    assert found["detection"]["clean"]["genuine_lost"] == 0.25
    assert found["per_target"]["i3"]["clean"]["popularity"] == plain["per_target"]["i3"]["clean"]["popularity"]
    assert found["split_hash"] == plain["split_hash"]
    assert found["clean"] != plain["clean"]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_runs(name, run):
    result = run(defense=name, baseline="none", **ATTACK)
    assert result["defense"] == name
    report = result["detection"]["attacked"]
    assert set(report) == {"precision", "recall", "f1", "auc", "n_flagged", "n_genuine_lost", "genuine_lost"}
    assert 0 <= report["recall"] <= 1 and 0 <= report["auc"] <= 1


@pytest.mark.parametrize("name", [name for name in DEFENSES if name not in DETECTORS])
def test_a_loss_runs_beside_its_undefended_model(name, run):
    names = {field.name for field in fields(DEFENSES[name])}
    keys = {"defense_args": {"start_epoch": 0} if "start_epoch" in names else {"n_gradual": 1} if name == "TCE" else {}}
    keys.update({"defense_args": {"start_epoch": 0, "n_selected": 5, "n_iterations": 2}} if name == "APT" else {})
    model = "MF" if name == "APT" else "BPR"
    result = run(model, defense=name, **keys, **ATTACK)
    assert (result["baseline"]["model"], result["baseline"]["defense"]) == (model, None)
    assert result["baseline"]["clean"] != result["clean"]
    assert result["baseline"]["clean"]["targethr@10"] is not None and result["detection"] is None


def test_a_defense_is_part_of_the_runs_name(run):
    plain, ours = run(), run(defense="AT", baseline="none")
    assert "-clean-none-" in plain["path"] and "-clean-AT-" in ours["path"]
