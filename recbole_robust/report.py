"""Result files -> one Markdown page. A table is rendered from files, never from memory.

Stdlib, numpy and ``statistics.py`` only: a report needs neither torch nor recbole.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_robust import report_tables as tables
from recbole_robust.properties_path import properties_dir
from recbole_robust.report_tables import Entry, Measured, Table
from recbole_robust.types import UserError

SCHEMA_VERSION = 1
GRID_FILE = "grid.json"  # what a benchmark leaves beside its cells: the order of labels, its cells, its report options
REPORT_OPTIONS = ("title", "metrics", "published", "undefended")


@dataclass(frozen=True)
class Published:
    """A published table of target-item hit ratios, in percent.

    Attributes:
        name: what the table is called in reports.
        values: (data set, attack or None for clean data, method, K) to percent; names in lower case.
    """

    name: str
    values: Mapping[tuple[str, str | None, str, int], float]

    def lookup(self, entry: Entry, metric: str) -> float | None:
        """The published value of an entry (clean data where its attack is None), or None where there is none.

        A method is found by its label: a column's name, ``MF`` for the undefended column, ``MF + APT`` for APT's.
        """
        base, _, cutoff = metric.partition("@")
        if base != "targethr" or not cutoff.isdigit():
            return None
        method = entry.method.lower().removeprefix("mf + ")
        for dataset in (entry.dataset, entry.names[0]):
            for attack in (entry.attack, entry.names[1]):
                key = (dataset.lower(), attack and attack.lower(), method, int(cutoff))
                if key in self.values:
                    return self.values[key]
        return None


def load_published(name: str | Path) -> Published:
    """Read a published table: a name under ``properties/benchmark/published`` or the path of a CSV file.

    Its columns are ``dataset, attack, k``, ``original`` (MF, clean), ``attacked`` (MF) and one a defended method.

    Raises:
        UserError: there is no such table, or it is malformed.
    """
    folder = properties_dir() / "benchmark" / "published"
    path = Path(name) if str(name).endswith(".csv") else folder / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.csv"))) or "none"
        raise UserError(f"published: expected a CSV file or one of {known}, got {str(name)!r}")
    values: dict[tuple[str, str | None, str, int], float] = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                dataset, attack, k = row.pop("dataset").lower(), row.pop("attack").lower(), int(row.pop("k"))
                values[dataset, None, "mf", k] = float(row.pop("original"))
                row["mf"] = row.pop("attacked")
                values.update(
                    {(dataset, attack, column.lower(), k): float(row[column]) for column in row if row[column]}
                )
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not a published table ({type(error).__name__}: {error})") from None
    return Published(path.stem, values)


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
            _check(result, path)
            results.append({**result, "path": path.relative_to(root).as_posix()})
    return results


def render_markdown(
    results: Sequence[Mapping[str, Any]],
    *,
    title: str,
    metrics: Sequence[str] | None = None,
    published: Published | str | None = None,
    order: Mapping[str, Sequence[str]] | None = None,
    undefended: str = "MF",
    source: str | None = None,
    left_out: Sequence[str] = (),
) -> str:
    """Render results as a Markdown page that reads well on GitHub.

    Args:
        results: result dictionaries as :func:`load_results` gives them, failed ones too (key ``error``).
        title: the page's heading.
        metrics: metrics to show, in order; those that no file has are passed over. None: all the usual ones.
        published: a published table (or its name); its values stand in parentheses beside the measured ones.
        order: labels by axis (``dataset``, ``target_set``, ``attack``, ``method``) in the order they are shown.
        undefended: label of the method on which the attacks' strength is judged.
        source: the grid file that makes all of it in one command.
        left_out: files that were found and not used, listed at the end.

    Raises:
        UserError: two results hold the same cell, or the published table is not there.
    """
    if isinstance(published, str):
        published = load_published(published)
    order = order or {}
    entries = tables.make_entries(results)
    failed = [result for result in results if "error" in result]
    lines = [f"# {_escape(title)}", "", *_preamble(len(results) - len(failed), len(failed), published), ""]
    for dataset in tables.labels(entries, "dataset", order):
        here = [entry for entry in entries if entry.dataset == dataset]
        target_sets = tables.labels(here, "target_set", order)
        for target_set in target_sets:
            lines += [f"## {_escape(dataset)}, targets: {_escape(target_set)}", ""]
            some = [entry for entry in here if entry.target_set == target_set]
            for table in _tables_of(some, metrics, published, order, undefended):
                lines += _markdown(table)
        if len(target_sets) > 1:
            lines += [f"## {_escape(dataset)}, all {len(target_sets)} target sets together", ""]
            for table in _tables_of(here, metrics, None, order, undefended, pooled=True):
                lines += _markdown(table)
    lines += _reproduce(entries, source) + _environment(results)
    lines += _list("Failed cells", [f"{_where(result)}: {result['error']}" for result in failed])
    lines += _list("Files left out: cells that the grid no longer has", left_out)
    return "\n".join(lines).rstrip() + "\n"


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Render the results below a folder, one part a grid, and return the path of the page.

    Each grid's ``grid.json`` gives the order of its labels and its report options; a cell that this grid no longer has
    (its settings have changed since) is left out of the tables and listed.

    Args:
        folder: searched with everything below it.
        out: the file to write; ``<folder>/report.md`` where None.

    Raises:
        UserError: no results, or an unreadable file.
    """
    root = Path(folder)
    results = load_results(root)
    if not results:
        raise UserError(f"{root}: expected result files below it, found none")
    grids = {path.parent.relative_to(root).as_posix(): _read_grid(path) for path in sorted(root.rglob(GRID_FILE))}
    parts: dict[str | None, list[dict[str, Any]]] = {}
    for result in results:
        parent = Path(result["path"]).parent.as_posix()
        parts.setdefault(parent if result.get("cell") else None, []).append(result)
    pages = []
    for place, some in parts.items():
        grid = grids.get(place, {}) if place is not None else {}
        used = [result for result in some if "cells" not in grid or Path(result["path"]).stem in set(grid["cells"])]
        left_out = [result["path"] for result in some if not any(result is one for one in used)]
        options = {key: value for key, value in grid.get("report", {}).items() if key in REPORT_OPTIONS}
        name = grid.get("name") or (some[0].get("cell") or {}).get("grid") or root.resolve().name
        page = {"title": name, "order": grid.get("axes"), "source": grid.get("source"), **options}
        pages.append(render_markdown(used, left_out=left_out, **page))
    path = Path(out) if out is not None else root / "report.md"
    write_text(path, "\n".join(pages))
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: under a temporary name in the same folder, then renamed.

    Raises:
        OSError: it cannot be written; nothing half-written is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _tables_of(
    entries: Sequence[Entry],
    metrics: Sequence[str] | None,
    published: Published | None,
    order: Mapping[str, Sequence[str]],
    undefended: str,
    pooled: bool = False,
) -> Iterable[Table]:
    on_targets, accuracy = tables.metrics_of(entries, metrics)
    judged_by = next((metric for metric in on_targets if metric.startswith("targethr")), None)
    for metric in on_targets:
        unit = " in percent, lift in percentage points" if tables.is_percent(metric) else ""
        lookup = published.lookup if published else lambda entry, name: None
        table = tables.target_table(f"{metric}{unit}", entries, metric, order=order, published=lookup)
        if metric == judged_by:
            table.notes += _strength(entries, metric, undefended, order)
        yield table
        if metric == judged_by:
            title = f"Share of {undefended}'s lift removed, share of its accuracy on clean data kept"
            defended = tables.defense_table(title, entries, metric, accuracy, undefended, order=order)
            if defended.rows:
                yield defended
    if accuracy and not pooled:  # accuracy on clean data has nothing of the target set
        yield tables.accuracy_table("Accuracy, clean and attacked", entries, accuracy, order=order)


def _strength(entries: Sequence[Entry], metric: str, undefended: str, order: Mapping[str, Sequence[str]]) -> list[str]:
    """Remarks on the attacks too weak or too strong to judge a defense by."""
    remarks = []
    for attack, gate, n in tables.gates(entries, metric, undefended, order):
        p = "p < 0.001" if gate.p < 0.001 else f"p = {gate.p:.3f}"
        verdict = "saturated, judges no defense" if gate.saturated else "" if gate.significant else "judges no defense"
        text = f"{attack}: lift {100 * gate.lift:+.1f} points, {p}, n = {n}"
        remarks.append(f"{text} ({verdict})" if verdict else text)
    if not remarks:
        return []
    return [f"Strength of the attacks on {undefended} (one-sided sign-flip test): " + "; ".join(remarks) + "."]


def _preamble(n_results: int, n_failed: int, published: Published | None) -> list[str]:
    lines = [
        f"{n_results} results. Each number is the mean over seeds with its 95 % interval (hierarchical bootstrap; none "
        "with a single seed); the lift is attacked minus clean."
    ]
    if published:
        lines += [
            "",
            f"In parentheses: the published value (`{published.name}`, percent), for the publication's own targets and "
            "settings.",
        ]
    if n_failed:
        lines += ["", f"**{n_failed} of {n_results + n_failed} cells failed: they are listed at the end.**"]
    return lines


def _markdown(table: Table) -> list[str]:
    n_text = sum(isinstance(cell, str) for cell in table.rows[0][:-1]) if table.rows else 1
    rule = ["---"] * n_text + ["---:"] * (len(table.header) - n_text)
    rows = [[_text(cell) for cell in row] for row in table.rows]
    grid = [[_escape(name) for name in table.header], rule, *rows]
    lines = [f"### {_escape(table.title)}", "", *("| " + " | ".join(row) + " |" for row in grid), ""]
    return lines + [line for note in table.notes for line in (_escape(note), "")]


def _text(cell: str | Measured) -> str:
    if isinstance(cell, str):
        return _escape(cell)
    if cell.interval is None:
        return "-"
    low, high = cell.interval.low, cell.interval.high
    text = _number(cell.interval.mean, cell)
    if low == low and high == high:
        text += f" [{_number(low, cell)}, {_number(high, cell)}]"
    return text if cell.published is None else f"{text} ({cell.published:g})"


def _number(value: float, cell: Measured) -> str:
    digits = 1 if cell.percent or abs(value) >= 10 else 3
    value = round(100 * value if cell.percent else value, digits) + 0.0  # + 0.0: no minus before a zero
    return f"{value:+.{digits}f}" if cell.signed else f"{value:.{digits}f}"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return re.sub(r"([\\|*`<])", r"\\\1", " ".join(text.split()))


def _reproduce(entries: Sequence[Entry], source: str | None) -> list[str]:
    """The commands, one a row with the seed left open."""
    seeds: dict[str, set[int]] = {}
    for entry in entries:
        if entry.command:
            command = re.sub(r"--seed[= ]\S+", "--seed=$seed", " ".join(entry.command.split()))
            seeds.setdefault(command, set()).add(entry.seed)
    if not seeds:
        return []
    whole = (
        ["All of it:", "", "```bash", f"python run_recbole_robust.py benchmark {source}", "```", ""] if source else []
    )
    lines = ["## To reproduce", "", *whole, f"<details><summary>The {len(seeds)} commands, one by one</summary>", ""]
    for group in sorted({tuple(sorted(group)) for group in seeds.values()}):
        lines += ["```bash", f"for seed in {' '.join(str(seed) for seed in group)}; do"]
        lines += [f"  {command}" for command, its in seeds.items() if tuple(sorted(its)) == group]
        lines += ["done", "```", ""]
    return [*lines, "</details>", ""]


def _environment(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Versions, device, threads and dates, each value that occurs."""
    found: dict[str, set[str]] = {}
    for result in results:
        pairs = [*(result.get("versions") or {}).items(), *((key, result.get(key)) for key in ("device", "threads"))]
        for name, value in [*pairs, ("date", str(result.get("date") or "")[:10])]:
            if value not in (None, ""):
                found.setdefault(str(name), set()).add(str(value))
    if not found:
        return []
    text = "; ".join(f"{name} {', '.join(sorted(values))}" for name, values in found.items())
    return ["## Made with", "", _escape(text), ""]


def _list(heading: str, items: Sequence[str]) -> list[str]:
    return [f"## {heading}", "", *(f"- {_escape(item)}" for item in items), ""] if items else []


def _where(result: Mapping[str, Any]) -> str:
    cell = result.get("cell") or result
    parts = [cell.get("dataset"), cell.get("target_set"), cell.get("attack") or "clean", cell.get("method")]
    return ", ".join(str(part) for part in parts if part) + f", seed {cell.get('seed')}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: expected a JSON file, got one that cannot be read ({error})") from None


def _read_grid(path: Path) -> dict[str, Any]:
    grid = _read_json(path)
    if not isinstance(grid, dict) or not all(isinstance(grid.get(key, {}), dict) for key in ("report", "axes")):
        raise UserError(f"{path}: expected the file that a benchmark leaves beside its cells, got something else")
    return grid


def _check(result: Mapping[str, Any], path: Path) -> None:
    if result["schema_version"] != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version: expected {SCHEMA_VERSION}, got {result['schema_version']!r}")
    cell = result.get("cell")
    if cell is not None and not (
        isinstance(cell, dict) and {"dataset", "method"} <= cell.keys() and isinstance(cell.get("seed"), int)
    ):
        raise UserError(f"{path}: cell: expected a mapping with dataset, method and a whole seed, got {cell!r}")
    if "error" in result:
        return
    if cell is None and not {"dataset", "model"} <= result.keys():
        raise UserError(f"{path}: expected the keys dataset and model of a result, they are missing")
    for place in (result, result.get("baseline") or {}):
        for part in ("clean", "attacked", "lift"):
            numbers = place.get(part) or {}
            if not isinstance(numbers, dict) or any(
                not isinstance(value, int | float | None) or isinstance(value, bool) for value in numbers.values()
            ):
                raise UserError(f"{path}: {part}: expected metric names with numbers, got {str(numbers)[:80]!r}")
