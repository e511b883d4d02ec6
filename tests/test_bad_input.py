"""Bad input that no other file tries: side features, names that collide, huge numbers, results, grids and audits.

Command line, .inter files, YAML, cards and held-out rows: tests/test_cli.py; cards in depth: tests/data/test_card.py.
Each is one clear line that names the thing, exit code 2, no traceback, and nothing is left behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import run_words

from recbole_robust.cli import main

LOAD = str({"inter": ["user_id", "item_id", "rating", "timestamp"], "user": ["user_id", "age", "gender"],
            "item": ["item_id", "year", "class"]})  # fmt: skip
AVERAGE = ["--attack=Average", "--n_fake_users=3", "--n_fillers=4", "--target_items=[i3]"]
DCN = ["--model=DCN", f"--load_col={LOAD}", "--threshold={'rating': 4}", "--mlp_hidden_size=[8]"]
RESULT = {"schema_version": 1, "command": "python run_recbole_robust.py --model=MF", "model": "MF", "dataset": "toy"}


# --- user and item features -------------------------------------------------------------------------------------------


def replaced(suffix: str, old: str, new: str) -> Callable[[Path], None]:
    def change(toy: Path) -> None:
        path = toy / f"toy.{suffix}"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def content(suffix: str, value: str | bytes) -> Callable[[Path], None]:
    def change(toy: Path) -> None:
        (toy / f"toy.{suffix}").write_bytes(value if isinstance(value, bytes) else value.encode())

    return change


FILES: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {  # what: (change, words, what the line tells)
    "users, empty": (content("user", ""), DCN, ["toy.user: expected a header of name:type columns"]),
    "users, header only": (content("user", "user_id:token\tage:float\tgender:token"), DCN, ["toy.user: expected rows"]),
    "users, bytes": (content("user", b"\xff\xfe" * 50), DCN, ["toy.user: expected UTF-8 text"]),
    "users, no types": (replaced("user", "age:float", "age"), DCN, ["toy.user: expected a header", "'age'"]),
    "users, bad type": (replaced("user", "age:float", "age:flt"), DCN, ["toy.user", "'age:flt'"]),
    "users, text for numbers": (replaced("user", "u0\t", "u0\tx"), DCN, ["toy.user: expected numbers"]),
    "users, no id": (replaced("user", "user_id:token", "visitor:token"), DCN, ["expected a column user_id (load_col)"]),
    "users, id a number": (replaced("user", "user_id:token", "user_id:float"), DCN, ["expected user_id:token"]),
    "users, a column twice": (replaced("user", "gender:token", "age:token"), DCN, ["expected each column once"]),
    "users, a short row": (replaced("user", "u5\t", "u5"), DCN, ["toy.user: expected 3 columns", "got 2 in line 7"]),
    "items, empty": (content("item", ""), DCN, ["toy.item: expected a header"]),
    "items, zeros": (content("item", bytes(500)), DCN, ["toy.item: expected a header"]),
    "items, truncated": (replaced("item", "i7\t", "i7\n"), DCN, ["toy.item: expected 3 columns", "in line 9"]),
    "items, text for numbers": (replaced("item", "i0\t", "i0\tx"), DCN, ["toy.item: expected numbers"]),
    "items, commas": (replaced("item", "\t", ","), DCN, ["toy.item: expected a header"]),
    "items, a column twice": (replaced("item", "class:token_seq", "year:float"), DCN, ["expected each column"]),
    "a column that is not there": (
        replaced("user", "age:float", "years:float"), DCN, ["expected a column age (load_col), got user_id"]),
    "no column that is there": (
        replaced("user", "age:float", "years:float"),
        [*DCN[:1], "--load_col={'inter': ['user_id', 'item_id', 'rating'], 'user': ['age']}", *DCN[2:]],
        ["expected a column age (load_col), got none"]),
    "an endless feature": (
        replaced("user", "u0\t60", "u0\tinf"), [*DCN, "--numerical_features=['age']"], ["toy: age: expected finite"]),
    "a byte order mark": (
        replaced("inter", "user_id:token", "\ufeffuser_id:token"), [], ["without a byte order mark", "utf-8-sig"]),
    # rows that RecBole would drop, or move, without a word
    "a blank user": (replaced("inter", "\nu7\t", "\n\t"), [], ["toy.inter: expected a token of user_id", "none in"]),
    "a blank item": (replaced("inter", "u0\ti28\t3", "u0\t\t3"), [], ["of item_id in each", "1 rows (first: row 1"]),
    "a time of nan": (replaced("inter", "1000460", "nan"), [], ["finite numbers in timestamp, got 'nan' in 1 rows"]),
    "a time of inf": (replaced("inter", "1000460", "-inf"), [], ["numbers in timestamp, got '-inf'", "(first: row 1 "]),
    "a time of 1e400": (replaced("inter", "1000460", "1e400"), [], ["numbers in timestamp, got '1e400'"]),
    "a time of NA": (replaced("inter", "1000460", "NA"), ["--model=BPR"], ["numbers in timestamp, got 'NA'"]),
    # names that collide with those of the fake users
    "a user named as a fake": (replaced("inter", "u7\t", "__fake_0\t"), AVERAGE, ["expected no user named __fake_<k>"]),
    "a user named as the last fake": (replaced("inter", "u7\t", "__fake_2\t"), AVERAGE, ["got __fake_2"]),
    # huge values
    "a rating of 1e308": (replaced("inter", "u0\ti28\t3", "u0\ti28\t1e308"), [*AVERAGE, "--rating_range=[1,5]"],
                          ["rating: expected ratings in [1, 5]", "user u0, item i28"]),
    "a rating of 1e400": (replaced("inter", "u0\ti28\t3", "u0\ti28\t1e400"), AVERAGE, ["expected finite numbers"]),
    "a rating of -inf": (replaced("inter", "u0\ti28\t3", "u0\ti28\t-inf"), AVERAGE, ["got -inf in 1 rows"]),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_bad_files(what, toy, refused):
    change, words, told = FILES[what]
    change(toy)
    refused(run_words(toy.parent, *words), *told)


HUGE: dict[str, tuple[list[str], list[str]]] = {
    "n_fake_users": ([*AVERAGE[:1], "--n_fake_users=1e99"], ["n_fake_users: expected a whole number >= 1"]),
    "n_fillers": ([*AVERAGE[:1], f"--n_fillers={10**30}"], ["n_fillers: expected at most", f"got {10**30}"]),
    "attack_size": ([*AVERAGE[:1], "--attack_size=1e300"], ["attack_size: expected a number in (0, 1], got 1e+300"]),
    "attack_size inf": ([*AVERAGE[:1], "--attack_size=.inf"], ["attack_size: expected a number in (0, 1], got inf"]),
    "topk": ([f"--topk={10**20}"], ["topk: expected at most 60 (the items)"]),
    "seed": ([f"--seed={10**30}"], ["seed: expected a whole number from 0 to 4294967295"]),
    "seed below": (["--seed=-1"], ["seed: expected a whole number from 0 to 4294967295, got -1"]),
    "learning_rate inf": (["--learning_rate=.inf"], ["learning_rate: expected a number in (0, 1e+06], got inf"]),
    "learning_rate nan": (["--learning_rate=.nan"], ["learning_rate: expected a number in (0, 1e+06], got nan"]),
    "weight_decay inf": (["--weight_decay=.inf"], ["weight_decay: expected a number in [0, inf), got inf"]),
    "n_targets": ([f"--n_targets={10**12}"], ["n_targets: expected at most 60"]),
    "load_col": (["--load_col={inter: 5}"], ["load_col: expected a mapping of inter, user", "got {'inter': 5}"]),
    "unload_col": (["--unload_col={inter: 5}"], ["unload_col: expected a mapping of inter"]),
    "encoding": (["--encoding=5"], ["encoding: expected text, got 5"]),
    "loss_decimal_place": (["--loss_decimal_place=-1"], ["loss_decimal_place: expected a whole number >= 0, got -1"]),
    "clip_grad_norm": (["--clip_grad_norm={foo: 3}"], ["clip_grad_norm: expected", "max_norm", "got {'foo': 3}"]),
    "discretization": (["--discretization=x"], ["discretization: expected a mapping, got 'x'"]),
    "worker": (["--worker=1000000"], ["worker: expected a whole number from 0 to 256, got 1000000"]),
    "more fakes than sense": ([*AVERAGE[:1], f"--n_fake_users={10**11}"], ["n_fake_users: expected at most 800 (10 a"]),
    "a learner of sparse gradients": (["--learner=sparse_adam"], ["learner: expected one of adam", "'sparse_adam'"]),
    "a rating scale without end": (["--rating_range=[-1e308,1e308]"], ["rating_range: expected [lowest"]),
    "a threshold in words": (
        [*DCN[:1], "--threshold={'rating': 'x'}"],
        ["threshold: expected a mapping of"],
    ),
    "sequences of nothing": (
        ["--model=SASRec", "--MAX_ITEM_LIST_LENGTH=0"],
        ["MAX_ITEM_LIST_LENGTH: expected a"],
    ),
    "alias_of_user_id": (["--alias_of_user_id=5"], ["alias_of_user_id: expected a list of names, got 5"]),
    "normalize_field": (["--normalize_field=5"], ["normalize_field: expected a list of names, got 5"]),
    "preload_weight": (["--preload_weight=5"], ["preload_weight: expected a mapping, got 5"]),
    "additional_feat_suffix": (["--additional_feat_suffix=5"], ["additional_feat_suffix: expected a list"]),
    "field_separator": (["--field_separator=5"], ["field_separator: expected text, got 5"]),
    "a gate without end": (
        ["--model=PurifyAugMF", "--se_bias_init=-.inf"],
        ["se_bias_init: expected a number"],
    ),
    "a rerank of less than K": (
        ["--model=PurifyAugMF", "--infer_mode=rerank", "--rerank_topk=4"],
        ["rerank_topk: expected at least the largest K, 5, got 4"],
    ),
    "popularity of test rows": (["--model=PurifyAugMF", "--dataloader=recbole"], ["dataloader: expected fast"]),
    "a key of another model's beside it": (["--n_layers=2", "--epochs=x"], ["epochs: expected a whole number >= 0"]),
    "unicode target": (["--target_items=[ї3]"], ["target_items: expected tokens", "ї3"]),
    "a target with a tab": (["--target_items=['i\t3']"], ["target_items: expected tokens"]),
    "an emoji attack": (["--attack=🦊"], ["unknown attack '🦊'"]),
    "a newline in a name": (["--attack=Aver\nage"], ["unknown attack"]),
    "a null byte": (["--dataset=to\0y"], ["dataset"]),
    "a long name": ([f"--dataset={'x' * 5000}"], ["dataset"]),
}


@pytest.mark.parametrize("what", HUGE)
def test_huge_and_odd_values(what, toy, refused):
    words, told = HUGE[what]
    refused(run_words(toy.parent, *words), *told)


SUSPECTED: dict[str, tuple[list[str], list[str]]] = {
    "half a layer": (["--model=LightGCN", "--n_layers=2.5"], ["n_layers: expected what", "got 2.5", "in lightgcn.py"]),
    "a dropout of 2": (["--model=NeuMF", "--dropout_prob=2"], ["dropout_prob: expected what", "between 0 and 1"]),
    "a network of nothing": (["--model=NeuMF", "--mlp_hidden_size=[]"], ["mlp_hidden_size: expected", "IndexError"]),
    "an unknown activation": (["--model=SASRec", "--hidden_act=foo"], ["hidden_act: expected", "KeyError", "'foo'"]),
}


@pytest.mark.parametrize("what", SUSPECTED)
def test_what_recbole_stumbles_over_names_the_key_and_keeps_the_traceback(what, toy, tmp_path, capsys, monkeypatch):
    words, told = SUSPECTED[what]
    monkeypatch.chdir(tmp_path)
    assert main(run_words(toy.parent, *words)) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ") and all(text in err for text in told), err
    (log,) = (tmp_path / "out" / "log").glob("*.log")
    assert "Traceback" in log.read_text() and not list(tmp_path.rglob("result.json"))


# --- results, grids and audits ----------------------------------------------------------------------------------------

JSON: dict[str, tuple[dict[str, str | bytes], str]] = {  # what: (files of the folder, what the line tells)
    "truncated": ({"a.json": json.dumps(RESULT)[:-9]}, "a.json: expected a JSON file"),
    "empty": ({"a.json": ""}, "a.json: expected a JSON file"),
    "bytes": ({"a.json": b"\xff\xfe\x00"}, "a.json: expected a JSON file"),
    "utf-16": ({"a.json": json.dumps(RESULT).encode("utf-16")}, "a.json: expected a JSON file"),
    "of another schema": ({"a.json": json.dumps({**RESULT, "schema_version": 99})}, "expected 1, got 99"),
    "schema in words": ({"a.json": json.dumps({**RESULT, "schema_version": "one"})}, "expected 1, got 'one'"),
    "no model": ({"a.json": json.dumps({"schema_version": 1, "command": ""})}, "expected the keys dataset"),
    "metrics a list": ({"a.json": json.dumps({**RESULT, "clean": [1, 2]})}, "clean: expected metric names"),
    "a metric in words": ({"a.json": json.dumps({**RESULT, "clean": {"hit@5": "high"}})}, "clean: expected metric"),
    "a metric true": ({"a.json": json.dumps({**RESULT, "lift": {"hit@5": True}})}, "lift: expected metric names"),
    "a baseline in words": (
        {"a.json": json.dumps({**RESULT, "baseline": {"clean": {"hit@5": "x"}}})}, "clean: expected metric names"),
    "cell in words": ({"a.json": json.dumps({**RESULT, "cell": "mine"})}, "cell: expected a mapping"),
    "cell without a seed": (
        {"a.json": json.dumps({**RESULT, "cell": {"dataset": "d", "method": "m"}})}, "cell: expected a mapping"),
    "grid truncated": ({"a.json": json.dumps(RESULT), "grid.json": "{"}, "grid.json: expected a JSON file"),
    "grid a list": ({"a.json": json.dumps(RESULT), "grid.json": "[]"}, "grid.json: expected the file that a benchmark"),
    "grid without axes": (
        {"a.json": json.dumps(RESULT), "grid.json": '{"axes": []}'}, "grid.json: expected the file that a benchmark"),
    "grid without a list": (
        {"a.json": json.dumps(RESULT), "grid.json": '{"cells": 5}'}, "grid.json: expected the file that a benchmark"),
    "nothing": ({"a.txt": "{}"}, "expected"),
    "other JSON only": ({"a.json": '{"x": 1}'}, "expected"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["report", "audit"])
@pytest.mark.parametrize("what", JSON)
def test_folders_that_are_no_results(what, command, tmp_path, refused):
    files, told = JSON[what]
    for name, text in files.items():
        path = tmp_path / "results" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused([command, str(tmp_path / "results")], told)
