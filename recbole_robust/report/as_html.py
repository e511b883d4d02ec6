"""A report as one HTML page that holds everything it needs: style, figures, and plotly.js once. It asks no server.

Every name goes through :func:`html.escape`; and the page's Content-Security-Policy lets no script run but its own two,
which it names by their hashes, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from recbole_robust.report import plots
from recbole_robust.report.page import Page, Section
from recbole_robust.report.settings import settings_of
from recbole_robust.report.tables import VERDICTS, Measured, Table, Verdict, grouped, legend

_FOLDER = Path(__file__).parent
_MARKS: Mapping[Verdict | None, str] = {"inside": "●", "above": "▲", "below": "▼", None: "○"}


def html(pages: Sequence[Page], source: str) -> str:
    """The page; one part a grid. ``source``: the folder of the results, for the command that makes the page."""
    from plotly.offline import get_plotlyjs  # here: 5 MB, and only this format needs it

    drawn: list[plots.Figure] = []
    parts = [line for i, page in enumerate(pages) for line in _part(page, f"p{i}", drawn)]
    scripts = [get_plotlyjs(), (_FOLDER / "draw.js").read_text(encoding="utf-8")]
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    # 'unsafe-eval': plotly.js before 3 compiles functions of its own when it is loaded
    policy = f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
    title = pages[0].title if len(pages) == 1 else f"{len(pages)} reports of {source}"
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        f"<style>{(_FOLDER / 'style.css').read_text(encoding='utf-8')}</style>",
        "</head>",
        "<body>",
        *_contents(pages),
        "<main>",
        *parts,
        "<footer><p>This page:</p>",
        _code([f"python run_recbole_robust.py report {shlex.quote(source)} --format=html"]),
        "</footer>",
        "</main>",
        f'<script type="application/json" id="figures">{_json([_figure_json(f) for f in drawn])}</script>',
        *(f"<script>{script}</script>" for script in scripts),
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _json(value: Any) -> str:
    """JSON that can stand inside an HTML element: no ``<`` in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _figure_json(figure: plots.Figure) -> dict[str, Any]:
    return {"data": figure.data, "layout": figure.layout}


def _contents(pages: Sequence[Page]) -> Iterable[str]:
    yield '<nav aria-label="Contents"><details><summary>Contents</summary><ul>'
    for i, page in enumerate(pages):
        if len(pages) > 1:
            yield f'<li><a href="#p{i}">{escape(page.title)}</a></li>'
        for j, dataset in enumerate(page.datasets):
            yield f'<li><a href="#p{i}-d{j}">{escape(dataset)}</a></li>'
        yield f'<li><a href="#p{i}-settings">Settings</a></li>'
        yield f'<li><a href="#p{i}-commands">To reproduce</a></li>'
    yield "</ul></details></nav>"


def _part(page: Page, key: str, drawn: list[plots.Figure]) -> Iterable[str]:
    yield f'<article id="{key}"><h1>{escape(page.title)}</h1><p>{escape(page.summary)}</p>'
    if page.published:
        yield (
            f"<p>Behind a mark stands the published value (<code>{escape(page.published.name)}</code>, percent), for "
            f"the publication's own targets and settings. {legend({one: _mark(one) for one in _MARKS})}</p>"
        )
    if page.failed:
        n_cells = page.n_results + len(page.failed)
        yield f"<p><strong>{len(page.failed)} of {n_cells} cells failed: they are listed at the end.</strong></p>"
    if page.audit:
        yield f"<p>{escape(page.audit[0])}</p>"
    for j, dataset in enumerate(page.datasets):
        yield from _dataset(page, dataset, f"{key}-d{j}", drawn)
    yield from _settings(page, key)
    yield from _reproduce(page, key)
    if page.made_with:
        yield f"<h2>Made with</h2><p>{escape(page.made_with)}</p>"
    yield from _list("Checks of the audit that failed", page.audit[1:])
    yield from _list("Failed cells", page.failed)
    yield from _list("Files left out: cells that the grid no longer has", page.left_out)
    yield "</article>"


def _dataset(page: Page, dataset: str, key: str, drawn: list[plots.Figure]) -> Iterable[str]:
    yield f'<h2 id="{key}">{escape(dataset)}</h2>'
    found = plots.figures(page, dataset)
    if found:
        yield '<div class="figures">'
        for figure in found:
            yield from _figure(page, figure, len(drawn))
            drawn.append(figure)
        yield "</div>"
    sections = [section for section in page.sections if section.dataset == dataset]
    judging = page.judging(dataset)
    for section in [judging, *(one for one in sections if one is not judging)]:
        is_open = " open" if section is judging or any(table.has_published for table in section.tables) else ""
        yield f'<details class="section"{is_open}><summary><h3>{escape(section.heading)}</h3></summary>'
        for table in section.tables:
            yield from _table(table)
        yield from _command(page, section)
        yield "</details>"


def _figure(page: Page, figure: plots.Figure, number: int) -> Iterable[str]:
    title = escape(figure.title)
    yield f"<figure><figcaption><strong>{title}.</strong> {escape(figure.text)}</figcaption>"
    yield f'<div class="plot" id="figure{number}" role="img" aria-label="{title}. The tables below hold its numbers.">'
    yield "<noscript>Figures need JavaScript; the tables below do not.</noscript></div>"
    yield from _command(page, figure.section)
    yield "</figure>"


def _command(page: Page, section: Section) -> Iterable[str]:
    command = page.command(section)
    if command:
        yield f'<details class="command"><summary>Command</summary>{_code([command])}</details>'


def _table(table: Table) -> Iterable[str]:
    title = escape(table.title)
    yield f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">'
    yield f"<table><caption>{title}</caption><thead>"
    yield from _header(table)
    yield "</thead><tbody>"
    for row in table.rows:
        heads = "".join(f'<th scope="row">{_cell(cell)}</th>' for cell in row[: table.n_labels])
        yield f"<tr>{heads}{''.join(f'<td>{_cell(cell)}</td>' for cell in row[table.n_labels :])}</tr>"
    yield "</tbody></table></div>"
    yield from (f'<p class="note">{escape(note)}</p>' for note in table.notes)


def _header(table: Table) -> Iterable[str]:
    groups = grouped(table.header)
    if all(group is None for group, _ in groups):
        label = ' class="label"'
        yield (
            "<tr>"
            + "".join(
                f'<th scope="col"{label if i < table.n_labels else ""}>{escape(name)}</th>'
                for i, name in enumerate(table.header)
            )
            + "</tr>"
        )
        return
    upper, lower = "", ""
    for group, names in groups:
        if group is None:
            upper += "".join(f'<th scope="col" rowspan="2">{escape(name)}</th>' for name in names)
        else:
            upper += f'<th scope="colgroup" colspan="{len(names)}">{escape(group)}</th>'
            lower += "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    yield f"<tr>{upper}</tr><tr>{lower}</tr>"


def _cell(cell: str | Measured) -> str:
    if isinstance(cell, str):
        return escape(cell)
    if cell.interval is None:
        return '<span class="none">-</span>'
    mean, *ends = cell.numbers
    text = f'<span class="mean">{mean}</span>'
    if ends:
        text += f' <span class="interval">[{ends[0]}, {ends[1]}]</span>'
    if cell.published is not None:
        text += f' <span class="published">{_mark(cell.verdict)} {cell.published:g}</span>'
    return text


def _mark(verdict: Verdict | None) -> str:
    mark, text = _MARKS[verdict], VERDICTS[verdict]
    return f'<span class="verdict {verdict or "unknown"}" role="img" aria-label="{text}" title="{text}">{mark}</span>'


def _settings(page: Page, key: str) -> Iterable[str]:
    told = settings_of(page.entries, page.order)
    yield f'<h2 id="{key}-settings">Settings</h2>'
    if not (told.common or told.own or told.several):
        yield "<p>The results store no settings.</p>"
        return
    if told.own:
        yield '<div class="scroll" role="region" tabindex="0" aria-label="Settings by label"><table class="text">'
        yield "<caption>What a label stands for</caption><tbody>"
        for (axis, label), pairs in told.own.items():
            told_as = ", ".join(f"{name}: {value}" for name, value in pairs)
            yield f'<tr><th scope="row">{escape(axis.replace("_", " "))} {escape(label)}</th>'
            yield f"<td>{escape(told_as)}</td></tr>"
        yield "</tbody></table></div>"
    for heading, some in (
        ("Settings of all runs", told.common),
        ("Settings that depend on more than one label, with all their values", told.several),
    ):
        if some:
            yield f'<details class="section"><summary><h3>{heading}: {len(some)}</h3></summary>'
            yield '<div class="scroll" role="region" tabindex="0"><table class="text"><tbody>'
            for name, value in some:
                yield f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
            yield "</tbody></table></div></details>"
    if told.unset:
        yield f'<p class="note">{told.unset} more settings have no value in any run.</p>'


def _reproduce(page: Page, key: str) -> Iterable[str]:
    yield f'<h2 id="{key}-commands">To reproduce</h2>'
    whole = page.command()
    if whole:
        yield f"<p>All of it:</p>{_code([whole])}"
    n = sum(len(group) for _, group in page.commands)
    if n:
        yield f'<details class="section commands"><summary><h3>The {n} commands, one by one</h3></summary>'
        for seeds, group in page.commands:
            yield _code([f"for seed in {' '.join(map(str, seeds))}; do", *(f"  {one}" for one in group), "done"])
        yield "</details>"


def _list(heading: str, items: Sequence[str]) -> Iterable[str]:
    if items:
        yield f"<h2>{escape(heading)}</h2><ul>"
        yield from (f"<li>{escape(item)}</li>" for item in items)
        yield "</ul>"


def _code(lines: Sequence[str]) -> str:
    return f'<pre tabindex="0"><code>{escape(chr(10).join(lines))}</code></pre>'
