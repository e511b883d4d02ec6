"""Published tables: a CSV file of percentages, the value beside a measured one, and measured values in that shape."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from recbole_robust.properties_path import properties_dir
from recbole_robust.report.tables import Entry, Table, counts, labels, measure
from recbole_robust.types import UserError

UNNAMED_TARGETS = "default"  # what a grid without target sets calls the protocol's


class Beside(NamedTuple):
    """A published value, and whether it is of the same attack by name; else its budget may have been another."""

    percent: float
    same: bool


@dataclass(frozen=True)
class Published:
    """A published table of target-item hit ratios, in percent.

    Attributes:
        name: what the table is called in reports.
        values: (data set, attack or None for clean data, method, K) to percent; names in lower case.
        target_sets: of the data sets whose targets are known, their name: beside other targets the values do not stand.
    """

    name: str
    values: Mapping[tuple[str, str | None, str, int], float]
    target_sets: Mapping[str, str] = field(default_factory=dict)

    def lookup(self, entry: Entry, metric: str) -> Beside | None:
        """The published value of an entry (clean data where its attack is None), or None where there is none.

        A method is found by its label: a column's name, ``MF`` for the undefended column, ``MF + APT`` for APT's, and
        ``PurifyAugMF (literal)`` for PurifyAugMF's. An attack that has a label of its own has something changed.
        """
        base, _, cutoff = metric.partition("@")
        if base != "targethr" or not cutoff.isdigit():
            return None
        method = entry.method.lower().removeprefix("mf + ").removesuffix(" (literal)")
        for dataset in (entry.dataset, entry.names[0]):
            if entry.target_set not in (self.target_sets.get(dataset.lower(), entry.target_set), UNNAMED_TARGETS):
                continue
            for attack in (entry.attack, entry.names[1]):
                key = (dataset.lower(), attack and attack.lower(), method, int(cutoff))
                if key in self.values:
                    return Beside(self.values[key], attack == entry.attack)
        return None


def published_table(
    entries: Sequence[Entry], metric: str, published: Published, *, order: Mapping[str, Sequence[str]]
) -> Table:
    """Measured beside published in the shape of such a publication. Rows: its attacks. Columns: its undefended model on
    clean data, then each of its methods under the attack; then the number of seeds.

    What was measured and not published is left out; no rows where nothing of the entries was published.
    """

    def compared(entry: Entry) -> bool:
        beside = published.lookup(entry, metric)
        return beside is not None and beside.same

    there = [entry for entry in entries if entry.attack is not None and compared(entry)]
    methods = labels(there, "method", order)
    header = ["attack", "clean", *methods, "seeds"]
    table = Table(f"As {published.name}: {metric} in percent, clean and under each attack", header, [])
    clean_entries = [entry for entry in entries if compared(entry.on_clean())]
    clean = measure(clean_entries, "clean", metric, published=published.lookup)
    for attack in labels(there, "attack", order):
        cells = [clean]
        for method in methods:
            at = [entry for entry in there if (entry.attack, entry.method) == (attack, method)]
            cells.append(measure(at, "attacked", metric, published=published.lookup))
        table.rows.append([attack, *cells, counts(cells)])
    return table


def load_published(name: str | Path) -> Published:
    """Read a published table: a name under ``properties/benchmark/published`` or the path of a CSV file.

    Its values are percentages with two digits after the point.

    Its columns are ``dataset, attack, k``, ``original`` (MF, clean), ``attacked`` (MF), one a defended method, and,
    where the targets are known, ``target_set``.

    Raises:
        UserError: there is no such table, or it is malformed.
    """
    folder = properties_dir() / "benchmark" / "published"
    path = Path(name) if str(name).endswith(".csv") else folder / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.csv"))) or "none"
        raise UserError(f"published: expected a CSV file or one of {known}, got {str(name)!r}")
    values: dict[tuple[str, str | None, str, int], float] = {}
    target_sets: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                dataset, attack, k = row.pop("dataset").lower(), row.pop("attack").lower(), int(row.pop("k"))
                if targets := row.pop("target_set", ""):
                    target_sets[dataset] = targets
                values[dataset, None, "mf", k] = float(row.pop("original"))
                row["mf"] = row.pop("attacked")
                values.update(
                    {(dataset, attack, column.lower(), k): float(row[column]) for column in row if row[column]}
                )
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not a published table ({type(error).__name__}: {error})") from None
    return Published(path.stem, values, target_sets)
