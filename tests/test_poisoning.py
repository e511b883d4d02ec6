"""Cards made once: the cache by content, replay on every kind of model, cards in grids."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_splits import ATTACK, FAMILIES, split

from recbole_robust import PoisonCard, UserError
from recbole_robust.benchmark import run_grid
from recbole_robust.poisoning import make_card, stored_card


def folders(output_dir: Path) -> list[str]:
    return sorted(path.name for path in (output_dir / "cards").iterdir())


# --- made once -----------------------------------------------------------------------------------------------------


def test_an_equal_attack_is_not_run_again(toy_config, attacks, output_dir):
    first, second = (stored_card(toy_config("MF", **ATTACK)) for _ in range(2))
    assert len(attacks) == 1
    assert (first.reused, second.reused) == (False, True)
    assert first.path == second.path and folders(output_dir) == [first.path.name]
    assert re.fullmatch(r"Average-toy-[0-9a-f]{12}", first.path.name)
    assert first.card.content() == second.card.content()


CHANGES: dict[str, dict[str, Any]] = {
    "parameter": {"attack_args": {"shrink": 5.0}},
    "seed": {"seed": 7},
    "number of fakes": {"n_fake_users": 7},
    "fillers": {"n_fillers": 5},
    "target mode": {"target_mode": "split"},
    "targets": {"target_items": ["i3"]},
    "order of the targets": {"target_items": ["i40", "i3"]},
    "knowledge": {"knowledge": "gray-box"},
    "known users": {"known_users": 0.5},
    "split": {"heldout_file": "heldout.inter"},
    "rating range": {"rating_range": [0, 5]},
    "rating step": {"rating_step": 0.5},
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_attack_is_run_and_stored_elsewhere(toy_config, attacks, output_dir, tmp_path, what):
    changes = dict(CHANGES[what])
    if what == "split":
        changes["heldout_file"] = str(tmp_path / "heldout.inter")
        (tmp_path / "heldout.inter").write_text("user_id:token\titem_id:token\nu0\ti28\n")
    first = stored_card(toy_config("MF", **ATTACK))
    other = stored_card(toy_config("MF", **{**ATTACK, **changes}))
    assert len(attacks) == 2 and not other.reused
    assert folders(output_dir) == sorted([first.path.name, other.path.name])
    assert stored_card(toy_config("MF", **ATTACK)).card.content() == first.card.content()
    assert len(attacks) == 2


@pytest.mark.parametrize("column", [0, 1, 2, 3])
def test_other_data_are_attacked_anew(toy_config, attacks, data_path, write_data, column):
    """A user, an item, a rating or a time changed: no old card is taken."""
    header, *rows = (data_path / "toy" / "toy.inter").read_text().splitlines()
    first = stored_card(toy_config("MF", **ATTACK))
    cells = [row.split("\t") for row in rows]
    new = {0: "nobody", 1: "nothing", 2: "3" if cells[5][2] != "3" else "4", 3: "1000001"}[column]
    old = cells[5][column]
    for row in cells if column < 2 else cells[5:6]:  # a token is renamed everywhere
        row[column] = new if row[column] == old else row[column]
    keys = write_data("toy", inter=[header, *("\t".join(row) for row in cells)])
    other = stored_card(toy_config("MF", **ATTACK, **keys))
    assert len(attacks) == 2 and other.path != first.path


def test_other_code_of_the_attack_is_run_anew(toy_config, attacks, monkeypatch):
    first = stored_card(toy_config("MF", **ATTACK))
    monkeypatch.setattr("recbole_robust.poisoning._code_of", lambda attack: "edited")
    assert stored_card(toy_config("MF", **ATTACK)).path != first.path
    monkeypatch.setattr("recbole_robust.__version__", "9.9")
    stored_card(toy_config("MF", **ATTACK))
    assert len(attacks) == 3


def test_force_runs_it_again(toy_config, attacks, output_dir):
    first = stored_card(toy_config("MF", **ATTACK))
    again = stored_card(toy_config("MF", **ATTACK, force=True))
    assert len(attacks) == 2 and not again.reused
    assert again.card.content() == first.card.content() and len(folders(output_dir)) == 1


def damaged(folder: Path, how: str) -> None:
    rows, told = folder / "toy.inter", folder / "poison.json"
    if how == "rows":
        rows.write_text(rows.read_text().replace("\t5\n", "\t4\n", 1))
    elif how == "no rows":
        rows.unlink()
    elif how == "no poison.json":
        told.unlink()
    elif how == "half":
        told.write_text(told.read_text()[:100])
    else:  # a card of another attack under this name
        other = dataclasses.replace(PoisonCard.load(folder), settings={"key": "another"})
        shutil.rmtree(folder)
        other.save(folder)


@pytest.mark.parametrize("how", ["rows", "no rows", "no poison.json", "half", "another"])
def test_a_damaged_card_is_made_again(toy_config, attacks, output_dir, caplog, how):
    first = stored_card(toy_config("MF", **ATTACK))
    damaged(first.path, how)
    with caplog.at_level(logging.WARNING):
        again = stored_card(toy_config("MF", **ATTACK))
    assert len(attacks) == 2 and not again.reused
    warnings = [record.getMessage() for record in caplog.records if record.name == "recbole_robust.poisoning"]
    assert len(warnings) == 1 and warnings[0].endswith("; made again") and "\n" not in warnings[0]
    assert PoisonCard.load(first.path).content() == first.card.content()
    assert folders(output_dir) == [first.path.name]


def test_a_run_says_whether_the_card_was_there(run, attacks):
    first = run("MF", **ATTACK)
    other = run("DampedMean", **ATTACK)
    assert len(attacks) == 1, "another model on the same split"
    assert (first["poison"]["reused"], other["poison"]["reused"]) == (False, True)
    assert other["poison"]["card"] == first["poison"]["card"]
    assert run("BPR", **ATTACK)["poison"]["card"] != first["poison"]["card"], "on another split"


def test_the_attack_depends_on_the_split_and_not_on_the_victim(toy_config, attacks):
    stored_card(toy_config("BPR", **ATTACK))
    assert stored_card(toy_config("LightGCN", **ATTACK)).reused
    assert stored_card(toy_config("BPR", **ATTACK, epochs=7, load_col={"inter": ["user_id", "item_id"]})).reused
    assert len(attacks) == 1


def test_stealth_is_computed_once_and_stored(toy_config, monkeypatch):
    calls = []

    def counted(view, profiles):
        calls.append((view.n_users, profiles.n_users))
        return {"popularity_auc": np.float64(0.25), "js": float("nan"), "tvd": None}

    monkeypatch.setattr("recbole_robust.poisoning.stealth", counted)
    keys = {**ATTACK, "known_users": 0.5}
    cards = [stored_card(toy_config("MF", **keys)).card for _ in range(2)]
    assert calls == [(80, 8)], "among all genuine users, not only those that the attacker knows"
    assert cards[1].settings["stealth"] == {"popularity_auc": 0.25, "js": None, "tvd": None}


def test_the_stealth_of_a_real_card_is_in_the_result(run):
    found = run("MF", **ATTACK)["poison"]["stealth"]
    assert found == PoisonCard.load(run("MF", **ATTACK)["poison"]["card"]).settings["stealth"]
    assert 0 <= found["popularity_auc"] <= 1


# --- replay --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", FAMILIES)
def test_fakes_are_in_train_only_and_those_of_the_attacks_own_run(family_config, model):
    keys = {**ATTACK, "seed": 5}
    stored = stored_card(family_config(model, **keys))
    own = split(family_config(model, **keys), stored.card)
    replayed = split(family_config(model, seed=5), PoisonCard.load(stored.path))
    clean = split(family_config(model, seed=5))
    assert own.train.n_fake_users == 8
    for one, other in zip(own, replayed, strict=True):
        for name in one.inter_feat.columns:
            assert (one.inter_feat[name] == other.inter_feat[name]).all(), name
    for one, other in zip(replayed[1:], clean[1:], strict=True):
        assert len(one.inter_feat) == len(other.inter_feat)
        assert (one.inter_feat["user_id"] < clean.train.user_num).all()
    fakes = replayed.train.inter_feat["user_id"] >= clean.train.user_num
    assert int(fakes.sum()) == len(replayed.train.inter_feat) - len(clean.train.inter_feat) > 0


def test_a_replay_gives_the_numbers_of_the_attacks_own_run(run):
    own = run("BPR", **ATTACK)
    replay = run("BPR", poison=own["poison"]["card"])
    assert replay["attacked"] == own["attacked"] and replay["lift"] == own["lift"]
    assert replay["attack"] == "Average" and replay["poison"]["reused"]
    assert replay["poison"]["card"] == own["poison"]["card"]
    assert run("BPR", poison=f"{own['poison']['card']}/poison.json")["attacked"] == own["attacked"]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"attack": "Random"}, "got attack"),
        ({"attack": "Average", "attack_args": {"shrink": 2.0}}, "got attack, attack_args"),
        ({"n_fillers": 3}, "got n_fillers"),
        ({"attack_size": 0.1}, "got attack_size"),
        ({"known_users": 0.5, "knowledge": "black-box"}, "got knowledge, known_users"),
    ],
)
def test_keys_of_an_attack_and_a_card_are_a_conflict(toy_config, keys, says):
    with pytest.raises(UserError, match=rf"^poison: expected no keys of an attack beside a card to replay, {says}$"):
        toy_config("BPR", poison="some/card", **keys)


def test_no_attack_and_a_card_are_none(toy_config):
    assert toy_config("BPR", poison="some/card", attack="none", n_fillers=None)["poison"] == "some/card"


def test_other_targets_than_the_cards_are_a_conflict(toy_config):
    path = str(stored_card(toy_config("MF", **ATTACK)).path)
    assert make_card(toy_config("BPR", poison=path, target_items=["i40", "i3"])).target_items == ["i3", "i40"]
    for keys in ({"target_items": ["i3"]}, {"n_targets": 2}):
        with pytest.raises(UserError, match=rf"^{next(iter(keys))}: expected the card's targets i3 i40"):
            make_card(toy_config("BPR", poison=path, **keys))


# --- grids ---------------------------------------------------------------------------------------------------------

GRID: dict[str, Any] = {
    "name": "cards",
    "datasets": ["toy"],
    "methods": [{"model": "BPR"}, {"model": "MF"}],
    "seeds": [0],
}


def test_a_grid_replays_cards(toy_config, output_dir, data_path, attacks):
    path = str(stored_card(toy_config("MF", **ATTACK)).path)
    quiet = {"data_path": str(data_path), "use_gpu": False, "epochs": 1, "topk": [5]}
    grid = {**GRID, "attacks": [{"poison": path, "label": "my card"}, "Random"], "config": quiet}
    done = run_grid(grid, output_dir=output_dir, progress=False)
    assert (done.n_run, done.n_failed) == (4, 0)
    cells = [json.loads(file.read_text()) for file in done.folder.glob("*my_card*.json")]
    assert [cell["cell"]["attack"] for cell in cells] == ["my card"] * 2
    assert {cell["poison"]["card"] for cell in cells} == {path} and {cell["attack"] for cell in cells} == {"Average"}
    assert "my card" in done.report.read_text() and len(attacks) == 1
    for cell in cells:
        assert f"--poison={path}" in cell["command"] and "--attack" not in cell["command"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attacks": [{"poison": 5}]}, r"attacks\[0\].poison: expected a name, got 5"),
        ({"config": {"poison": "x"}}, "config: expected keys other than .*poison"),
        ({"methods": [{"model": "MF", "poison": "x"}]}, "methods: expected keys other than 'poison'"),
    ],
)
def test_where_a_grid_may_name_a_card(output_dir, changes, says):
    with pytest.raises(UserError, match=says):
        run_grid({**GRID, **changes}, output_dir=output_dir, progress=False)
