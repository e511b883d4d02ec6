"""Injection into data of every form: repeated pairs, plain RecBole, files that are split already, DIEN."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data import data_preparation
from recbole.data.dataset import Dataset
from toy_splits import FEATURES, assert_same_rows, average, split

from recbole_robust import AttackedDataset, Average, Poison, UserError
from recbole_robust.data import attacker_view
from recbole_robust.data.injection import without_fakes
from recbole_robust.data.load import prepare

# --- duplicates ----------------------------------------------------------------------------------------------------

HEAD = "user_id:token\titem_id:token\trating:float"
DUPLICATES = [
    *("u0\ti0\t5\t30", "u0\ti0\t1\t10", "u0\ti0\t2\t20"),
    *(f"u{u}\ti{i}\t3\t{u + i}" for u in range(1, 5) for i in range(6)),
]
ALL_TRAIN = {"split": {"RS": [1.0, 0.0, 0.0]}, "order": "RO", "group_by": "user", "mode": "full"}


def test_of_repeated_pairs_the_latest_counts_for_the_attacker(write_data, toy_config):
    keys = write_data(inter=[f"{HEAD}\ttimestamp:float", *DUPLICATES])
    train = split(toy_config("BPR", **keys, topk=[2], eval_args=ALL_TRAIN)).train
    view = attacker_view(train)
    assert view.ratings[0, 0] == 5.0
    assert view.ratings.nnz == 25
    assert len(view.log.ratings) == 25
    assert len(train.inter_feat) == 27, "RecBole's rows are left alone"


def test_without_times_the_last_line_counts(write_data, toy_config):
    keys = write_data(inter=[HEAD, *(line.rsplit("\t", 1)[0] for line in DUPLICATES)])
    train = split(toy_config("BPR", **keys, topk=[2], eval_args=ALL_TRAIN)).train
    assert attacker_view(train).ratings[0, 0] == 2.0
    assert attacker_view(train).log is None


@pytest.mark.parametrize(("loads_times", "kept"), [(True, 5.0), (False, 2.0)])
def test_a_hidden_time_column_does_not_change_which_duplicate_the_victim_keeps(
    write_data, toy_config, loads_times, kept
):
    keys = write_data(inter=[f"{HEAD}\ttimestamp:float", *DUPLICATES])
    columns = ["user_id", "item_id", "rating", *(["timestamp"] if loads_times else [])]
    config = toy_config("MF", **keys, topk=[2], eval_args=ALL_TRAIN, load_col={"inter": columns})
    train = split(config).train
    assert config["rm_dup_inter"] == "last"
    user, item = train.token2id("user_id", "u0"), train.token2id("item_id", "i0")
    assert train.inter_feat["rating"][train.inter_feat["user_id"] == user].tolist() == [kept]
    assert attacker_view(train).ratings[user - 1, item - 1] == kept


# --- words that pandas takes for no value ----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["nan", "NA", "null", "None", "#N/A"])
def test_a_user_and_an_item_of_any_name_keep_their_rows(write_data, toy_config, word):
    def of(user: str, item: str) -> list[str]:
        changed = {"u2": user, "i3": item}
        rows = [line.split("\t") for line in DUPLICATES]
        return ["\t".join([changed.get(row[0], row[0]), changed.get(row[1], row[1]), *row[2:]]) for row in rows]

    def people(user: str) -> list[str]:
        return ["user_id:token\tage:float", *(f"{user if u == 2 else f'u{u}'}\t{20 + u}" for u in range(5))]

    splits = []
    for name, user, item in (("plain", "u2", "i3"), ("odd", word, word)):
        keys = write_data(name, inter=[f"{HEAD}\ttimestamp:float", *of(user, item)], user=people(user))
        columns = {"inter": ["user_id", "item_id", "rating"], "user": ["user_id", "age"]}
        splits.append(split(toy_config("MF", **keys, topk=[2], eval_args=ALL_TRAIN, load_col=columns)).train)
    plain, odd = splits
    assert_same_rows(odd.inter_feat, plain.inter_feat)
    assert odd.user_feat["age"].tolist() == plain.user_feat["age"].tolist()
    assert odd.token2id("user_id", word) == plain.token2id("user_id", "u2")
    assert odd.token2id("item_id", word) == plain.token2id("item_id", "i3")


def test_a_blank_time_is_the_mean(write_data, toy_config):
    keys = write_data(inter=[f"{HEAD}\ttimestamp:float", *DUPLICATES, "u5\ti0\t4\t"])
    train = split(toy_config("BPR", **keys, topk=[2], eval_args=ALL_TRAIN)).train
    assert len(train.inter_feat) == 28
    times = [float(line.rsplit("\t", 1)[1]) for line in DUPLICATES]
    expected = np.array([30.0, *times[3:], np.mean(times)])  # of u0's three the latest
    assert attacker_view(train).log.timestamps == pytest.approx(np.sort(expected))


# --- RecBole alone -------------------------------------------------------------------------------------------------


def test_six_lines_of_plain_recbole(data_path, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["recbole"])
    options = {"data_path": str(data_path), "checkpoint_dir": str(tmp_path), "gpu_id": "", "benchmark_filename": None,
               "load_col": {"inter": FEATURES["inter"]}}  # fmt: skip
    config = RecBoleConfig("BPR", "toy", config_dict=options)
    poison = Poison(Average(), target_items=["i3"], attack_size=0.1, n_fillers=5)
    dataset = AttackedDataset(Dataset)(config, poison)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    train = train_data._dataset
    assert (train.n_fake_users, train.user_num) == (8, 89)
    assert len(train.inter_feat) - train.n_genuine_rows == 8 * 6
    assert train_data._sampler.used_ids.shape == (89,), "negatives are sampled for fakes too"
    assert len(next(iter(train_data))) > 0
    for loader in (valid_data, test_data):
        assert loader.uid_list.max() <= 80
    clean = AttackedDataset(Dataset)(RecBoleConfig("BPR", "toy", config_dict=options))
    assert clean.build()[0].n_fake_users == 0


# --- files that are split already ----------------------------------------------------------------------------------

BENCHMARK = {"benchmark_filename": ["train", "valid", "test"], "topk": [2]}


def test_benchmark_files(write_data, toy_config):
    rows = [f"u{u}\ti{i}\t{1 + (u + i) % 5}" for u in range(12) for i in range(9)]
    parts = {f"{name}_inter": [HEAD, *rows[k::9]] for k, name in ((7, "valid"), (8, "test"))}
    train_rows = [row for k in range(7) for row in rows[k::9]]
    keys = write_data(train_inter=[HEAD, *train_rows], **parts)
    config = toy_config("MF", **keys, **BENCHMARK, load_col={"inter": ["user_id", "item_id", "rating"]})
    clean, attacked = split(config), split(config, average(n_fake_users=3, n_fillers=2, n_targets=2))
    assert [len(part.inter_feat) for part in clean] == [84, 12, 12]
    assert [len(part.inter_feat) for part in attacked] == [84 + 3 * 4, 12, 12]
    assert_same_rows(attacked.test.inter_feat, clean.test.inter_feat)
    assert_same_rows(without_fakes(attacked.train).inter_feat, clean.train.inter_feat)


def test_benchmark_sequences(write_data, toy_config):
    head = "user_id:token\titem_id_list:token_seq\titem_id:token"
    history = [[f"i{(u + k) % 10}" for k in range(7)] for u in range(12)]

    def rows(lengths):
        return [head, *(f"u{u}\t{' '.join(items[:n])}\t{items[n]}" for u, items in enumerate(history) for n in lengths)]

    keys = write_data(train_inter=rows(range(1, 5)), valid_inter=rows([5]), test_inter=rows([6]))
    config = toy_config("SASRec", **keys, **BENCHMARK, train_neg_sample_args=None, alias_of_item_id=["item_id_list"],
                        load_col={"inter": ["user_id", "item_id_list", "item_id"]})  # fmt: skip
    clean, attacked = split(config), split(config, average(n_fake_users=3, n_fillers=8, n_targets=1))
    assert_same_rows(without_fakes(attacked.train).inter_feat, clean.train.inter_feat)
    assert_same_rows(attacked.test.inter_feat, clean.test.inter_feat)
    fakes = attacked.train.inter_feat[attacked.train.n_genuine_rows :]
    width = clean.train.inter_feat["item_id_list"].shape[1]
    assert width == 6
    assert fakes["item_length"].tolist() == [*range(1, 7), 6, 6] * 3
    assert fakes["item_id_list"].shape == (3 * 8, width)
    one = [int(fakes["item_id_list"][0, 0]), *fakes["item_id"][:8].tolist()]
    assert fakes["item_id_list"][7].tolist() == one[2:8]
    assert attacker_view(attacked.train).n_items == 10


def test_negative_histories_of_dien_are_no_positives(family_config):
    keys = {"load_col": FEATURES, "MAX_ITEM_LIST_LENGTH": 8, "train_neg_sample_args": {"distribution": "uniform"}}
    config = family_config("DIN", **keys)
    dien = type(config)("DIEN", "toy", config_dict=config.external_config_dict)
    clean, attacked = split(dien), split(dien, average())
    assert_same_rows(without_fakes(attacked.train).inter_feat, clean.train.inter_feat)
    fakes = attacked.train.inter_feat[attacked.train.n_genuine_rows :]
    inside = torch.arange(8) < fakes["item_length"][:, None]
    assert (fakes["neg_item_id_list"][inside] != fakes["item_id_list"][inside]).all()
    assert (fakes["neg_item_id_list"][inside] > 0).all()
    assert (fakes["neg_item_id_list"][~inside] == 0).all()


def test_a_profile_of_all_items_leaves_no_negatives(toy_config):
    poison = average(n_fake_users=1, n_fillers=60, target_items=["i3"], target_mode="all", n_targets=1)
    view_items = split(toy_config("BPR")).train.item_num - 1
    with pytest.raises(UserError, match="rated them all"):
        prepare(toy_config("BPR"), replace(poison, n_fillers=view_items - 1))


def test_a_column_of_lists_may_be_a_numerical_feature(toy_config, tmp_path, data_path):
    """RecBole embeds float_seq too; only numbers are looked at, and before they are normalised."""
    toy = Path(shutil.copytree(data_path / "toy", tmp_path / "toy"))
    lines = (toy / "toy.item").read_text().splitlines()
    (toy / "toy.item").write_text(
        "\n".join([lines[0] + "\tvec:float_seq", *(f"{line}\t0.1 0.2" for line in lines[1:])])
    )
    columns = {"inter": ["user_id", "item_id", "rating"], "item": ["item_id", "year", "vec"]}
    keys = {"data_path": str(tmp_path), "load_col": columns, "threshold": {"rating": 4}, "mlp_hidden_size": [8]}
    config = toy_config("DCN", numerical_features=["vec", "year"], normalize_all=True, **keys)
    assert prepare(config)[0]._dataset.item_feat["vec"].shape[1] == 2
    (toy / "toy.item").write_text((toy / "toy.item").read_text().replace("i0\t1992", "i0\tinf"))
    with pytest.raises(UserError, match=r"toy: year: expected finite numbers \(numerical_features\), got inf"):
        prepare(toy_config("DCN", numerical_features=["vec", "year"], normalize_all=True, **keys))


def test_columns_that_a_part_of_load_col_names_are_there(toy_config):
    with pytest.raises(UserError, match=r"toy\.user: expected a column nope \(load_col\), got user_id"):
        prepare(toy_config("BPR", **{"load_col.user": ["user_id", "nope"]}))
