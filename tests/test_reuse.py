"""Cells of other grids: those of equal keys and an equal configuration are taken, and no other."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_robust.benchmark import run_grid
from recbole_robust.config import Config
from recbole_robust.results import CODE
from recbole_robust.schedule import plan_grid
from recbole_robust.types import UserError

FIRST: dict[str, Any] = {
    "name": "first",
    "datasets": ["ml-100k"],
    "attacks": ["Random", "Average"],
    "methods": [{"model": "MF"}, {"model": "Pop"}],
    "seeds": [0, 1],
    "config": {"protocol": "apt"},
}
# Four of its eight cells are the first grid's, under another label.
SECOND: dict[str, Any] = {
    **FIRST,
    "name": "second",
    "methods": [{"model": "MF", "label": "plain"}, {"model": "DampedMean"}],
}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Instead of training: a result with the configuration of the run; what ran is in the list."""
    calls: list[tuple[str, str, int]] = []

    def run(*, model: str, dataset: str, config_dict: dict[str, Any]) -> dict[str, Any]:
        calls.append((model, config_dict["attack"], config_dict["seed"]))
        config = Config(model, dataset, config_dict=config_dict)
        return {
            "schema_version": 1,
            "model": model,
            "config": config.resolved(),
            "code": CODE,
            "clean": {"hit@50": 0.25},
            "number": len(calls),
        }

    module = types.ModuleType("recbole_robust.quick_start")
    module.run_recbole_robust = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recbole_robust.quick_start", module)
    return calls


def run(grid: dict[str, Any], output_dir: Path, **options: Any) -> Any:
    return run_grid(grid, output_dir=output_dir, progress=False, **options)


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("*-seed*.json")]


def edited(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    for path in folder.glob("*-seed*.json"):
        result = json.loads(path.read_text())
        edit(result)
        path.write_text(json.dumps(result))


def test_equal_cells_are_taken_with_the_labels_of_their_new_grid(tmp_path: Path, ran: list[Any]) -> None:
    run(FIRST, tmp_path)
    before = {(r["model"], r["cell"]["attack"], r["cell"]["seed"]): r["number"] for r in results(tmp_path / "first")}
    ran.clear()
    found = run(SECOND, tmp_path, reuse=tmp_path / "first")
    assert {model for model, _, _ in ran} == {"DampedMean"} and len(ran) == 4
    assert (found.n_run, found.n_reused, found.n_skipped) == (4, 4, 0)
    taken = [result for result in results(tmp_path / "second") if result["model"] == "MF"]
    assert len(taken) == 4
    for result in taken:
        cell = result["cell"]
        assert (cell["grid"], cell["method"]) == ("second", "plain")
        assert result["number"] == before["MF", cell["attack"], cell["seed"]]
    again = run(SECOND, tmp_path, reuse=tmp_path / "first")
    assert (again.n_run, again.n_reused, again.n_skipped) == (0, 0, 8)


def test_the_plan_tells_of_them(tmp_path: Path, ran: list[Any]) -> None:
    run(FIRST, tmp_path)
    plan = plan_grid(SECOND, output_dir=tmp_path / "other", reuse=tmp_path)
    assert (len(plan.cells), plan.n_reused) == (4, 4)
    assert "would run 4 cells (0 are there, 4 in other grids)" in str(plan)


@pytest.mark.parametrize(
    "edit",
    [
        lambda result: result["config"].update(embedding_size=8),
        lambda result: result["config"].update(a_key_that_is_gone=1),
        lambda result: result["config"].pop("weight_decay"),
        lambda result: result["config"]["attack_args"].pop("intent"),
        lambda result: result.update(code="0" * 12),
        lambda result: result.pop("code"),
        lambda result: result.update(error="UserError: it failed"),
        lambda result: result.update(command=result["command"] + " --epochs=1"),
        lambda result: result.pop("config"),
        lambda result: result.pop("cell"),
    ],
    ids=[
        "another value",
        "a key that is gone",
        "a new key",
        "a new argument",
        "another code",
        "no code",
        "failed",
        "another command",
        "no config",
        "no cell",
    ],
)
def test_what_differs_runs(tmp_path: Path, ran: list[Any], edit: Callable[[dict[str, Any]], None]) -> None:
    run(FIRST, tmp_path)
    edited(tmp_path / "first", edit)
    ran.clear()
    found = run(SECOND, tmp_path, reuse=tmp_path / "first")
    assert (len(ran), found.n_reused) == (8, 0)


def test_force_and_files_of_another_kind(tmp_path: Path, ran: list[Any]) -> None:
    run(FIRST, tmp_path)
    (tmp_path / "first" / "broken-seed0.json").write_text("{")
    (tmp_path / "first" / "list-seed0.json").write_text("[1, 2]")
    assert run(SECOND, tmp_path, reuse=tmp_path / "first", force=True).n_run == 8
    assert run({**SECOND, "name": "third"}, tmp_path / "other", reuse=tmp_path / "first").n_reused == 4


def test_no_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^reuse: expected a folder with results, got '.*nowhere'$"):
        run(FIRST, tmp_path, reuse=tmp_path / "nowhere")
    assert not (tmp_path / "first").exists()


def test_the_order_of_the_keys_does_not_matter(ran, tmp_path):
    """A key of the second grid's data set is one of the first's ``config``, and so stands elsewhere in the command."""
    first = {**FIRST, "config": {"protocol": "apt", "learning_rate": 2.0, "embedding_size": 8}}
    second = {**first, "name": "second", "config": {"embedding_size": 8, "protocol": "apt"},
              "datasets": [{"dataset": "ml-100k", "learning_rate": 2.0}]}  # fmt: skip
    run(first, tmp_path)
    n_run = len(ran)
    found = run(second, tmp_path, reuse=tmp_path)
    assert (found.n_reused, found.n_run, len(ran)) == (n_run, 0, n_run)
