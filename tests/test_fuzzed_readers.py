"""Whatever is in a file, its reader gives a valid object or one clear line: never another exception, and never two.

Each file is tried twice: as arbitrary values in the places where the format has some, and as a good file with a few of
its bytes changed.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_splits import FAMILIES, SMALL, split

from recbole_robust.audit import audit_files
from recbole_robust.config import Config
from recbole_robust.data import load
from recbole_robust.data.card import CARD_FILE, PoisonCard, content_hash
from recbole_robust.data.fake_users_json import read_fake_users
from recbole_robust.grid import expand, load_grid
from recbole_robust.report import write_report
from recbole_robust.sweep.file import key_of, load_sweep
from recbole_robust.types import FakeProfiles, UserError
from recbole_robust.yaml_text import parse_value, read_yaml

TOY = Path(__file__).parents[1] / "dataset" / "toy"


def tried(n: int):
    """``n`` examples, the same every time."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=quiet)


def answers(read: Callable[[], Any]) -> Any:
    """What a reader gives; None where it refuses in one line."""
    try:
        return read()
    except UserError as error:
        assert re.fullmatch(r"[^\n]+", " ".join(str(error).split("\n"))), error
        return None


def often(n: int):
    """A few examples in a default run, many in a slow one."""
    return pytest.mark.parametrize("n", [n, pytest.param(25 * n, marks=pytest.mark.slow)])


texts = st.text(max_size=8) | st.sampled_from(
    ["", "MF", "ml-100k", "i3", "apt_1", "\x00", "\t", "a\nb", "1e5", "ї🦊", "²"]
)
numbers = st.integers(-3, 70) | st.integers() | st.floats() | st.sampled_from([10**30, 2**63, -1, 0, 1e308])
plain = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    plain, lambda one: st.lists(one, max_size=3) | st.dictionaries(texts, one, max_size=3), max_leaves=6
)
odd = st.sampled_from(
    [b"", b"\x00", b"\xff\xfe", b"\n", b"\t", b"\r\n", b'"', b"[", b"{}", b"&a ", b"*a", b"!!int ", b"nan"]
)
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), odd | st.binary(max_size=6)), min_size=1, max_size=4)


def edited(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """Bytes in which some have been cut out, and others put in their place."""
    for where, n_cut, new in changes:
        at = int(where * len(content))
        content = content[:at] + new + content[at + n_cut :]
    return content


# --- atomic files -----------------------------------------------------------------------------------------------------

LOAD = FAMILIES["DCN"]["load_col"]
cells = (
    st.sampled_from(["u1", "i3", "5", "3.5", "", " ", "nan", "inf", "-1", "1e400", "x y", '"', "0", "__fake_0"]) | texts
)
kinds = st.sampled_from(["token", "float", "token_seq", "float_seq", "", "int"])
names = st.sampled_from(["user_id", "item_id", "rating", "timestamp", "age", "class", "year", "label"]) | texts
tables = st.tuples(
    st.lists(st.tuples(names, kinds).map(":".join), max_size=5),
    st.lists(st.lists(cells, min_size=1, max_size=5), max_size=6),
).map(lambda parts: "\n".join("\t".join(row) for row in [parts[0], *parts[1]]).encode("utf-8", "replace"))


def splits_of(suffix: str, content: bytes, folder: Path) -> None:
    """Write one of the toy files anew and make the three splits, with all features."""
    load._loaded.clear()
    load._digest_of.cache_clear()
    shutil.copytree(TOY, folder / "toy")
    (folder / "toy" / f"toy.{suffix}").write_bytes(content)
    quiet = {"use_gpu": False, "show_progress": False, "log_tensorboard": False, "output_dir": str(folder / "out")}
    keys = {**SMALL, **FAMILIES["DCN"], **quiet, "data_path": str(folder)}
    parts = answers(lambda: split(Config("DCN", "toy", config_dict=keys)))
    assert parts is None or sum(len(part.inter_feat) for part in parts) > 0


@often(8)
@pytest.mark.parametrize("suffix", ["inter", "user", "item"])
def test_atomic_files(suffix, n):
    good = (TOY / f"toy.{suffix}").read_bytes()

    @tried(n)
    @given(tables | edits.map(lambda changes: edited(good, changes)))
    def check(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            splits_of(suffix, content, Path(folder))

    check()


# --- cards and fake users ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def card(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cards") / "card"
    profiles = FakeProfiles(np.array([0, 2, 3]), np.array([0, 1, 0]), np.array([5.0, 3.5, 4.0]))
    PoisonCard("toy", ["i3"], ["i3", "i40"], profiles, {"attack": "Average", "seed": 3}).save(folder)
    return folder


def read_card(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        found = answers(lambda: PoisonCard.load(folder))
        if found is not None:
            found.save(Path(folder) / "again")
            assert PoisonCard.load(Path(folder) / "again").digest() == found.digest()


@often(25)
@pytest.mark.parametrize("name", [CARD_FILE, "toy.inter"])
def test_cards_with_other_bytes(card, name, n):
    files = {path.name: path.read_bytes() for path in card.iterdir()}

    @tried(n)
    @given(edits)
    def check(changes) -> None:
        read_card({**files, name: edited(files[name], changes)})

    check()


@often(30)
def test_cards_with_other_values(card, n):
    files = {path.name: path.read_bytes() for path in card.iterdir()}
    content = json.loads(files[CARD_FILE])
    rows = st.lists(st.lists(cells | st.sampled_from(["__fake_0", "__fake_1"]), min_size=1, max_size=4), max_size=4)

    @tried(n)
    @given(st.sampled_from([*content, "more"]), values | st.just("\ud800"), rows)
    def check(key, value, rows) -> None:
        told = {**content, key: value}
        if key != "content_hash":  # so that more than the hash is looked at
            told["content_hash"] = content_hash({k: v for k, v in told.items() if k != "content_hash"})
        own = "\n".join(map("\t".join, [["user_id:token", "item_id:token", "rating:float"], *rows]))
        for inter in (files["toy.inter"], own.encode("utf-8", "replace")):
            read_card({CARD_FILE: json.dumps(told).encode(), "toy.inter": inter})

    check()


@often(30)
def test_fake_users(n):
    good = json.dumps({"target_items": ["i3"], "fake_users": {"a": ["i3", "i4"], "b": [5]}}).encode()
    shaped = st.fixed_dictionaries(
        {"target_items": values | st.lists(plain), "fake_users": values | st.dictionaries(texts, st.lists(plain))}
    )
    anything = (shaped | values).map(lambda value: json.dumps(value).encode())

    @tried(n)
    @given(anything | edits.map(lambda changes: edited(good, changes)) | st.just(b"[" * 100_000))
    def check(content: bytes) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            found = answers(lambda: read_fake_users(file.name))
            assert found is None or (found.target_items and all(found.profiles))

    check()


# --- YAML -------------------------------------------------------------------------------------------------------------

GRID = {"name": "g", "datasets": ["toy"], "attacks": [None, {"attack": "Average", "n_fillers": 5}], "seeds": [0, 1],
        "methods": ["MF", {"label": "m", "model": "MF", "weight_decay": 1e-5}], "target_sets": [{"n_targets": 3}],
        "config": {"protocol": "apt"}, "report": {"title": "t"}}  # fmt: skip
SWEEP = {"name": "s", "model": "MF", "dataset": "toy", "config": {"epochs": 2}, "attacks": ["Average"], "seed": 3,
         "target_sets": [{"n_targets": 2}], "conditions": {"noise_ratio": [0.0, 0.2]},
         "space": {"learning_rate": {"loguniform": [0.01, 1.0]}, "embedding_size": {"choice": [4, 8]}},
         "search": {"method": "random", "trials": 3}, "scheduler": {"method": "asha", "grace": 1},
         "objective": {"maximise": "clean.ndcg@50", "at_most": {"worst_lift.targethr@50": 0.05}}}  # fmt: skip
TENFOLD = [f"{b}: &{b} [{', '.join(['*' + a] * 10)}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)]
ODD_YAML = [
    "\n".join(["a: &a [x, x, x, x, x, x, x, x, x, x]", *TENFOLD]), "a: &a [*a]", "[" * 400, "!!bool x", "!!int ''",
    "!!timestamp x", "2020-99-99", "? [a]\n: b", "{1: a, b: c}", "!!set {a}", "!!binary '='", "<<: 5", "a: !!float x",
    "\x00", "--- a\n--- b",
]  # fmt: skip


def with_part(content: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy in which one part is another; each step of ``path`` that is there is gone into."""
    copy: Any = json.loads(json.dumps(content))
    node = copy
    for step in path[:-1]:
        node = node[step] if isinstance(node, dict) and isinstance(node.get(step), dict | list) else node
        node = node[0] if isinstance(node, list) and isinstance(node[0], dict) else node
    if isinstance(node, dict):
        node[path[-1]] = value
    return copy


def keys_in(value: Any) -> list[str]:
    """All keys of nested mappings."""
    if isinstance(value, list):
        return [key for one in value for key in keys_in(one)]
    return [key for name, one in value.items() for key in (name, *keys_in(one))] if isinstance(value, dict) else []


def yaml_files(good: dict[str, Any]):
    keys = sorted(set(keys_in(good)))
    paths = st.lists(st.sampled_from(keys), min_size=1, max_size=3) | st.sampled_from(keys).map(lambda key: [key])
    changed = st.builds(with_part, st.just(good), paths, values).map(lambda v: yaml.safe_dump(v, allow_unicode=True))
    text = yaml.safe_dump(good).encode()
    return (
        changed.map(lambda one: one.encode("utf-8", "replace"))
        | edits.map(lambda changes: edited(text, changes))
        | st.sampled_from(ODD_YAML).map(str.encode)
    )


def fuzz(n: int, files: Any, read: Callable[[Path], Any]) -> None:
    @tried(n)
    @given(files)
    def check(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.yaml"
            path.write_bytes(content)
            answers(lambda: read(path))

    check()


@often(25)
def test_grids(n):
    def read(path: Path) -> None:
        for cell in expand(load_grid(path))[:5]:
            assert cell.id and cell.command() and json.dumps(cell.labels())

    fuzz(n, yaml_files(GRID), read)


@often(25)
def test_sweeps(n):
    def read(path: Path) -> None:
        sweep = load_sweep(path)
        points = sweep.points() if (sweep.n_trials or 0) < 10 else []
        for values in [*points, *sweep.corners()][:20]:
            assert key_of(sweep.keys(sweep.conditions[0], values))

    fuzz(n, yaml_files(SWEEP), read)


@often(15)
def test_config_files(n):
    fuzz(n, yaml_files(GRID), lambda path: json.dumps(list(read_yaml(path)), default=str))


@often(25)
def test_words_of_the_command_line(n):
    @tried(n)
    @given(st.sampled_from(ODD_YAML) | texts | values.map(str) | values.map(json.dumps))
    def check(text: str) -> None:
        answers(lambda: parse_value(text, "key"))

    check()


# --- results ----------------------------------------------------------------------------------------------------------

BLOCK = {"targethr@5": 0.1, "hit@5": 0.2, "rmse": 1.0, "targetrank": 4.0}
RESULT = {
    "schema_version": 1, "command": "python run_recbole_robust.py --model=MF --dataset=none", "model": "MF",
    "dataset": "none", "protocol": "apt", "attack": "Average", "defense": None, "seed": 0, "split_hash": "ab",
    "config": {"target_hr_denominator": "all", "attack_size": 0.1, "n_fillers": 5}, "target_items": ["i3"],
    "poison": {"card": "cards/x", "hash": "ab", "n_fake_users": 3, "n_fillers": 5, "target_items": ["i3"],
               "stealth": {"js": 0.1}},
    "clean": BLOCK, "attacked": BLOCK, "lift": BLOCK, "per_target": {"i3": {"clean": BLOCK, "attacked": BLOCK}},
    "baseline": {"model": "MF", "defense": None, "clean": BLOCK, "attacked": BLOCK, "lift": BLOCK},
    "n_genuine": 80, "seconds": {"total": 3.0}, "versions": {"torch": "2"}, "device": "cpu", "threads": 1,
    "cell": {"grid": "g", "dataset": "none", "attack": "Average", "method": "m", "target_set": "t", "seed": 0},
}  # fmt: skip
GRID_JSON = {"name": "g", "source": "g.yaml", "report": {"title": "t", "metrics": ["hit@5"]}, "cells": ["a", "b"],
             "axes": {"method": ["m", "n"], "attack": ["Average"], "seed": [0]}}  # fmt: skip
AUDIT = {"digest": "x", "findings": [{"check": "c", "failures": [], "line": "ok: c"}]}
FILES = {"a.json": RESULT, "b.json": {**RESULT, "cell": {**RESULT["cell"], "method": "n"}},  # type: ignore[dict-item]
         "grid.json": GRID_JSON, "audit.json": AUDIT}  # fmt: skip


def json_files(good: dict[str, Any]):
    keys = sorted(set(keys_in(good)))
    paths = st.sampled_from(keys).map(lambda key: [key]) | st.lists(st.sampled_from(keys), min_size=2, max_size=3)
    changed = st.builds(with_part, st.just(good), paths, values | st.just("\ud800"))
    text = json.dumps(good).encode()
    return changed.map(lambda one: json.dumps(one).encode()) | edits.map(lambda changes: edited(text, changes))


@often(12)
@pytest.mark.parametrize("name", FILES)
def test_results(name, n):
    @tried(n)
    @given(json_files(FILES[name]), st.booleans(), st.sampled_from([".md", ".tex"]))
    def check(content, in_grid, suffix) -> None:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "r"
            folder.mkdir()
            for other, good in FILES.items():
                if in_grid or other == name:
                    (folder / other).write_text(json.dumps(good))
            (folder / name).write_bytes(content)
            answers(lambda: write_report(folder, Path(place) / f"x{suffix}"))
            for finding in answers(lambda: audit_files(folder)) or ():
                assert "\n" not in finding.line and finding.line.encode()

    check()


@pytest.mark.slow
def test_a_page_of_a_browser(tmp_path):
    """It has five megabytes, so few are made."""

    @tried(50)
    @given(json_files(RESULT))
    def check(content) -> None:
        (tmp_path / "a.json").write_bytes(content)
        answers(lambda: write_report(tmp_path, tmp_path / "x.html"))

    check()
