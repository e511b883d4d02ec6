"""Result files -> one page in Markdown, LaTeX or HTML. A table is rendered from files, never from memory.

What a page says: ``page.py``; its tables: ``tables.py``, ``compare.py``, ``budget.py``, ``cutoffs.py``,
``stealth.py``; how it is written: ``as_markdown.py``, ``as_latex.py``, ``as_html.py``.

Stdlib, numpy and ``statistics.py`` only: a report needs neither torch nor recbole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_robust.report.as_html import html
from recbole_robust.report.as_latex import latex
from recbole_robust.report.as_markdown import markdown
from recbole_robust.report.page import Page, make_page
from recbole_robust.report.pictures import pictures as pictures_of
from recbole_robust.report.published import Published, load_published
from recbole_robust.report.result_file import SCHEMA_VERSION, check_grid, check_result
from recbole_robust.types import UserError
from recbole_robust.whole_files import written_whole

__all__ = [
    "SCHEMA_VERSION",
    "Published",
    "load_pages",
    "load_published",
    "load_results",
    "render_markdown",
    "write_report",
    "write_text",
]

GRID_FILE = "grid.json"  # what a benchmark leaves beside its cells: the order of labels, its cells, its report options
AUDIT_FILE = "audit.json"  # what ``recbole-robust audit`` found in them
REPORT_OPTIONS = ("title", "metrics", "published", "undefended", "undefended_of", "gains")
FORMATS = {"markdown": ".md", "latex": ".tex", "html": ".html"}  # and the suffix of each


def load_results(folder: str | Path) -> list[dict[str, Any]]:
    """Read every result below a folder: JSON files with the keys ``schema_version`` and ``command``, sorted by path.

    Each result has one more key, ``path``: its file relative to the folder. Other JSON files are passed over.

    Raises:
        UserError: the folder is not there, or a file is not JSON or not a result we can read; the message names it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder of result files, there is none")
    results = []
    for path in sorted(root.rglob("*.json")):
        result = _read_json(path)
        if isinstance(result, dict) and {"schema_version", "command"} <= result.keys():
            check_result(result, path)
            results.append({**result, "path": path.relative_to(root).as_posix()})
    return results


def render_markdown(results: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """Render results as one Markdown page; the options are those of :func:`recbole_robust.report.page.make_page`."""
    return markdown(make_page(results, **options))


def format_of(format: str | None, out: str | Path | None) -> str:
    """The format that was asked for; where none was, what the suffix of ``out`` says, else ``markdown``."""
    return format or next((name for name, suffix in FORMATS.items() if out and Path(out).suffix == suffix), "markdown")


def write_report(
    folder: str | Path, out: str | Path | None = None, format: str | None = None, pictures: bool = False
) -> Path:
    """Render the results below a folder, one part a grid, and return the path of the page.

    Each grid's ``grid.json`` gives the order of its labels and its report options; a cell that this grid no longer has
    (its settings have changed since) is left out of the tables and listed.

    Args:
        folder: searched with everything below it.
        out: the file to write; where None, ``report.md``, ``report.tex`` or ``report.html`` in the folder.
        format: ``markdown``, ``latex`` or ``html``; where None, what the suffix of ``out`` says, else Markdown.
        pictures: Markdown only: draw ``<name of the page>-attacks.svg``, ``-defenses.svg`` and curves beside it, and
            show them.

    Raises:
        UserError: no results, an unreadable file, an unknown format, or ``pictures`` with another than Markdown.
    """
    format = format_of(format, out)
    if format not in FORMATS:
        raise UserError(f"format: expected {', '.join(FORMATS)}, got {format!r}")
    if pictures and format != "markdown":
        raise UserError(f"pictures: expected the format markdown (an HTML page has figures of its own), got {format}")
    pages = load_pages(folder)
    path = Path(out) if out is not None else Path(folder) / f"report{FORMATS[format]}"
    if format == "markdown":
        drawn = [_draw(page, path, i) if pictures else {} for i, page in enumerate(pages)]
        text = "\n".join(markdown(page, its) for page, its in zip(pages, drawn, strict=True))
    elif format == "latex":
        text = latex(pages)
    else:
        text = html(pages, str(folder))
    write_text(path, text)
    return path


def load_pages(folder: str | Path) -> list[Page]:
    """What :func:`write_report` renders: one page a grid below the folder, and one of the results outside any grid.

    Raises:
        UserError: no results, or an unreadable file.
    """
    root = Path(folder)
    results = load_results(root)
    if not results:
        raise UserError(f"{root}: expected result files below it, found none")
    grids = {path.parent.relative_to(root).as_posix(): read_grid(path) for path in sorted(root.rglob(GRID_FILE))}
    parts: dict[str | None, list[dict[str, Any]]] = {}
    for result in results:
        parent = Path(result["path"]).parent.as_posix()
        parts.setdefault(parent if result.get("cell") else None, []).append(result)
    pages = []
    for place, some in parts.items():
        grid = grids.get(place, {}) if place is not None else {}
        there = {Path(result["path"]).stem for result in some}
        cells = set(grid["cells"]) if "cells" in grid else there
        used = [result for result in some if Path(result["path"]).stem in cells]
        left_out = [result["path"] for result in some if Path(result["path"]).stem not in cells]
        options = {key: value for key, value in grid.get("report", {}).items() if key in REPORT_OPTIONS}
        name = grid.get("name") or (some[0].get("cell") or {}).get("grid") or root.resolve().name
        options = {"title": name, "order": grid.get("axes"), "source": grid.get("source"), **options}
        audit = audit_of(root / place) if place is not None else ()
        pages.append(make_page(used, left_out=left_out, audit=audit, n_missing=len(cells - there), **options))
    return pages


def read_grid(path: Path) -> dict[str, Any]:
    """The ``grid.json`` of a grid.

    Raises:
        UserError: it is not one.
    """
    return check_grid(_read_json(path), path)


def digest_of_cells(folder: Path) -> str:
    """Sixteen hexadecimal digits of the JSON files in a grid's folder, less the audit's: what an audit has seen."""
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*.json")):
        if path.name != AUDIT_FILE:
            sha.update(f"{path.name}\x1f".encode() + path.read_bytes() + b"\x1f")
    return sha.hexdigest()[:16]


def audit_of(folder: Path) -> tuple[str, ...]:
    """What the audit of a grid's folder says, in lines; nothing where it was never audited.

    Raises:
        UserError: the file of an audit is not one.
    """
    path = folder / AUDIT_FILE
    if not path.is_file():
        return ()
    found = _read_json(path)
    try:
        failed = [str(one["line"]) for one in found["findings"] if one["failures"]]
        n_checks, digest = len(found["findings"]), found["digest"]
    except (LookupError, TypeError):
        raise UserError(f"{path}: expected the file that an audit leaves, got something else") from None
    if digest != digest_of_cells(folder):
        return (f"Audit: of other files than these. Run: recbole-robust audit {folder.name}",)
    if not failed:
        return (f"Audit: all {n_checks} checks of these files passed.",)
    return (f"Audit: {len(failed)} of {n_checks} checks of these files failed.", *failed)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: under a temporary name in the same folder, then renamed.

    Raises:
        OSError: it cannot be written; nothing half-written is left.
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _draw(page: Page, path: Path, number: int) -> dict[str, str]:
    """Write the pictures of a page beside it; their file names to what they show."""
    shown = {}
    for kind, (picture, text) in pictures_of(page).items():
        name = f"{path.stem}-{kind}.svg" if number == 0 else f"{path.stem}-{number + 1}-{kind}.svg"
        write_text(path.with_name(name), picture)
        shown[name] = text
    return shown


def _read_json(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\ud" in text.lower():  # half a letter, perhaps, which no page and no screen can show
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: expected a JSON file, got one that cannot be read ({error})") from None
