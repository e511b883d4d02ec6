"""HTML reports: their tables and figures hold the files' numbers, and a name is never anything but a name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_cells import METRICS, cell, full_grid, write

from recbole_robust import cli
from recbole_robust.grid import expand, load_grid
from recbole_robust.properties_path import properties_dir
from recbole_robust.report import load_pages, write_report
from recbole_robust.report.as_html import html
from recbole_robust.report.compare import Undefended, shares
from recbole_robust.report.page import Page, make_page
from recbole_robust.report.plots import PALETTE, SYMBOLS, figures
from recbole_robust.report.settings import settings_of
from recbole_robust.report.tables import Measured, make_entries, measure
from recbole_robust.schedule import chosen_cells
from recbole_robust.types import UserError

EVIL = "<script>document.documentElement.dataset.hacked=1</script>"
EVIL_IMAGE = '</script><img src=x onerror="document.documentElement.dataset.hacked=1">&amp;%{x}'


class Reader(HTMLParser):
    """Tables as rows of texts, scripts as texts, and every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[list[list[str]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._cell: list[str] | None = None
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []
        elif tag == "script":
            self.scripts.append((dict(attrs), ""))
            self._in_script = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)
        elif self._in_script:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)


def page_of(cells: list[dict[str, Any]], **options: Any) -> Page:
    return make_page(cells, **{"title": "T", "metrics": METRICS, "published": "purifyaug_table1", **options})


def drawn(reader: Reader) -> list[dict[str, Any]]:
    (text,) = [text for attributes, text in reader.scripts if attributes.get("id") == "figures"]
    return json.loads(text)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


# -- tables --------------------------------------------------------------------------------------------------------


def test_the_tables_hold_the_numbers_of_the_files() -> None:
    page = page_of(full_grid())
    told = [row for table in Reader(html([page], "x")).tables for row in table]
    judging = page.judging("ml-100k")
    expected = [judging, *(section for section in page.sections if section is not judging)]
    rows = [row for section in expected for table in section.tables for row in table.rows]
    assert len(rows) > 20
    at = 0
    for row in rows:
        texts = [" ".join(cell.numbers) or "-" if isinstance(cell, Measured) else cell for cell in row]
        while [" ".join(re.sub(r"[\[\],]|[●▲▼○] \S+", "", text).split()) for text in told[at]] != [
            " ".join(re.sub(r"[\[\],]", "", text).split()) for text in texts
        ]:
            at += 1
    assert at < len(told)


def test_from_json_files_to_the_page_and_back(tmp_path: Path) -> None:
    write(tmp_path, [cell(seed=seed) for seed in range(5)])
    path = write_report(tmp_path, format="html")
    assert path == tmp_path / "report.html"
    (row,) = [row for table in Reader(path.read_text()).tables[:1] for row in table if row[0] == "MF"]
    files = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    mean = sum(one["attacked"]["targethr@50"] for one in files) / len(files)
    assert row[2].split()[0] == f"{100 * mean:.1f}"


def test_sections_with_published_values_are_open() -> None:
    """And the one in which defenses are judged; others can be opened."""
    cells = [cell(seed=seed, target_set=name) for seed in range(2) for name in ("apt_1", "r_0", "r_1")]
    text = html([make_page(cells, title="t", published="purifyaug_table1")], "x")
    heads = re.findall(r'<details class="section"( open)?><summary><h3>(ml-100k[^<]*)</h3>', text)
    assert {head.removeprefix("ml-100k, "): bool(is_open) for is_open, head in heads} == {
        "all 3 target sets together": True, "targets: apt_1": True, "targets: r_0": False, "targets: r_1": False,
    }  # fmt: skip


@pytest.mark.parametrize("level, verdict", [(0.10, "below"), (0.3133, "inside"), (0.60, "above")])
def test_verdict_beside_the_published_value(level: float, verdict: str) -> None:
    cells = [cell(seed=seed) for seed in range(5)]
    for seed, one in enumerate(cells):
        one["attacked"]["targethr@50"] = level + 0.001 * (seed - 2)
    text = html([page_of(cells)], "x")
    assert re.search(rf'class="verdict {verdict}"[^>]*>.</span> 31.33<', text)
    others = {"below", "inside", "above"} - {verdict}
    assert not any(re.search(rf'class="verdict {other}"[^>]*>.</span> 31.33<', text) for other in others)
    alone = html([page_of(cells[:1])], "x")
    assert re.search(r'class="verdict unknown"[^>]*>.</span> 31.33<', alone)  # one seed: no interval, no verdict


def test_commands_settings_failures_and_files_left_out() -> None:
    failed = {"schema_version": 1, "command": "c", "cell": cell(seed=3)["cell"], "error": "ValueError: a < b"}
    page = page_of([*full_grid(), failed], source="grids/a.yaml", left_out=["old.json"])
    text = html([page], "my results")
    assert "benchmark grids/a.yaml --only=dataset=ml-100k,target_set=apt_1</code>" in text
    assert "report &#x27;my results&#x27; --format=html" in text
    assert "for seed in 0 1 2 3 4; do" in text and "--seed=$seed" in text
    assert "1 of 61 cells failed" in text and "ValueError: a &lt; b" in text and "<li>old.json</li>" in text
    assert "attack_size: 0.01" in text and '<th scope="row">epochs</th><td>25</td>' in text


def test_the_command_of_a_section_runs_its_cells_and_no_others() -> None:
    source = properties_dir() / "benchmark" / "defenses_ml-100k.yaml"
    cells = expand(load_grid(source))
    page = page_of(full_grid(), source=str(source))
    for section in page.sections:
        words, keys = cli.parse(shlex.split(page.command(section) or "")[2:])
        assert words == ["benchmark", str(source)]
        chosen = chosen_cells(cells, keys["only"])
        wanted = [one for one in cells if section.target_set in (None, one.target_set)]
        assert chosen == wanted and wanted


def test_settings_are_told_under_the_label_that_they_follow() -> None:
    told = settings_of(make_entries(full_grid()), {})
    assert told.common == [("epochs", "25")]
    assert told.own["attack", "Average, 1 %"] == [("attack_size", "0.01")]
    assert told.own["method", "MF + AT"] == [("defense", "AT")] and ("method", "MF") not in told.own
    assert told.several == [] and told.unset == 0


# -- figures -------------------------------------------------------------------------------------------------------


def test_every_figure_is_there_with_its_data() -> None:
    page = page_of(full_grid())
    found = {figure.title: figure for figure in figures(page, "ml-100k")}
    assert list(found) == [
        "What the attacks do to MF",
        "Lift removed against hit@50 kept",
        "Lift removed against tailhit@50 kept",
        "Budget curve of Average",
        "Stealth against lift",
    ]
    reader = Reader(html([page], "x"))
    assert [figure["data"] for figure in drawn(reader)] == [figure.data for figure in found.values()]
    for figure in drawn(reader):
        assert figure["data"] and all(len(trace["x"]) == len(trace["y"]) >= 1 for trace in figure["data"])
    assert [tags["id"] for tag, tags in reader.tags if (tags.get("class") or "") == "plot"] == [
        f"figure{i}" for i in range(len(found))
    ]


def test_figures_show_the_numbers_of_the_tables() -> None:
    page = page_of(full_grid())
    targets, frontier, _, budgets, stealth = figures(page, "ml-100k")
    first = {trace["name"]: trace for trace in targets.data}["apt_1"]
    attacked = [e for e in page.sections[0].entries if e.method == "MF" and e.attack == "Average"]
    interval = measure(attacked, "attacked", "targethr@50").interval
    assert interval is not None
    at = first["x"].index("Average")
    assert first["y"][at] == pytest.approx(100 * interval.mean)
    assert first["y"][at] - first["error_y"]["arrayminus"][at] == pytest.approx(100 * interval.low)
    assert first["y"][at] + first["error_y"]["array"][at] == pytest.approx(100 * interval.high)
    published = targets.data[-1]
    assert dict(zip(published["x"], published["y"], strict=True)) == {
        "clean": 4.34, "Average": 31.33, "Average, 1 %": 31.33, "Random": 19.83,
    }  # fmt: skip

    (share,) = shares(page.judging("ml-100k").entries, "targethr@50", ["hit@50"], Undefended(), {})
    small, large = frontier.data
    removed = sorted(100 * one.interval.mean for one in share.removed.values() if one.interval)
    assert small["x"] == pytest.approx(removed) and large["x"] == pytest.approx([sum(removed) / len(removed)])
    assert small["name"] == "MF + AT" and set(small["y"]) == {100.0}

    assert [trace["x"] for trace in budgets.data] == [[1.0, 3.0]] * 2
    x = {(trace["name"], trace["xaxis"]): trace["x"] for trace in stealth.data}
    assert x["Random", "x"] == pytest.approx([0.9]) and x["Average", "x2"] == pytest.approx([0.52])
    (table,) = [t for t in page.judging("ml-100k").tables if t.title.startswith("The attacks on MF")]
    for row in table.rows:  # the same numbers
        for panel, area in zip(("x", "x2"), row[1:3], strict=True):
            assert [area.interval.mean] == pytest.approx(x[row[0], panel])
    assert {row[0]: row[4:6] for row in table.rows}["Average, 1 %"] == ["10", "-"]


def test_published_values_are_found_beside_whatever_target_set_has_them() -> None:
    cells = full_grid()
    for one in cells:
        if one["cell"]["target_set"] == "random_0":
            one["cell"] = {**one["cell"], "target_set": "apt_0"}  # the first now, beside which no value stands
    (targets, *_) = figures(page_of(cells), "ml-100k")
    assert targets.data[-1]["x"] == ["clean", "Average", "Average, 1 %", "Random"]


def test_a_method_has_the_same_mark_in_all_figures() -> None:
    page = page_of(full_grid(("MF", "MF + AT", "Pop")))
    _, hits, tail, budgets, _ = figures(page, "ml-100k")
    marks: dict[str, set[tuple[str, str]]] = {}
    for trace in [*hits.data, *tail.data, *budgets.data]:
        marks.setdefault(trace["name"], set()).add((trace["marker"]["color"], trace["marker"]["symbol"]))
    assert set(marks) == {"MF", "MF + AT", "Pop"} and all(len(its) == 1 for its in marks.values())
    assert len(set.union(*marks.values())) == 3


def test_a_defense_beyond_the_edge_stands_on_it() -> None:
    cells = full_grid(n_seeds=5)
    for one in cells:
        if one["cell"]["method"] != "MF":
            one["lift"] = {**one["lift"], "targethr@50": 2.5 * one["lift"]["targethr@50"] * 2}
    frontier = figures(page_of(cells), "ml-100k")[1]
    small, large = frontier.data
    assert min(small["x"]) == -100 and small["marker"]["symbol"][0].endswith("-open")
    assert "-150.0 % of the lift removed" in large["text"][0]


def test_no_figure_without_numbers() -> None:
    one = cell()
    for part in ("clean", "attacked", "lift"):
        one[part] = {"hit@50": 0.1}
    assert figures(page_of([one]), "ml-100k") == []
    assert drawn(Reader(html([page_of([one])], "x"))) == []


def test_colours_can_be_told_on_white_and_on_dark() -> None:
    """WCAG 2.1, 1.4.11: graphics have a contrast of at least 3 with what is next to them."""
    style = (Path(__file__).parents[1] / "recbole_robust" / "report" / "style.css").read_text()
    grounds = re.findall(r"--(?:ground|panel): (#\w{6})", style)
    assert len(grounds) == 4
    for colour in PALETTE:
        for ground in grounds:
            light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3, (colour, ground)
    marks = {(PALETTE[i % 8], SYMBOLS[(i + i // 8) % 8]) for i in range(40)}
    assert len(marks) == 40


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


# -- safety --------------------------------------------------------------------------------------------------------


def evil_page() -> Page:
    cells = full_grid(("MF", EVIL))
    for one in cells:
        if one["cell"]["attack"] == "Random":
            one["cell"]["attack"] = EVIL_IMAGE
        one["command"] += f" --x='{EVIL}'"
        one["config"][EVIL] = EVIL_IMAGE
        one["versions"] = {EVIL: EVIL_IMAGE}
    failed = {**cells[0], "error": EVIL, "cell": {**cells[0]["cell"], "seed": 99}}
    return page_of([*cells, failed], title=EVIL, source=EVIL_IMAGE, left_out=[EVIL_IMAGE])


def test_names_are_text() -> None:
    reader = Reader(html([evil_page()], EVIL))
    assert len(reader.scripts) == 3  # the figures, plotly, and what draws them
    assert "img" not in {tag for tag, _ in reader.tags}
    assert not [attributes for _, attributes in reader.tags if any(name.startswith("on") for name in attributes)]
    rows = [row for table in reader.tables for row in table]
    assert any(row[0] == EVIL for row in rows) and any(EVIL_IMAGE in text for row in rows for text in row)


def test_names_are_text_in_figures_too() -> None:
    """Plotly reads tags and entities in its texts; what is left of ours is <b> and <br>."""
    for text in strings(drawn(Reader(html([evil_page()], "x")))):
        assert "<" not in re.sub(r"</?b>|<br>|%\{text\}<extra></extra>", "", text)


def test_the_page_asks_nobody_and_runs_its_own_scripts_only() -> None:
    text = html([page_of(full_grid())], "x")
    reader = Reader(text)
    (policy,) = [a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'; script-src 'sha256-")
    for attributes, script in reader.scripts:
        if attributes.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    links = [a[name] for _, a in reader.tags for name in ("src", "href") if name in a]
    assert all(link is not None and link.startswith("#") for link in links)
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids)) and {link[1:] for link in links if link} <= set(ids)


def test_two_grids_on_one_page(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, [cell(seed=seed) for seed in range(2)])
        (tmp_path / name / "grid.json").write_text(json.dumps({"name": name}))
    text = write_report(tmp_path, tmp_path / "all.html").read_text()  # the suffix says which format
    reader = Reader(text)
    assert [page.title for page in load_pages(tmp_path)] == ["a", "b"]
    assert text.count("<article") == 2 and len(reader.scripts) == 3
    assert len([tag for tag, a in reader.tags if a.get("class") == "plot"]) == len(drawn(reader)) == 2


def test_formats(tmp_path: Path) -> None:
    write(tmp_path, [cell()])
    assert write_report(tmp_path, format="latex").read_text().startswith("\\documentclass")
    assert write_report(tmp_path, tmp_path / "x.tex").read_text().startswith("\\documentclass")
    assert write_report(tmp_path, tmp_path / "y.txt").read_text().startswith("# ")
    with pytest.raises(UserError, match="format: expected markdown, latex, html, got 'pdf'"):
        write_report(tmp_path, format="pdf")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [cell()])
    assert cli.main(["report", str(tmp_path), "--format=html"]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"
    assert cli.main(["report", str(tmp_path), "--pictures"]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"report.md", "report-attacks.svg"}
    for wrong in ("--format=pdf", "--pictures=yes", "--colour=red"):
        assert cli.main(["report", str(tmp_path), wrong]) == 2
        assert capsys.readouterr().err.startswith("error: ")
