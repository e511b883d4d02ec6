"""How well simple scores tell the fakes of an attack from genuine users, beside what they do: stealth has its price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_robust.report.tables import Entry, Measured, Table, counts, interval_of, labels, measure, span

Order = Mapping[str, Sequence[str]]


def scores_of(entry: Entry) -> dict[str, Any]:
    """The stealth of a result's poison card; empty where none was measured."""
    return entry.poison.get("stealth") or {}


def areas(entries: Sequence[Entry]) -> list[str]:
    """The scores that have an area under the ROC curve, ``<score>_auc``."""
    return [name for name in dict.fromkeys(name for e in entries for name in scores_of(e)) if name.endswith("_auc")]


def area(entries: Sequence[Entry], name: str) -> Measured:
    """The mean of one area over the cards of some entries, with its interval over seeds."""
    cards = {(e.seed, e.target_set): value for e in entries if (value := scores_of(e).get(name)) is not None}
    return Measured(interval_of(cards, bounds=(0.0, 1.0)), percent=False)


def attack_table(entries: Sequence[Entry], metric: str, undefended: str, *, order: Order) -> Table:
    """Rows: attacks. Columns: the area of each score and the lift on the undefended model; then the number of fakes, of
    items that each has rated beside the targets, and of seeds."""
    mine = [entry for entry in entries if entry.method == undefended]
    names = areas(mine)
    header = ["attack", *(f"AUC, {name[:-4].replace('_', ' ')}" for name in names), f"lift of {metric}"]
    table = Table(f"The attacks on {undefended}: stealth, lift and budget", [*header, "fakes", "fillers", "seeds"], [])
    for attack in labels(mine, "attack", order):
        at = [entry for entry in mine if entry.attack == attack]
        cells = [*(area(at, name) for name in names), measure(at, "lift", metric)]
        budget = [span(entry.poison.get(key) for entry in at) for key in ("n_fake_users", "n_fillers")]
        if cells[-1].interval and any(entry.poison for entry in at):
            table.rows.append([attack, *cells, *budget, counts(cells)])
    if table.rows and names:
        table.notes.append("AUC 1: every fake stands out among the genuine users by this score; 0.5: none does.")
    return table
