"""A report as Markdown that reads well on GitHub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from recbole_robust.report.page import Page
from recbole_robust.report.settings import settings_of
from recbole_robust.report.tables import Measured, Table, Verdict, legend

_MARKS: Mapping[Verdict | None, str] = {"inside": "", "above": "▲", "below": "▼", None: "○"}


def markdown(page: Page, pictures: Mapping[str, str] | None = None) -> str:
    """The page; ``pictures``: file names, relative to the page, with what they show, put below the preamble."""
    lines = [f"# {escape(page.title)}", "", *_preamble(page), ""]
    for name, text in (pictures or {}).items():
        lines += [f"![{escape(text)}]({name})", ""]
    for section in page.sections:
        lines += [f"## {escape(section.heading)}", ""]
        for table in section.tables:
            lines += _table(table)
    lines += _settings(page)
    lines += _reproduce(page)
    lines += ["## Made with", "", escape(page.made_with), ""] if page.made_with else []
    lines += _list("Checks of the audit that failed", page.audit[1:])
    lines += _list("Failed cells", page.failed)
    lines += _list("Files left out: cells that the grid no longer has", page.left_out)
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in a table too: no picture or link of a label's is one."""
    return re.sub(r"([\\|*`<\[&~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _preamble(page: Page) -> list[str]:
    lines = [page.summary]
    if page.published:
        lines += [
            "",
            f"In parentheses: the published value (`{page.published.name}`, percent), for the publication's own "
            f"targets and settings. {legend(_MARKS)}",
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
    return text if cell.published is None else f"{text} ({cell.published:g}) {_MARKS[cell.verdict]}".rstrip()


def _settings(page: Page) -> list[str]:
    """What each label stands for, and, folded, the settings of all runs."""
    told = settings_of(page.entries, page.order)
    if not (told.common or told.own or told.several):
        return []
    lines = ["## Settings", ""]
    if told.own:
        lines += ["| label | settings |", "| --- | --- |"]
        for (axis, label), pairs in told.own.items():
            settings = ", ".join(f"{name}: {value}" for name, value in pairs)
            lines.append(f"| {escape(axis.replace('_', ' '))} {escape(label)} | {escape(settings)} |")
        lines.append("")
    for heading, some in (("of all runs", told.common), ("that depend on more than one label", told.several)):
        if some:
            lines += [f"<details><summary>The {len(some)} settings {heading}</summary>", "", "| key | value |"]
            lines += ["| --- | --- |", *(f"| {escape(name)} | {escape(value)} |" for name, value in some)]
            lines += ["", "</details>", ""]
    return lines


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
