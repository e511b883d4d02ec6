"""The organic control: fans leave the data, and join it by the attack Organic."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from toy_splits import split

from recbole_robust import UserError
from recbole_robust.attacks import Organic
from recbole_robust.data.newcomers import hold_out_fans
from recbole_robust.types import AttackerView, Budget

FIELDS = ("user_id", "item_id", "rating", "timestamp")
KEYS = {"target_items": ["i3"], "new_fans": 4}


@pytest.fixture
def log() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame({"user_id": np.repeat([f"u{k}" for k in range(30)], 6)})
    pairs["item_id"] = [f"i{k}" for _ in range(30) for k in rng.choice(12, 6, replace=False)]
    pairs["rating"] = rng.integers(1, 6, len(pairs)).astype(float)
    pairs["timestamp"] = np.arange(len(pairs), dtype=float)
    return pairs


def test_fans_leave_with_all_their_rows(log):
    kept, gone = hold_out_fans(log, FIELDS, ["i1", "i2"], 5, seed=3)
    users = set(gone.users)
    assert len(users) == 5 and not users & set(kept.user_id) and len(kept) + len(gone.users) == len(log)
    of_them = log[log.user_id.isin(users)].sort_values("user_id", kind="stable")
    for name, values in zip(FIELDS, (gone.users, gone.items, gone.ratings, gone.times), strict=True):
        assert list(values) == list(of_them[name])
    likes = log[log.item_id.isin(["i1", "i2"]) & (log.rating >= 4)]
    assert users <= set(likes.user_id)
    again = hold_out_fans(log, FIELDS, ["i1", "i2"], 5, seed=3)[1]
    assert list(again.users) == list(gone.users)
    assert set(hold_out_fans(log, FIELDS, ["i1", "i2"], 5, seed=4)[1].users) != users


def test_their_profiles_are_their_rows(log):
    _, gone = hold_out_fans(log, FIELDS, ["i1", "i2"], 3, seed=0)
    ids = {f"i{k}": k + 1 for k in range(12) if k != 7}  # nobody else has rated i7
    profiles = gone.to_profiles(ids)
    assert profiles.n_users == 3
    for row, user in enumerate(np.unique(gone.users)):
        mine = log[(log.user_id == user) & (log.item_id != "i7")]
        here = slice(profiles.user_ptr[row], profiles.user_ptr[row + 1])
        found = set(zip(profiles.item_ids[here], profiles.ratings[here], profiles.timestamps[here], strict=True))
        assert found == {(ids[r.item_id] - 1, r.rating, r.timestamp) for r in mine.itertuples()}


def test_what_cannot_be_held_out_is_told(log):
    n_fans = log[(log.item_id == "i1") & (log.rating >= 4)].user_id.nunique()
    with pytest.raises(UserError, match=rf"new_fans: expected at most {n_fans} \(users who like i1\), got 29"):
        hold_out_fans(log, FIELDS, ["i1"], 29, seed=0)
    only_fans = log[(log.item_id != "i1") | (log.rating >= 4)]
    with pytest.raises(UserError, match="expected a target that somebody else has rated too, got i1"):
        hold_out_fans(only_fans, FIELDS, ["i1"], n_fans, seed=0)
    with pytest.raises(UserError, match="new_fans: expected a column rating:float"):
        hold_out_fans(log.drop(columns="rating"), FIELDS, ["i1"], 1, seed=0)


@pytest.mark.parametrize("model", ["MF", "BPR", "SASRec", "DCN", "DIN"])
def test_the_data_are_without_them_until_they_join(model, family_config):
    before = split(family_config(model))
    clean = split(family_config(model, **KEYS))
    names = {part: set(part.field2id_token["user_id"]) for part in (before[0], clean[0])}
    fans = names[before[0]] - names[clean[0]]
    assert len(fans) == 4 == before[0].user_num - clean[0].user_num
    profiles = clean[0].newcomers.to_profiles(clean[0].field2token_id["item_id"])
    assert profiles.n_users == 4
    target = clean[0].field2token_id["item_id"]["i3"] - 1
    for k in range(4):
        here = slice(profiles.user_ptr[k], profiles.user_ptr[k + 1])
        assert profiles.ratings[here][profiles.item_ids[here] == target] >= 4


def test_they_join_by_the_attack(run):
    result = run("MF", attack="Organic", n_fake_users=4, **KEYS)
    assert (result["attack"], result["poison"]["n_fake_users"], result["n_genuine"]) == ("Organic", 4, 76)
    popularity = [result["per_target"]["i3"][name]["popularity"] for name in ("clean", "attacked")]
    assert popularity[0] == popularity[1]  # it counts who was there
    assert result["clean"] == run("MF", **KEYS)["clean"] != result["attacked"]


def test_other_fans_are_other_clean_data(run):
    """Two targets, one output folder: the second clean model is not that of the first."""
    runs = [run("MF", target_items=[item], new_fans=4, cache_clean=cached)["clean"]["rmse"]
            for item, cached in (("i3", True), ("i4", True), ("i4", False))]  # fmt: skip
    assert runs[0] != runs[1] == runs[2]


def test_a_card_of_organic_needs_its_fans_held_out(run):
    card = run("MF", attack="Organic", n_fake_users=4, **KEYS)["poison"]["card"]
    replayed = run("BPR", poison=card, **KEYS)
    assert (replayed["n_genuine"], replayed["poison"]["n_fake_users"]) == (76, 4)
    with pytest.raises(UserError, match=r"poison: expected the new_fans \(4\), .* got new_fans 0"):
        run("BPR", poison=card)


def test_a_detector_is_told_to_lose_newcomers_not_to_catch_them(run):
    report = run("MF", attack="Organic", n_fake_users=4, defense="CoRating", baseline="none", **KEYS)["detection"]
    assert report["attacked"]["recall"] is None and 0 <= report["attacked"]["newcomers_lost"] <= 1
    assert "newcomers_lost" not in report["clean"]


def test_duplicates_of_those_who_stay_are_left_alone(log):
    twice = pd.concat([log, log]).reset_index(drop=True)
    kept, gone = hold_out_fans(twice, FIELDS, ["i1", "i2"], 3, seed=0)
    assert len(kept) == 2 * (len(log) - len(gone.users))


def test_organic_needs_newcomers_and_takes_all_of_them(log, family_config, toy_config):
    view = AttackerView(split(family_config("MF"))[0].inter_matrix(form="csr"), 1, 5, 1)
    with pytest.raises(UserError, match="new_fans: expected at least 1 for attack Organic, got 0"):
        Organic()(view, [2], Budget(4, 0), rng=np.random.default_rng(0))
    with pytest.raises(UserError, match="new_fans: expected target_items whose fans are held out, got none"):
        split(toy_config("MF", new_fans=4))


def test_a_wrong_number_of_users_is_told(run):
    with pytest.raises(UserError, match="n_fake_users: expected the 4 of new_fans, got 9"):
        run("MF", attack="Organic", n_fake_users=9, **KEYS)
