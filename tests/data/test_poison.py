"""Poison cards and views: the same plan from the same seed, stored and replayed; what attacker and defender may see."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from toy_splits import FEATURES, average, split

from recbole_robust import Average, DefenderView, FakeProfiles, Poison, PoisonCard, Random, Segment, UserError
from recbole_robust.data import attacker_view, defender_view
from recbole_robust.data.load import clean_train_split
from recbole_robust.data.poison import targets_of
from recbole_robust.data.views import draw_known_users
from recbole_robust.quick_start import make_card
from recbole_robust.randomness import stage_rng

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


def test_a_card_gives_the_same_fakes_on_another_model(toy_config, card, tmp_path):
    card.save(tmp_path / "card")
    loaded = PoisonCard.load(tmp_path / "card")
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
        average(knowledge="gray-box"), average(known_users=0.5), Poison(Random(), n_fake_users=10, n_fillers=6, seed=3),
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


# --- known users ---------------------------------------------------------------------------------------------------


def test_known_users_are_a_share_of_their_own_seed(train):
    draws = [
        draw_known_users(80, share, stage_rng(seed, "known users")) for share, seed in ((0.3, 1), (0.3, 1), (0.3, 2))
    ]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    assert len(draws[0]) == 24 and (np.diff(draws[0]) > 0).all() and draws[0][0] >= 0 and draws[0][-1] < 80
    assert len(draw_known_users(80, 1e-9, stage_rng(1, "known users"))) == 1
    assert draw_known_users(80, 1.0, stage_rng(1, "known users")) is None
    for share in (0, -1, 1.1, float("nan")):
        with pytest.raises(UserError, match=r"^known_users: expected a number in \(0, 1\]"):
            average(known_users=share).plan(train)


def test_the_view_has_the_rows_of_known_users_only(train):
    known = np.array([3, 4, 70])
    whole, part = attacker_view(train), attacker_view(train, known_users=known)
    assert np.array_equal(part.ratings.toarray(), whole.ratings.toarray()[known])
    assert part.n_users == 3 and part.n_items == whole.n_items
    seen = np.isin(whole.log.users, known)
    assert np.array_equal(known[part.log.users], whole.log.users[seen])
    for name in ("items", "ratings", "timestamps"):
        assert np.array_equal(getattr(part.log, name), getattr(whole.log, name)[seen])


def test_known_users_without_rows_are_told(train):
    with pytest.raises(UserError, match="known_users: expected users with training rows"):
        attacker_view(train, known_users=np.array([], dtype=np.int64))


def test_the_budget_counts_all_users_and_the_mean_profile_is_of_the_known_ones(train):
    seen = {}

    @dataclass(frozen=True)
    class Looking(Average):
        def __call__(self, view, target_items, budget, *, rng):
            seen.update(view=view, budget=budget)
            return super().__call__(view, target_items, budget, rng=rng)

    card = Poison(Looking(), attack_size=0.1, known_users=0.3, n_targets=2).plan(train)
    assert card.profiles.n_users == 8, "10 % of 80, not of 24"
    assert seen["view"].n_users == 24
    assert seen["budget"].n_fillers == seen["view"].ratings.nnz // 24


@pytest.mark.parametrize("attack", ["Average", "Bandwagon", "CopyProfile"])
def test_an_attack_cannot_depend_on_hidden_rows(toy_config, data_path, write_data, attack):
    """Other ratings and times of the users that the attacker does not see: the same card, and that of the seen: not."""
    keys = {"attack": attack, "known_users": 0.3, "n_fake_users": 5, "n_fillers": 6, "target_items": ["i3", "i40"]}
    first = make_card(toy_config("BPR", **keys, cache_clean=False))
    known = draw_known_users(80, 0.3, stage_rng(2020, "known users"))
    names = clean_train_split(toy_config("BPR")).field2id_token["user_id"][1:][known]
    header, *rows = [line.split("\t") for line in (data_path / "toy" / "toy.inter").read_text().splitlines()]
    cards = []
    for change_hidden in (True, False):
        lines = [
            [user, item, str(6 - int(rating)), str(int(time) + 5)]
            if (user in names) != change_hidden
            else [user, item, rating, time]
            for user, item, rating, time in rows
        ]
        places = write_data("toy", inter=["\t".join(line) for line in (header, *lines)])
        cards.append(make_card(toy_config("BPR", **keys, **places)))
    assert cards[0].digest() == first.digest()
    assert cards[0].settings["split_hash"] != first.settings["split_hash"], "the rows are others all the same"
    assert cards[1].digest() != first.digest()


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
