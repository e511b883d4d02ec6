"""Budget curves: the lift of an attack at several sizes, and the area under the curve as one number a method."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_robust.report.compare import Undefended, gates, share_of_shown
from recbole_robust.report.tables import (
    Entry,
    Key,
    Measured,
    Table,
    counts,
    interval_of,
    is_percent,
    labels,
    measure,
    values_of,
)
from recbole_robust.statistics import budget_area

Order = Mapping[str, Sequence[str]]

# Settings that an attack depends on beside its size; cells that differ in one of them are on different curves.
_BESIDE_SIZE = ("attack_args", "filler_size", "n_fillers", "knowledge", "known_users", "target_mode", "new_fans")


@dataclass(frozen=True)
class Curve:
    """One attack at several sizes.

    Attributes:
        name: the registry name of the attack.
        sizes: fake users as a share of the genuine ones, ascending, to the attack's label at that size.
    """

    name: str
    sizes: Mapping[float, str]


def curves(entries: Sequence[Entry], order: Order) -> list[Curve]:
    """The attacks of one data set that were run at two sizes or more, all else equal."""
    found: dict[tuple[str, str], dict[float, str]] = {}
    for attack in labels(entries, "attack", order):
        some = next(entry for entry in entries if entry.attack == attack)
        size, name = attack_size(some), some.names[1]
        if size is not None and name is not None:
            found.setdefault((name, _beside_size(some.config)), {})[size] = attack
    return [Curve(name, dict(sorted(sizes.items()))) for (name, _), sizes in found.items() if len(sizes) > 1]


def attack_size(entry: Entry) -> float | None:
    """Fake users as a share of the genuine ones; None where the result does not say."""
    n_fakes = entry.poison.get("n_fake_users")
    return n_fakes / entry.n_genuine if n_fakes and entry.n_genuine else None


def points(entries: Sequence[Entry], curve: Curve, method: str, metric: str) -> dict[float, Measured]:
    """The lift of one method at each size of a curve that it was measured at."""
    mine = [entry for entry in entries if entry.method == method]
    lifts = {
        size: measure([entry for entry in mine if entry.attack == attack], "lift", metric)
        for size, attack in curve.sizes.items()
    }
    return {size: lift for size, lift in lifts.items() if lift.interval}


def areas(entries: Sequence[Entry], curve: Curve, method: str, metric: str) -> dict[Key, float]:
    """The area under a method's curve (:func:`recbole_robust.statistics.budget_area`), by unit, of those that were
    measured at every size of it."""
    mine = [entry for entry in entries if entry.method == method]
    lifts = [values_of([e for e in mine if e.attack == attack], "lift", metric) for attack in curve.sizes.values()]
    keys = [key for key in lifts[0] if all(key in values for values in lifts)]
    return {key: budget_area(list(curve.sizes), [values[key] for values in lifts]) for key in keys}


def area_table(entries: Sequence[Entry], metric: str, undefended: Undefended, *, order: Order) -> Table:
    """Rows: methods. Columns: for each attack the area under the budget curve, and what that is less than the
    undefended model's, as a share of it; then the number of seeds.

    No share where the attack at its largest size is too weak to judge a defense by, or at any size too strong; and none
    of an area that the seeds do not agree on (:func:`~recbole_robust.report.compare.share_of_shown`).
    """
    found = curves(entries, order)
    table = Table(f"Area under the budget curve: mean lift of {metric}", ["method"], [])
    for curve in found:
        name = f"{curve.name}, up to {100 * max(curve.sizes):.3g} % fakes"
        table.header += [f"{name}: area", f"{name}: removed, %"]
    table.header.append("seeds")
    plains = {model: _judging(entries, found, model, metric, order) for model in undefended.models if found}
    for method in labels(entries, "method", order) if found else ():
        cells, model = [], undefended.of(method)
        for i, curve in enumerate(found):
            own = areas(entries, curve, method, metric)
            cells.append(Measured(interval_of(own), is_percent(metric), signed=True))
            plain = plains[model][i] if model is not None else {}
            cells.append(share_of_shown(plain, {key: plain[key] - own[key] for key in own if key in plain}))
        if any(cell.interval for cell in cells):
            table.rows.append([method, *cells, counts(cells)])
    if table.rows:
        table.notes.append(
            "Area: the mean lift over all attack sizes from none to the largest, by straight lines between the sizes "
            "that were run; without fakes the lift is 0. Removed: of the undefended model's area, where the attack "
            "works at its largest size and saturates at none."
        )
    return table


def _judging(
    entries: Sequence[Entry], found: Sequence[Curve], model: str, metric: str, order: Order
) -> list[dict[Key, float]]:
    """The areas of an undefended model under each curve; none where the curve judges no defense."""
    by_attack = {attack: gate for attack, gate, _ in gates(entries, metric, model, order)}
    judging = []
    for curve in found:
        its = [by_attack.get(attack) for attack in curve.sizes.values()]
        judges = its[-1] is not None and its[-1].significant and not any(gate and gate.saturated for gate in its)
        judging.append(areas(entries, curve, model, metric) if judges else {})
    return judging


def _beside_size(config: Mapping[str, Any]) -> str:
    return json.dumps({key: config.get(key) for key in _BESIDE_SIZE}, sort_keys=True)
