"""Noise is in the training rows, and nowhere that anything is measured; it goes together with attacks and caches."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields

import numpy as np
import pytest
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data import data_preparation
from recbole.data.dataset import Dataset
from toy_splits import FAMILIES, FEATURES, SMALL, assert_same_rows, average, numbers, split

from recbole_robust import AttackedDataset, DefenderView, InteractionNoise, Poison, UserError
from recbole_robust.data import attacker_view, defender_view, load
from recbole_robust.data.injection import without_fakes
from recbole_robust.data.load import prepare
from recbole_robust.data.noisy_split import history_of
from recbole_robust.data.poison import targets_of
from recbole_robust.evaluation import tail_items
from recbole_robust.registry import build_attack

NOISE = {"noise_ratio": 0.2, "noise_strength": 0.3}
SEQUENTIAL = ("SASRec", "DIN")
CASES = [(model, kind) for model in FAMILIES for kind in ("replace", "insert", "drop")]
CASES += [(model, "swap") for model in SEQUENTIAL]


def pairs_of(train) -> set[tuple[int, int]]:
    matrix = train.inter_matrix(form="coo")
    return set(zip(matrix.row.tolist(), matrix.col.tolist(), strict=True))


def sequences(train) -> dict[int, list[int]]:
    """Each user's items in order of time, from the prefixes."""
    log, _ = history_of([train])
    found = defaultdict(list)
    for user, item in zip(log["user_id"].tolist(), log["item_id"].tolist(), strict=True):
        found[user].append(item)
    return found


# --- what stays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_valid_and_test_targets_and_tail_are_those_without_noise(family_config, model, kind):
    clean, noisy = split(family_config(model)), split(family_config(model, **NOISE, noise_kind=kind))
    assert_same_rows(noisy.valid.inter_feat, clean.valid.inter_feat)
    assert_same_rows(noisy.test.inter_feat, clean.test.inter_feat)
    assert len(noisy.train.noise_flags.users) == 16, "of 80"
    assert noisy.train.n_genuine_rows == len(noisy.train.inter_feat)
    for choice in ("random", "unpopular", "popular"):
        settings = family_config(model, target_choice=choice)
        assert targets_of(settings, noisy.train) == targets_of(settings, clean.train)
    assert torch.equal(tail_items(noisy.train), tail_items(clean.train))
    assert np.array_equal(noisy.train.field2id_token["user_id"], clean.train.field2id_token["user_id"])
    assert np.array_equal(noisy.test.raw_log.keys, clean.test.raw_log.keys)


@pytest.mark.parametrize("model", FAMILIES)
def test_no_noise_is_the_run_of_today(family_config, model):
    config = family_config(model, noise_ratio=0, noise_kind="insert", noise_strength=1.0)
    clean, same = split(family_config(model)), split(config)
    for before, after in zip(clean, same, strict=True):
        assert_same_rows(after.inter_feat, before.inter_feat)
    assert same.train.noise_flags is None
    assert same.train.raw_log.keys is not clean.train.raw_log.keys
    assert np.array_equal(same.train.raw_log.keys, clean.train.raw_log.keys)
    assert config.key() == family_config(model).key(), "a run of the same name"
    assert config.key() != family_config(model, noise_ratio=0.1).key()


@pytest.mark.parametrize("model", FAMILIES)
def test_the_global_random_state_is_that_of_the_clean_split(family_config, model):
    states = []
    for keys in ({}, NOISE):
        split(family_config(model, **keys))
        states.append((torch.get_rng_state(), np.random.get_state()[1]))  # noqa: NPY002
    assert torch.equal(states[0][0], states[1][0])
    assert np.array_equal(states[0][1], states[1][1])


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_rows_of_the_targets_are_those_without_noise(family_config, model, kind):
    """Noise is no attack, and moves nobody in or out of the users that are eligible."""
    clean = split(family_config(model)).train
    noisy = split(family_config(model, noise_ratio=0.9, noise_strength=0.9, noise_kind=kind)).train
    targets = {clean.token2id("item_id", token) for token in targets_of(family_config(model), clean)}
    before, after = ({pair for pair in pairs_of(train) if pair[1] in targets} for train in (clean, noisy))
    assert before == after
    assert before


# --- what changes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_edited_users_have_the_edits_that_the_flags_say(family_config, model, kind):
    clean = split(family_config(model)).train
    noisy = split(family_config(model, **NOISE, noise_kind=kind)).train
    flags, before, after = noisy.noise_flags, pairs_of(clean), pairs_of(noisy)
    counts = np.bincount([user for user, _ in before], minlength=clean.user_num)
    expected = sum(max(int(0.3 * counts[user]), 2 if kind == "swap" else 1) for user in flags.users)
    assert flags.n_edits == expected
    assert len(after - before) == (flags.n_edits if kind in ("replace", "insert") else 0)
    assert len(before - after) == (flags.n_edits if kind in ("replace", "drop") else 0)
    assert {user for user, _ in before ^ after} == (set(flags.users) if kind != "swap" else set())
    assert len(flags.rows) == len(flags.in_history) == len(noisy.inter_feat)
    rows = noisy.inter_feat
    marked = {(int(u), int(i)) for u, i in zip(rows["user_id"][flags.rows], rows["item_id"][flags.rows], strict=True)}
    if kind in ("replace", "insert"):
        assert marked <= after - before
        assert model in SEQUENTIAL or marked == after - before
    held_out = {(int(u), int(i)) for part in split(family_config(model))[1:]
                for u, i in zip(part.inter_feat["user_id"], part.inter_feat["item_id"], strict=True)}  # fmt: skip
    assert not (after - before) & held_out


@pytest.mark.parametrize("model", ["MF", "BPR", "DCN"])
def test_a_replaced_row_keeps_its_rating_its_label_and_its_time(family_config, model):
    keys = {"MF": {"load_col": FEATURES}, "BPR": {"load_col": FEATURES}, "DCN": {}}[model]
    clean, noisy = (split(family_config(model, **keys, **noise)).train for noise in ({}, NOISE))
    flags, rows = noisy.noise_flags, noisy.inter_feat
    assert rows.columns == clean.inter_feat.columns
    for name in rows.columns:
        assert rows[name].dtype == clean.inter_feat[name].dtype
        if name != "item_id":
            assert torch.equal(rows[name], clean.inter_feat[name]), name
    assert np.array_equal(flags.rows, (rows["item_id"] != clean.inter_feat["item_id"]).numpy())
    assert not flags.in_history.any()


@pytest.mark.parametrize("kind", ["replace", "insert", "swap"])
def test_the_attacker_sees_the_noise_with_ratings_and_times_of_genuine_rows(family_config, kind):
    config = family_config("SASRec", **NOISE, noise_kind=kind)
    clean, noisy = split(family_config("SASRec")).train, split(config).train
    before, after = attacker_view(clean), attacker_view(noisy)
    assert (after.rating_min, after.rating_max, after.rating_step) == (1, 5, 1)
    assert after.ratings.nnz == before.ratings.nnz + (noisy.noise_flags.n_edits if kind == "insert" else 0)
    for user in range(before.n_users):
        had, has = (np.sort(view.ratings[user].data) for view in (before, after))
        assert np.isin(has, had).all()
        assert kind == "insert" or np.array_equal(had, has), "only the items of ratings are wrong"
        times, new_times = (np.sort(view.log.timestamps[view.log.users == user]) for view in (before, after))
        assert np.isin(new_times, times).all()
    order = defaultdict(list)
    for user, item in zip(after.log.users + 1, after.log.items + 1, strict=True):
        order[user].append(item)
    times = noisy.inter_feat["timestamp"]
    assert len(times.unique()) > 1
    moved = [user for user, items in sequences(noisy).items() if sorted(items) != sorted(order[user])]
    assert moved == []


def test_a_defense_is_not_told():
    assert not [f.name for f in fields(DefenderView) if "noise" in f.name or "flag" in f.name or "fake" in f.name]


def test_a_defense_sees_the_noise_as_rows_like_any(family_config):
    train = split(family_config("MF", **NOISE), average()).train
    view = defender_view(train)
    assert view.ratings.nnz == len(train.inter_feat)
    assert set(np.unique(view.ratings.data)) <= {1.0, 2.0, 3.0, 4.0, 5.0}


# --- sequences --------------------------------------------------------------------------------------------------------


def test_the_history_behind_prefixes_is_the_log(family_config, data_path):
    parts = split(family_config("SASRec", MAX_ITEM_LIST_LENGTH=3))
    log, part_of_row = history_of(parts)
    lines = [line.split("\t") for line in (data_path / "toy" / "toy.inter").read_text().splitlines()[1:]]
    expected = defaultdict(list)
    for user, item, _, _ in sorted(lines, key=lambda line: float(line[3])):
        expected[user].append(item)
    found, found_parts = defaultdict(list), defaultdict(list)
    for user, item, part in zip(log["user_id"].tolist(), log["item_id"].tolist(), part_of_row, strict=True):
        found[parts.train.id2token("user_id", user)].append(parts.train.id2token("item_id", item))
        found_parts[parts.train.id2token("user_id", user)].append(part)
    assert {user: [str(item) for item in items] for user, items in found.items()} == expected
    assert all(part[-2:] == [1, 2] and set(part[:-2]) == {0} for part in found_parts.values())


@pytest.mark.parametrize("kind", ["replace", "insert", "drop", "swap"])
@pytest.mark.parametrize("model", SEQUENTIAL)
def test_prefixes_are_those_of_the_noisy_log(family_config, model, kind):
    """The lists, their lengths and the flags of each row, made again by a loop over the log."""
    clean = split(family_config(model)).train
    train = split(family_config(model, **NOISE, noise_kind=kind)).train
    rows, flags, width = train.inter_feat, train.noise_flags, 8
    assert rows.columns == clean.inter_feat.columns
    wrong = pairs_of(train) - pairs_of(clean)
    position: dict[int, int] = defaultdict(int)
    log = sequences(train)
    for k in range(len(rows)):
        user = int(rows["user_id"][k])
        position[user] += 1
        here, items = position[user], log[user]
        history = items[max(0, here - width) : here]
        assert int(rows["item_id"][k]) == items[here]
        assert rows["item_id_list"][k].tolist() == history + [0] * (width - len(history))
        assert int(rows["item_length"][k]) == len(history)
        if kind in ("replace", "insert"):
            assert flags.rows[k] == ((user, items[here]) in wrong)
            assert flags.in_history[k] == sum((user, item) in wrong for item in history)
    assert all(position[user] + 1 == len(items) for user, items in log.items())
    if kind == "swap":
        moved = {user for user, items in log.items() if items != sequences(clean)[user]}
        assert moved == set(flags.users)
        assert all(sorted(items) == sorted(sequences(clean)[user]) for user, items in log.items())


def test_dien_gets_negatives_for_the_noisy_histories(family_config):
    keys = {"load_col": FEATURES, "train_neg_sample_args": {"distribution": "uniform"}, "MAX_ITEM_LIST_LENGTH": 8}
    states = []
    for noise in ({}, {**NOISE, "noise_kind": "insert"}):
        config = family_config("DIN", **keys, **noise)
        rows = split(type(config)("DIEN", "toy", config_dict=config.external_config_dict)).train.inter_feat
        states.append(np.random.get_state()[1])  # noqa: NPY002
    assert np.array_equal(*states), "they are drawn from the global generator, which is put back"
    inside = torch.arange(8) < rows["item_length"][:, None]
    assert (rows["neg_item_id_list"][inside] != rows["item_id_list"][inside]).all()
    assert (rows["neg_item_id_list"][~inside] == 0).all()


def test_rows_of_users_without_noise_stay_where_they_were(family_config):
    clean, noisy = split(family_config("SASRec")).train, split(family_config("SASRec", **NOISE)).train
    untouched = torch.from_numpy(~np.isin(clean.inter_feat["user_id"].numpy(), noisy.noise_flags.users))
    assert torch.equal(noisy.inter_feat["user_id"], clean.inter_feat["user_id"])
    assert_same_rows(noisy.inter_feat[untouched], clean.inter_feat[untouched])


@pytest.mark.parametrize("kind", ["replace", "insert", "drop", "swap"])
def test_histories_at_test_time_are_noisy_where_asked(family_config, kind):
    clean = split(family_config("SASRec"))
    noisy = split(family_config("SASRec", **NOISE, noise_kind=kind, noise_scope="histories"))
    trained_on = split(family_config("SASRec", **NOISE, noise_kind=kind)).train
    assert_same_rows(noisy.train.inter_feat, trained_on.inter_feat)
    log = sequences(noisy.train)
    for phase, n_after in (("valid", 0), ("test", 1)):
        before, after = getattr(clean, phase).inter_feat, getattr(noisy, phase).inter_feat
        for name in ("user_id", "item_id", "timestamp"):
            assert torch.equal(after[name], before[name]), "what is held out is genuine, and in the same order"
        held_out = dict(zip(clean.valid.inter_feat["user_id"].tolist(), clean.valid.inter_feat["item_id"].tolist(),
                            strict=True))  # fmt: skip
        for k in range(len(after)):
            user = int(after["user_id"][k])
            history = (log[user] + [held_out[user]] * n_after)[-8:]
            assert after["item_id_list"][k][: after["item_length"][k]].tolist() == history
        flags = getattr(noisy, phase).noise_flags
        assert not flags.rows.any()
        assert (flags.in_history.sum() > 0) == (kind != "drop")


def test_sequences_that_are_made_already_are_refused(write_data, toy_config):
    head = "user_id:token\titem_id_list:token_seq\titem_id:token"
    rows = [f"u{u}\ti{u} i{u + 1}\ti{u + 2}" for u in range(6)]
    keys = write_data(train_inter=[head, *rows], valid_inter=[head, *rows], test_inter=[head, *rows])
    config = toy_config("SASRec", **keys, benchmark_filename=["train", "valid", "test"], topk=[2], noise_ratio=0.5,
                        alias_of_item_id=["item_id_list"], train_neg_sample_args=None,
                        load_col={"inter": ["user_id", "item_id_list", "item_id"]})  # fmt: skip
    with pytest.raises(UserError, match="noise_ratio: expected 0 for sequences that are made already"):
        split(config)


# --- with an attack ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_noise_and_attack(family_config, model, kind):
    noise = {**NOISE, "noise_kind": kind}
    clean, noisy = split(family_config(model)), split(family_config(model, **noise))
    poison = average(target_items=targets_of(family_config(model), clean.train))
    attacked, both = split(family_config(model), poison), split(family_config(model, **noise), poison)
    n = len(noisy.train.inter_feat)
    assert both.train.n_genuine_rows == n
    assert_same_rows(both.train.inter_feat[:n], noisy.train.inter_feat)
    assert_same_rows(without_fakes(both.train).inter_feat, noisy.train.inter_feat)
    assert_same_rows(both.test.inter_feat, clean.test.inter_feat)
    n_fakes = len(attacked.train.inter_feat) - attacked.train.n_genuine_rows
    assert len(both.train.inter_feat) - n == n_fakes
    assert both.train.card.target_items == attacked.train.card.target_items
    assert np.array_equal(both.train.noise_flags.rows, noisy.train.noise_flags.rows)
    assert len(both.train.noise_flags.rows) == n


def test_the_attack_is_planned_on_the_noisy_log(family_config):
    clean, noisy = (split(family_config("MF", **keys)).train for keys in ({}, {**NOISE, "noise_kind": "insert"}))
    assert attacker_view(noisy).ratings.nnz > attacker_view(clean).ratings.nnz
    attack = build_attack("Bandwagon")
    plans = [Poison(attack, n_fake_users=5, n_fillers=8, seed=1).plan(train) for train in (clean, noisy)]
    assert plans[0].target_items == plans[1].target_items


def test_plain_recbole(data_path, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["recbole"])
    options = {"data_path": str(data_path), "checkpoint_dir": str(tmp_path), "gpu_id": "", "save_dataloaders": True}
    found = []
    for noise in (None, InteractionNoise(0.2), InteractionNoise(0.1), None):
        dataset = AttackedDataset(Dataset)(RecBoleConfig("BPR", "toy", config_dict=options), noise=noise)
        flags = data_preparation(dataset.config, dataset)[0]._dataset.noise_flags
        found.append(None if flags is None else len(flags.users))
    assert found == [None, 16, 8, None]


# --- caches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
@pytest.mark.parametrize("new_process", [True, False])
def test_clean_and_two_noises_in_turn(family_config, model, new_process):
    poison = average(target_items=["i3"])
    turns = [({}, None), ({"noise_ratio": 0.1}, None), ({"noise_ratio": 0.2}, None), ({"noise_ratio": 0.2}, poison)]
    fresh = []
    for noise, attack in turns:
        load._loaded.clear()
        fresh.append(split(family_config(model, **noise), attack).train.inter_feat)
    for turn in (0, 1, 2, 3, 2, 2, 1, 0, 3):
        if new_process:
            load._loaded.clear()
        noise, attack = turns[turn]
        train = prepare(family_config(model, **noise), attack)[0]._dataset
        assert_same_rows(train.inter_feat, fresh[turn])
        assert (train.noise_flags is None) == (turn == 0)


def test_other_targets_are_another_noise(family_config):
    keys = {"noise_ratio": 1.0, "noise_strength": 1.0}
    for token in ("i1", "i2", "i1"):
        flags = prepare(family_config("BPR", **keys, target_items=[token]))[0]._dataset
        target = flags.token2id("item_id", token)
        assert not flags.noise_flags.rows[(flags.inter_feat["item_id"] == target).numpy()].any()
        assert target not in flags.inter_feat["item_id"][torch.from_numpy(flags.noise_flags.rows)]


def test_clean_weights_are_not_those_of_a_noisy_training(run, trainings):
    clean = run("BPR")
    noisy = [run("BPR", noise_ratio=ratio, noise_strength=1.0) for ratio in (0.5, 1.0)]
    assert len(trainings) == 3
    assert len({result["path"] for result in (clean, *noisy)}) == 3
    again = [run("BPR", noise_ratio=ratio, noise_strength=1.0, force=True, cache_clean=False) for ratio in (0, 0.5)]
    assert [numbers(result) for result in again] == [numbers(clean), numbers(noisy[0])]
    attacked = run("BPR", noise_ratio=0.5, noise_strength=1.0, attack="Random", n_fake_users=5, n_fillers=5)
    assert attacked["clean"] == noisy[0]["clean"], "the noisy training without an attack"
    assert attacked["target_items"] == clean["target_items"]


def test_clean_weights_of_other_targets_are_those_of_another_noise(run, trainings):
    for noise, n_trainings in ((0.0, 1), (0.5, 3)):
        for token in ("i1", "i2"):
            run("BPR", noise_ratio=noise, target_items=[token])
        assert len(trainings) == n_trainings


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_trains_on_noise(run, model):
    small = SMALL if model in ("DCN", "SASRec", "DIN") else {}
    keys = {**small, **FAMILIES[model], "epochs": 1, "eval_step": 1, "noise_ratio": 0.5, "noise_strength": 0.5}
    scope = {"noise_scope": "histories"} if model in SEQUENTIAL else {}
    clean = run(model, **{**keys, "noise_ratio": 0.0})
    result = run(model, **keys, **scope, attack="Average", n_fake_users=5, n_fillers=5)
    assert result["target_items"] == clean["target_items"]
    assert result["clean"] != clean["clean"]
    assert result["config"]["noise_ratio"] == 0.5
    assert "noise_ratio" not in clean["config"]
    assert result["n_genuine"] == clean["n_genuine"] == 80
