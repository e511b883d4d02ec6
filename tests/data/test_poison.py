"""Poison cards and views: the same plan from the same seed, stored and replayed; what attacker and defender may see."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pytest
from toy_splits import FEATURES, average, split

from recbole_robust import Average, DefenderView, FakeProfiles, Poison, PoisonCard, Random, Segment, UserError
from recbole_robust.data import attacker_view, defender_view
from recbole_robust.data.load import clean_train_split
from recbole_robust.data.poison import targets_of
from recbole_robust.quick_start import make_card

ATTACK = {"attack": "Average", "n_fake_users": 4, "n_fillers": 6}


@pytest.fixture
def train(toy_config):
    return clean_train_split(toy_config("BPR"))


@pytest.fixture
def card(train) -> PoisonCard:
    return average().plan(train)


# --- cards ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_card(toy_config):
    digests = [make_card(toy_config("BPR", **ATTACK, seed=seed)).digest() for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_the_targets_have_a_seed_of_their_own(toy_config):
    cards = [make_card(toy_config("BPR", **ATTACK, seed=seed, target_seed=9)) for seed in (1, 2)]
    assert cards[0].target_items == cards[1].target_items
    assert cards[0].digest() != cards[1].digest()


def test_clean_and_attacked_runs_choose_the_same_targets(toy_config, train):
    for choice in ("random", "unpopular", "popular"):
        config = toy_config("BPR", **ATTACK, target_choice=choice)
        assert make_card(config).target_items == targets_of(config, train)


def test_a_card_comes_back_from_its_file_as_it_was(card, tmp_path):
    timed = dataclasses.replace(card.profiles, timestamps=np.linspace(1e6, 1e6 + 1, len(card.profiles.item_ids)))
    for original in (card, dataclasses.replace(card, profiles=timed)):
        original.save(tmp_path / "deep" / "card.json")
        loaded = PoisonCard.load(tmp_path / "deep" / "card.json")
        assert loaded.digest() == original.digest()
        assert loaded.settings == original.settings
        assert loaded.target_items == original.target_items
        assert np.array_equal(loaded.profiles.ratings, original.profiles.ratings)
        assert (loaded.profiles.timestamps is None) == (original.profiles.timestamps is None)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["card.json"], "no temporary file is left"


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("ratings", lambda v: [v[0] % 5 + 1, *v[1:]]),
        ("item_index", lambda v: [*v[1:2], *v[:1], *v[2:]]),
        ("target_items", lambda v: [*v[:-1], "i59"]),
        ("item_tokens", lambda v: ["i0", *v[1:]] if v[0] != "i0" else ["i58", *v[1:]]),
        ("dataset", lambda v: "other"),
        ("hash", lambda v: "0" * 12),
    ],
)
def test_a_card_that_was_changed_is_refused(card, tmp_path, key, change):
    path = tmp_path / "card.json"
    card.save(path)
    content = json.loads(path.read_text())
    content[key] = change(content[key])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected contents of hash"):
        PoisonCard.load(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("", "expected a poison card"),
        ("[1, 2]", "expected a poison card"),
        ("{}", "expected a poison card, got KeyError: 'user_ptr'"),
        ('{"item_index": [7]}', "an item id is out of range"),
        ('{"item_index": [-1]}', "an item id is out of range"),
        ('{"user_ptr": [0, 2]}', "user_ptr does not describe"),
        ('{"user_ptr": []}', "expected a poison card"),
        ('{"ratings": [NaN]}', "a rating is out of range"),
        ('{"ratings": ["x"]}', "expected a poison card"),
    ],
)
def test_what_is_no_card_gives_one_clear_line(tmp_path, content, says):
    path = tmp_path / "card.json"
    if content is not None:
        whole = {"user_ptr": [0, 1], "item_index": [0], "ratings": [5.0], "timestamps": None, "item_tokens": ["i0"],
                 "target_items": ["i0"], "dataset": "toy", "settings": {}, "hash": "0"}  # fmt: skip
        change = json.loads(content) if content.startswith("{") and content != "{}" else None
        path.write_text(content if change is None else json.dumps({**whole, **change}))
    with pytest.raises(UserError, match=says) as raised:
        PoisonCard.load(path)
    assert "\n" not in str(raised.value)


def test_a_card_gives_the_same_fakes_on_another_model(toy_config, card, tmp_path):
    card.save(tmp_path / "card.json")
    loaded = PoisonCard.load(tmp_path / "card.json")
    matrices = []
    for model, keys in (("BPR", {}), ("MF", {}), ("SASRec", {"train_neg_sample_args": None})):
        train = split(toy_config(model, **keys), loaded).train
        items = train.field2id_token["item_id"]
        fake = train.inter_matrix(form="csr")[train.user_num - 10 :].tocoo()
        matrices.append({(int(u), items[i]) for u, i in zip(fake.row, fake.col, strict=True)})
        assert train.card.digest() == card.digest()
        stars = defender_view(train).ratings[train.user_num - 11 :]
        assert sorted(stars.data) == sorted(card.profiles.ratings), "ratings survive where the victim has none"
    assert matrices[0] == matrices[1] == matrices[2]
    assert len(matrices[0]) == len(card.profiles.item_ids)


def test_a_card_for_other_items_or_other_data_is_refused(toy_config, card):
    unknown = dataclasses.replace(card, item_tokens=["x1", *card.item_tokens[1:]])
    with pytest.raises(UserError, match="unknown x1"):
        split(toy_config("BPR"), unknown)
    with pytest.raises(UserError, match="unknown x2"):
        split(toy_config("BPR"), dataclasses.replace(card, target_items=["x2"]))
    with pytest.raises(UserError, match="a card for toy, got one for ml-1m"):
        split(toy_config("BPR"), dataclasses.replace(card, dataset="ml-1m"))


# --- plans ---------------------------------------------------------------------------------------------------------


def test_the_fingerprint_of_a_plan_has_everything_that_it_depends_on():
    plans = [
        average(), average(n_fake_users=11), average(seed=4), average(target_mode="split"),
        average(target_items=["i3"]), average(n_fillers=7), average(n_targets=4), average(target_choice="popular"),
        average(target_seed=1),
        average(knowledge="gray-box"), Poison(Random(), n_fake_users=10, n_fillers=6, seed=3),
    ]  # fmt: skip
    assert len({plan.fingerprint() for plan in plans}) == len(plans)
    assert average().fingerprint() == average().fingerprint()


@dataclass(frozen=True)
class Broken:
    """An attack with a bug: it rates an item twice."""

    def __call__(self, view, target_items, budget, *, rng):
        return FakeProfiles(np.array([0, 2]), np.array([1, 1]), np.array([3.0, 3.0]))


def test_a_bug_of_an_attack_is_not_called_a_mistake_of_the_user(train):
    with pytest.raises(ValueError, match="rates an item twice"):
        Poison(Broken(), n_fake_users=1, n_fillers=1).plan(train)


def test_settings_name_the_attack_and_the_budget_in_counts(card):
    assert card.settings["attack"] == "Average"
    assert card.settings["n_fake_users"] == card.profiles.n_users == 10
    assert card.settings["n_fillers"] == 6
    assert card.settings["attack_args"] == dataclasses.asdict(Average())


# --- views ---------------------------------------------------------------------------------------------------------


def raw_ratings(data_path) -> dict[tuple[str, str], float]:
    lines = (data_path / "toy" / "toy.inter").read_text().splitlines()[1:]
    return {(u, i): float(r) for u, i, r, _ in (line.split("\t") for line in lines)}


def named(train, ratings) -> dict[tuple[str, str], float]:
    users, items = train.field2id_token["user_id"][1:], train.field2id_token["item_id"][1:]
    coo = ratings.tocoo()
    return {(users[u], items[i]): float(r) for u, i, r in zip(coo.row, coo.col, coo.data, strict=True)}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"load_col": FEATURES, "normalize_all": True},
        {"load_col": FEATURES, "threshold": {"rating": 4}},
        {"load_col": {"inter": ["user_id", "item_id"]}},
    ],
)
def test_the_attacker_sees_raw_ratings_whatever_the_victim_makes_of_them(toy_config, data_path, keys):
    train = clean_train_split(toy_config("BPR", **keys))
    view = attacker_view(train)
    assert (view.n_users, view.n_items) == (train.user_num - 1, train.item_num - 1) == (80, 60)
    assert (view.rating_min, view.rating_max, view.rating_step) == (1.0, 5.0, 1.0)
    raw, seen = raw_ratings(data_path), named(train, view.ratings)
    assert seen.items() <= raw.items()
    assert len(seen) == len(train.inter_feat) < len(raw), "train only, each pair once"


def test_every_item_of_a_sequence_is_in_the_view_the_first_one_too(toy_config, data_path):
    config = toy_config("SASRec", train_neg_sample_args=None, MAX_ITEM_LIST_LENGTH=5)
    train = clean_train_split(config)
    seen = named(train, attacker_view(train).ratings)
    assert len(seen) == len(raw_ratings(data_path)) - 2 * 80, "all but the valid and the test row of a user"
    assert len(seen) == len(train.inter_feat) + 80


def test_the_log_is_in_order_of_time(toy_config, data_path):
    for model, keys in (("BPR", {}), ("SASRec", {"train_neg_sample_args": None})):
        train = clean_train_split(toy_config(model, **keys))
        view = attacker_view(train)
        assert (np.diff(view.log.timestamps) >= 0).all()
        assert len(view.log.users) == view.ratings.nnz
        dense = np.zeros(view.ratings.shape)
        dense[view.log.users, view.log.items] = view.log.ratings
        assert np.array_equal(dense, view.ratings.toarray())


def test_data_without_ratings_are_ones(write_data, toy_config):
    keys = write_data(inter=["user_id:token\titem_id:token", *(f"u{u}\ti{i}" for u in range(5) for i in range(7))])
    view = attacker_view(clean_train_split(toy_config("BPR", **keys, topk=[2])))
    assert set(view.ratings.data) == {1.0}
    assert (view.rating_min, view.rating_max, view.rating_step) == (1.0, 1.0, 0.0)
    assert view.log is None


def test_half_stars_and_a_given_range(write_data, toy_config):
    rows = [f"u{u}\ti{i}\t{1.5 + 0.5 * ((u + i) % 4)}" for u in range(5) for i in range(7)]
    keys = write_data(inter=["user_id:token\titem_id:token\trating:float", *rows])
    found = attacker_view(clean_train_split(toy_config("BPR", **keys, topk=[2])))
    assert (found.rating_min, found.rating_max, found.rating_step) == (1.5, 3.0, 0.5)
    given = attacker_view(
        clean_train_split(toy_config("BPR", **keys, topk=[2], rating_range=[0.5, 5], rating_step=0.5))
    )
    assert (given.rating_min, given.rating_max, given.rating_step) == (0.5, 5.0, 0.5)


@pytest.mark.parametrize("model", ["MF", "BPR", "SASRec"])
def test_the_defender_sees_the_poisoned_data_and_no_label(toy_config, card, model):
    keys = {"train_neg_sample_args": None} if model == "SASRec" else {}
    train = split(toy_config(model, **keys), card).train
    view, genuine = defender_view(train), attacker_view(train)
    assert {f.name for f in dataclasses.fields(DefenderView)} == {
        "ratings", "rating_min", "rating_max", "rating_step", "log",
    }  # fmt: skip
    assert view.ratings.shape == (90, 60)
    assert genuine.ratings.shape == (80, 60), "the attacker's view has the genuine rows only"
    assert np.array_equal(view.ratings[:80].toarray(), genuine.ratings.toarray())
    tokens = train.field2id_token["item_id"][1:]
    column = {token: i for i, token in enumerate(tokens)}
    expected = np.zeros((10, 60))
    expected[card.profiles.user_ids, [column[card.item_tokens[i]] for i in card.profiles.item_ids]] = (
        card.profiles.ratings
    )
    assert np.array_equal(view.ratings[80:].toarray(), expected)


def test_an_attack_on_a_poisoned_split_still_sees_the_genuine_data_only(toy_config, card, train):
    twice = split(toy_config("BPR"), card).train
    assert np.array_equal(attacker_view(twice).ratings.toarray(), attacker_view(train).ratings.toarray())


def test_item_fields_of_an_attack_are_given_as_tokens(toy_config):
    config = toy_config("MF", attack="Segment", attack_args={"segment_items": ["i3", "i7"]}, n_fillers=6)
    train = clean_train_split(config)
    card = Poison.from_config(config, Segment(segment_items=["i3", "i7"])).plan(train)
    fakes = card.to_ids(train).to_csr(train.item_num - 1)
    ids = [train.token2id(train.iid_field, token) - 1 for token in ("i3", "i7")]
    assert (fakes[:, ids].toarray() == 5).all()
    with pytest.raises(UserError, match=r"^attack_args.segment_items: expected items of toy, got unknown nothing"):
        Poison.from_config(config, Segment(segment_items=["nothing"])).plan(train)
