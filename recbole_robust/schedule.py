"""What of a grid is to run, which cell is next, so that workers do not wait for one another, and how long it takes."""

from __future__ import annotations

import json
import logging
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from recbole_robust.grid import AXES, Cell, expand, load_grid
from recbole_robust.properties_path import properties_dir
from recbole_robust.reuse import equal_results
from recbole_robust.types import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A grid that was read, and which of its cells are to run."""

    content: Mapping[str, Any]
    source: str | None
    cells: list[Cell]
    folder: Path
    pending: list[Cell]
    n_skipped: int
    n_failed: int  # of those that are there, recorded as failed
    reused: list[tuple[Cell, dict[str, Any]]]  # cells that are not there, with the result of another grid

    @classmethod
    def of(
        cls,
        grid: str | Path | Mapping[str, Any],
        output_dir: str | Path,
        force: bool,
        only: str | Sequence[str] | None,
        retry_failed: bool,
        reuse: str | Path | None = None,
    ) -> Asked:
        content = grid if isinstance(grid, Mapping) else load_grid(grid)
        cells = expand(content)
        chosen = chosen_cells(cells, only)
        folder = Path(output_dir) / cells[0].grid
        wanted = {"missing"} | ({"failed"} if retry_failed else set())
        states = [_state(folder / f"{cell.id}.json") for cell in chosen]
        pending = [cell for cell, state in zip(chosen, states, strict=True) if force or state in wanted]
        n_skipped = len(chosen) - len(pending)
        n_failed = 0 if force or retry_failed else states.count("failed")
        reused = [] if reuse is None or force else list(equal_results(pending, reuse))
        elsewhere = {cell.id for cell, _ in reused}
        pending = [cell for cell in pending if cell.id not in elsewhere]
        source = None if isinstance(grid, Mapping) else str(grid)
        return cls(content, source, cells, folder, pending, n_skipped, n_failed, reused)


def check_workers(workers: Any) -> None:
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
        raise UserError(f"workers: expected a whole number >= 0 (0: in this process), got {workers!r}")


def cell_text(cell: Cell) -> str:
    """One line that tells a cell."""
    return " | ".join([cell.dataset, cell.attack or "clean", cell.method, cell.target_set, f"seed {cell.seed}"])


def chosen_cells(cells: list[Cell], only: str | Sequence[str] | None) -> list[Cell]:
    wanted: dict[str, list[str]] = {}
    between = rf",(?=(?:{'|'.join(AXES)})=)"  # a comma that is not part of a label
    for choice in [
        one for text in ([only] if isinstance(only, str) else only or []) for one in re.split(between, text)
    ]:
        axis, equals, pattern = choice.partition("=")
        if not equals or axis not in AXES:
            raise UserError(f"only: expected <axis>=<pattern> with an axis of {', '.join(AXES)}, got {choice!r}")
        wanted.setdefault(axis, []).append(pattern)

    def matches(cell: Cell) -> bool:
        told = {axis: str(getattr(cell, axis) or "clean") if axis != "seed" else str(cell.seed) for axis in AXES}
        return all(
            any(told[axis] == pattern or fnmatchcase(told[axis], pattern) for pattern in patterns)
            for axis, patterns in wanted.items()
        )

    chosen = [cell for cell in cells if matches(cell)]
    if not chosen:
        axis = next(iter(wanted))
        found = ", ".join(dict.fromkeys(str(getattr(cell, axis) or "clean") for cell in cells))
        raise UserError(f"only: expected a pattern that matches a cell ({axis}: {found}), got {only!r}")
    return chosen


def _state(path: Path) -> str:
    """``done``, ``failed`` or ``missing`` (a file that cannot be read counts as missing: its cell runs again)."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return "failed" if "error" in result else "done" if "cell" in result else "missing"
    except FileNotFoundError:
        return "missing"
    except (ValueError, TypeError):
        logger.warning("%s cannot be read: its cell runs again", path)
        return "missing"


# --- which is next ----------------------------------------------------------------------------------------------------

Part = tuple[str | int | None, ...]


def parts_of(cell: Cell) -> set[Part]:
    """What a cell makes or finds made: its clean training, and its poison card where it is attacked.

    Told by labels, so that cells may seem to share more than they do, never less.
    """
    parts: set[Part] = {("clean", cell.dataset, cell.method, cell.seed)}
    if cell.attack is not None:
        parts.add(("card", cell.dataset, cell.attack, cell.target_set, cell.seed))
    return parts


class CellQueue:
    """The cells that wait, in the order of the grid, but first those that no running cell makes a part for.

    Two cells of one card would both be right: the second waits for the lock of the card. Better it does something else.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        self._waiting = list(cells)
        self._running: list[Cell] = []
        self._made: set[Part] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> Cell | None:
        """The next cell, or None where none waits."""
        if not self._waiting:
            return None
        in_work = {part for cell in self._running for part in parts_of(cell)} - self._made
        free = (i for i, cell in enumerate(self._waiting) if not in_work & parts_of(cell))
        cell = self._waiting.pop(next(free, 0))
        self._running.append(cell)
        return cell

    def done(self, cell: Cell) -> None:
        """A cell that was taken has ended, well or not."""
        self._running.remove(cell)
        self._made |= parts_of(cell)

    def give_back(self, cell: Cell) -> None:
        """A cell that was taken has to run again: it is the next."""
        self._running.remove(cell)
        self._waiting.insert(0, cell)


# --- how long ---------------------------------------------------------------------------------------------------------

_KEYS = ("dataset", "model", "preset", "defense", "attack")


def past_seconds(folder: Path) -> dict[tuple[Any, ...], list[float]]:
    """The seconds of every result below a folder, by these keys, and by the first of them."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for path in sorted(folder.rglob("*.json")) if folder.is_dir() else []:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            seconds = float(result["seconds"]["total"])
            result["preset"] = (result.get("config") or {}).get("preset")
            told = [result[key] for key in _KEYS]
        except (OSError, ValueError, TypeError, KeyError):  # another kind of file, or a failed cell
            continue
        for n in range(1, len(_KEYS) + 1):
            found.setdefault(tuple(told[:n]), []).append(seconds)
    return found


def expected_seconds(cell: Cell, past: Mapping[tuple[Any, ...], Sequence[float]]) -> float | None:
    """The median of the most similar results, on the same data set at least; None where there are none."""
    told = [cell.keys.get(key) for key in _KEYS]
    for n in range(len(_KEYS), 0, -1):
        if tuple(told[:n]) in past:
            return statistics.median(past[tuple(told[:n])])
    return None


@dataclass(frozen=True)
class GridPlan:
    """What :func:`plan_grid` says: the cells that would run, how many are there, and about how long it would take.

    Attributes:
        seconds: the sum over the cells whose like has run before, divided among the workers.
        n_unknown: cells without anything to compare with.
        n_failed: of the cells that are there, those that are recorded as failed.
        n_reused: cells that are not there, but in another grid's results.
    """

    cells: list[Cell]
    n_skipped: int
    seconds: float
    n_unknown: int
    n_reused: int = 0
    n_failed: int = 0

    def __str__(self) -> str:
        lines = [cell_text(cell) for cell in self.cells]
        known = len(self.cells) - self.n_unknown
        about = f"about {_duration(self.seconds)} for {known} of them" if known else "how long is not known"
        there = f"{self.n_skipped} are there"
        there += f", {self.n_failed} of them failed" if self.n_failed else ""
        there += f", {self.n_reused} in other grids" if self.n_reused else ""
        about = f": {about}" if self.cells else ""
        return "\n".join([*lines, f"would run {len(self.cells)} cells ({there}){about}"])


def plan_grid(
    grid: str | Path | Mapping[str, Any],
    *,
    output_dir: str | Path,
    workers: int = 0,
    address: str | None = None,
    force: bool = False,
    only: str | Sequence[str] | None = None,
    retry_failed: bool = False,
    reuse: str | Path | None = None,
) -> GridPlan:
    """What ``benchmark.run_grid`` would run with these arguments; nothing is written.

    The time of a cell is the median of the results below ``output_dir`` that are most like it, on the same data set; or
    else of those below ``reuse``, or of the results that are beside the shipped grids, where there are any.
    """
    check_workers(workers)
    asked = Asked.of(grid, output_dir, force, only, retry_failed, reuse)
    seconds: list[float | None] = [None] * len(asked.pending)
    for folder in (output_dir, reuse, properties_dir().parent / "results"):
        if folder is not None and None in seconds:
            past = past_seconds(Path(folder))
            seconds = [old or expected_seconds(cell, past) for cell, old in zip(asked.pending, seconds, strict=True)]
    known = [value for value in seconds if value is not None]
    about = sum(known) / max(1, workers)
    return GridPlan(asked.pending, asked.n_skipped, about, len(seconds) - len(known), len(asked.reused), asked.n_failed)


def _duration(seconds: float) -> str:
    """``50 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
