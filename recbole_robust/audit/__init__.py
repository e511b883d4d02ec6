"""Checks of our own measurements: self-checks on toy data, and checks of result files.

``self_checks.py``: what published toolkits get wrong, tried on ours (docs/seven_ways.md tells the stories).
``one_result.py``, ``many_results.py``, ``stored.py``: what can be seen from a result file, from a grid's files, and
from the cards and data that they name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from recbole_robust.audit import many_results, one_result
from recbole_robust.audit.finding import Finding, run_check
from recbole_robust.audit.self_checks import self_checks
from recbole_robust.audit.stored import SPLIT_CHECK, cards_are_those_of_the_results, split_is_the_recorded_one
from recbole_robust.report import AUDIT_FILE, GRID_FILE, digest_of_cells, load_results, read_grid, write_text
from recbole_robust.types import UserError

__all__ = ["Finding", "audit_files", "record_audit", "record_if_grid", "self_checks"]


def audit_files(path: str | Path, data_path: str | None = None, splits: bool = True) -> list[Finding]:
    """Check a result.json, the folder of a run, the folder of a grid, or a folder of such folders.

    Args:
        data_path: where the data sets are now; None: where the command of a result says.
        splits: make the splits again (which reads the data), too.

    Raises:
        UserError: there is no result, or a file that cannot be read.
    """
    path = Path(path)
    root = path.parent if path.is_file() else path
    results = [r for r in load_results(root) if path == root or Path(str(r["path"])).name == path.name]
    if not results:
        raise UserError(f"audit: {path}: expected a result.json, or a folder with results, got none")
    done = [result for result in results if "error" not in result]
    findings = [_of_each(check, found, done) for check, found in one_result.CHECKS.items()]
    for file in sorted(root.rglob(GRID_FILE)):
        findings += _of_grid(file, root, results)
    findings.append(cards_are_those_of_the_results(done, root))
    if splits:
        findings.append(split_is_the_recorded_one(done, data_path))
    return findings


def _of_each(check: str, found: Callable[[Mapping[str, Any]], Iterator[str]], results: Sequence[Mapping[str, Any]]):
    def failures() -> Iterator[str]:
        for result in results:
            yield from (f"{result['path']}: {failure}" for failure in found(result))

    return run_check(check, failures, f"{len(results)} results")


def _of_grid(file: Path, root: Path, results: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The checks of one grid; cells that it no longer has are not its results."""
    place = file.parent.relative_to(root)
    here = [result for result in results if Path(str(result["path"])).parent == place and result.get("cell")]
    cells = read_grid(file).get("cells", [])
    ids = set(cells)
    own = [r for r in here if "error" not in r and (not ids or Path(str(r["path"])).stem in ids)]
    name = f"{place.as_posix()}: " if place != Path() else ""
    complete = run_check(
        f"{name}every cell is there once", lambda: many_results.cells_are_there_once(here, cells), f"{len(cells)} cells"
    )
    return [
        complete,
        *(run_check(f"{name}{check}", partial(found, own)) for check, found in many_results.CHECKS.items()),
    ]


def record_audit(folder: Path) -> list[Finding]:
    """Audit a grid's folder, its splits apart, and leave the outcome beside its cells, where the report reads it."""
    findings = audit_files(folder, splits=False)
    _record(folder, findings)
    return findings


def _record(folder: Path, findings: Sequence[Finding]) -> None:
    told = [{"check": one.check, "failures": list(one.failures[:20]), "line": one.line} for one in findings]
    content = {"digest": digest_of_cells(folder), "findings": told}
    write_text(folder / AUDIT_FILE, json.dumps(content, indent=1) + "\n")


def record_if_grid(path: str | Path, findings: Sequence[Finding]) -> None:
    """Leave what :func:`audit_files` found, its splits apart, where ``path`` is the folder of a grid to write into."""
    if (Path(path) / GRID_FILE).is_file():
        with contextlib.suppress(OSError):
            _record(Path(path), [finding for finding in findings if finding.check != SPLIT_CHECK])
