"""Fake users in the format of VAT's and PamaCF's repositories, on small files made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_splits import split

from recbole_robust import PoisonCard, UserError
from recbole_robust.data.fake_users_json import card_of_fake_users, read_fake_users
from recbole_robust.data.load import clean_train_split

CONTENT: dict[str, Any] = {
    "target_items": ["i3", "i40"],
    "fake_users": {"fake_user_i3_subuser_0": ["i5", "i3", "i7", "i5", "i5"], "fake_user_1": ["i40", "i3"]},
}


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "random_1.json"
    path.write_text(json.dumps(CONTENT, indent=4))
    return path


@pytest.fixture
def train(toy_config):
    return clean_train_split(toy_config("BPR"))


def test_ids_are_tokens_and_an_item_counts_once(file, train):
    card = card_of_fake_users(file, train)
    rows = [(int(u), card.item_tokens[i]) for u, i in zip(card.profiles.user_ids, card.profiles.item_ids, strict=True)]
    assert rows == [(0, "i5"), (0, "i3"), (0, "i7"), (1, "i40"), (1, "i3")], "in the order of the file"
    assert set(card.profiles.ratings) == {5.0}, "a click is the highest rating"
    assert card.profiles.timestamps is None
    assert card.target_items == ["i3", "i40"]
    assert card.settings["attack"] == "random_1"
    assert card.settings["attack_args"]["n_repeats_dropped"] == 2
    assert (card.settings["n_fake_users"], card.settings["seed"]) == (2, None)


def test_it_is_replayed_like_any_card(file, train, toy_config, tmp_path):
    card_of_fake_users(file, train).save(tmp_path / "card")
    poisoned = split(toy_config("MF"), PoisonCard.load(tmp_path / "card")).train
    assert poisoned.n_fake_users == 2 and len(poisoned.inter_feat) - poisoned.n_genuine_rows == 5


def test_numbers_are_ids_too(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"target_items": [1], "fake_users": {"a": [2, 1, "2"]}}')
    assert read_fake_users(path)[:3] == (["1"], [["2", "1"]], 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target_items": None}, "expected {target_items: .*, got KeyError: 'target_items'"),
        ({"target_items": "i3"}, "got TypeError: expected a list of item ids, got 'i3'"),
        ({"target_items": []}, "expected distinct target items"),
        ({"target_items": ["i3", "i3"]}, "expected distinct target items"),
        ({"fake_users": {}}, "and fake users with items, got others"),
        ({"fake_users": {"a": []}}, "and fake users with items, got others"),
        ({"fake_users": [["i3"]]}, "expected {target_items: .*, got AttributeError"),
        ({"fake_users": {"a": [1.5]}}, "got TypeError: expected a list of item ids"),
        ({"fake_users": {"a": ["i3", "18443"]}}, r"expected item tokens of toy, got 1 unknown .* \(18443\)"),
        ({"target_items": ["x"]}, r"expected item tokens of toy, got 1 unknown ones of 5 \(x\)"),
    ],
)  # fmt: skip
def test_other_files_are_refused(file, train, change, says):
    content = {key: value for key, value in {**CONTENT, **change}.items() if value is not None}
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"^from_json: .*{says}") as raised:
        card_of_fake_users(file, train)
    assert "\n" not in str(raised.value)


def test_no_file_and_no_json(file, train):
    with pytest.raises(UserError, match=r"^from_json: no\.json: No such file"):
        card_of_fake_users("no.json", train)
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match=r"^from_json: .*random_1\.json: expected {target_items"):
        card_of_fake_users(file, train)
