"""Run a grid: one JSON file a cell, resumable at any moment, then a report. What a grid is: ``grid.py``.

In this process, or on Ray: one actor a worker, which lives as long as the grid. Only this process writes the grid's
files. Ray (``cluster.py``) is imported where workers are asked for, nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recbole_robust.cluster import at_home, ray_cluster, threads_each
from recbole_robust.grid import AXES, RUN_DEFAULTS, Cell
from recbole_robust.report import GRID_FILE, SCHEMA_VERSION, write_report, write_text
from recbole_robust.schedule import Asked, CellQueue, cell_text, check_workers
from recbole_robust.types import UserError

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # at a cell whose worker dies; then it is recorded as failed
PATIENCE = 60.0  # seconds without a worker until the log says so
RUN_FOLDERS = ("log", "cards", "clean", "saved")  # of an output_dir, made before the workers start


@dataclass(frozen=True)
class GridRun:
    """What :func:`run_grid` did: its folder, the report in it, and how many cells ran, were there, failed (now, or when
    they ran before), or were taken from another grid. As text it is the report's path.
    """

    folder: Path
    report: Path
    n_run: int
    n_skipped: int
    n_failed: int
    n_reused: int = 0

    def __str__(self) -> str:
        return str(self.report)


def run_grid(
    grid: str | Path | Mapping[str, Any],
    *,
    output_dir: str | Path,
    workers: int = 0,
    address: str | None = None,
    force: bool = False,
    only: str | Sequence[str] | None = None,
    retry_failed: bool = False,
    reuse: str | Path | None = None,
    progress: bool = True,
) -> GridRun:
    """Run the cells of a grid that have no result yet and render the report, which tells what the audit says.

    Each cell is written to ``<output_dir>/<grid name>/<cell id>.json`` whole or not at all, so that a grid killed at
    any moment goes on where it was. A cell that raises is recorded with its error and the others go on; Ctrl-C stops at
    once.

    Args:
        grid: a grid, its file, or the name of one that ships with the project.
        output_dir: parent of the grid's folder; the runs write there too, unless ``config.output_dir`` is set.
        workers: cells that run at once, each in a process of its own on Ray, which share the cores; 0: one after the
            other in this process, without Ray. A Ray that this process is connected to already is used.
        address: ``host:port`` of a Ray cluster, or ``auto``, the one that runs on this machine; with ``workers`` 0 it
            has one worker a CPU. Its machines need this package, and ``output_dir`` and the data in the same place.
        force: run every cell again, clean trainings too.
        only: ``axis=pattern`` with shell wildcards on a label, e.g. ``method=MF*``; several, in a list or with commas
            (``method=MF,seed=0``): patterns of one axis are alternatives, different axes must all match.
        retry_failed: run the cells again that are recorded as failed.
        reuse: a folder with results of other grids: cells that are equal to one of those are taken from there.
        progress: show a bar and one line a cell on stderr.

    Raises:
        UserError: a bad grid, ``only`` that matches nothing, a bad number of workers, no cluster at ``address``, or no
            folder ``reuse``.
        OSError: a result cannot be written.
    """
    check_workers(workers)
    asked = Asked.of(grid, output_dir, force, only, retry_failed, reuse)
    folder, content = asked.folder, asked.content
    n_failed = asked.n_failed
    name = asked.cells[0].grid
    with (
        _running(asked.pending, Path(output_dir), workers, address, force) as results,
        tqdm(total=len(asked.pending), desc=name, unit="cell", disable=not progress, file=sys.stderr) as bar,
    ):
        write_text(folder / GRID_FILE, _grid_file(content, asked.cells, asked.source))
        for cell, found in asked.reused:
            write_text(folder / f"{cell.id}.json", _to_text({**found, **_place(cell)}))
        for cell, result in results:
            write_text(folder / f"{cell.id}.json", result)
            record = json.loads(result)
            n_failed += "error" in record
            if progress:
                bar.write(_line(cell, record, (content.get("report") or {}).get("metrics")), file=sys.stderr)
            bar.update()
    from recbole_robust.audit import record_audit  # here, so that a grid can be read without torch

    record_audit(folder)
    return GridRun(folder, write_report(folder), len(asked.pending), asked.n_skipped, n_failed, len(asked.reused))


def run_cell(cell: Cell, output_dir: str | Path, force: bool = False) -> str:
    """Run one cell and return the text of its result file; an exception becomes a failed cell's record."""
    from recbole_robust.quick_start import run_recbole_robust  # here, so that a grid can be read without torch

    keys = {"output_dir": str(output_dir), **RUN_DEFAULTS, **cell.keys, **({"force": True} if force else {})}
    try:
        result = run_recbole_robust(model=keys.pop("model"), dataset=keys.pop("dataset"), config_dict=keys)
        return _to_text({key: value for key, value in {**result, **_place(cell)}.items() if key != "path"})
    except Exception as error:
        return _failed(cell, error)


def _place(cell: Cell) -> dict[str, Any]:
    """What a result file says beside the result."""
    return {"schema_version": SCHEMA_VERSION, "command": cell.command(), "cell": cell.labels()}


def _failed(cell: Cell, error: Exception) -> str:
    """The record of a failed cell, with the traceback where it is not the user's mistake."""
    record = {**_place(cell), "error": " ".join(f"{type(error).__name__}: {error}".split())}
    if not isinstance(error, UserError) or error.__cause__ is not None:  # a bug, or what may be one
        record["traceback"] = "".join(traceback.format_exception(error))
    return _to_text(record)


@contextlib.contextmanager
def _running(
    cells: list[Cell], output_dir: Path, workers: int, address: str | None, force: bool
) -> Iterator[Iterator[tuple[Cell, str]]]:
    """Inside this block the workers are there; it gives each cell with the text of its result, as they complete."""
    if not cells or (not workers and address is None):
        yield ((cell, run_cell(cell, output_dir, force)) for cell in cells)
        return
    output_dir = output_dir.absolute()
    places = {Path(str(cell.keys.get("output_dir", output_dir))).absolute() for cell in cells}
    with (
        kept_folders(place / name for place in places for name in RUN_FOLDERS),
        ray_cluster(workers, address) as n_workers,
    ):
        yield _Crew(n_workers, output_dir, force).results(CellQueue(cells))


@contextlib.contextmanager
def kept_folders(folders: Iterable[Path]) -> Iterator[None]:
    """Folders that are there inside this block, so that no worker removes one that another is about to write into."""
    wanted = list(folders)
    new = {path for folder in wanted for path in (folder, *folder.parents) if not path.exists()}
    for folder in wanted:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in sorted(new | set(wanted), key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):  # not empty, as a rule
                path.rmdir()


class _Worker:
    """An actor: the process of a worker. It imports torch and reads a data set once, and runs cell after cell."""

    def __init__(self, folder: str, threads: int) -> None:
        at_home(folder, threads)

    def ready(self) -> None:
        """Return once the process is there."""
        import recbole_robust.quick_start  # noqa: F401 - seconds that no cell shall have

    def run(self, cell: Cell, output_dir: str, force: bool) -> str:
        return run_cell(cell, output_dir, force)


class _Crew:
    """The workers of a grid: hired at the start, replaced when they die; a cell whose worker died runs again.

    A new one is given work only when it is ready: where the machine that a worker ran on is gone, so may be the room
    for another, and the others have to do.
    """

    def __init__(self, n_workers: int, output_dir: Path, force: bool) -> None:
        import ray

        gpus = ray.cluster_resources().get("GPU", 0) / n_workers
        share = math.floor(min(gpus, 1.0) * 1000) / 1000
        self._worker = ray.remote(num_cpus=1, num_gpus=share, scheduling_strategy="SPREAD")(_Worker)
        self._home = (os.getcwd(), threads_each(n_workers) if _on_one_machine() else 1)
        self._task = (str(output_dir), force)
        self._starting: dict[Any, Any] = {}  # what ready() will give: the actor
        self._busy: dict[Any, tuple[Any, Cell]] = {}  # what run() will give: the actor and its cell
        self._idle: list[Any] = []
        self._deaths: Counter[str] = Counter()
        self._n_workers, self._failed_starts = n_workers, 0
        for _ in range(n_workers):
            self._hire()

    def _hire(self) -> None:
        actor = self._worker.remote(*self._home)
        self._starting[actor.ready.remote()] = actor

    def results(self, queue: CellQueue) -> Iterator[tuple[Cell, str]]:
        """Each cell of the queue with the text of its result, in order of completion."""
        import ray

        while queue or self._busy:
            while self._idle and (cell := queue.take()) is not None:
                actor = self._idle.pop()
                self._busy[actor.run.remote(cell, *self._task)] = (actor, cell)
            found, _ = ray.wait([*self._starting, *self._busy], timeout=PATIENCE)
            if not found and not self._busy:
                logger.warning("no worker yet: the cluster has no free CPU")
            for reference in found:
                if reference in self._starting:
                    self._started(reference)
                elif (result := self._ended(reference, queue)) is not None:
                    yield result

    def _started(self, reference: Any) -> None:
        import ray

        actor = self._starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts < ATTEMPTS * self._n_workers:
                self._hire()
            elif not (self._starting or self._busy or self._idle):
                raise UserError(f"workers: expected one to start, got: {' '.join(str(error).split())}") from None
            return
        self._failed_starts = 0
        self._idle.append(actor)

    def _ended(self, reference: Any, queue: CellQueue) -> tuple[Cell, str] | None:
        """The result of a cell, or None where it runs again, because its worker has died."""
        import ray

        actor, cell = self._busy.pop(reference)
        try:
            text = ray.get(reference)
            self._idle.append(actor)
        except ray.exceptions.RayError as error:
            ray.kill(actor)  # where it is not dead
            self._hire()
            self._deaths[cell.id] += 1
            if self._deaths[cell.id] < ATTEMPTS:
                logger.warning("%s: its worker died, it runs again", cell.id)
                queue.give_back(cell)
                return None
            text = _failed(cell, UserError(f"its worker died {ATTEMPTS} times: {error}"))
        queue.done(cell)
        return cell, text


def _on_one_machine() -> bool:
    import ray

    return sum(node["Alive"] for node in ray.nodes()) == 1


def _grid_file(grid: Mapping[str, Any], cells: list[Cell], source: str | None) -> str:
    """What the report needs of the grid: the order of its labels, its options, and which cells are its own."""
    axes = {axis: list(dict.fromkeys(getattr(cell, axis) for cell in cells)) for axis in AXES}
    told = {"name": cells[0].grid, "source": source, "report": grid.get("report") or {}, "axes": axes}
    return _to_text({**told, "cells": [cell.id for cell in cells]})


def _line(cell: Cell, record: Mapping[str, Any], wanted: Sequence[str] | None) -> str:
    """One line a finished cell: the target hit ratio that the report starts with, or that of the largest K."""
    head = cell_text(cell)
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
