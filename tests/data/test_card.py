"""Poison cards as folders: what comes back, what is refused, and that there is never half a card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_splits import average

from recbole_robust import FakeProfiles, PoisonCard, UserError
from recbole_robust.data import card as card_module
from recbole_robust.data.card import content_hash, files_digest
from recbole_robust.data.load import clean_train_split


@pytest.fixture
def card(toy_config) -> PoisonCard:
    return average().plan(clean_train_split(toy_config("BPR")))


def rows_of(card: PoisonCard) -> list[tuple[int, str, float]]:
    items = [card.item_tokens[i] for i in card.profiles.item_ids]
    return list(zip(card.profiles.user_ids.tolist(), items, card.profiles.ratings.tolist(), strict=True))


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fakes(user_ptr, item_ids, ratings, times=None) -> FakeProfiles:
    numbers = [None if values is None else np.array(values, dtype=np.float64) for values in (ratings, times)]
    return FakeProfiles(np.array(user_ptr), np.array(item_ids), *numbers)


def small(**changes: Any) -> PoisonCard:
    """A card of two fakes with three ratings, made by hand."""
    profiles = fakes([0, 2, 3], [1, 0, 1], [5, 2, 4], range(3))
    known = {"dataset": "toy", "target_items": ["i1"], "item_tokens": ["i1", "i2"], "profiles": profiles}
    return PoisonCard(**{**known, "settings": {"attack": "Mine", "attack_args": {"a": 1.5}, "seed": 1}, **changes})


# --- round trip ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["as planned", "with times", "without ratings"])
@pytest.mark.parametrize("named", ["folder", "poison.json"])
def test_a_card_comes_back_as_it_was(card, tmp_path, form, named):
    if form == "with times":
        times = np.linspace(1e6, 1e6 + 1, len(card.profiles.item_ids))
        card = dataclasses.replace(card, profiles=dataclasses.replace(card.profiles, timestamps=times))
    if form == "without ratings":
        ones = dataclasses.replace(card.profiles, ratings=np.ones(len(card.profiles.item_ids)))
        card = dataclasses.replace(card, profiles=ones, settings={**card.settings, "rating_range": None})
    folder = tmp_path / "deep" / "card"
    card.save(folder)
    loaded = PoisonCard.load(folder if named == "folder" else folder / "poison.json")
    assert rows_of(loaded) == rows_of(card)
    assert loaded.content() == card.content()
    assert (loaded.target_items, loaded.settings) == (card.target_items, card.settings)
    if form == "with times":
        assert np.array_equal(loaded.profiles.timestamps, card.profiles.timestamps)
    else:
        assert loaded.profiles.timestamps is None
    assert names_below(tmp_path / "deep") == ["card", "card/poison.json", "card/toy.inter"], "no temporary file is left"


def test_numbers_come_back_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    profiles = FakeProfiles(np.array([0, 40, 40, 50]), rng.permutation(50), rng.random(50), 1e9 * rng.random(50))
    original = small(profiles=profiles, item_tokens=[f"{i} é\u2028" for i in range(50)])
    original.save(tmp_path / "card")
    loaded = PoisonCard.load(tmp_path / "card")
    assert rows_of(loaded) == rows_of(original)
    assert np.array_equal(loaded.profiles.user_ptr, profiles.user_ptr), "an empty profile stays one"
    assert loaded.digest() == original.digest()


def test_the_rows_are_an_atomic_file(tmp_path):
    small().save(tmp_path / "card")
    assert (tmp_path / "card" / "toy.inter").read_text() == (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "__fake_0\ti2\t5\t0\n__fake_0\ti1\t2\t1\n__fake_1\ti2\t4\t2\n"
    )
    content = json.loads((tmp_path / "card" / "poison.json").read_text())
    assert (content["labels"], content["n_rows"], content["seed"]) == (["__fake_0", "__fake_1"], 3, 1)


def test_a_planned_card_tells_where_it_comes_from(card):
    told = card.content()
    assert told["attack_args"] == {"intent": "push", "shrink": 0.0}, "defaults too"
    assert (told["attack"], told["seed"], told["knowledge"], told["known_users"]) == ("Average", 3, "white-box", 1.0)
    assert (told["n_fake_users"], told["n_fillers"], told["target_mode"]) == (10, 6, "all")
    assert (told["n_genuine_users"], len(told["target_popularity"])) == (80, 5)
    assert (told["rating_range"], told["rating_step"]) == ([1.0, 5.0], 1.0)
    assert len(told["split_hash"]) == 16


# --- identity ------------------------------------------------------------------------------------------------------

OTHERS: dict[str, dict[str, Any]] = {
    "dataset": {"dataset": "other"},
    "target": {"target_items": ["i2"]},
    "item": {"item_tokens": ["i1", "i3"]},
    "user": {"profiles": fakes([0, 1, 3], [1, 0, 1], [5, 2, 4], range(3))},
    "rating": {"profiles": fakes([0, 2, 3], [1, 0, 1], [5, 2, 3], range(3))},
    "time": {"profiles": fakes([0, 2, 3], [1, 0, 1], [5, 2, 4], range(1, 4))},
    "no times": {"profiles": fakes([0, 2, 3], [1, 0, 1], [5, 2, 4])},
    "order": {"profiles": fakes([0, 2, 3], [0, 1, 1], [2, 5, 4], range(3))},
    "setting": {"settings": {"attack": "Mine", "attack_args": {"a": 1.5}, "seed": 2}},
    "nested setting": {"settings": {"attack": "Mine", "attack_args": {"a": 1.25}, "seed": 1}},
    "new setting": {"settings": {"attack": "Mine", "attack_args": {"a": 1.5}, "seed": 1, "key": "x"}},
}  # fmt: skip


def test_every_field_is_in_the_hash():
    hashes = {what: content_hash(small(**changes).content()) for what, changes in {"none": {}, **OTHERS}.items()}
    assert len(set(hashes.values())) == len(hashes)
    digests = {what: small(**changes).digest() for what, changes in {"none": {}, **OTHERS}.items()}
    same = {what for what, digest in digests.items() if digest == digests["none"]}
    assert same == {"none", "setting", "nested setting", "new setting"}, "what is injected does not depend on these"


def test_the_digest_of_the_files_is_of_every_byte_of_both(card, tmp_path):
    assert files_digest(tmp_path / "none") == ""
    card.save(tmp_path / "card")
    before = files_digest(tmp_path / "card")
    for name in ("poison.json", "toy.inter"):
        file = tmp_path / "card" / name
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        assert files_digest(tmp_path / "card") != before
        file.write_bytes(content)
    (tmp_path / "card" / "notes.txt").write_text("not a part of the card")
    assert files_digest(tmp_path / "card") == before


def test_the_hash_does_not_depend_on_the_order_of_the_settings():
    one, other = small(settings={"attack": "Mine", "seed": 1}), small(settings={"seed": 1, "attack": "Mine"})
    assert one.digest() == other.digest()


def test_the_digest_does_not_depend_on_how_items_are_numbered():
    flipped = dataclasses.replace(small().profiles, item_ids=np.array([0, 1, 0]))
    assert small(item_tokens=["i2", "i1"], profiles=flipped).digest() == small().digest()


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [*small().content(), "content_hash"])
def test_an_edited_poison_json_is_refused(tmp_path, key):
    small().save(tmp_path / "card")
    path = tmp_path / "card" / "poison.json"
    content = json.loads(path.read_text())
    other = {"labels": ["__fake_0"], "dataset": "other", "n_rows": 4, "schema_version": 1, "target_items": ["i2"]}
    content[key] = other.get(key, "else")
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"^poison: [^\n]+$"):
        PoisonCard.load(tmp_path / "card")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("\t5\t0\n", "\t4\t0\n", "expected contents of hash"),
        ("\t5\t0\n", "\t5\t9\n", "expected contents of hash"),
        ("__fake_0\ti2", "__fake_0\ti3", "expected contents of hash"),
        ("__fake_1\ti2\t4\t2\n", "", "expected contents of hash"),
        ("__fake_0\ti2\t5\t0\n__fake_0\ti1\t2\t1\n", "__fake_0\ti1\t2\t1\n__fake_0\ti2\t5\t0\n", "contents of hash"),
        ("__fake_0\ti1", "__fake_0\ti2", "a profile rates an item twice"),
        ("\t5\t0\n", "\tnan\t0\n", "line 2: expected a finite number, got 'nan'"),
        ("\t5\t0\n", "\t5\tinf\n", "line 2: expected a finite number, got 'inf'"),
        ("\t4\t2\n", "\tgood\t2\n", "line 4: expected a finite number, got 'good'"),
        ("\t5\t0\n", "\t5\n", "line 2: expected 4 columns as in the header, got 3"),
        ("\n__fake_1", "\n\n__fake_1", "line 4: expected 4 columns as in the header, got 1"),
        ("__fake_1", "u3", "line 4: expected one of the card's 2 fake users, got 'u3'"),
        ("__fake_0\ti2", "__fake_1\ti2", "line 3: expected the rows of a user together"),
        ("rating:float", "stars:float", "expected the columns user_id:token, item_id:token"),
        (None, None, "toy.inter: No such file"),
    ],
)
def test_edited_rows_are_refused(tmp_path, old, new, says):
    small().save(tmp_path / "card")
    path = tmp_path / "card" / "toy.inter"
    if old is None:
        path.unlink()
    else:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=says) as raised:
        PoisonCard.load(tmp_path / "card")
    assert ("\n" not in str(raised.value) and "toy.inter" in str(raised.value)) or "hash" in says


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "poison.json: No such file"),
        (b"", "expected a poison card, got JSONDecodeError"),
        (b"[1, 2]", "expected a poison card"),
        (b"{}", "expected a poison card, got KeyError: 'schema_version'"),
        (b'{"schema_version": 1, "user_ptr": [0]}', "expected schema_version 2, got 1"),
        (b'{"schema_version": 2, "dataset": "../toy", "labels": []}', "expected the name of a data set"),
        (b'{"schema_version": 2, "dataset": 3, "labels": []}', "expected text, got 3"),
        (b'{"schema_version": 2, "dataset": "toy", "labels": ["u1"]}', "and the tokens of fake users"),
        (b'{"schema_version": 2, "dataset": "toy", "labels": 5}', "expected a poison card, got TypeError"),
        (b"\xff\xfe\x00", "expected a poison card, got UnicodeDecodeError"),
        (b"[" * 100_000, "expected a poison card, got RecursionError"),
    ],
)
def test_what_is_no_card_gives_one_clear_line(tmp_path, content, says):
    small().save(tmp_path / "card")
    path = tmp_path / "card" / "poison.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=says) as raised:
        PoisonCard.load(tmp_path / "card")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("attack", ["x"], "text"),
        ("attack_args", "x", "a mapping"),
        ("seed", "x", "a whole number"),
        ("seed", True, "a whole number"),
        ("n_fake_users", 99, "2, as the labels say"),
        ("n_fake_users", "2", "2, as the labels say"),
        ("n_fillers", "x", "a whole number"),
        ("n_fillers", -1, "a whole number"),
        ("rating_range", 5, "[lowest, highest]"),
        ("rating_range", [5, 1], "[lowest, highest]"),
        ("stealth", 5, "a mapping of names to numbers"),
        ("stealth", {"rdma": "low"}, "a mapping of names to numbers"),
    ],
)
def test_settings_of_another_kind_are_refused_however_well_hashed(tmp_path, key, value, expected):
    small(settings={"attack": "Mine", key: value}).save(tmp_path / "card")
    with pytest.raises(UserError) as raised:
        PoisonCard.load(tmp_path / "card")
    place = tmp_path / "card" / "poison.json"
    assert str(raised.value) == f"poison: {place}: {key}: expected {expected}, got {value!r}"


def test_fake_users_without_a_row_are_refused_however_well_hashed(tmp_path):
    small(profiles=fakes([0, 0, 0, 0], np.array([], dtype=np.int64), [])).save(tmp_path / "card")
    with pytest.raises(UserError, match=r"toy.inter: expected rows of the card's 3 fake users, got none"):
        PoisonCard.load(tmp_path / "card")


def test_a_place_without_a_card(tmp_path):
    with pytest.raises(UserError, match=r"^poison: \S+nowhere: No such file"):
        PoisonCard.load(tmp_path / "nowhere")
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected a poison card, which is a folder with poison.json, got a file"):
        PoisonCard.load(tmp_path / "old.json")


def test_ratings_that_the_data_cannot_have_are_refused(toy_config, card):
    train = clean_train_split(toy_config("BPR"))
    low = dataclasses.replace(card, profiles=dataclasses.replace(card.profiles, ratings=card.profiles.ratings - 0.5))
    with pytest.raises(UserError, match=r"^poison: expected ratings in \[1, 5\], as toy has them, got \d"):
        low.to_ids(train)
    bare = dataclasses.replace(card, settings={**card.settings, "rating_range": None})
    with pytest.raises(UserError, match="expected a card with ratings, as toy has them"):
        bare.to_ids(train)


def test_a_token_that_no_file_can_hold_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'a\\tb' cannot stand in an atomic file"):
        small(item_tokens=["i1", "a\tb"]).save(tmp_path / "card")
    assert names_below(tmp_path) == []


# --- written whole -------------------------------------------------------------------------------------------------


@pytest.fixture
def dies(monkeypatch) -> Callable[[int], None]:
    """Let the n-th file that is written fail, after half of it."""

    def at(n: int) -> None:
        written, write_text = [], Path.write_text

        def half(self, text, **options):
            written.append(self)
            if len(written) == n:
                write_text(self, text[: len(text) // 2], **options)
                raise KeyboardInterrupt
            return write_text(self, text, **options)

        monkeypatch.setattr(Path, "write_text", half)

    return at


@pytest.mark.parametrize("n", [1, 2])
def test_killed_half_way_it_leaves_nothing(tmp_path, dies, n):
    dies(n)
    with pytest.raises(KeyboardInterrupt):
        small().save(tmp_path / "card")
    assert names_below(tmp_path) == []


@pytest.mark.parametrize("n", [1, 2])
def test_killed_half_way_it_leaves_the_card_that_was_there(tmp_path, dies, n):
    small().save(tmp_path / "card")
    dies(n)
    with pytest.raises(KeyboardInterrupt):
        small(target_items=["i2"]).save(tmp_path / "card")
    assert PoisonCard.load(tmp_path / "card").content() == small().content()
    assert names_below(tmp_path) == ["card", "card/poison.json", "card/toy.inter"]


def test_an_equal_card_is_kept_and_another_one_replaced(tmp_path):
    small().save(tmp_path / "card")
    before = (tmp_path / "card").stat().st_ino
    small().save(tmp_path / "card")
    assert (tmp_path / "card").stat().st_ino == before
    small(target_items=["i2"]).save(tmp_path / "card")
    assert PoisonCard.load(tmp_path / "card").target_items == ["i2"]
    (tmp_path / "card" / "toy.inter").write_text("half")
    small().save(tmp_path / "card")
    assert PoisonCard.load(tmp_path / "card").content() == small().content()


def test_of_two_processes_one_wins(tmp_path, monkeypatch):
    """The other one puts its card there between our look and our renaming."""
    mine, theirs, folder_written_whole = small(), small(target_items=["i2"]), card_module.folder_written_whole

    def late(folder):
        monkeypatch.setattr(card_module, "folder_written_whole", folder_written_whole)
        theirs.save(folder)
        return folder_written_whole(folder)

    monkeypatch.setattr(card_module, "folder_written_whole", late)
    mine.save(tmp_path / "card")
    assert PoisonCard.load(tmp_path / "card").content() == mine.content()
    assert names_below(tmp_path) == ["card", "card/poison.json", "card/toy.inter"]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_no_card_is_never_replaced(tmp_path, what):
    place = tmp_path / "mine"
    if what == "folder":
        place.mkdir()
        place = place / "thesis.tex"
    place.write_text("years of work")
    with pytest.raises(UserError, match="expected a folder for a card, got something else there"):
        small().save(tmp_path / "mine")
    assert place.read_text() == "years of work"
