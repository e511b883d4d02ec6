"""Run a grid: one JSON file a cell, resumable at any moment, then a report. What a grid is: ``grid.py``."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recbole_robust.grid import AXES, RUN_DEFAULTS, Cell, expand, load_grid
from recbole_robust.report import GRID_FILE, SCHEMA_VERSION, write_report, write_text
from recbole_robust.types import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GridRun:
    """What :func:`run_grid` did: its folder, the report in it, and how many cells ran, were there, and failed.

    As text it is the report's path.
    """

    folder: Path
    report: Path
    n_run: int
    n_skipped: int
    n_failed: int

    def __str__(self) -> str:
        return str(self.report)


def run_grid(
    grid: str | Path | Mapping[str, Any],
    *,
    output_dir: str | Path,
    workers: int = 0,
    force: bool = False,
    only: str | Sequence[str] | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> GridRun:
    """Run the cells of a grid that have no result yet and render the report, which tells what the audit says.

    Each cell is written to ``<output_dir>/<grid name>/<cell id>.json`` whole or not at all, so that a grid killed at
    any moment goes on where it was. A cell that raises is recorded with its error and the others go on; Ctrl-C stops at
    once.

    Args:
        grid: a grid, its file, or the name of one that ships with the project.
        output_dir: parent of the grid's folder; the runs write there too, unless ``config.output_dir`` is set.
        workers: 0, in this process.
        force: run every cell again, clean trainings too.
        only: ``axis=pattern`` with shell wildcards on a label, e.g. ``method=MF*``; several, in a list or with commas
            (``method=MF,seed=0``): patterns of one axis are alternatives, different axes must all match.
        retry_failed: run the cells again that are recorded as failed.
        progress: show a bar and one line a cell on stderr.

    Raises:
        UserError: a bad grid, ``only`` that matches nothing, or ``workers`` other than 0.
        OSError: a result cannot be written.
    """
    if workers != 0:
        raise UserError(f"workers: expected 0 (in this process; Ray workers come later, issue 7), got {workers!r}")
    source = None if isinstance(grid, Mapping) else str(grid)
    content = grid if isinstance(grid, Mapping) else load_grid(grid)
    cells = expand(content)
    chosen = _chosen(cells, only)
    folder = Path(output_dir) / cells[0].grid
    states = {cell.id: _state(folder / f"{cell.id}.json") for cell in chosen}
    pending = [
        cell
        for cell in chosen
        if force or states[cell.id] == "missing" or (retry_failed and states[cell.id] == "failed")
    ]
    write_text(folder / GRID_FILE, _grid_file(content, cells, source))

    n_failed = 0
    with tqdm(total=len(pending), desc=cells[0].grid, unit="cell", disable=not progress, file=sys.stderr) as bar:
        for cell, result in _results(pending, Path(output_dir), workers, force):
            write_text(folder / f"{cell.id}.json", result)
            record = json.loads(result)
            n_failed += "error" in record
            if progress:
                bar.write(_line(cell, record, (content.get("report") or {}).get("metrics")), file=sys.stderr)
            bar.update()
    from recbole_robust.audit import record_audit  # here, so that a grid can be read without torch

    record_audit(folder)
    return GridRun(folder, write_report(folder), len(pending), len(chosen) - len(pending), n_failed)


def run_cell(cell: Cell, output_dir: str | Path, force: bool = False) -> str:
    """Run one cell and return the text of its result file; an exception becomes a failed cell's record."""
    from recbole_robust.quick_start import run_recbole_robust  # here, so that a grid can be read without torch

    place = {"schema_version": SCHEMA_VERSION, "command": cell.command(), "cell": cell.labels()}
    keys = {"output_dir": str(output_dir), **RUN_DEFAULTS, **cell.keys, **({"force": True} if force else {})}
    try:
        result = run_recbole_robust(model=keys.pop("model"), dataset=keys.pop("dataset"), config_dict=keys)
        return _to_text({key: value for key, value in {**result, **place}.items() if key != "path"})
    except Exception as error:
        record = {**place, "error": " ".join(f"{type(error).__name__}: {error}".split())}
        if not isinstance(error, UserError):
            record["traceback"] = traceback.format_exc()
        return _to_text(record)


def _results(cells: Iterable[Cell], output_dir: Path, workers: int, force: bool) -> Iterator[tuple[Cell, str]]:
    """Each cell with the text of its result, in order of completion; the place where Ray workers will come in."""
    for cell in cells:
        yield cell, run_cell(cell, output_dir, force)


def _chosen(cells: list[Cell], only: str | Sequence[str] | None) -> list[Cell]:
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


def _grid_file(grid: Mapping[str, Any], cells: list[Cell], source: str | None) -> str:
    """What the report needs of the grid: the order of its labels, its options, and which cells are its own."""
    axes = {axis: list(dict.fromkeys(getattr(cell, axis) for cell in cells)) for axis in AXES}
    told = {"name": cells[0].grid, "source": source, "report": grid.get("report") or {}, "axes": axes}
    return _to_text({**told, "cells": [cell.id for cell in cells]})


def _line(cell: Cell, record: Mapping[str, Any], wanted: Sequence[str] | None) -> str:
    """One line a finished cell: the target hit ratio that the report starts with, or that of the largest K."""
    head = " | ".join([cell.dataset, cell.attack or "clean", cell.method, cell.target_set, f"seed {cell.seed}"])
    if "error" in record:
        return f"{head}: FAILED, {record['error']}"
    clean, attacked = record.get("clean") or {}, record.get("attacked") or {}
    found = [name for name in (*clean, *attacked) if name.startswith("targethr@")]
    shown = [name for name in wanted or () if name in found] or sorted(found, key=lambda name: -int(name.split("@")[1]))
    metric = shown[0] if shown else None
    parts = [f"{numbers[metric]:.4f}" for numbers in (clean, attacked) if metric in numbers]
    seconds = (record.get("seconds") or {}).get("total")
    took = f", {seconds:.1f} s" if isinstance(seconds, int | float) else ""
    return f"{head}: {f'{metric} ' if metric else 'done'}{' -> '.join(parts)}{took}"


def _to_text(value: Any) -> str:
    return json.dumps(_plain(value), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """JSON values: numpy numbers become Python's, nan and infinities null, paths text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0 else None
    return str(value) if isinstance(value, Path) else value
