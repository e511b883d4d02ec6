"""The HTML report in a headless browser: `pytest -m browser -n 0`. Skipped where there is no Chromium."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest
from report_cells import METRICS, full_grid
from test_report_html import EVIL, Reader, evil_page

from recbole_robust.report import write_report
from recbole_robust.report.as_html import html
from recbole_robust.report.page import make_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
RESULTS = Path(__file__).resolve().parents[1] / "results"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(BROWSERS)} is on the PATH"),
]


def opened(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """The document after its scripts have run, and what they wrote on the console. No name is resolved."""
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=30000", *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def check(page: Path, profile: Path, *options: str) -> str:
    """Every figure of a page is drawn, with as many marks as it has values, and the console is empty."""
    document, console = opened(page, profile, *options)
    assert console == []
    n_figures = len(re.findall(r'id="figure\d+"', document))
    assert f'data-drawn="{n_figures}"' in document
    parts = re.split(r'id="figure\d+"', document)[1:]
    for part in parts:
        assert part.count('class="point"') >= 1 and 'class="main-svg"' in part
    return document


@pytest.mark.parametrize("options", [(), ("--window-size=500,900",), ("--blink-settings=preferredColorScheme=0",)])
def test_every_figure_is_drawn(tmp_path: Path, options: tuple[str, ...]) -> None:
    page = make_page(full_grid(), title="T", metrics=METRICS, published="purifyaug_table1")
    path = tmp_path / "report.html"
    path.write_text(html([page], "x"), encoding="utf-8")
    document = check(path, tmp_path / "profile", *options)
    assert document.count('class="plot js-plotly-plot"') == 5


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext (poppler-utils)")
def test_what_is_folded_on_the_screen_is_on_the_paper(tmp_path: Path) -> None:
    page, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    page.write_text(html([make_page(full_grid(), title="T", metrics=METRICS, published="purifyaug_table1")], "x"))
    opened(page, tmp_path / "profile", f"--print-to-pdf={paper}")
    text = subprocess.run(["pdftotext", "-layout", str(paper), "-"], capture_output=True, text=True, check=True).stdout
    assert "targets: apt_1" in text and "targets: random_0" in text and "31.33" in text
    assert "attack_size" in text and "for seed in" not in text


def test_names_do_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html([evil_page()], EVIL), encoding="utf-8")
    document = check(path, tmp_path / "profile")
    assert "data-hacked" not in document
    legend = re.findall(r'class="legendtext"[^>]*>([^<]*)<', document)
    assert any("&lt;script&gt;" in text for text in legend)  # shown as it is


@pytest.mark.skipif(not RESULTS.is_dir(), reason="no results/ here")
def test_committed_results(tmp_path: Path) -> None:
    """Their pages are drawn, and what the browser shows in the tables are the means of the JSON files."""
    folder = RESULTS / "attacks_ml-1m"
    document = check(write_report(folder, tmp_path / "report.html"), tmp_path / "profile")
    lifts: dict[str, list[float]] = {}
    for path in folder.glob("ml_1m-*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        lifts.setdefault(result["cell"]["attack"], []).append(100 * result["lift"]["targethr@50"])
    (attacks, _, row), *_ = Reader(document).tables  # all target sets; clean, then attacked and lift of each attack
    shown = dict(zip(attacks[2:-1], (text.split()[0] for text in row[3:-1:2]), strict=True))
    assert shown == {attack: f"{statistics.mean(values):+.1f}" for attack, values in lifts.items()}
    assert len(shown) == 6
