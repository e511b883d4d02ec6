"""Write the tables of attacks, models and defenses into README.md: `python docs/make_tables.py`.

What a table says comes from the registry and from the docstrings, so that it cannot go stale: tests/test_readme.py
fails where the README is not what this script writes. `--check` writes nothing and exits with 1 where it would.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_robust.registry import ATTACKS, DEFENSES, MODELS, WRAPPERS

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
TABLES: dict[str, Mapping[str, Any]] = {"attacks": ATTACKS, "models": {**MODELS, **WRAPPERS}, "defenses": DEFENSES}


def reference(*docstrings: str) -> str:
    """The paragraph that starts with ``Reference:`` in the first docstring that has one, as one line."""
    for text in docstrings:
        found = re.search(r"^Reference:\s*(.+?)(?:\n\s*\n|\Z)", text, re.DOTALL | re.MULTILINE)
        if found:
            return " ".join(found[1].split())
    return "none"


def summary(name: str, docstring: str) -> str:
    """The first paragraph of a docstring as one line, less the name that it may start with."""
    first = " ".join(docstring.partition("\n\n")[0].split()).removeprefix(f"{name}: ")
    return first[:1].upper() + first[1:]


def row(kind: str, name: str, cls: Any) -> str:
    """One line of a table: name, what it is, its file, its paper."""
    own, module = inspect.getdoc(cls) or "", inspect.getdoc(inspect.getmodule(cls)) or ""
    what = summary(name, module if kind == "models" else own)  # a model's own docstring starts with its formula
    path = Path(inspect.getfile(cls)).resolve().relative_to(REPOSITORY).as_posix()
    cells = (f"`{name}`", what, f"[{Path(path).name}]({path})", reference(own, module))
    return "| " + " | ".join(cell.replace("``", "`").replace("|", "\\|") for cell in cells) + " |"


def table(kind: str) -> str:
    """The Markdown table of ``attacks``, ``models`` or ``defenses``."""
    if not TABLES[kind]:
        return f"There are no {kind} of this kind in the registry yet."
    rows = [row(kind, name, cls) for name, cls in TABLES[kind].items()]
    return "\n".join(["| name | what it is | file | paper |", "|---|---|---|---|", *rows])


def update(text: str) -> str:
    """``text`` with every table between its markers written anew.

    Raises:
        ValueError: a pair of markers is not there.
    """
    for kind in TABLES:
        start, end = f"<!-- table:{kind} -->\n", f"<!-- /table:{kind} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{README.name}: expected the markers {start.strip()} and {end}")
        text = f"{before}{start}{table(kind)}\n{end}{after}"
    return text


def main(arguments: list[str]) -> int:
    old = README.read_text(encoding="utf-8")
    new = update(old)
    if "--check" in arguments:
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
