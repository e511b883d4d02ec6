"""Cells that other grids have run: their results, taken for those of this grid that are equal.

Equal are cells of one command line (the keys that the grids set in whatever order, less where they run), one resolved
configuration and one code (:data:`recbole_robust.results.CODE`). An audit checks that the rows of the data are those of
today, by the hash of the split, that the versions of the packages are one, and that all cells face the same fake
users: the profiles of an attack that learns may differ from one kind of processor to another.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from recbole_robust.grid import RUN_DEFAULTS, Cell
from recbole_robust.types import UserError

logger = logging.getLogger(__name__)


def equal_results(cells: Collection[Cell], folder: str | Path) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """The cells whose like has a result below ``folder``, each with that result.

    Raises:
        UserError: there is no such folder.
    """
    by_command = _by_command(Path(folder), {_words(cell.command()) for cell in cells})
    for cell in cells:
        for result in by_command.get(_words(cell.command()), ()):
            if _is_of(result, cell):
                yield cell, result
                break


def _words(command: str) -> frozenset[str]:
    return frozenset(shlex.split(command))


def _by_command(folder: Path, wanted: set[frozenset[str]]) -> dict[frozenset[str], list[dict[str, Any]]]:
    if not folder.is_dir():
        raise UserError(f"reuse: expected a folder with results, got {str(folder)!r}")
    found: dict[frozenset[str], list[dict[str, Any]]] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            words = _words(result["command"]) if _is_whole(result) else None
        except (OSError, ValueError, RecursionError):
            logger.warning("reuse: %s cannot be read", path)
            continue
        if words in wanted:
            found.setdefault(words, []).append(result)
    return found


def _is_whole(result: Any) -> bool:
    """Whether it is the result of a cell that has not failed."""
    return (
        isinstance(result, Mapping)
        and "error" not in result
        and isinstance(result.get("cell"), Mapping)
        and isinstance(result.get("command"), str)
        and isinstance(result.get("config"), Mapping)
    )


def _is_of(result: Mapping[str, Any], cell: Cell) -> bool:
    from recbole_robust.config import Config  # here, so that a grid can be read without torch
    from recbole_robust.results import CODE

    if result.get("code") != CODE:
        return False
    keys = {**RUN_DEFAULTS, **cell.keys}
    return bool(Config(keys.pop("model"), keys.pop("dataset"), config_dict=keys).resolved() == result["config"])
