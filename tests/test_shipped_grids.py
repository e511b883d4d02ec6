"""The grids that ship with the project: they can be read, they name what there is, and they share what is equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recbole_robust.benchmark import run_grid
from recbole_robust.config import Config
from recbole_robust.grid import expand, load_grid
from recbole_robust.properties_path import properties_dir
from recbole_robust.types import UserError


@pytest.mark.parametrize("path", sorted((properties_dir() / "benchmark").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_grids_that_we_ship_are_read(path):
    grid = load_grid(path)
    cells = expand(grid)
    assert grid["name"] == path.stem
    assert len({cell.id for cell in cells}) == len(cells) > 1


@pytest.mark.slow
def test_the_grids_that_we_ship_name_what_there_is(tmp_path):
    """One cell of each method and of each attack gives a Config: no misspelt key, model, attack or defense."""
    for path in sorted((properties_dir() / "benchmark").glob("*.yaml")):
        cells = expand(load_grid(path))
        once = {cell.method: cell for cell in cells} | {cell.attack: cell for cell in cells}
        for cell in once.values():
            keys = {**cell.keys, "baseline": "none", "output_dir": str(tmp_path)}
            config = Config(keys.pop("model"), keys.pop("dataset"), config_dict=keys)
            assert (config["attack"], config["defense"]) == (cell.keys.get("attack"), cell.keys.get("defense"))


# --- a cell of two grids is one training ------------------------------------------------------------------------------


def keys_of(*names: str) -> set[str]:
    return {json.dumps(cell.keys, sort_keys=True) for name in names for cell in expand(load_grid(name))}


def test_a_name_that_several_grids_begin_with_names_those() -> None:
    tables = [f"purifyaug_table1_{name}" for name in ("budgets", "budgets_ml-1m", "ml-100k", "ml-1m", "yelp-hin")]
    with pytest.raises(UserError, match=f"one of {', '.join(tables)}, got 'purifyaug_table1'"):
        load_grid("purifyaug_table1")
    with pytest.raises(UserError, match=r"one of apt_ml-100k, .*, transfer_ml-100k, got 'no'"):
        load_grid("no")


@pytest.mark.parametrize(
    ("name", "others", "own"),
    [
        (
            "purifyaug_table1_ml-100k",
            ["defenses_ml-100k", "purifyaug_ml-100k"],
            {"LightGCN", "RGCF", "PurifyAugMF (literal)"},
        ),
        ("purifyaug_table1_ml-100k", ["attacks_implicit_ml-100k"], None),
        ("purifyaug_table1_ml-1m", ["purifyaug_ml-1m"], None),
        ("transfer_ml-100k", ["purifyaug_ml-100k"], None),
        ("transfer_ml-100k", ["attacks_implicit_ml-100k"], None),
        ("budget_curve_ml-100k", ["defenses_ml-100k", "purifyaug_ml-100k"], {"PurifyAugMF, usual .85"}),
    ],
)
def test_grids_that_say_so_have_equal_cells(name: str, others: list[str], own: set[str] | None) -> None:
    """As their comments say. ``own``: the methods that no other grid has, where all other rows shall be shared."""
    there, usual = keys_of(*others), ("attack_size", 0.03)
    shared: dict[str, list[bool]] = {}
    for cell in expand(load_grid(name)):
        keys = {key: value for key, value in cell.keys.items() if (key, value) != usual}
        if "attack_size" not in keys:
            shared.setdefault(cell.method, []).append(json.dumps(keys, sort_keys=True) in there)
    assert any(any(found) for found in shared.values())
    if own is not None:
        assert {method for method, found in shared.items() if not all(found)} == own


def test_a_cell_that_another_grid_has_run_is_not_trained_again(
    tmp_path: Path, data_path: Path, trainings: list[str]
) -> None:
    """Equal configurations in one output_dir are one run, whatever the grids, the axes and the labels are called."""
    config = {"protocol": "apt", "topk": [5], "epochs": 2, "use_gpu": False, "data_path": str(data_path)}
    size = {"attack": "Average", "attack_size": 0.05}
    first = {"name": "first", "datasets": ["toy"], "attacks": [size], "methods": ["MF"], "seeds": [0], "config": config}
    one = run_grid(first, output_dir=tmp_path, progress=False)
    assert trainings == ["MF clean", "MF attacked"] and one.n_failed == 0
    curve = [{**size, "label": "5 %"}, {**size, "attack_size": 0.1, "label": "10 %"}]
    second = {**first, "name": "second", "attacks": curve, "methods": [{"model": "MF", "label": "plain"}]}
    other = run_grid(second, output_dir=tmp_path, progress=False)
    assert trainings == ["MF clean", "MF attacked", "MF attacked"]  # the second size alone, on the same clean model
    assert (other.n_run, other.n_failed) == (2, 0)
    (before,) = [json.loads(path.read_text()) for path in one.folder.glob("toy*.json")]
    (again,) = [json.loads(path.read_text()) for path in other.folder.glob("toy-5*.json")]
    assert again["cell"]["attack"] == "5 %" and again["cell"]["grid"] == "second"
    own = ("cell", "command")
    assert {k: v for k, v in again.items() if k not in own} == {k: v for k, v in before.items() if k not in own}
    run_grid(second, output_dir=tmp_path, progress=False, force=True)
    assert len(trainings) > 3
