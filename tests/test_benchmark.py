"""Grids with an invented run function: what a grid expands to, and that killing it at any point loses nothing."""

from __future__ import annotations

import json
import os
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_robust.benchmark import run_grid
from recbole_robust.grid import expand, load_grid
from recbole_robust.schedule import plan_grid
from recbole_robust.types import UserError

GRID: dict[str, Any] = {
    "name": "small",
    "datasets": ["ml-100k"],
    "attacks": ["Random", {"attack": "Average", "n_fillers": 105, "label": "Average, 105 fillers"}],
    "methods": [{"model": "MF"}, {"label": "MF, decay 3e-5", "model": "MF", "weight_decay": 3.0e-5}],
    "seeds": [0, 1],
    "config": {"protocol": "apt"},
    "report": {"title": "Small", "metrics": ["targethr@50", "hit@50"], "published": "purifyaug_table1"},
}


class FakeRun:
    """Stands for ``run_recbole_robust``: keeps its calls and does what ``act`` says at the n-th."""

    def __init__(self, act: Callable[[int, dict[str, Any]], None] | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.act = act

    def __call__(self, *, model: str, dataset: str, config_dict: dict[str, Any]) -> dict[str, Any]:
        self.calls.append({"model": model, "dataset": dataset, **config_dict})
        if self.act:
            self.act(len(self.calls), config_dict)
        high = 0.2 + 0.01 * config_dict["seed"]
        return {
            "schema_version": 1,
            "command": "pytest",
            "model": model,
            "dataset": dataset,
            "attack": config_dict.get("attack"),
            "seed": config_dict["seed"],
            "clean": {"targethr@50": 0.04, "hit@50": np.float32(0.25)},
            "attacked": {"targethr@50": high, "hit@50": 0.25, "ndcg@50": float("nan")},
            "lift": {"targethr@50": high - 0.04},
            "seconds": {"total": 1.5},
            "n_genuine": np.int64(943),
            "path": "/somewhere/result.json",
        }


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRun]:
    def install(act: Callable[[int, dict[str, Any]], None] | None = None) -> FakeRun:
        run, module = FakeRun(act), types.ModuleType("recbole_robust.quick_start")
        module.run_recbole_robust = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "recbole_robust.quick_start", module)
        return run

    return install


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


# -- expansion -----------------------------------------------------------------------------------------------------


def names(prefix: str) -> st.SearchStrategy[list[str]]:
    return st.lists(
        st.text("abcXYZ|-, 1", min_size=1, max_size=6).map(lambda text: prefix + text),
        min_size=1,
        max_size=4,
        unique=True,
    )


@settings(max_examples=40, deadline=None)
@given(
    names("d"), names("a"), names("m"), names("t"), st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True)
)
def test_expansion_is_the_whole_product(
    datasets: list[str], attacks: list[str], methods: list[str], target_sets: list[str], seeds: list[int]
) -> None:
    grid = {"name": "g", "datasets": datasets, "attacks": attacks, "methods": methods}
    cells = expand({**grid, "target_sets": target_sets, "seeds": seeds})
    assert len(cells) == len(datasets) * len(attacks) * len(methods) * len(target_sets) * len(seeds)
    assert len({cell.id for cell in cells}) == len(cells)
    assert len({tuple(cell.labels().items()) for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.keys["target_items"] == cell.target_set and cell.keys["model"] == cell.method
        assert cell.keys["seed"] == cell.seed and cell.keys["attack"] == cell.attack
        assert len(cell.id) < 200 and "/" not in cell.id and " " not in cell.id


def test_keys_labels_and_defaults() -> None:
    grid = {
        **GRID,
        "attacks": [None, {"attack": "Average", "n_fillers": 5}],
        "methods": ["Pop", {"model": "MF", "defense": "APT", "defense_args": {"eps": 0.3}}],
        "target_sets": [{"target_choice": "random", "n_targets": 10}],
        "seeds": {"start": 3, "count": 2},
        "config": {"protocol": "apt", "defense_args": {"eps": 0.1, "steps": 2}},
    }
    cells = expand(grid)
    assert [cell.seed for cell in cells] == [3, 3, 3, 3, 4, 4, 4, 4]
    assert {cell.attack for cell in cells} == {None, "Average, n_fillers=5"}
    assert {cell.method for cell in cells} == {"Pop", "MF + APT, defense_args.eps=0.3"}
    assert {cell.target_set for cell in cells} == {"target_choice=random, n_targets=10"}
    last = cells[-1]
    assert last.keys["defense_args"] == {"eps": 0.3, "steps": 2}
    assert "attack" not in cells[0].keys and cells[0].keys["defense_args"] == {"eps": 0.1, "steps": 2}
    assert shlex.split(last.command())[2:] == [
        "--model=MF",
        "--dataset=ml-100k",
        "--attack=Average",
        "--baseline=none",
        "--protocol=apt",
        "--defense_args.eps=0.3",
        "--defense_args.steps=2",
        "--target_choice=random",
        "--n_targets=10",
        "--n_fillers=5",
        "--defense=APT",
        "--seed=4",
    ]
    assert expand({**GRID, "seeds": [0]})[0].target_set == "default"


def test_id_depends_on_settings_and_not_on_place() -> None:
    first = expand(GRID)[0].id
    assert expand({**GRID, "config": {"protocol": "apt", "output_dir": "x", "gpu_id": "1"}})[0].id == first
    assert expand({**GRID, "config": {"protocol": "apt", "epochs": 3}})[0].id != first
    assert expand(json.loads(json.dumps(GRID)))[0].id == first


@pytest.mark.parametrize(
    "change, field",
    [
        ({"atacks": ["Random"]}, "atacks"),
        ({"name": "../x"}, "name"),
        ({"name": None}, "name"),
        ({"datasets": []}, "datasets"),
        ({"datasets": "ml-100k"}, "datasets"),
        ({"attacks": []}, "attacks"),
        ({"attacks": ["Random", "Random"]}, r"attacks\[1\]"),
        ({"attacks": [{"n_fillers": 3}]}, r"attacks\[0\].attack"),
        ({"attacks": [3]}, r"attacks\[0\]"),
        ({"methods": [{"label": "x"}]}, r"methods\[0\].model"),
        ({"methods": [{"model": "MF"}, {"model": "MF", "label": "again"}]}, r"methods\[1\]"),
        ({"methods": [{"model": "MF"}, {"model": "MF", "epochs": 3, "label": "MF"}]}, r"methods\[1\]"),
        ({"methods": [{"model": "MF", "label": 3}]}, r"methods\[0\].label"),
        ({"methods": [{"model": "MF", "seed": 3}]}, "methods"),
        ({"methods": [{"model": "MF", "n_fillers": 3}]}, "n_fillers"),
        ({"target_sets": [{"label": "x"}]}, r"target_sets\[0\]"),
        ({"target_sets": []}, "target_sets"),
        ({"target_sets": [{"model": "MF"}]}, "model"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": [True]}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": {"count": 0}}, "seeds"),
        ({"seeds": {"start": 1}}, "seeds"),
        ({"seeds": {"from": 1, "count": 2}}, "seeds"),
        ({"config": ["x"]}, "config"),
        ({"config": {"seed": 3}}, "config"),
        ({"report": {"metric": ["hit@50"]}}, "report"),
        ({"report": {"metrics": "hit@50"}}, "report.metrics"),
        ({"report": {"published": "nowhere"}}, "published"),
        ({"report": {"gains": [{"method": "MF"}]}}, r"report.gains\[0\]"),
        ({"report": {"gains": [{"method": "MF", "over": "MFF"}]}}, r"report.gains\[0\].over"),
        ({"report": {"gains": "MF"}}, r"report.gains\[0\]"),
        ({"report": {"undefended_of": "MF"}}, "report.undefended_of"),
        ({"report": {"undefended_of": {"MF": "MFF"}}}, "report.undefended_of"),
        ({"report": {"undefended_of": {"MFF": None}}}, "report.undefended_of"),
    ],
)
def test_bad_grids_name_the_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=f"{field}.*expected.*got|expected.*got.*{field}") as caught:
        expand({**GRID, **change})
    assert "\n" not in str(caught.value)


def test_load_grid(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("name: g\nmethods: [{model: MF, weight_decay: 3e-5, epochs: 3, size: 1.5, dated: v1e}]\n")
    assert load_grid(path)["methods"][0] == {
        "model": "MF",
        "weight_decay": 3e-5,
        "epochs": 3,
        "size": 1.5,
        "dated": "v1e",
    }
    for text, message in (
        ("a: [", "not valid YAML"),
        ("- a", "expected a mapping"),
        ("!!python/object:x.y {}", "not valid"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_grid(path)
    with pytest.raises(UserError, match="expected a grid file"):
        load_grid(tmp_path / "none.yaml")


# -- running -------------------------------------------------------------------------------------------------------


def test_whole_grid_writes_cells_and_report(tmp_path: Path, fake: Callable[..., FakeRun], capsys: Any) -> None:
    run = fake()
    done = run_grid(GRID, output_dir=tmp_path, progress=True)
    assert (done.n_run, done.n_skipped, done.n_failed) == (8, 0, 0) and done.folder == tmp_path / "small"
    out, err = capsys.readouterr()
    assert out == "" and "ml-100k | Random | MF | default | seed 0: targethr@50 0.0400 -> 0.2000, 1.5 s" in err
    assert run.calls[0] == {
        "model": "MF",
        "dataset": "ml-100k",
        "attack": "Random",
        "protocol": "apt",
        "seed": 0,
        "baseline": "none",
        "show_progress": False,
        "save_checkpoint": False,
        "log_tensorboard": False,
        "output_dir": str(tmp_path),
    }
    result = json.loads(next(done.folder.glob("ml_100k-Average_105_fillers-MF-default-seed1-*.json")).read_text())
    assert result["cell"] == {
        "grid": "small",
        "dataset": "ml-100k",
        "attack": "Average, 105 fillers",
        "method": "MF",
        "target_set": "default",
        "seed": 1,
    }
    assert result["attacked"]["ndcg@50"] is None and result["n_genuine"] == 943 and "path" not in result
    assert str(done) == str(done.report)  # what the command line prints
    assert result["command"].startswith("python run_recbole_robust.py --model=MF --dataset=ml-100k --attack=Average")
    page = done.report.read_text()
    assert page.startswith("# Small") and "Average, 105 fillers: attacked" in page and "(31.33)" in page


def test_killed_after_two_cells_it_goes_on(tmp_path: Path, fake: Callable[..., FakeRun]) -> None:
    fake()
    whole = run_grid(GRID, output_dir=tmp_path / "whole", progress=False)

    def kill(n: int, _: dict[str, Any]) -> None:
        if n == 3:
            raise KeyboardInterrupt

    killed = fake(kill)
    with pytest.raises(KeyboardInterrupt):
        run_grid(GRID, output_dir=tmp_path / "killed", progress=False)
    folder = tmp_path / "killed" / "small"
    assert len(killed.calls) == 3 and len(list(folder.glob("ml_100k*.json"))) == 2 and not list(folder.glob("*.tmp"))
    resumed = fake()
    done = run_grid(GRID, output_dir=tmp_path / "killed", progress=False)
    assert len(resumed.calls) == 6 and (done.n_run, done.n_skipped) == (6, 2)
    assert contents(folder) == contents(whole.folder)
    again = fake()
    assert run_grid(GRID, output_dir=tmp_path / "killed", progress=False).n_run == 0 and not again.calls
    assert run_grid(GRID, output_dir=tmp_path / "killed", progress=False, force=True).n_run == 8
    assert len(again.calls) == 8 and all(call["force"] for call in again.calls)


def test_failure_is_recorded_and_the_others_go_on(tmp_path: Path, fake: Callable[..., FakeRun], capsys: Any) -> None:
    def fail(n: int, _: dict[str, Any]) -> None:
        if n == 2:
            raise RuntimeError("out of\n  memory")
        if n == 3:
            raise UserError("weight_decay: expected a number")

    fake(fail)
    done = run_grid(GRID, output_dir=tmp_path)
    assert (done.n_run, done.n_failed) == (8, 2)
    assert "FAILED, RuntimeError: out of memory" in capsys.readouterr().err
    failed = [json.loads(text) for name, text in contents(done.folder).items() if '"error"' in text]
    assert {record["error"] for record in failed} == {
        "RuntimeError: out of memory",
        "UserError: weight_decay: expected a number",
    }
    assert all({"schema_version", "command", "cell"} <= record.keys() for record in failed)
    page = done.report.read_text()
    assert "**2 of 8 cells failed" in page and "RuntimeError: out of memory" in page
    run = fake()
    again = run_grid(GRID, output_dir=tmp_path, progress=False)
    assert (again.n_run, again.n_failed) == (0, 2) and not run.calls  # they have not become any better
    assert "would run 0 cells (8 are there, 2 of them failed)" in str(plan_grid(GRID, output_dir=tmp_path))
    retried = run_grid(GRID, output_dir=tmp_path, progress=False, retry_failed=True)
    assert (retried.n_run, retried.n_failed, len(run.calls)) == (2, 0, 2)
    assert "cells failed" not in retried.report.read_text()


@pytest.mark.parametrize("returned", [None, {"clean": {"hit@50": object()}}, 3])
def test_a_result_that_is_none_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returned: Any) -> None:
    module = types.ModuleType("recbole_robust.quick_start")
    module.run_recbole_robust = lambda **_: returned  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recbole_robust.quick_start", module)
    done = run_grid({**GRID, "seeds": [0]}, output_dir=tmp_path, progress=False)
    assert done.n_failed == done.n_run == 4


def test_no_half_written_file_when_writing_fails(
    tmp_path: Path, fake: Callable[..., FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake()
    replace, written = os.replace, []

    def full(source: Any, target: Any) -> None:
        written.append(target)
        if len(written) == 3:  # the grid file, the first cell, then
            raise OSError("no space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        run_grid(GRID, output_dir=tmp_path, progress=False)
    files = contents(tmp_path / "small")
    assert len(files) == 2 and all(json.loads(text) for text in files.values())
    monkeypatch.setattr(os, "replace", replace)
    assert run_grid(GRID, output_dir=tmp_path, progress=False).n_skipped == 1


def test_unreadable_cell_runs_again(tmp_path: Path, fake: Callable[..., FakeRun]) -> None:
    run = fake()
    done = run_grid(GRID, output_dir=tmp_path, progress=False)
    path = next(done.folder.glob("ml_100k*.json"))
    text = path.read_text()
    path.write_text(text[:50])
    assert run_grid(GRID, output_dir=tmp_path, progress=False).n_run == 1 and len(run.calls) == 9
    assert path.read_text() == text


def test_changed_settings_leave_the_old_cells_out_of_the_tables(tmp_path: Path, fake: Callable[..., FakeRun]) -> None:
    fake()
    run_grid(GRID, output_dir=tmp_path, progress=False)
    done = run_grid({**GRID, "config": {"epochs": 3}}, output_dir=tmp_path, progress=False)
    page = done.report.read_text()
    assert done.n_run == 8 and page.count("Files left out") == 1 and "8 results." in page


def test_only(tmp_path: Path, fake: Callable[..., FakeRun]) -> None:
    run = fake()
    done = run_grid(
        GRID, output_dir=tmp_path, progress=False, only=["attack=Average*", "method=MF", "seed=0", "seed=1"]
    )
    assert done.n_run == 2 and {call["n_fillers"] for call in run.calls} == {105}
    assert run_grid(GRID, output_dir=tmp_path, progress=False, only="attack=Random,method=MF").n_run == 2
    assert run_grid(GRID, output_dir=tmp_path, progress=False, only="method=MF, decay 3e-5,seed=[01]").n_run == 4
    with pytest.raises(UserError, match=r"attack: Random, Average, 105 fillers"):
        run_grid(GRID, output_dir=tmp_path, progress=False, only="attack=Rnd")
    with pytest.raises(UserError, match="<axis>=<pattern>"):
        run_grid(GRID, output_dir=tmp_path, progress=False, only="MF")
