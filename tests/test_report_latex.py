"""LaTeX reports: what they say is what the files say, and TeX can read it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_cells import METRICS, cell

from recbole_robust.report.as_latex import TALL, WIDE, escape, latex
from recbole_robust.report.page import make_page
from recbole_robust.report.tables import Measured

NASTY = r"100 % a_b & c#d $x$ {y} ~ ^ \end{table} -- '' <i> | [z] `q` " + '"w"'


def cells() -> list[dict]:
    some = [cell(method, attack, s) for method in ("MF", NASTY) for attack in ("Average", "Random") for s in range(5)]
    for one in some:
        if one["cell"]["method"] == NASTY:
            one["lift"] = {**one["lift"], "targethr@50": one["lift"]["targethr@50"] / 2}
    return some


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of every tabular."""
    bodies = re.findall(r"\\midrule\n(.*?)\\bottomrule", text, re.DOTALL)
    lines = [line.removesuffix(r" \\") for body in bodies for line in body.splitlines()]
    return [re.split(r" (?<!\\)& ", line) for line in lines]


def test_numbers_are_those_of_the_page() -> None:
    page = make_page(cells(), title="T", metrics=METRICS, published="purifyaug_table1")
    rows = rows_of(latex([page]))
    expected = [row for section in page.sections for table in section.tables for row in table.rows]
    assert len(rows) == len(expected) > 6  # none of these tables goes on in another
    for row, cells_ in zip(rows, expected, strict=True):
        assert len(row) == len(cells_)
        for text, value in zip(row, cells_, strict=True):
            if isinstance(value, Measured) and value.interval:
                assert re.findall(r"\$([+-]?[\d.]+)\$", text) == value.numbers
                assert value.published is None or f"({value.published:g})" in text
            elif isinstance(value, str):
                assert text == escape(value)


def test_a_wide_table_goes_on_in_another() -> None:
    """Nothing is lost, no attack is torn apart, and each part begins with the methods."""
    attacks = [f"A{i}" for i in range(5)]
    page = make_page([cell(attack=attack) for attack in attacks], title="T", metrics=["targethr@50"])
    text = latex([page])
    first, second = rows_of(text)
    assert first[0] == second[0] == "MF" and len(first) - 1 <= WIDE and len(second) - 1 <= WIDE
    (row,) = page.sections[0].tables[0].rows
    told = [number for part in (first, second) for cell_ in part for number in re.findall(r"\$(.+?)\$", cell_)]
    assert told == [number for one in row if isinstance(one, Measured) for number in one.numbers]
    heads = re.findall(r"\\multicolumn\{(\d)\}\{c\}\{(\w+)\}", text)
    assert heads == [("2", attack) for attack in attacks]
    assert "points (1 of 2)}" in text and "points (2 of 2)}" in text


def test_a_tall_table_goes_on_in_another() -> None:
    page = make_page([cell(f"M{i:02d}") for i in range(TALL + 1)], title="T", metrics=["targethr@50"])
    text = latex([page])
    assert [row[0] for row in rows_of(text)] == [f"M{i:02d}" for i in range(TALL + 1)]
    assert text.count(r"\begin{tabular}") == text.count(r"\toprule") == 2


def test_the_arrow_says_where_the_interval_lies() -> None:
    page = make_page([cell(seed=seed) for seed in range(5)], title="T", metrics=METRICS, published="purifyaug_table1")
    rows = [row for row in rows_of(latex([page])) if "(4.34)" in row[1]]
    assert [row[0] for row in rows] == ["MF", "Average"]  # by method, and in the publication's shape
    for row in rows:
        assert row[1].endswith("(4.34)") and row[2].endswith("(31.33)")  # 4.2 [4.0, 4.4] and 32.0 [30.0, 34.0]
    far = [cell(seed=seed, attacked={**cell()["attacked"], "targethr@50": 0.5 + 0.001 * seed}) for seed in range(5)]
    assert r"(31.33)$^{\uparrow}$" in latex([make_page(far, title="T", metrics=METRICS, published="purifyaug_table1")])


def test_environments_and_braces_are_balanced() -> None:
    text = latex([make_page(cells(), title=NASTY, metrics=METRICS, source="grid_a&b.yaml", left_out=[NASTY])])
    open_: list[str] = []
    for kind, name in re.findall(r"(?<!\\)\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert open_ == []
    plain = re.sub(r"\\[{}\\]", "", text)
    assert plain.count("{") == plain.count("}")
    assert not re.search(r"(?<!\\)[#]", plain)
    n_columns = {len(re.sub(r"@\{\}", "", spec)) for spec in re.findall(r"begin\{tabular\}\{(.*)\}", text)}
    assert n_columns >= {len(row) for row in rows_of(text)}


@pytest.mark.parametrize(
    "text, expected",
    [("a_b", r"a\_b"), ("--x", "-{}-x"), ("''", "'{}'"), ("[1]", "{[}1{]}"), ("\\", r"\textbackslash{}"), ("-1", "-1")],
)
def test_escape(text: str, expected: str) -> None:
    assert escape(text) == expected


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_it_compiles(tmp_path: Path) -> None:
    page = make_page(cells(), title=NASTY, metrics=METRICS, published="purifyaug_table1", source="a_b.yaml")
    (tmp_path / "report.tex").write_text(latex([page, page]), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
