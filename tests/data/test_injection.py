"""Fake users are in the training split and nowhere else; all that is genuine stays what it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from toy_splits import FAMILIES, FEATURES, assert_same_rows, average, split

from recbole_robust import Average, FakeProfiles, Poison, UserError
from recbole_robust.data.injection import FAKE_PREFIX, without_fakes

N_FAKE, N_FILLERS, N_TARGETS = 10, 6, 5


@dataclass(frozen=True)
class Given:
    """An attack that injects the profiles that it is given."""

    profiles: FakeProfiles

    def __call__(self, view, target_items, budget, *, rng):
        return self.profiles


def given(items: list[list[int]], ratings: list[list[float]], timestamps=None) -> Poison:
    """Fakes that rate items (0-based ids) as told."""
    ptr = np.cumsum([0, *map(len, items)])
    flat = np.concatenate([np.asarray(part, dtype=np.float64) for part in ratings])
    profiles = FakeProfiles(ptr, np.concatenate(items).astype(np.int64), flat, timestamps)
    return Poison(Given(profiles), n_targets=1, n_fake_users=len(items), n_fillers=1)


# --- what stays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", FAMILIES)
def test_valid_test_and_the_genuine_prefix_of_train_are_those_of_the_clean_run(family_config, model):
    clean, attacked = split(family_config(model)), split(family_config(model), average())
    assert_same_rows(attacked.valid.inter_feat, clean.valid.inter_feat)
    assert_same_rows(attacked.test.inter_feat, clean.test.inter_feat)
    n = len(clean.train.inter_feat)
    assert attacked.train.n_genuine_rows == n
    assert_same_rows(attacked.train.inter_feat[:n], clean.train.inter_feat)
    assert np.array_equal(attacked.train.field2id_token["item_id"], clean.train.field2id_token["item_id"])
    n_users = clean.train.user_num
    assert np.array_equal(attacked.train.field2id_token["user_id"][:n_users], clean.train.field2id_token["user_id"])
    assert attacked.train.item_num == clean.train.item_num
    if clean.train.item_feat is not None:
        assert_same_rows(attacked.train.item_feat, clean.train.item_feat)


@pytest.mark.parametrize("model", FAMILIES)
def test_fakes_are_in_train_only_and_rate_what_the_budget_says(family_config, model):
    train, valid, test = split(family_config(model), average())
    first_fake = train.user_num - N_FAKE
    assert all(part.user_num == train.user_num for part in (valid, test))
    assert (valid.inter_feat["user_id"] < first_fake).all()
    assert (test.inter_feat["user_id"] < first_fake).all()
    fakes = train.inter_feat[train.n_genuine_rows :]
    assert (fakes["user_id"] >= first_fake).all()
    assert (train.inter_feat["user_id"][: train.n_genuine_rows] < first_fake).all()
    rows_of_a_fake = N_FILLERS + N_TARGETS - (model in ("SASRec", "DIN"))  # the first item of a sequence has no row
    assert np.array_equal(np.bincount(fakes["user_id"])[first_fake:], np.full(N_FAKE, rows_of_a_fake))
    ratings_in_the_matrix = train.inter_matrix(form="csr")[first_fake:]
    assert ratings_in_the_matrix.nnz == N_FAKE * (N_FILLERS + N_TARGETS)
    tokens = train.field2id_token["user_id"][first_fake:]
    assert list(tokens) == [f"{FAKE_PREFIX}{k}" for k in range(N_FAKE)]
    assert [train.token2id("user_id", token) for token in tokens] == list(range(first_fake, train.user_num))


@pytest.mark.parametrize("model", FAMILIES)
def test_taking_the_fakes_out_gives_the_clean_split(family_config, model):
    clean, attacked = split(family_config(model)).train, split(family_config(model), average()).train
    restored = without_fakes(attacked)
    assert_same_rows(restored.inter_feat, clean.inter_feat)
    assert restored.user_num == clean.user_num
    assert restored.n_fake_users == 0
    assert restored.profiles is None
    assert restored.field2token_id["user_id"] == dict(clean.field2token_id["user_id"])
    if clean.user_feat is not None:
        assert_same_rows(restored.user_feat, clean.user_feat)
    assert attacked.n_fake_users == N_FAKE, "the attacked split itself is unchanged"
    assert without_fakes(clean) is clean


def test_the_split_does_not_depend_on_global_random_numbers_that_an_attack_draws(family_config):
    @dataclass(frozen=True)
    class Burner:
        n: int

        def __call__(self, view, target_items, budget, *, rng):
            torch.rand(self.n)
            np.random.rand(self.n)  # noqa: NPY002
            return Average()(view, target_items, budget, rng=rng)

    def state_after(poison):
        parts = split(family_config("BPR"), poison)
        return parts, torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002

    clean, *clean_state = state_after(None)
    for n in (1, 1000):
        attacked, *state = state_after(Poison(Burner(n), n_fake_users=3, n_fillers=2))
        assert_same_rows(attacked.test.inter_feat, clean.test.inter_feat)
        assert torch.equal(state[0], clean_state[0])
        assert np.array_equal(state[1], clean_state[1])


# --- users ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["DCN", "DIN"])
def test_user_features_grow_by_attributes_of_genuine_users(family_config, model):
    clean, attacked = split(family_config(model)), split(family_config(model), average())
    before, after = clean.train.user_feat, attacked.train.user_feat
    n = clean.train.user_num
    assert_same_rows(after[:n], before)
    assert torch.equal(after["user_id"], torch.arange(n + N_FAKE))
    genuine = {(float(a), int(g)) for a, g in zip(before["age"][1:], before["gender"][1:], strict=True)}
    fakes = {(float(a), int(g)) for a, g in zip(after["age"][n:], after["gender"][n:], strict=True)}
    assert fakes <= genuine
    assert len(fakes) > 1
    assert all(part.user_feat is after for part in attacked)
    joined = attacked.train.join(Interaction({"user_id": torch.tensor([n + N_FAKE - 1])}))
    assert torch.equal(joined["age"], after["age"][-1:])


def test_preloaded_user_vectors_grow_too(write_data, toy_config):
    lines = [f"u{u}\ti{i}\t{1 + (u + i) % 5}" for u in range(6) for i in range(8) if (u + i) % 3]
    keys = write_data(
        inter=["user_id:token\titem_id:token\trating:float", *lines],
        useremb=["uid:token\tvector:float_seq", *(f"u{u}\t{u}.5 {u}.25" for u in range(6))],
    )
    config = toy_config(
        "BPR", **keys, additional_feat_suffix=["useremb"], preload_weight={"uid": "vector"}, alias_of_user_id=["uid"],
        load_col={"inter": ["user_id", "item_id", "rating"], "useremb": ["uid", "vector"]}, topk=[2],
    )  # fmt: skip
    train = split(config, average(n_fake_users=3, n_fillers=2, n_targets=1)).train
    weight = train.get_preload_weight("uid")
    assert weight.shape == (1 + 6 + 3, 2)
    genuine = {tuple(row) for row in weight[1:7]}
    assert {tuple(row) for row in weight[7:]} <= genuine
    assert without_fakes(train).get_preload_weight("uid").shape == (7, 2)


def test_a_genuine_user_with_the_name_of_a_fake_is_refused(write_data, toy_config):
    lines = [f"{u}\ti{i}\t3" for u in ("a", "b", f"{FAKE_PREFIX}1") for i in range(8)]
    keys = write_data(inter=["user_id:token\titem_id:token\trating:float", *lines])
    config = toy_config("MF", **keys, load_col={"inter": ["user_id", "item_id", "rating"]}, topk=[2])
    with pytest.raises(UserError, match=f"no user named {FAKE_PREFIX}"):
        split(config, average(n_fake_users=2, n_fillers=2, n_targets=1))
    split(config, average(n_fake_users=1, n_fillers=2, n_targets=1))  # only __fake_0: no clash


# --- ratings, labels, times ----------------------------------------------------------------------------------------


def test_labels_of_fakes_come_from_the_threshold(family_config):
    poison = given([[0, 1, 2], [3, 4]], [[5.0, 4.0, 3.0], [1.0, 4.0]])
    for threshold, expected in ((4, [1, 1, 0, 0, 1]), (5, [1, 0, 0, 0, 0])):
        train = split(family_config("DCN", threshold={"rating": threshold}), poison).train
        fakes = train.inter_feat[train.n_genuine_rows :]
        assert fakes["label"].tolist() == expected
        assert "rating" not in fakes


def test_fakes_are_clicks_where_the_data_come_with_labels(write_data, toy_config):
    lines = [f"u{u}\ti{i}\t{(u * i) % 2}" for u in range(8) for i in range(10)]
    keys = write_data(inter=["user_id:token\titem_id:token\tlabel:float", *lines])
    config = toy_config("DCN", **keys, load_col=None, topk=[2], mlp_hidden_size=[4])
    train = split(config, average(n_fake_users=2, n_fillers=3, n_targets=1)).train
    assert (train.inter_feat["label"][train.n_genuine_rows :] == 1).all()


def test_ratings_of_fakes_are_normalised_as_the_genuine_ones_were(family_config):
    plain = split(family_config("BPR", load_col=FEATURES))
    scaled = split(family_config("BPR", load_col=FEATURES, normalize_all=True), given([[0, 1, 2]], [[1.0, 4.0, 5.0]]))
    fakes = scaled.train.inter_feat[scaled.train.n_genuine_rows :]
    assert fakes["rating"].tolist() == [0.0, 0.75, 1.0]
    mapping = dict(
        zip(plain.train.inter_feat["rating"].tolist(), scaled.train.inter_feat["rating"].tolist(), strict=False)
    )
    assert mapping[4.0] == 0.75, "as genuine ratings are"
    assert ((fakes["timestamp"] >= 0) & (fakes["timestamp"] <= 1)).all()


def test_one_normalised_field_leaves_the_others_alone(family_config):
    config = family_config("BPR", load_col=FEATURES, normalize_all=None, normalize_field=["rating"])
    train = split(config, given([[0, 1]], [[5.0, 3.0]])).train
    fakes = train.inter_feat[train.n_genuine_rows :]
    assert fakes["rating"].tolist() == [1.0, 0.5]
    assert (fakes["timestamp"] > 1e6 - 1).all()


def test_numerical_ratings_of_fakes_have_the_form_of_genuine_ones(family_config):
    discretized = {"rating": {"method": "ED", "bucket": 4}}
    for keys in ({}, {"discretization": discretized}):
        config = family_config("DCN", threshold={"timestamp": 1}, numerical_features=["rating"], **keys)
        train = split(config, given([[0, 1, 2]], [[1.0, 5.0, 3.0]])).train
        rating = train.inter_feat["rating"]
        assert rating.shape[1] == 2
        n, rows = train.n_genuine_rows, train.inter_feat
        raw = train.raw_log.ratings[train.raw_log.find(rows["user_id"][:n].numpy(), rows["item_id"][:n].numpy())]
        form = {float(value): tuple(pair) for value, pair in zip(raw, rating[:n].tolist(), strict=True)}
        assert [tuple(pair) for pair in rating[n:].tolist()] == [form[1.0], form[5.0], form[3.0]]


def test_what_val_interval_drops_is_dropped_of_fakes_too(family_config):
    config = family_config("MF", val_interval={"rating": "[3,inf)"}, rating_range=[1, 5])
    train = split(config, given([[0, 1, 2], [3, 4, 5]], [[5.0, 2.0, 3.0], [4.0, 4.0, 4.0]])).train
    fakes = train.inter_feat[train.n_genuine_rows :]
    assert fakes["rating"].tolist() == [5.0, 3.0, 4.0, 4.0, 4.0]
    assert (fakes["item_id"] - 1).tolist() == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("model", ["SASRec", "MF"])
def test_a_fake_that_loses_all_rows_but_one_does_no_harm(family_config, model):
    config = family_config(model, val_interval={"rating": "[5,inf)"}, rating_range=[1, 5],
                           load_col={"inter": FEATURES["inter"]})  # fmt: skip
    train = split(config, given([[0, 1, 2], [3, 4]], [[5.0, 5.0, 5.0], [5.0, 5.0]])).train
    assert len(train.inter_feat) - train.n_genuine_rows == {"SASRec": 3, "MF": 5}[model]
    train = split(config, given([[0, 1], [3, 4]], [[5.0, 4.9], [1.0, 4.0]])).train
    assert len(train.inter_feat) - train.n_genuine_rows == {"SASRec": 0, "MF": 1}[model]
    assert train.user_num == split(config).train.user_num + 2


@pytest.mark.parametrize("model", ["MF", "SASRec", "DIN"])
def test_times_of_fakes_are_inside_the_genuine_range(family_config, model):
    train = split(family_config(model), average()).train
    genuine, fakes = (train.inter_feat["timestamp"][part] for part in
                      (slice(None, train.n_genuine_rows), slice(train.n_genuine_rows, None)))  # fmt: skip
    raw = torch.tensor(train.raw_log.timestamps).float()
    assert raw.min() <= fakes.min()
    assert fakes.max() <= raw.max()
    assert genuine.min() <= fakes.median() <= genuine.max()


def test_sequences_of_fakes_follow_the_times_that_the_attack_gives(family_config):
    times = np.array([1_000_300.0, 1_000_100.0, 1_000_200.0])
    train = split(family_config("SASRec"), given([[7, 8, 9]], [[5.0, 5.0, 5.0]], times)).train
    fakes = train.inter_feat[train.n_genuine_rows :]
    assert (fakes["item_id"] - 1).tolist() == [9, 7]
    assert (fakes["item_id_list"][:, :2] - 1).tolist() == [[8, -1], [8, 9]]
    assert fakes["item_length"].tolist() == [1, 2]
    assert (fakes["timestamp_list"][1, :2] == torch.tensor([1_000_100.0, 1_000_200.0])).all()


def test_long_fake_sequences_are_cut_as_genuine_ones_are(family_config):
    train = split(family_config("SASRec"), average(n_fake_users=1, n_fillers=15)).train
    fakes = train.inter_feat[train.n_genuine_rows :]
    assert fakes["item_length"].tolist() == [*range(1, 8), *[8] * 12]
    items = [int(fakes["item_id_list"][0, 0]), *fakes["item_id"].tolist()]
    for n, (row, length) in enumerate(zip(fakes["item_id_list"], fakes["item_length"], strict=True), start=1):
        assert row[:length].tolist() == items[max(0, n - 8) : n]


def test_columns_that_the_model_does_not_load_do_not_stay(family_config):
    clean = split(family_config("BPR"))
    assert clean.train.inter_feat.columns == ["user_id", "item_id"]
    assert clean.train.raw_log.ratings is not None, "but the attacker has them"
    assert clean.train.raw_log.timestamps is not None
    sequential = split(family_config("SASRec")).train.inter_feat.columns
    assert "rating" not in sequential
    assert "timestamp" in sequential


# --- budgets and targets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["all", "split", "round_robin"])
@pytest.mark.parametrize("model", ["MF", "BPR", "SASRec"])
def test_target_modes(family_config, model, mode):
    poison = average(target_mode=mode, target_items=["i3", "i40"])
    train = split(family_config(model), poison).train
    matrix = train.inter_matrix(form="csr")[train.user_num - N_FAKE :].toarray() > 0
    rated = matrix[:, [train.token2id("item_id", token) for token in ("i3", "i40")]]
    assert (matrix.sum(axis=1) == N_FILLERS + (2 if mode == "all" else 1)).all()
    half = np.arange(N_FAKE) < N_FAKE // 2
    even = np.arange(N_FAKE) % 2 == 0
    first = {"all": np.ones(N_FAKE, bool), "split": half, "round_robin": even}[mode]
    assert np.array_equal(rated[:, 0], first)
    assert np.array_equal(rated[:, 1], first if mode == "all" else ~first)
