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
    results = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("ml_1m-*.json")]
    metrics = ("hit@50", "ndcg@50", "tailhit@50", "itemcoverage@50")
    n_checked = 0

    def check_mean(shown: str, target_set: str | None, attack: str, part: str, metric: str) -> None:
        nonlocal n_checked
        values = [100 * one[part][metric] for one in results if target_set in (None, one["cell"]["target_set"])
                  and (part == "clean" or one["cell"]["attack"] == attack)]  # fmt: skip
        number = shown.split()[0]
        half_a_digit = 0.5 * 10 ** -len(number.partition(".")[2])
        assert float(number) == pytest.approx(statistics.mean(values), abs=half_a_digit + 1e-9), (shown, attack, metric)
        n_checked += 1

    tables = Reader(document).tables
    target_sets = (None, "apt_1", *(f"random_{i}" for i in range(5)))  # first all together
    of_lifts = [table for table in tables if table[1:] and table[1][0] == "attacked"]
    for target_set, (attacks, _, row) in zip(target_sets, of_lifts, strict=True):
        check_mean(row[1], target_set, "", "clean", "targethr@50")
        for attack, attacked, lift in zip(attacks[2:-1], row[2:-1:2], row[3:-1:2], strict=True):
            check_mean(attacked, target_set, attack, "attacked", "targethr@50")
            check_mean(lift, target_set, attack, "lift", "targethr@50")
    of_accuracy = [table for table in tables if table[0][1:2] == ["data"]]
    for target_set, (header, *rows) in zip(target_sets[1:], of_accuracy, strict=True):
        assert header[2:-1] == [f"{metric}, %" for metric in metrics]
        for _, data, *cells, _ in rows:
            for metric, shown in zip(metrics, cells, strict=True):
                check_mean(shown, target_set, data, "clean" if data == "clean" else "attacked", metric)
    assert n_checked == 7 * (1 + 6 * 2) + 6 * (1 + 6) * 4
