"""A report as a LaTeX document: booktabs tables, each of which can be copied into a paper as it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from recbole_robust.report.page import Page
from recbole_robust.report.tables import Measured, Table, Verdict, grouped, legend

HEAD = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\begin{document}
"""
WIDE = 7  # columns of numbers; a table with more goes on in another
TALL = 34  # rows on a page
LONG = 160  # letters of a row, about; a table with more is scaled down to the width of the text

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # at the start of a row it would be an argument of the line break before it
    "]": "{]}",
    "∞": r"$\infty$",
}
_MARKS: Mapping[Verdict | None, str] = {
    "inside": "",
    "above": r"$^{\uparrow}$",
    "below": r"$^{\downarrow}$",
    None: r"$^{\circ}$",
}


def latex(pages: Sequence[Page]) -> str:
    """The document, one section a grid. It needs booktabs, graphicx and geometry, which every TeX has."""
    body = [line for page in pages for line in _page(page)]
    return "\n".join([HEAD, *body, r"\end{document}"]) + "\n"


def escape(text: str) -> str:
    """Text that LaTeX shows as it is."""
    escaped = "".join(_SPECIAL.get(letter, letter) for letter in " ".join(text.split()))
    return re.sub(r"([-',])(?=\1)", r"\1{}", escaped)  # no dash of two hyphens, no quotation mark of two primes


def _page(page: Page) -> Iterable[str]:
    yield from (rf"\section*{{{escape(page.title)}}}", escape(page.summary))
    if page.published:
        yield escape(
            f"In parentheses: the published value ({page.published.name}, percent), for the publication's own targets "
            "and settings."
        )
        yield legend(_MARKS)
    yield from (escape(line) for line in page.audit)
    yield ""
    for section in page.sections:
        yield from (rf"\subsection*{{{escape(section.heading)}}}", "")
        command = page.command(section)
        if command:
            yield from (_typewriter(command), "")
        for table in section.tables:
            yield from (*_table(table), "")
        yield from (r"\clearpage", "")  # tables float, but not into the next section
    yield from _list("Failed cells", page.failed)
    yield from _list("Files left out: cells that the grid no longer has", page.left_out)
    if page.made_with:
        yield from (r"\subsection*{Made with}", escape(page.made_with), "")


def _table(table: Table) -> Iterable[str]:
    parts = [table.rows[start : start + TALL] for start in range(0, len(table.rows), TALL)] or [[]]
    pieces = [(columns, some) for columns in _pieces(table) for some in parts]
    for number, (columns, some) in enumerate(pieces, start=1):
        of = f" ({number} of {len(pieces)})" if len(pieces) > 1 else ""
        rows = [" & ".join(_text(row[i]) for i in columns) + r" \\" for row in some]
        wide = max((len(row) - row.count("$") for row in rows), default=0) > LONG
        yield from (r"\begin{table}[htbp]", r"\centering", rf"\caption{{{escape(table.title + of)}}}", r"\small")
        if wide:
            yield r"\resizebox{\textwidth}{!}{%"
        spec = "l" * table.n_labels + "r" * (len(columns) - table.n_labels)
        yield from (rf"\begin{{tabular}}{{@{{}}{spec}@{{}}}}", r"\toprule")
        yield from _header([table.header[i] for i in columns])
        yield from (r"\midrule", *rows, r"\bottomrule", r"\end{tabular}")
        if wide:
            yield "}"
        yield r"\end{table}"
    for note in table.notes:
        yield from ("", rf"{{\footnotesize {escape(note)}\par}}")


def _pieces(table: Table) -> Iterable[list[int]]:
    """The columns of a table, over several where they are too many for one; each begins with the labels."""
    labels, piece = list(range(table.n_labels)), list(range(table.n_labels))
    column = table.n_labels
    for _, names in grouped(table.header[table.n_labels :]):
        for start in range(0, len(names), WIDE):
            some = list(range(column, column + len(names[start : start + WIDE])))
            column += len(some)
            if len(piece) > len(labels) and len(piece) + len(some) > len(labels) + WIDE:
                yield piece
                piece = list(labels)
            piece = piece + some
    yield piece


def _header(header: Sequence[str]) -> Iterable[str]:
    """The names of the columns; ``A: attacked`` and ``A: lift`` stand in a second row under a common ``A``."""
    groups = grouped(header)
    if all(group is None for group, _ in groups):
        yield " & ".join(escape(name) for name in header) + r" \\"
        return
    upper, rules, column = [], [], 1
    for group, names in groups:
        if group is None:
            upper += [""] * len(names)
        else:
            upper.append(rf"\multicolumn{{{len(names)}}}{{c}}{{{escape(group)}}}")
            rules.append(rf"\cmidrule(lr){{{column}-{column + len(names) - 1}}}")
        column += len(names)
    yield " & ".join(upper) + r" \\"
    yield " ".join(rules)
    yield " & ".join(escape(name) for _, names in groups for name in names) + r" \\"


def _text(cell: str | Measured) -> str:
    if isinstance(cell, str):
        return escape(cell)
    if cell.interval is None:
        return "--"
    mean, *ends = (f"${number}$" for number in cell.numbers)
    text = f"{mean} [{ends[0]}, {ends[1]}]" if ends else mean
    if cell.published is None:
        return text
    return f"{text} ({cell.published:g}){_MARKS[cell.verdict]}"


def _typewriter(text: str) -> str:
    return rf"{{\raggedright\ttfamily\footnotesize {escape(text)}\par}}"


def _list(heading: str, items: Sequence[str]) -> Iterable[str]:
    if items:
        yield from (rf"\subsection*{{{escape(heading)}}}", r"\begin{itemize}")
        yield from (rf"\item {escape(item)}" for item in items)
        yield from (r"\end{itemize}", "")
