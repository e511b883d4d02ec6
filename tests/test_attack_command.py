"""``recbole-robust attack``: a card without a victim; its table, its last line, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from toy_splits import ATTACK

from recbole_robust import PoisonCard
from recbole_robust.cli import main
from recbole_robust.quick_start import run_attack


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(data_path, output_dir, capsys, monkeypatch, tmp_path) -> Callable[..., Ran]:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Ran:
        places = [f"--output_dir={output_dir}", "--dataset=toy", "--use_gpu=false"]
        if not any(word.startswith("--data_path") for word in words):
            places.append(f"--data_path={data_path}")
        return Ran(main(["attack", *places, *words]), *capsys.readouterr())

    return call


BUDGET = ["--n_fake_users=4", "--n_fillers=5", "--target_items=[i3,i40]"]


def test_the_command_makes_a_card_and_trains_nothing(command, trainings, output_dir):
    ran = command("--attack=Average", *BUDGET)
    assert (ran.code, ran.err) == (0, "")
    *table, last = ran.out.splitlines()
    path = Path(last.removeprefix("card: "))
    assert path.parent == output_dir / "cards" and trainings == []
    card = PoisonCard.load(path)
    assert table[0] == "toy, protocol apt, seed 2020"
    told = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in table[1:])
    assert told["attack"] == "Average (intent push, shrink 0.0)"
    assert told["fake users"] == "4, 5.0 % of 80 genuine ones"
    assert told["profile length"] == "7.0: 5 fillers, and targets (all)"
    counts = card.settings["target_popularity"]
    assert told["targets"] == f"i3 ({counts[0]} ratings), i40 ({counts[1]} ratings)"
    assert told["stealth"].startswith(f"popularity_auc {card.settings['stealth']['popularity_auc']:.3f}")
    assert told["knowledge"] == "white-box, rows of 100 % of the users"


def test_the_card_of_the_command_is_that_of_a_run(command, run, attacks, output_dir):
    path = command("--attack=Average", *BUDGET).out.splitlines()[-1].removeprefix("card: ")
    keys = {"attack": "Average", "n_fake_users": 4, "n_fillers": 5, "target_items": ["i3", "i40"]}
    result = run("MF", **keys)
    assert result["poison"]["card"] == path and result["poison"]["reused"] and len(attacks) == 1
    assert command("--attack=Average", *BUDGET).out.splitlines()[-1] == f"card: {path}"
    assert len(attacks) == 1
    assert command("--attack=Average", *BUDGET, "--force").out.splitlines()[-1] == f"card: {path}"
    assert len(attacks) == 2


@pytest.mark.parametrize(("words", "protocol"), [([], "apt"), (["--model=SASRec"], "recbole"), (["yaml"], "recbole")])
def test_the_model_decides_on_the_protocol(command, tmp_path, words, protocol):
    if words == ["yaml"]:
        (tmp_path / "keys.yaml").write_text("model: BPR\n")
        words = ["--config_files=keys.yaml"]
    ran = command("--attack=Random", *BUDGET, *words)
    assert ran.code == 0 and ran.out.startswith(f"toy, protocol {protocol}, ")


def test_data_without_ratings_are_split_as_an_implicit_model_does(command, data_path, write_data):
    rows = (data_path / "toy" / "toy.inter").read_text().splitlines()
    keys = write_data("toy", inter=["\t".join(row.split("\t")[:2]) for row in rows])
    ran = command("--attack=Random", *BUDGET, f"--data_path={keys['data_path']}")
    assert ran.code == 0 and ran.out.startswith("toy, protocol recbole, ")
    folder = Path(ran.out.splitlines()[-1].removeprefix("card: "))
    assert (folder / "toy.inter").read_text().startswith("user_id:token\titem_id:token\n__fake_0\t")


@pytest.fixture
def shipped(tmp_path) -> Path:
    path = tmp_path / "dp_1.json"
    path.write_text('{"target_items": ["i3"], "fake_users": {"a": ["i5", "i3", "i5"], "b": ["i3", "i9"]}}')
    return path


def test_the_command_reads_fake_users_of_others(command, run, shipped):
    ran = command(f"--from_json={shipped}")
    assert ran.code == 0
    path = ran.out.splitlines()[-1].removeprefix("card: ")
    assert re.fullmatch(r"dp_1-toy-[0-9a-f]{12}", Path(path).name) and "profile length  2.0\n" in ran.out
    assert command(f"--from_json={shipped}").out == ran.out
    result = run("BPR", poison=path)
    assert (result["attack"], result["poison"]["n_fake_users"], result["target_items"]) == ("dp_1", 2, ["i3"])
    assert main(["--help"]) == 0


def test_a_replay_of_a_file_is_shown(command, shipped, output_dir, data_path, capsys):
    path = command(f"--from_json={shipped}").out.splitlines()[-1].removeprefix("card: ")
    words = ["--model=BPR", "--dataset=toy", f"--data_path={data_path}", f"--output_dir={output_dir}", "--epochs=1",
             "--topk=5", "--use_gpu=false", "--show_progress=false", f"--poison={path}"]  # fmt: skip
    assert main(words) == 0
    assert "dp_1: 2 fake users, targets i3" in capsys.readouterr().out


REFUSED: dict[str, tuple[list[str], str]] = {
    "nothing to do": ([], "attack: expected --attack=<name> or --from_json=<file>, got neither"),
    "a card": (["--poison=x"], "attack: expected --attack=<name> or --from_json=<file>, got neither"),
    "a word": (["Average"], "attack: expected --key=value, got 'Average'"),
    "attack": (["--attack=Averag"], "unknown attack 'Averag': did you mean Average?"),
    "key": (["--attack=Average", "--n_filers=3"], "unknown key 'n_filers': did you mean n_fillers"),
    "both": (["--attack=Average", "--from_json=x.json"], "from_json: expected no other key of an attack beside it"),
    "budget of a file": (["--n_fillers=3", "--from_json=x.json"], "beside it, got n_fillers"),
    "no file": (["--from_json=x.json"], "from_json: x.json: No such file or directory"),
    "known_users 0": (["--attack=Average", "--known_users=0"], "known_users: expected a number in (0, 1], got 0"),
    "known_users 1.5": (["--attack=Average", "--known_users=1.5"], "known_users: expected a number in (0, 1], got 1.5"),
    "too long": (["--attack=Average", "--n_fillers=60"], "n_fillers: expected at most"),
    "model": (["--attack=Average", "--model=MFF"], "unknown model 'MFF'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_mistakes_are_one_line_and_leave_nothing(command, output_dir, what):
    words, told = REFUSED[what]
    ran = command(*words)
    assert (ran.code, ran.out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", ran.err) and told in ran.err
    assert not output_dir.exists()


def test_nothing_after_the_command(capsys):
    assert main(["attack"]) == 2
    assert "attack: expected --dataset=<name> --attack=<name>, got nothing" in capsys.readouterr().err


def test_from_python(data_path, output_dir):
    keys = {"data_path": str(data_path), "output_dir": str(output_dir), "use_gpu": False, "model": "BPR"}
    stored = run_attack(dataset="toy", config_dict={**keys, **ATTACK})
    assert stored.card.settings["protocol"] == "recbole"
    assert PoisonCard.load(stored.path).content() == stored.card.content()
