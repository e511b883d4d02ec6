"""Reports from small invented cells in a temporary folder: every number of a page is one of the files'."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cells import METRICS, cell, write

from recbole_robust import report
from recbole_robust.properties_path import properties_dir
from recbole_robust.report import load_published, load_results, render_markdown, write_report
from recbole_robust.report.tables import Measured
from recbole_robust.statistics import Interval, hierarchical_bootstrap
from recbole_robust.types import UserError


def table(page: str, heading: str) -> list[list[str]]:
    """The rows (header first) of the first table below a heading that starts so."""
    lines = page[page.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]])
    assert len({len(row) for row in rows}) == 1, "a row has another number of columns than the header"
    return [rows[0], *rows[2:]]


def render(cells: list[dict[str, Any]], **options: Any) -> str:
    return render_markdown(cells, **{"title": "T", "metrics": METRICS, **options})


def test_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    write(tmp_path, [cell(seed=seed) for seed in range(5)])
    page = render(load_results(tmp_path), published="purifyaug_table1")
    header, row = table(page, "### targethr@50")
    assert header == ["method", "clean", "Average: attacked", "Average: lift", "seeds"]
    values = [0.30, 0.31, 0.32, 0.33, 0.34]
    interval = hierarchical_bootstrap(values, range(5), rng=np.random.default_rng(0), bounds=(0, 1))
    assert row[0] == "MF" and row[-1] == "5"
    assert row[1].startswith("4.2 [") and row[1].endswith("] (4.34)")
    assert row[2] == f"32.0 [{100 * interval.low:.1f}, {100 * interval.high:.1f}] (31.33)"
    assert row[3].startswith("+27.8 [+")


def test_accuracy_table_has_clean_and_attacked_rows() -> None:
    page = render([cell(seed=seed) for seed in range(2)])
    rows = table(page, "### Accuracy")
    assert rows[0] == ["method", "data", "hit@50, %", "recall@50, %", "tailhit@50, %", "seeds"]
    assert [row[:3] for row in rows[1:]] == [
        ["MF", "clean", "23.0 [23.0, 23.0]"],
        ["MF", "Average", "22.0 [22.0, 22.0]"],
    ]


def test_clean_value_counts_once_a_seed() -> None:
    page = render([cell(attack=attack, seed=s) for attack in (None, "Random", "Average") for s in range(3)])
    (_, row) = table(page, "### targethr@50")
    assert row[-1] == "3" and "differs" not in page
    odd = cell(attack="Random", seed=0)
    odd["clean"]["targethr@50"] += 0.01
    assert "MF: targethr@50 on clean data differs" in render([odd, cell(attack="Average", seed=0)])


def test_single_seed_has_no_interval() -> None:
    _, row = table(render([cell()]), "### targethr@50")
    assert row[1:] == ["4.0", "30.0", "+26.0", "1"]


def test_published_columns_by_method() -> None:
    published = load_published("purifyaug_table1")
    methods = ("MF", "PurifyAugMF", "PurifyAugMF (literal)", "PurifyAugMF (surprise)", "MF + APT", "MF, decay 3e-5")
    page = render([cell(method) for method in methods], published=published)
    rows = {row[0]: row for row in table(page, "### targethr@50")[1:]}
    assert rows["MF"][1].endswith("(4.34) ○") and rows["MF"][2].endswith("(31.33) ○")  # one seed
    assert rows["PurifyAugMF"][1] == "4.0" and rows["PurifyAugMF"][2].endswith("(9.32) ○")
    assert rows["PurifyAugMF (literal)"][2].endswith("(9.32) ○")
    assert rows["MF + APT"][2].endswith("(9.17) ○")
    assert "(" not in "".join(rows["MF, decay 3e-5"][1:] + rows["PurifyAugMF (surprise)"][1:])
    for attack, mark in (("Average", " ▲"), ("Average, 105 fillers", " ○")):  # of another budget, perhaps
        cells = [cell(attack=attack, seed=seed) for seed in range(5)]
        for one in cells:
            one["attacked"] = {**one["attacked"], "targethr@50": 0.5 + 0.01 * one["cell"]["seed"]}
        assert f"(31.33){mark} |" in render(cells, published=published)
    assert "(31.33)" not in render(
        [cell(dataset="ml-1m", cell={**cell()["cell"], "dataset": "ml-1m"})], published=published
    )


def test_published_stands_beside_its_own_targets_alone() -> None:
    for target_set, shown in (("apt_1", True), ("random_0", False)):
        labelled = cell(cell={**cell()["cell"], "target_set": target_set})
        assert ("(31.33)" in render([labelled], published="purifyaug_table1")) is shown


def test_a_published_table_has_a_twin_in_its_shape() -> None:
    methods = ("MF", "MF, decay 3e-5", "PurifyAugMF", "MF + APT")
    attacks = ("Average", "Average, 105 fillers", "PGA", "Random")
    cells = [cell(method, attack, seed) for method in methods for attack in attacks for seed in range(3)]
    page = render(cells, published="purifyaug_table1", order={"method": methods})
    header, *rows = table(page, "### As purifyaug_table1: targethr@50")
    assert header == ["attack", "clean", "MF", "PurifyAugMF", "MF + APT", "seeds"]
    assert [row[0] for row in rows] == ["Average", "Random"]
    assert [re.findall(r"\((.*?)\)", text)[0] for text in rows[0][1:-1]] == ["4.34", "31.33", "9.32", "9.17"]
    long_rows = {row[0]: row for row in table(page, "### targethr@50")[1:]}
    assert rows[0][1:3] == long_rows["MF"][1:3]  # the same numbers, with the same marks
    cells = [cell("MF", "PGA", seed) for seed in range(3)]
    assert "As purifyaug" not in render(cells, published="purifyaug_table1")


def test_small_numbers_are_shown_as_they_are_published() -> None:
    interval = Interval(0.00012, 0.0, 0.0004, 3, 3)
    assert Measured(interval, percent=True, published=0.01).numbers == ["0.01", "0.00", "0.04"]
    assert Measured(interval, percent=True, published=31.33).numbers == ["0.0", "0.0", "0.0"]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.0, 0.00004, "below"),
        (0.0, 0.00006, "inside"),  # 0.006 %, published as 0.01
        (0.00014, 0.001, "inside"),
        (0.00016, 0.001, "above"),
    ],
)
def test_a_published_value_is_rounded(low, high, verdict) -> None:
    assert Measured(Interval((low + high) / 2, low, high, 3, 3), percent=True, published=0.01).verdict == verdict


def test_published_of_another_cutoff_is_not_shown() -> None:
    one = cell()
    for part in ("clean", "attacked", "lift"):
        one[part] = {"targethr@20": 0.1}
    page = render_markdown([one], title="T", published="purifyaug_table1")
    assert table(page, "### targethr@20")[1][1:] == ["10.0", "10.0", "+10.0", "1"]


def test_shipped_published_table_is_complete() -> None:
    assert (properties_dir() / "benchmark" / "published" / "purifyaug_table1.csv").is_file()
    values = load_published("purifyaug_table1").values
    assert values["ml-1m", "dada", "purifyaugmf", 50] == 14.97
    assert values["yelp", None, "mf", 1000] == 1.31
    assert len(values) == 15 * 7 + 3
    with pytest.raises(UserError, match="one of purifyaug_table1"):
        load_published("table9")


def test_malformed_published_table(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("dataset,attack,k,original\nx,y,z,1\n")
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_published(path)


def test_target_sets_apart_and_pooled() -> None:
    cells = [cell(seed=seed, target_set=name) for seed in range(3) for name in ("apt_0", "apt_1")]
    page = render(cells, published="purifyaug_table1")
    assert page.index("## ml-100k, targets: apt_0") < page.index("## ml-100k, targets: apt_1")
    pooled = table(page[page.index("all 2 target sets") :], "### targethr@50")
    assert pooled[1][-1] == "3 (6 values)"
    assert "(4.34)" not in pooled[1][1]  # a published value belongs to one target set
    assert page.count("### Accuracy") == 2  # which has nothing of the target set on clean data


def test_order_of_labels_and_missing_numbers() -> None:
    cells = [cell("Pop", None), cell("MF"), cell("MF", "Random"), cell("Zed", "Random")]
    page = render(cells, order={"method": ["Zed", "MF"], "attack": [None, "Random", "Average"]})
    rows = table(page, "### targethr@50")
    assert rows[0][2] == "Random: attacked"
    assert [row[0] for row in rows[1:]] == ["Zed", "MF", "Pop"]
    assert rows[3][2:] == ["-", "-", "-", "-", "1"]


def test_labels_are_escaped() -> None:
    label = "MF|a*b\n<i>"
    page = render([cell(label)])
    assert table(page, "### targethr@50")[1][0] == r"MF\|a\*b \<i>"
    assert "&" not in page


def test_only_metrics_that_exist_and_ranks_are_plain_numbers() -> None:
    one = cell()
    one["clean"]["targetrank"], one["attacked"]["targetrank"] = 812.25, 40.5
    one["lift"]["targetrank"] = -771.75
    page = render_markdown([one], title="T", metrics=["targetrank", "ndcg@50", "hit@50"])
    assert table(page, "### targetrank")[1][1:4] == ["812.2", "40.5", "-771.8"]
    assert "ndcg" not in page and "targethr" not in page
    one["attacked"]["targetrank"] = None
    assert "-771" in render_markdown([one], title="T", metrics=["targetrank"])


def test_default_metrics_are_the_usual_ones() -> None:
    page = render_markdown([cell()], title="T", metrics=None)
    assert "### targethr@50" in page and table(page, "### Accuracy")[0][2:] == [
        "hit@50, %",
        "recall@50, %",
        "tailhit@50, %",
        "seeds",
    ]


def test_strength_of_the_attacks_is_told() -> None:
    cells = [cell(seed=seed) for seed in range(5)] + [cell(attack="Random", seed=seed) for seed in range(2)]
    page = render(cells)
    assert "Average: lift +27.8 points, p = 0.031, n = 5;" in page
    assert "Random: lift +26.5 points, p = 0.250, n = 2 (judges no defense: so few pairs cannot, whatever" in page
    for one in cells:
        one["attacked"]["targethr@50"] = 0.95
    page = render(cells)
    assert "n = 5 (saturated, judges no defense)" in page
    assert "n = 2 (saturated, judges no defense; so few pairs cannot, whatever the attack does)" in page
    assert "Strength" not in render([cell("Pop")])


def test_what_a_defense_removes_and_what_it_keeps() -> None:
    """Against the undefended model, by hand: half of the lift, all of tailhit, 20 of 23 hits."""
    cells = []
    for seed in range(8):
        plain, ours = cell(seed=seed), cell("MF + AT", seed=seed)
        ours["clean"] = {**ours["clean"], "hit@50": 0.20}
        ours["lift"] = {**ours["lift"], "targethr@50": plain["lift"]["targethr@50"] / 2}
        ours["clean"]["recall@50"] += 0.01 * (-1) ** seed
        cells += [plain, ours, cell(attack="Random", seed=seed, attacked=plain["clean"])]
    page = render_markdown(cells, title="t", metrics=METRICS)
    header, row = table(page, "### Share of MF's lift removed")
    assert header[1:-1] == ["Average: removed, %", "hit@50 kept, %", "recall@50 kept, %", "tailhit@50 kept, %"]
    assert row[0] == "MF + AT" and [text.split()[0] for text in row[1:-1]] == ["50.0", "87.0", "100.0", "100.0"]
    assert row[-1] == "8"
    assert row[1] == "50.0 [50.0, 50.0]"  # lifts differ from seed to seed, their halves with them
    low, high = (float(text) for text in re.findall(r"[\d.]+", row[3])[1:])
    assert low < 99.0 and high > 101.0


def test_no_defense_is_judged_by_an_attack_that_does_nothing() -> None:
    cells = [cell(method, seed=seed) for method in ("MF", "X") for seed in range(8)]
    cells = [{**one, "attacked": one["clean"]} for one in cells]
    assert "lift removed" not in render_markdown(cells, title="t", metrics=METRICS)
    assert "lift removed" not in render_markdown([cell(seed=seed) for seed in range(8)], title="t", metrics=METRICS)


def test_failed_cells_are_listed() -> None:
    failed = {"schema_version": 1, "command": "c", "cell": cell(seed=3)["cell"], "error": "ValueError: a | b"}
    page = render([cell(), failed])
    assert "**1 of 2 cells failed" in page
    assert page.rstrip().endswith(r"- ml-100k, apt_1, Average, MF, seed 3: ValueError: a \| b")
    assert "Failed cells" in render([failed])


def test_commands_versions_and_device() -> None:
    page = render([cell(seed=seed) for seed in (0, 2)] + [cell("Pop", None, seed=1)], source="grid.yaml")
    command = "python run_recbole_robust.py --model=MF --dataset=ml-100k --attack=Average --seed=$seed"
    assert f"for seed in 0 2; do\n  {command}\ndone" in page
    assert "for seed in 1; do" in page and "benchmark grid.yaml" in page
    assert "python 3.11.7; torch 2.9.0; device cpu; threads 2" in page


def test_runs_outside_a_grid_show_settings_and_baseline() -> None:
    command = "python run_recbole_robust.py --model=PurifyAugMF --dataset=ml-100k --attack=Average --kl_T={} --gpu_id=0"
    runs = []
    for temperature in (2, 4):
        run = cell("PurifyAugMF", command=command.format(temperature))
        del run["cell"]
        run["baseline"] = {"model": "MF", "defense": None, **{k: run[k] for k in ("clean", "attacked", "lift")}}
        runs.append(run)
    page = render(runs)
    assert [row[0] for row in table(page, "### targethr@50")[1:]] == [
        "MF (baseline of PurifyAugMF kl_T=2)",
        "MF (baseline of PurifyAugMF kl_T=4)",
        "PurifyAugMF kl_T=2",
        "PurifyAugMF kl_T=4",
    ]


def test_two_files_of_one_cell_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, [cell(), cell()])
    with pytest.raises(UserError, match=r"cell000.json and cell001.json"):
        write_report(tmp_path)


def test_load_results_passes_over_other_json_and_names_bad_files(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", [cell()])
    (tmp_path / "card.json").write_text('{"items": [1]}')
    (tmp_path / "list.json").write_text("[1, 2]")
    assert [result["path"] for result in load_results(tmp_path)] == ["a/b/cell000.json"]
    bad = tmp_path / "half.json"
    for text in ('{"schema_version": 1, "comm', json.dumps({**cell(), "schema_version": 9})):
        bad.write_text(text)
        with pytest.raises(UserError, match=r"half\.json"):
            load_results(tmp_path)
    for wrong in ({"clean": {"hit@50": "high"}}, {"clean": [1]}, {"cell": {"method": "MF"}}):
        bad.write_text(json.dumps({**cell(), **wrong}))
        with pytest.raises(UserError, match=r"half\.json"):
            load_results(tmp_path)
    with pytest.raises(UserError, match="expected a folder"):
        load_results(tmp_path / "nowhere")


def test_write_report_uses_the_grid_file_and_leaves_old_cells_out(tmp_path: Path) -> None:
    write(tmp_path / "g", [cell("MF"), cell("Zed"), cell("Old")])
    grid = {
        "name": "g",
        "source": "g.yaml",
        "report": {"title": "The title", "metrics": ["targethr@50"], "published": "purifyaug_table1"},
        "axes": {"method": ["Zed", "MF"]},
        "cells": ["cell000", "cell001", "cell007", "cell008"],
    }
    (tmp_path / "g" / "grid.json").write_text(json.dumps(grid))
    path = write_report(tmp_path / "g")
    page = path.read_text()
    assert path == tmp_path / "g" / "report.md" and page.startswith("# The title\n")
    assert [row[0] for row in table(page, "### targethr@50")[1:]] == ["Zed", "MF"]
    assert "Accuracy" not in page and page.rstrip().endswith("- cell002.json")
    assert "2 results; 2 cells of the grid have not run." in page
    out = write_report(tmp_path, tmp_path / "all.md")
    assert "# The title" in out.read_text() and "Zed" in out.read_text()
    assert write_report(tmp_path / "g").read_text() == page  # the same bits each time


def test_write_report_needs_results(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found none"):
        write_report(tmp_path)


def test_page_is_valid_markdown(tmp_path: Path) -> None:
    markdown = pytest.importorskip("markdown")
    page = render([cell(seed=seed) for seed in range(2)])
    html = markdown.markdown(page, extensions=["tables", "fenced_code"])
    assert html.count("<table>") == 2 and "<h1>T</h1>" in html


def test_report_imports_neither_torch_nor_recbole_nor_pandas() -> None:
    code = (
        "import sys, types; package = types.ModuleType('recbole_robust'); package.__path__ = [sys.argv[1]];"
        "sys.modules['recbole_robust'] = package; import recbole_robust.report, recbole_robust.benchmark;"
        "print(sorted({'torch', 'recbole', 'pandas', 'ray'} & set(sys.modules)))"
    )
    folder = str(Path(report.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
