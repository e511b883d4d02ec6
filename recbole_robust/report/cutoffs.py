"""K curves: the lift of an attack by the length K of the lists that are looked at, as a table and for a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recbole_robust.report.tables import Entry, Measured, Table, counts, labels, measure

FEWEST = 3  # lengths that make a curve: the two of a protocol are no question that was asked

Order = Mapping[str, Sequence[str]]


def cutoffs(entries: Sequence[Entry], metric: str) -> list[int]:
    """The K at which a metric (``targethr@50``) has lifts, ascending; none where they are fewer than :data:`FEWEST`."""
    base = metric.partition("@")[0]
    names = {name.partition("@") for entry in entries for name in entry.lift}
    found = sorted(int(k) for name, _, k in names if name == base and k.isdigit())
    return found if len(found) >= FEWEST else []


def points(entries: Sequence[Entry], attack: str, method: str, metric: str) -> dict[int, Measured]:
    """The lift of one method under one attack at each K, where it was measured."""
    at = [entry for entry in entries if entry.attack == attack and entry.method == method]
    base = metric.partition("@")[0]
    lifts = {k: measure(at, "lift", f"{base}@{k}") for k in cutoffs(entries, metric)}
    return {k: lift for k, lift in lifts.items() if lift.interval}


def cutoff_table(entries: Sequence[Entry], metric: str, *, order: Order) -> Table:
    """Rows: methods. Columns: the lift at each K, by attack; then the number of seeds. Empty where K is no axis."""
    found, attacks = cutoffs(entries, metric), labels(entries, "attack", order)
    header = ["method", *(f"{attack}: @{k}" for attack in attacks for k in found), "seeds"]
    table = Table(f"Lift of {metric.partition('@')[0]} by K", header, [])
    for method in labels(entries, "method", order) if found else ():
        curves = [points(entries, attack, method, metric) for attack in attacks]
        cells = [curve.get(k, Measured(None, True, signed=True)) for curve in curves for k in found]
        if any(cell.interval for cell in cells):
            table.rows.append([method, *cells, counts(cells)])
    return table
