"""SVG pictures: marks where the numbers are, and those that are committed are what the program makes of the files."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_cells import METRICS, cell, full_grid, write

from recbole_robust.report import load_pages, write_report
from recbole_robust.report.page import make_page
from recbole_robust.report.pictures import attacks_picture, curve_pictures, defenses_picture, pictures
from recbole_robust.report.svg import Dot, Panel, Series, dot_rows
from recbole_robust.types import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results"
BLUE, BARE = Series("one", "blue", "circle"), Series("two", "orange", "small")


def circles(svg: str, radius: str) -> list[tuple[float, float]]:
    """Centres of the marks of a radius, the legend's left out."""
    root = ElementTree.fromstring(svg)
    height = float(root.attrib["height"])
    found = [one for one in root.iter("{http://www.w3.org/2000/svg}circle") if one.attrib["r"] == radius]
    return [(float(o.attrib["cx"]), float(o.attrib["cy"])) for o in found if float(o.attrib["cy"]) < height - 45]


def test_marks_stand_where_the_values_are() -> None:
    dots = {"a": [Dot(BLUE, 0)], "b": [Dot(BLUE, 50)], "c": [Dot(BLUE, 100)]}
    (x0, y0), (x1, y1), (x2, y2) = circles(dot_rows("t", ["a", "b", "c"], [Panel("p", 0, 100, (0, 100), dots)]), "5")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and x0 < x1
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11) and y0 < y1


def test_intervals_are_cut_to_the_panel_and_far_values_stand_on_the_edge() -> None:
    dots = {"a": [Dot(BLUE, 10, -50, 20)], "b": [Dot(BLUE, -300), Dot(BARE, 300)]}
    svg = dot_rows("t", ["a", "b"], [Panel("p", 0, 100, (0,), dots)])
    left = float(re.findall(r'class="rule" d="M([\d.]+) 54V', svg)[0])
    ((start, _),) = re.findall(r'd="M([\d.]+) [\d.]+H([\d.]+)" stroke="#', svg)
    assert float(start) == left and len(circles(svg, "5")) == 1
    assert ">-300</text>" in svg


def test_names_are_text() -> None:
    svg = dot_rows(
        "<t>&", ["<script>"], [Panel("<p>", 0, 1, (), {"<script>": [Dot(Series('"<s>', "blue", "bar"), 1)]})]
    )
    root = ElementTree.fromstring(svg)
    assert "script" not in {tag.tag.rpartition("}")[2] for tag in root.iter()}
    assert {"<script>", "<p>", '"<s>'} <= {one.text for one in root.iter()}


@pytest.mark.parametrize(
    "rows, panels", [([], [Panel("p", 0, 1, (), {})]), (["a"], []), (["a"], [Panel("p", 1, 1, (), {})])]
)
def test_nothing_to_draw_is_refused(rows: list[str], panels: list[Panel]) -> None:
    with pytest.raises(ValueError, match="expected at least one row"):
        dot_rows("t", rows, panels)


def test_pictures_of_a_grid() -> None:
    page = make_page(full_grid(), title="T", metrics=METRICS, published="purifyaug_table1")
    found = pictures(page)
    assert list(found) == ["attacks", "defenses", "curve-1"]
    attacks, defenses, curve = (picture for picture, _ in found.values())
    rows = ("clean", "Average", "Average, 1 %", "Random")
    assert len(circles(attacks, "5")) == len(rows) and all(f">{row}</text>" in attacks for row in rows)
    assert len(circles(defenses, "2.6")) == 3 and ">MF + AT</text>" in defenses  # three attacks, one defense
    assert curve.count('r="5"') == 2 * 2 and all(f">{size} %</text>" in curve for size in (1, 3))
    assert pictures(page) == found
    assert defenses_picture(make_page([cell()], title="T"), "ml-100k") is None
    one = cell()
    one["clean"], one["attacked"], one["lift"] = {"hit@50": 0.1}, {}, {}
    assert attacks_picture([make_page([one], title="T")]) is None


def test_a_picture_of_the_lift_by_k() -> None:
    """One panel a K, all on one scale that has the whole intervals."""
    cells = [cell("MF", "Average", seed) for seed in range(2)]
    for seed, one in enumerate(cells):
        one["lift"] = {f"targethr@{k}": 0.002 * k + 0.1 * seed for k in (5, 50, 100)}
    ((what, picture),) = curve_pictures(make_page(cells, title="T", metrics=METRICS), "ml-100k")
    assert what == "Lift of targethr by K, Average"
    assert re.findall(r'class="head" x="[\d.]+" y="24">([^<]+)', picture) == ["K = 5", "K = 50", "K = 100"]
    starts = [float(x) for x in re.findall(r'class="head" x="([\d.]+)"', picture)]
    marks = [float(x) for x in re.findall(r'cx="([\d.]+)"', picture)]
    places = [mark - start for mark, start in zip(marks, starts, strict=True)]
    assert places[1] - places[0] == pytest.approx(0.9 * (places[2] - places[1]), abs=0.3)  # 45 and 50 longer


def test_two_curves_of_one_attack_are_two_pictures() -> None:
    """At other settings, all else equal; and two sizes that look alike are two panels."""
    cells = []
    for n_fillers in (20, 70):
        for n_fakes in (301, 302):
            more = {"poison": {"n_fake_users": n_fakes}, "n_genuine": 10_000, "config": {"n_fillers": n_fillers}}
            cells.append({**cell("MF", f"Average, {n_fillers}, {n_fakes}", 0), **more})
    found = curve_pictures(make_page(cells, title="T", metrics=METRICS), "ml-100k")
    assert len(found) == 2 and all(picture.count(">3 %</text>") == 2 for _, picture in found)


def test_report_with_pictures(tmp_path: Path) -> None:
    write(tmp_path / "in", full_grid())
    path = write_report(tmp_path / "in", tmp_path / "out" / "page.md", pictures=True)
    names = {one.name for one in path.parent.iterdir()}
    shown = ["page-attacks.svg", "page-defenses.svg", "page-curve-1.svg"]
    assert names == {"page.md", *shown}
    text = path.read_text()
    assert re.findall(r"!\[.+\]\((.+)\)", text) == shown
    plain = write_report(tmp_path / "in", tmp_path / "plain" / "page.md").read_text()
    assert re.sub(r"!\[.+\]\(.+\)\n\n", "", text) == plain
    with pytest.raises(UserError, match="pictures: expected the format markdown"):
        write_report(tmp_path / "in", format="html", pictures=True)


needs_results = pytest.mark.skipif(not RESULTS.is_dir(), reason="no results/ here: not a clone of the repository")


@needs_results
def test_readme_shows_pictures_made_from_the_files() -> None:
    """The picture of the attacks, here and now; that of the defenses reads 1800 files, in the slow tests."""
    make_pictures = runpy.run_path(str(REPOSITORY / "docs" / "make_pictures.py"))
    name = "docs/pictures/attacks.svg"
    assert make_pictures["readme_picture"](name) == (REPOSITORY / name).read_text(), "run: python docs/make_pictures.py"
    readme = (REPOSITORY / "README.md").read_text()
    assert all(f"({name})" in readme for name in make_pictures["PICTURES"])


@needs_results
@pytest.mark.parametrize("folder", ["apt_ml-1m"])
def test_committed_report_is_made_from_the_files(folder: str) -> None:
    make_pictures = runpy.run_path(str(REPOSITORY / "docs" / "make_pictures.py"))
    for path, text in make_pictures["rendered"](folder).items():
        assert (REPOSITORY / path).read_text() == text, f"run: python docs/make_pictures.py {folder}"


@pytest.mark.slow
@needs_results
def test_all_committed_reports_and_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures = runpy.run_path(str(REPOSITORY / "docs" / "make_pictures.py"))
    assert make_pictures["main"](["--check"]) == 0, capsys.readouterr().out


@needs_results
def test_the_published_values_are_in_the_picture() -> None:
    (page,) = load_pages(RESULTS / "apt_ml-1m")
    svg = attacks_picture([page])
    assert svg is not None and svg.count('class="ground" d="M') == 3 + 1  # clean, two attacks, and the legend
