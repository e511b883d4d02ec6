"""What a report shows of the grids that we ship: every figure that their axes ask for, with its table's numbers."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest

from recbole_robust.grid import Cell, expand, load_grid
from recbole_robust.properties_path import properties_dir
from recbole_robust.report import read_grid
from recbole_robust.report.as_html import html
from recbole_robust.report.page import Page, make_page
from recbole_robust.report.plots import figures
from recbole_robust.report.published import load_published
from recbole_robust.report.tables import Measured, make_entries

N_GENUINE = 1000
STRENGTH = {"Random": 0.2, "Average": 0.3}  # all others 0.4


def invented(cell: Cell) -> dict[str, Any]:
    """A result of a cell: the lift grows with K and with the number of fakes, and a defense halves it."""
    ks = cell.keys.get("topk", [10, 50])
    size = cell.keys.get("attack_size", 0.03)
    attack = cell.keys["attack"]
    scale = STRENGTH.get(attack, 0.4) * (1 - math.exp(-40 * size)) * (1.0 if cell.method == "MF" else 0.5)
    clean = {f"{name}@{k}": 0.05 + 0.001 * cell.seed for k in ks for name in ("hit", "tailhit", "targethr")}
    lift = {name: 0.0 for name in clean}
    lift |= {f"targethr@{k}": scale * (k / max(ks)) ** 0.5 + 0.002 * cell.seed for k in ks}
    return {
        "schema_version": 1,
        "command": cell.command(),
        "model": cell.keys["model"],
        "dataset": cell.keys["dataset"],
        "attack": attack,
        "defense": cell.keys.get("defense"),
        "seed": cell.seed,
        "config": {"attack_size": size, "attack_args": cell.keys.get("attack_args", {})},
        "poison": {"n_fake_users": round(size * N_GENUINE), "stealth": {"pca_auc": 0.6, "co_rating_auc": 0.9}},
        "clean": clean,
        "attacked": {name: value + lift[name] for name, value in clean.items()},
        "lift": lift,
        "n_genuine": N_GENUINE,
        "cell": cell.labels(),
    }


@functools.cache
def page_of(name: str) -> Page:
    """The report of two rows of a grid (the bootstrap of all would take a minute)."""
    grid = load_grid(name)
    cells = [cell for cell in expand(grid) if cell.method in ("MF", "PurifyAugMF")]
    order = {axis: list(dict.fromkeys(getattr(cell, axis) for cell in cells)) for axis in ("attack", "method")}
    return make_page([invented(cell) for cell in cells], order=order, source=name, **grid["report"])


def shown_of(page: Page, title: str) -> dict[str, dict[Any, float]]:
    """The series of a figure: method to x to y."""
    (figure,) = [one for one in figures(page, page.datasets[0]) if one.title == title]
    return {trace["name"]: dict(zip(trace["x"], trace["y"], strict=True)) for trace in figure.data}


FRONTIERS = ["Lift removed against hit@50 kept", "Lift removed against tailhit@50 kept"]
TITLES = {
    "purifyaug_table1_ml-100k": FRONTIERS,
    "purifyaug_table1_ml-1m": FRONTIERS,
    "purifyaug_table1_yelp-hin": [title.replace("@50", "@1000") for title in FRONTIERS],
    "transfer_ml-100k": FRONTIERS,
    "budget_curve_ml-100k": [*FRONTIERS, "Budget curve of Average", "Budget curve of CopyProfile"],
    "k_curve_ml-100k": [*FRONTIERS, *(f"K curve of {attack}" for attack in ("Average", "CopyProfile", "TNA"))],
}


@pytest.mark.parametrize("name", TITLES)
def test_every_figure_of_a_grid_is_on_its_page(name: str) -> None:
    page = page_of(name)
    (dataset,) = page.datasets
    found = figures(page, dataset)
    assert [one.title for one in found] == ["What the attacks do to MF", *TITLES[name], "Stealth against lift"]
    assert all(trace["x"] and len(trace["x"]) == len(trace["y"]) for one in found for trace in one.data)
    text = html([page], "x")
    assert text.count("<figure>") == len(found) and all(one.title in text for one in found)


def test_the_budget_curves_go_through_all_sizes() -> None:
    series = shown_of(page_of("budget_curve_ml-100k"), "Budget curve of CopyProfile")
    assert list(series) == ["MF", "PurifyAugMF"]
    for its in series.values():
        assert list(its) == pytest.approx([0.5, 1, 2, 3, 5, 10]) and list(its.values()) == sorted(its.values())


def test_the_k_curves_go_through_all_k_and_hold_the_numbers_of_their_table() -> None:
    page = page_of("k_curve_ml-100k")
    series = shown_of(page, "K curve of TNA")
    (table,) = [one for one in page.judging("ml-100k").tables if one.title == "Lift of targethr by K"]
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert list(rows) == list(series) == ["MF", "PurifyAugMF"]
    for method, its in series.items():
        assert list(its) == [1, 5, 10, 20, 50, 100, 200] and list(its.values()) == sorted(its.values())
        for k, y in its.items():
            cell = rows[method][f"TNA: @{k}"]
            assert isinstance(cell, Measured) and cell.interval is not None
            assert 100 * cell.interval.mean == pytest.approx(y)


def test_two_k_are_no_curve() -> None:
    page = page_of("transfer_ml-100k")
    assert not any("by K" in table.title for section in page.sections for table in section.tables)


def test_the_papers_values_stand_beside_both_forms_of_its_model() -> None:
    def published(name: str, metric: str) -> dict[tuple[str, str], dict[str | None, float | None]]:
        cells = [cell for cell in expand(load_grid(name)) if cell.seed == 0]
        table = load_published("purifyaug_table1")
        found: dict[tuple[str, str], dict[str | None, float | None]] = {}
        for entry in make_entries([invented(cell) for cell in cells]):
            if entry.target_set in ("apt_1", "random_0"):
                its = found.setdefault((entry.target_set, entry.method), {})
                for place in (entry, entry.on_clean()):
                    beside = table.lookup(place, metric)
                    assert beside is None or beside.same
                    its[place.attack] = beside and beside.percent
        return found

    rows = published("purifyaug_table1_ml-100k", "targethr@50")
    first = {method: its for (targets, method), its in rows.items() if targets == "apt_1"}
    assert first["MF"] == {None: 4.34, "Random": 19.83, "Average": 31.33, "AUSH": 41.37, "TNA": 46.68, "DADA": 52.39}
    assert first["PurifyAugMF"] == first["PurifyAugMF (literal)"] and first["PurifyAugMF"]["DADA"] == 15.67
    told = {method for method, its in first.items() if its["TNA"] is not None}
    assert told == {"MF", "MF + AT", "PCMF", "RGCF", "MF + GDA", "MF + APT", "PurifyAugMF", "PurifyAugMF (literal)"}
    assert {value for (targets, _), its in rows.items() if targets == "random_0" for value in its.values()} == {None}
    yelp = published("purifyaug_table1_yelp-hin", "targethr@1000")["random_0", "MF"]
    assert (yelp[None], yelp["AUSH"]) == (1.31, 13.61)


def test_the_results_are_those_of_the_grids_that_we_ship(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that each page tells makes its cells, and its report."""
    repository = properties_dir().parent
    monkeypatch.chdir(repository)
    grids = [read_grid(path) for path in sorted((repository / "results").glob("*/grid.json"))]
    assert grids
    for told in grids:
        shipped = load_grid(told["source"])
        assert set(told["cells"]) <= {one.id for one in expand(shipped)}, told["name"]
        assert (told["name"], told["report"]) == (shipped["name"], shipped.get("report", {}))
