"""A report as Markdown that reads well on GitHub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from recbole_robust.report.page import Page
from recbole_robust.report.tables import Measured, Table


def markdown(page: Page, pictures: Mapping[str, str] | None = None) -> str:
    """The page; ``pictures``: file names, relative to the page, with what they show, put below the preamble."""
    lines = [f"# {escape(page.title)}", "", *_preamble(page), ""]
    for name, text in (pictures or {}).items():
        lines += [f"![{escape(text)}]({name})", ""]
    for section in page.sections:
        lines += [f"## {escape(section.heading)}", ""]
        for table in section.tables:
            lines += _table(table)
    lines += _reproduce(page)
    lines += ["## Made with", "", escape(page.made_with), ""] if page.made_with else []
    lines += _list("Checks of the audit that failed", page.audit[1:])
    lines += _list("Failed cells", page.failed)
    lines += _list("Files left out: cells that the grid no longer has", page.left_out)
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return re.sub(r"([\\|*`<])", r"\\\1", " ".join(text.split()))


def _preamble(page: Page) -> list[str]:
    lines = [page.summary]
    if page.published:
        lines += [
            "",
            f"In parentheses: the published value (`{page.published.name}`, percent), for the publication's own "
            "targets and settings.",
        ]
    n_failed = len(page.failed)
    if n_failed:
        n_cells = page.n_results + n_failed
        lines += ["", f"**{n_failed} of {n_cells} cells failed: they are listed at the end.**"]
    return [*lines, *(line for told in page.audit[:1] for line in ("", escape(told)))]


def _table(table: Table) -> list[str]:
    rule = ["---"] * table.n_labels + ["---:"] * (len(table.header) - table.n_labels)
    rows = [[_text(cell) for cell in row] for row in table.rows]
    grid = [[escape(name) for name in table.header], rule, *rows]
    lines = [f"### {escape(table.title)}", "", *("| " + " | ".join(row) + " |" for row in grid), ""]
    return lines + [line for note in table.notes for line in (escape(note), "")]


def _text(cell: str | Measured) -> str:
    if isinstance(cell, str):
        return escape(cell)
    if cell.interval is None:
        return "-"
    mean, *ends = cell.numbers
    text = f"{mean} [{ends[0]}, {ends[1]}]" if ends else mean
    return text if cell.published is None else f"{text} ({cell.published:g})"


def _reproduce(page: Page) -> list[str]:
    """The commands, one a row with the seed left open."""
    if not page.commands:
        return []
    whole = page.command()
    n = sum(len(group) for _, group in page.commands)
    lines = ["## To reproduce", "", *(["All of it:", "", "```bash", whole, "```", ""] if whole else [])]
    lines += [f"<details><summary>The {n} commands, one by one</summary>", ""]
    for seeds, group in page.commands:
        lines += ["```bash", f"for seed in {' '.join(str(seed) for seed in seeds)}; do"]
        lines += [*(f"  {_in_fence(command)}" for command in group), "done", "```", ""]
    return [*lines, "</details>", ""]


def _in_fence(command: str) -> str:
    """A command that cannot end the block of code it stands in."""
    return command.lstrip("`~ ")


def _list(heading: str, items: Sequence[str]) -> list[str]:
    return [f"## {heading}", "", *(f"- {escape(item)}" for item in items), ""] if items else []
