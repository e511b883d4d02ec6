"""Config: which layer wins, which keys and values there are, and that RecBole's own models do not notice it."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import pytest
import recbole.config
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recbole.utils import argument_list

from recbole_robust import config as config_module
from recbole_robust import registry
from recbole_robust.config import DISPLAY_KEYS, Config
from recbole_robust.defenses import PCA
from recbole_robust.properties_path import properties_dir
from recbole_robust.types import UserError
from recbole_robust.yaml_text import parse_value, read_yaml


@pytest.fixture
def cli_config(data_path, output_dir):
    """Build a Config from command-line words, as the command line does; files and dict can be given too."""

    def make(*words: str, files=(), keys=None, model: str | None = "MF", dataset: str = "toy") -> Config:
        base = {"data_path": str(data_path), "output_dir": str(output_dir), "use_gpu": False}
        return Config(model, dataset, list(files), {**base, **(keys or {})}, words)

    return make


def write_yaml(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


# --- layers -----------------------------------------------------------------------------------------------------------

LAYERS = [
    "overall.yaml", "model/MF.yaml", "dataset/toy.yaml", "attack/Average.yaml", "defense/Dummy.yaml",
    "protocol/apt.yaml", "model/MF-dummy.yaml", "file", "second file", "dict", "command line",
]  # fmt: skip


@pytest.mark.parametrize("n_layers", range(len(LAYERS) + 1))
def test_each_layer_beats_those_before(n_layers, tmp_path, monkeypatch, cli_config):
    """With a key in the first n layers the n-th wins; with none, RecBole's own 10 stands."""
    folder = tmp_path / "properties"
    shutil.copytree(properties_dir(), folder)
    for module in (config_module, registry):
        monkeypatch.setattr(module, "properties_dir", lambda: folder)
    monkeypatch.setitem(registry.DEFENSES, "Dummy", PCA)
    for depth, layer in enumerate(LAYERS, start=1):
        if layer.endswith(".yaml"):
            path = folder / layer
            content = read_yaml(path) if path.is_file() else {}
            write_yaml(path, {**content, "stopping_step": 100 + depth} if depth <= n_layers else content)
    files = [
        write_yaml(tmp_path / f"{name}.yaml", {"stopping_step": 100 + LAYERS.index(name) + 1})
        for name in ("file", "second file")
        if LAYERS.index(name) < n_layers
    ]
    keys = {"attack": "Average", "defense": "Dummy", "preset": "dummy"}
    if n_layers > LAYERS.index("dict"):
        keys["stopping_step"] = 100 + LAYERS.index("dict") + 1
    words = [f"--stopping_step={100 + len(LAYERS)}"] if n_layers == len(LAYERS) else []
    assert cli_config(*words, files=files, keys=keys)["stopping_step"] == (100 + n_layers if n_layers else 10)


def test_dataset_layer_of_recbole_beats_its_model_layer_and_ours_beats_both(toy_config):
    assert toy_config("BPR", dataset="ml-100k")["load_col"]["inter"] == ["user_id", "item_id", "rating", "timestamp"]
    assert toy_config("BPR")["load_col"]["inter"] == ["user_id", "item_id"]
    assert toy_config("BPR")["metric_decimal_place"] == 6  # RecBole: 4


def test_attack_args_are_merged_field_by_field_over_all_layers(tmp_path, cli_config):
    assert cli_config("--attack=Average")["attack_args"] == {"intent": "push", "shrink": 0.0}
    path = write_yaml(tmp_path / "a.yaml", {"attack": "Average", "attack_args": {"shrink": 2, "intent": "nuke"}})
    config = cli_config("--attack_args.shrink=5", files=[path])
    assert config["attack_args"] == {"intent": "nuke", "shrink": 5}
    config = cli_config("--attack_args={shrink: 7}", files=[path], keys={"attack_args.intent": "push"})
    assert config["attack_args"] == {"intent": "push", "shrink": 7}
    dotted = write_yaml(tmp_path / "b.yaml", {"attack": "Average", "attack_args.shrink": 1.5})
    assert cli_config(files=[dotted])["attack_args"]["shrink"] == 1.5


def test_a_dotted_key_changes_a_part_of_the_layers_below_only(tmp_path, cli_config):
    config = cli_config("--eval_args.order=TO")
    assert config["eval_args"]["order"] == "TO"
    assert config["eval_args"]["split"] == {"LS": "test_only"}  # the protocol's
    path = write_yaml(tmp_path / "a.yaml", {"eval_args.order": "TO", "eval_args.mode": "uni50"})
    config = cli_config("--eval_args={split: {RS: [0.8, 0.1, 0.1]}, order: RO}", files=[path])
    assert config["eval_args"]["order"] == "RO"
    assert config["eval_args"]["mode"] == {"valid": "full", "test": "full"}


@pytest.mark.parametrize(
    ("word", "key", "phases"),
    [
        ("--eval_args.mode=uni100", "eval_args", {"valid": "uni100", "test": "uni100"}),
        ("--eval_args.mode={valid: full, test: pop20}", "eval_args", {"valid": "full", "test": "pop20"}),
    ],
)
def test_eval_mode(word, key, phases, cli_config):
    assert cli_config(word)[key]["mode"] == phases


@pytest.mark.parametrize("key", ["epochs.x", "attack_args.shrink.x.y", "eval_args.order.x"])
def test_a_part_of_what_has_no_parts_is_an_error(key, cli_config):
    with pytest.raises(UserError, match=rf"^{key.replace('.', '[.]')}: expected .* to have parts"):
        cli_config("--attack=Average", f"--{key}=3")


def test_a_later_fraction_beats_an_earlier_count_and_a_count_of_the_same_layer_wins(tmp_path, cli_config):
    path = write_yaml(tmp_path / "a.yaml", {"n_fillers": 7, "n_fake_users": 3})
    config = cli_config("--filler_size=0.2", files=[path])
    assert (config["n_fillers"], config["filler_size"], config["n_fake_users"]) == (None, 0.2, 3)
    config = cli_config("--attack_size=0.1", "--n_fake_users=9", files=[path])
    assert config["n_fake_users"] == 9


# --- protocols and presets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "keys", "protocol"),
    [
        ("MF", {}, "apt"),
        ("DampedMean", {}, "apt"),
        ("PurifyAugMF", {}, "apt"),
        ("PCMF", {}, "apt"),
        ("RGCF", {}, "recbole"),
        ("MF", {"loss_type": "BPR"}, "recbole"),
        ("BPR", {}, "recbole"),
        ("Pop", {}, "recbole"),
        ("BPR", {"protocol": "apt"}, "apt"),
        ("MF", {"protocol": "recbole"}, "recbole"),
    ],
)
def test_protocol_auto(model, keys, protocol, toy_config):
    assert toy_config(model, **keys)["protocol"] == protocol


def test_the_recipe_is_for_explicit_models_only(toy_config):
    explicit, implicit = toy_config("MF"), toy_config("BPR", protocol="apt")
    recipe = read_yaml(properties_dir() / "protocol" / "apt.yaml")["explicit_recipe"]
    assert {key: explicit[key] for key in recipe} == recipe
    assert (implicit["learner"], implicit["learning_rate"], implicit["epochs"]) == ("adam", 0.001, 300)
    for key in ("topk", "target_hr_denominator", "attack_size"):
        assert explicit[key] == implicit[key]
    assert explicit["eval_args"]["split"] == implicit["eval_args"]["split"] == {"LS": "test_only"}
    assert toy_config("MF", learning_rate=0.5)["learning_rate"] == 0.5


def test_a_protocol_has_a_part_for_each_data_set(toy_config):
    config = toy_config(dataset="ml-100k")
    assert (config["target_items"], config["n_fillers"]) == ("apt_1", 20)
    assert config["target_sets"]["ml-100k"]["apt_1"] == ["1019", "947", "598", "576", "517"]
    assert (toy_config()["target_items"], toy_config()["n_fillers"]) == (None, None)
    config = toy_config(dataset="ml-100k", filler_size=0.05)
    assert (config["n_fillers"], config["filler_size"]) == (None, 0.05)


@pytest.mark.parametrize("key", [{"n_targets": 3}, {"target_choice": "popular"}, {"target_seed": 7}])
def test_who_draws_targets_gets_none_of_the_protocol(toy_config, key):
    assert toy_config(dataset="ml-100k", **key)["target_items"] is None
    assert toy_config(dataset="ml-100k", target_items="apt_0", **key)["target_items"] == "apt_0"


def test_explicit_models_load_their_ratings_in_stars_under_any_protocol(toy_config):
    config = toy_config("MF", protocol="recbole")
    assert "rating" in config["load_col"]["inter"]
    assert config["normalize_all"] is False


def test_presets(toy_config):
    literal = toy_config("PurifyAugMF", preset="literal")
    values = read_yaml(properties_dir() / "model" / "PurifyAugMF-literal.yaml")
    assert values.pop("train_neg_sample_args") is None  # RecBole spells it out
    assert literal["train_neg_sample_args"]["distribution"] == "none"
    assert values and {key: literal[key] for key in values} == values
    with pytest.raises(UserError, match="unknown preset of PurifyAugMF 'litteral': did you mean literal"):
        toy_config("PurifyAugMF", preset="litteral")
    with pytest.raises(UserError, match="unknown preset of MF"):
        toy_config("MF", preset="../PurifyAugMF-literal")


# --- strict keys ------------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_told_with_its_closest_match_and_its_source(tmp_path, cli_config):
    with pytest.raises(UserError, match=r"^unknown key 'epohcs': did you mean epochs\? \(in command line\)$"):
        cli_config("--epohcs=3")
    path = write_yaml(tmp_path / "mine.yaml", {"learning_rat": 0.1})
    with pytest.raises(UserError, match=rf"did you mean learning_rate .*\(in {path}\)$"):
        cli_config(files=[path])
    with pytest.raises(UserError, match=r"^unknown key 'qqqqqqqq' \(in config_dict\)$"):
        cli_config(keys={"qqqqqqqq": 1})
    with pytest.raises(UserError, match=r"^unknown key 'evalargs': did you mean eval_args"):
        cli_config("--evalargs.mode=full")


def test_a_key_of_another_model_is_a_warning(toy_config, caplog):
    with caplog.at_level(logging.WARNING):
        toy_config("MF", mlp_hidden_size=[8])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "mlp_hidden_size is not one of MF's" in caplog.text
    caplog.clear()
    toy_config("NeuMF", mlp_hidden_size=[8])
    assert caplog.text == ""


def test_every_key_of_every_yaml_file_is_known():
    general, by_model = registry.known_keys()
    for path in properties_dir().rglob("*.yaml"):
        if path.parent.name not in ("benchmark", "sweep"):
            keys = set(read_yaml(path)) - {"explicit_recipe", "per_dataset"}
            assert keys <= general | set(by_model), path


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        ("NeuMF", {"mlp_hidden_size": 64}, r"^mlp_hidden_size: expected a list \(default: \[128, 64\]\), got 64$"),
        ("NeuMF", {"mf_train": "perhaps"}, r"^mf_train: expected true or false .*, got 'perhaps'$"),
        ("LightGCN", {"reg_weight": "small"}, r"^reg_weight: expected a number .*, got 'small'$"),
        ("MF", {"target_sets": [1]}, "^target_sets: expected a mapping"),
        ("MF", {"loss_type": "CE"}, "^loss_type: expected one of MSE"),
        (
            "MF",
            {"load_col": {"inter": ["user_id", "item_id"]}},
            "^load_col: expected rating for inter, since MF learns",
        ),
        ("MF", {"threshold": {"rating": 3}}, "^threshold: expected none, since MF learns ratings"),
        ("SASRec", {"protocol": "apt"}, "^eval_args.order: expected TO for the sequential model SASRec, got RO"),
        ("MF", {"heldout_file": "x", "protocol": "recbole"}, "^heldout_file: expected eval_args.split"),
        ("BPR", {"train_neg_sample_args.distribution": "even"}, "^train_neg_sample_args.distribution: expected one of"),
        ("BPR", {"metrics": ["AUC"]}, "^eval_args.mode: expected labeled, uniN or popN"),
    ],
)
def test_values_that_would_fail_deep_inside_recbole(model, keys, message, toy_config):
    with pytest.raises(UserError, match=message):
        toy_config(model, **keys)


def test_zero_and_one_are_flags_and_a_closed_interval_is_text(cli_config):
    config = cli_config("--use_gpu=0", "--shuffle=1", "--user_inter_num_interval=[5,10]")
    assert config["use_gpu"] is False
    assert config["shuffle"] is True
    assert config["user_inter_num_interval"] == "[5,10]"


# --- selection --------------------------------------------------------------------------------------------------------


def test_the_selecting_metric_is_always_measured(toy_config):
    config = toy_config("BPR", metrics=["Recall"], topk=20)
    assert (config["valid_metric"], config["topk"]) == ("MRR@20", [20])  # RecBole: MRR@10, then a KeyError
    assert config["metrics"][0] == "Recall" and "MRR" in config["metrics"]
    assert toy_config("BPR", valid_metric="TargetHR@10")["metrics"][-1] == "TargetHR"
    with pytest.raises(UserError, match=r"^valid_metric: expected NDCG@5, NDCG@10 .*, got 'NDCG@7'$"):
        toy_config("BPR", valid_metric="NDCG@7", topk=[5, 10])
    with pytest.raises(UserError, match=r"^valid_metric: expected NDCG@10"):
        toy_config("BPR", valid_metric="NDCG")
    with pytest.raises(UserError, match=r"^unknown metric 'NCDG': did you mean ndcg"):
        toy_config("BPR", valid_metric="NCDG@10")
    with pytest.raises(UserError, match=r"^valid_metric: expected a metric of the kind of AUC"):
        toy_config("DCN", valid_metric="NDCG@10")


# --- text to values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("3E5", 3e5), ("-1", -1), ("+2", 2), ("1_000", 1000), ("0", 0), (".5", 0.5),
        ("-.inf", -float("inf")),
        ("true", True), ("False", False), ("None", None), ("~", None), ("null", None), ("", ""), (" ", " "),
        ("[10,50]", [10, 50]), ("['a', \"b\"]", ["a", "b"]), ("[1e-3, None]", [0.001, None]), ("'5'", "5"),
        ("{rating: 3}", {"rating": 3}), ("{'RS':[0.8,0.1,0.1]}", {"RS": [0.8, 0.1, 0.1]}),
        # what YAML 1.1 would spoil
        ("off", "off"), ("no", "no"), ("010", "010"), ("[010, off, 2020-01-01]", ["010", "off", "2020-01-01"]),
        ("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("a: b", "a: b"), ("#1", "#1"), ("- x", "- x"), ("*x", "*x"),
        ("0,1", "0,1"), ("[5,inf)", "[5,inf)"), ("(1, 2)", "(1, 2)"), ("[1", "[1"), ("nan", "nan"), ("é=ü", "é=ü"),
        ("__import__('os').system('touch /tmp/never')", "__import__('os').system('touch /tmp/never')"),
        ("!!python/object/apply:os.system [ls]", "!!python/object/apply:os.system [ls]"),
        ("[!!python/name:os.system ]", "[!!python/name:os.system ]"),
    ],
)  # fmt: skip
def test_parse_value(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


PLAIN = st.text("abcXYZ 0189.-_/:", max_size=8)


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_json_on_the_command_line_is_what_it_says(value):
    assert parse_value(json.dumps(value)) == value


def test_a_mapping_without_a_blank_is_told():
    with pytest.raises(UserError, match=r"^threshold: expected a blank after each colon.*, got \{rating:3\}$"):
        parse_value("{rating:3}", "threshold")


def test_the_command_line_is_parsed_not_evaluated(tmp_path, cli_config):
    witness = tmp_path / "witness"
    with pytest.raises(UserError, match="unknown preset"):
        cli_config(f"--preset=__import__('os').system('touch {witness}')")
    config = cli_config(f"--wandb_project=__import__('os').system('touch {witness}')")
    assert config["wandb_project"] == f"__import__('os').system('touch {witness}')"
    assert not witness.exists()


def test_numbers_and_lists_from_everywhere(tmp_path, cli_config):
    path = tmp_path / "a.yaml"
    path.write_text("learning_rate: 1e-3\nweight_decay: 1.5e5\n")
    config = cli_config("--initial_accumulator_value=1e-1", "--topk=[5,10]", files=[path], keys={"reg_weight": "1e-4"})
    values = [config[k] for k in ("learning_rate", "weight_decay", "initial_accumulator_value", "reg_weight")]
    assert values == [0.001, 150000.0, 0.1, 0.0001]
    assert config["topk"] == [5, 10]
    assert cli_config("--topk=10")["topk"] == [10]
    assert Config("MF", "toy", str(path), {"use_gpu": False})["learning_rate"] == 0.001  # one file, not a list


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def four_gpus(monkeypatch):
    """A machine with four GPUs, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize("visible", [None, "", "0", "2,3"])
@pytest.mark.parametrize("keys", [{"use_gpu": False}, {"use_gpu": True}, {"use_gpu": True, "gpu_id": 1}])
def test_the_environment_stays_as_it_was(visible, keys, monkeypatch, toy_config):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = dict(os.environ)
    assert toy_config(**keys)["device"] == torch.device("cpu")
    assert dict(os.environ) == before


def test_no_gpu_where_none_is_wanted(four_gpus, toy_config):
    assert toy_config(use_gpu=False)["device"] == torch.device("cpu")
    assert toy_config(use_gpu=True, gpu_id="")["device"] == torch.device("cpu")


def test_gpu_id_counts_where_the_environment_says_nothing(four_gpus, monkeypatch, toy_config):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert toy_config(use_gpu=True, gpu_id=0)["device"] == torch.device("cuda", 0)
    assert toy_config(use_gpu=True, gpu_id="2,3")["device"] == torch.device("cuda", 2)
    assert toy_config(use_gpu=True, gpu_id=1)["device"] == torch.device("cuda", 1)
    assert four_gpus == [2, 1]
    with pytest.raises(UserError, match=r"^gpu_id: expected less than 4"):
        toy_config(use_gpu=True, gpu_id=4)


def test_visible_devices_of_the_environment_win_over_gpu_id(four_gpus, monkeypatch, toy_config):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    config = toy_config(use_gpu=True, gpu_id=1)
    assert config["device"] == torch.device("cuda", 0)  # the first of the visible ones
    assert config["gpu_id"] == "3"


# --- RecBole's own models ---------------------------------------------------------------------------------------------

# What is not RecBole's, and why: six digits instead of four; our metrics beside RecBole's; files under output_dir.
OURS = {"metric_decimal_place", "metrics", "checkpoint_dir"}


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "NeuMF", "SASRec", "DIN", "DCN", "Pop"])
def test_recboles_models_have_recboles_values(model, monkeypatch, tmp_path, output_dir):
    keys = {"gpu_id": "", "data_path": str(tmp_path)}
    if model == "SASRec":
        keys["train_neg_sample_args"] = None  # stock RecBole wants it said
    stock = stock_config(model, monkeypatch, keys)
    ours = Config(model, "ml-100k", config_dict={**keys, "output_dir": str(output_dir), "protocol": "recbole"})
    for key, value in stock.final_config_dict.items():
        if key not in OURS and not (model == "Pop" and key == "train_neg_sample_args"):  # ours counts training rows
            assert ours[key] == value, key
    assert ours["metrics"][: len(stock["metrics"])] == stock["metrics"]
    assert ours["checkpoint_dir"] == str(output_dir / "saved")


def stock_config(model: str, monkeypatch, keys) -> recbole.config.Config:
    """RecBole's own Config on ml-100k; what it leaves in the process is taken back."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    lists = {name: list(values) for name, values in vars(argument_list).items() if name.endswith("_arguments")}
    try:
        return recbole.config.Config(model, "ml-100k", config_dict=copy.deepcopy(keys))
    finally:
        for name, values in lists.items():
            getattr(argument_list, name)[:] = values


def test_cross_entropy_models_need_no_word_about_negatives(toy_config):
    """Stock RecBole refuses ``--model=SASRec`` unless told that there are no sampled negatives."""
    assert toy_config("SASRec")["train_neg_sample_args"]["distribution"] == "none"
    with pytest.raises(UserError, match=r"^config: train_neg_sample_args .* should be None when the loss_type is CE"):
        toy_config("SASRec", train_neg_sample_args={"distribution": "uniform"})


def test_a_users_copy_of_ml_100k_wins_over_the_one_in_the_wheel(tmp_path, output_dir):
    keys = {"data_path": str(tmp_path), "output_dir": str(output_dir), "use_gpu": False}
    assert "dataset_example" in Config("MF", "ml-100k", config_dict=keys)["data_path"]
    (tmp_path / "ml-100k").mkdir()
    (tmp_path / "ml-100k" / "ml-100k.inter").write_text("user_id:token\titem_id:token\n")
    assert Config("MF", "ml-100k", config_dict=keys)["data_path"] == str(tmp_path / "ml-100k")


# --- identity ---------------------------------------------------------------------------------------------------------


def test_the_key_ignores_what_changes_no_result(toy_config, tmp_path):
    plain = toy_config()
    quiet = toy_config(output_dir=str(tmp_path / "elsewhere"), show_progress=True, force=True, state="DEBUG", worker=1)
    assert plain.key() == quiet.key()
    assert not DISPLAY_KEYS & set(plain.resolved())
    assert plain.key() != toy_config(seed=1).key()
    assert plain.key() != toy_config(weight_decay=1e-4).key()
    assert toy_config(attack="Average").key(without=["attack", "attack_args"]) == plain.key(["attack", "attack_args"])


def test_resolved_is_json_and_the_same_every_time(toy_config):
    first, second = toy_config("NeuMF").resolved(), toy_config("NeuMF").resolved()
    assert json.loads(json.dumps(first, allow_nan=False)) == second
    assert first["MODEL_TYPE"] == "GENERAL"


def test_derive_leaves_the_original_alone(toy_config):
    config = toy_config()
    other = config.derive(epochs=3)
    assert (config["epochs"], other["epochs"]) == (25, 3)


def test_two_configs_in_one_process_do_not_meet(toy_config):
    lists = {name: list(values) for name, values in vars(argument_list).items() if name.endswith("_arguments")}
    given = {"eval_args": {"order": "TO"}, "train_neg_sample_args": {"distribution": "popularity"}, "topk": [5]}
    kept = copy.deepcopy(given)
    first = toy_config("BPR", dataset="ml-100k", **given)
    before = first.resolved()
    second = toy_config("BPR", dataset="ml-100k", **given)
    for key in ("eval_args", "train_neg_sample_args"):
        second[key]["changed"] = True
    second["topk"].append(99)
    second["load_col"]["inter"].append("x")
    toy_config("DIN", dataset="ml-100k")
    assert given == kept  # the user's own dict
    assert first.resolved() == before
    assert toy_config("BPR", dataset="ml-100k", **given).resolved() == before
    for name, values in lists.items():
        assert getattr(argument_list, name) == values


def test_none_in_words(cli_config):
    config = cli_config("--attack=none", "--defense=None", "--heldout_file=")
    assert (config["attack"], config["defense"], config["heldout_file"]) == (None, None, None)


def test_arguments_without_an_attack_are_a_warning(cli_config, caplog):
    cli_config("--attack_args.shrink=5")
    assert "attack_args without attack: ignored" in caplog.text


def test_base_model_is_for_models_that_wrap_one(toy_config):
    with pytest.raises(UserError, match=r"^base_model: expected none, since MF wraps no model, got 'SASRec'"):
        toy_config(base_model="SASRec")
    assert toy_config("PurifyAug", base_model="BPR")["base_model"] == "BPR"
    with pytest.raises(UserError, match=r"^unknown base_model 'SASREC': did you mean SASRec"):
        toy_config("PurifyAug", base_model="SASREC")


@pytest.mark.parametrize("model", ["MF", "BPR"])
def test_a_key_that_is_ignored_has_no_relations(toy_config, model):
    assert toy_config(model, infer_mode="rerank")["topk"]
