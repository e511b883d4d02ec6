"""Which cell is next, and about how long a grid takes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_robust.cli import main
from recbole_robust.grid import expand
from recbole_robust.schedule import CellQueue, parts_of, plan_grid
from recbole_robust.types import UserError

GRID: dict[str, Any] = {
    "name": "g",
    "datasets": ["toy"],
    "attacks": [None, "Random", "Average"],
    "methods": ["MF", "BPR", "Pop"],
    "seeds": [0, 1],
}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_every_cell_once_and_no_two_make_the_same(n_workers: int, seed: int) -> None:
    """Whatever ends first: no cell waits for a part while another could run that waits for none."""
    cells, rng = expand(GRID), random.Random(seed)
    queue, running, made, ended = CellQueue(cells), [], set(), []
    while len(ended) < len(cells):
        while len(running) < n_workers and (cell := queue.take()) is not None:
            in_work = {part for other in running for part in parts_of(other)} - made
            waiting = [c for c in cells if c not in running and c not in ended and c is not cell]
            assert not in_work & parts_of(cell) or all(in_work & parts_of(other) for other in waiting)
            running.append(cell)
        cell = running.pop(rng.randrange(len(running)))
        if rng.random() < 0.2:  # its worker died
            queue.give_back(cell)
            continue
        queue.done(cell)
        made |= parts_of(cell)
        ended.append(cell)
    assert queue.take() is None and len({cell.id for cell in ended}) == len(cells)


def test_one_worker_has_the_order_of_the_grid() -> None:
    cells, taken = expand(GRID), []
    queue = CellQueue(cells)
    while (cell := queue.take()) is not None:
        queue.done(cell)
        taken.append(cell)
    assert taken == cells


def result(dataset: str, model: str, attack: str | None, seconds: float) -> dict[str, Any]:
    return {"dataset": dataset, "model": model, "defense": None, "attack": attack, "seconds": {"total": seconds}}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_time_is_that_of_the_most_similar_results(tmp_path: Path) -> None:
    assert plan_grid(GRID, output_dir=tmp_path).n_unknown == 18
    write(tmp_path / "a" / "result.json", result("toy", "MF", "Random", 10.0))
    write(tmp_path / "b.json", result("toy", "MF", "Random", 30.0))
    write(tmp_path / "c.json", result("toy", "BPR", "Average", 7.0))
    write(tmp_path / "d.json", result("ml-100k", "Pop", None, 1000.0))
    write(tmp_path / "half.json", '{"seconds":')
    plan = plan_grid(GRID, output_dir=tmp_path)
    # MF under Random: the median, 20; MF otherwise the same; BPR 7; Pop: the median of the data set, 10
    assert plan.seconds == 6 * 20 + 6 * 7 + 6 * 10 and plan.n_unknown == 0
    assert plan_grid(GRID, output_dir=tmp_path, workers=2).seconds == plan.seconds / 2
    slow = {**result("toy", "MF", "Random", 500.0), "config": {"preset": "literal"}}
    write(tmp_path / "e.json", slow)  # of another kind, which is no measure of these
    assert plan_grid(GRID, output_dir=tmp_path, only="method=MF").seconds == 6 * 20
    (tmp_path / "e.json").unlink()
    other = plan_grid({**GRID, "datasets": ["toy", "yelp"]}, output_dir=tmp_path)
    assert other.n_unknown == 18 and "would run 36 cells (0 are there): about 4 min for 18 of them" in str(other)


def test_the_time_of_a_first_run_is_that_of_results_elsewhere(tmp_path: Path, monkeypatch: Any) -> None:
    """Of the grid that is reused, or else of the shipped results; one's own come first."""
    monkeypatch.setattr("recbole_robust.schedule.properties_dir", lambda: tmp_path / "properties")
    write(tmp_path / "results" / "a.json", result("toy", "MF", None, 10.0))
    only, keys = "method=MF,attack=clean", {"output_dir": tmp_path / "out"}
    n_cells = len(plan_grid(GRID, only=only, **keys).cells)
    assert plan_grid(GRID, only=only, **keys).seconds == 10 * n_cells
    write(tmp_path / "out" / "b.json", result("toy", "MF", None, 3.0))
    assert plan_grid(GRID, only=only, **keys).seconds == 3 * n_cells


def test_dry_run_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "grid.yaml", json.dumps(GRID))
    words = ["benchmark", str(tmp_path / "grid.yaml"), f"--output_dir={tmp_path / 'out'}", "--dry-run"]
    assert main([*words, "--only=seed=1,method=MF"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "toy | clean | MF | default | seed 1",
        "toy | Random | MF | default | seed 1",
        "toy | Average | MF | default | seed 1",
        "would run 3 cells (0 are there): how long is not known",
    ]
    assert not (tmp_path / "out").exists()
    assert main([*words, "--workers=-1"]) == 2
    with pytest.raises(UserError, match="workers"):
        plan_grid(GRID, output_dir=tmp_path, workers=-1)
