"""The pictures that matter, as SVG: what attacks do to the targets, what defenses remove, and keep, and curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recbole_robust.report import budget, cutoffs
from recbole_robust.report.compare import shares
from recbole_robust.report.page import Page, Section
from recbole_robust.report.svg import Dot, Panel, Series, axis_of, dot_rows
from recbole_robust.report.tables import Measured, is_percent, labels, measure

PUBLISHED = Series("published", "grey", "diamond")
ONE_ATTACK = Series("one attack", "orange", "small")
ALL_ATTACKS = Series("all attacks together", "blue", "bar")
KEPT = LIFT = Series("", "blue", "circle")
FARTHEST = -100.0  # as in the figures of the HTML page


def attacks_picture(pages: Sequence[Page]) -> str | None:
    """The target metric of the undefended model on clean data and under each attack; one panel a data set.

    Shown are the first target set, with the published values where there are any, and all sets together. None: there
    is nothing to show.
    """
    panels, rows, what = [], ["clean"], ""
    for page in pages:
        for dataset in page.datasets:
            section = page.judging(dataset)
            attacks = labels(section.entries, "attack", page.order)
            if section.metric and attacks and is_percent(section.metric):
                dots = _attack_dots(page, section, attacks)
                if dots:
                    what = f"{section.metric} of {page.undefended.default}"
                    top = 25 * max(math.ceil(_highest(dots) / 25), 1)
                    panels.append(Panel(dataset, 0, top, tuple(range(0, top + 1, 25)), dots, note=f"{what}, %"))
                    rows += [attack for attack in attacks if attack not in rows]
    return dot_rows(f"{what} on clean data and under each attack", rows, panels) if panels else None


def defenses_picture(page: Page, dataset: str) -> str | None:
    """Per defense: the share of the undefended lift that it removes under each attack, and the shares of accuracy that
    it keeps on clean data. None: there is nothing to show."""
    section = page.judging(dataset)
    if section.metric is None:
        return None
    wanted = [n for b in ("hit", "tailhit", "itemcoverage") for n in section.accuracy if n.split("@")[0] == b]
    told = shares(section.entries, section.metric, wanted, page.undefended, page.order)
    found = [one for one in told if one.told]
    if not found:
        return None
    removed = {}
    for one in found:
        each = [100 * share for share in one.told.values()]
        all_of_them = [Dot(ALL_ATTACKS, 100 * one.together)]
        removed[one.method] = [*(Dot(ONE_ATTACK, value) for value in each if len(each) > 1), *all_of_them]
    ticks = (FARTHEST, -50, 0, 50, 100)
    whose = f"{page.undefended.name}'s" if len(page.undefended.models) == 1 else "the undefended"
    panels = [Panel("Lift removed", FARTHEST, 108, ticks, removed, line=0, note=f"% of {whose}")]
    for name in wanted:
        kept = {one.method: _dots(KEPT, one.kept[name], 100) for one in found}
        step = 50 if _highest(kept) <= 200 else 100
        top = step * math.ceil(max(_highest(kept), 100) / step)
        panels.append(Panel(name, 0, top, tuple(range(0, top + 1, step)), kept, line=100, note="kept, %"))
    title = f"{dataset}: share of the lift that each defense removes, and share of accuracy that it keeps"
    return dot_rows(title, [one.method for one in found], panels)


def curve_pictures(page: Page, dataset: str) -> list[tuple[str, str]]:
    """The lift on every method by the size of an attack, and by K: what is shown, and the picture, a panel a point."""
    section = page.judging(dataset)
    metric = section.metric
    if metric is None:
        return []
    methods = labels(section.entries, "method", page.order)
    found: list[tuple[str, Mapping[str, Mapping[Any, Measured]], Sequence[tuple[str, Any]]]] = []
    for curve in budget.curves(section.entries, page.order):
        by_size = {method: budget.points(section.entries, curve, method, metric) for method in methods}
        sizes = [(f"{100 * size:.2g} %", size) for size in curve.sizes]
        found.append((f"Lift of {metric} by the number of fakes, {curve.name}", by_size, sizes))
    ks = cutoffs.cutoffs(section.entries, metric)
    for attack in labels(section.entries, "attack", page.order) if ks else ():
        by_k = {method: cutoffs.points(section.entries, attack, method, metric) for method in methods}
        lengths = [(f"K = {k}", k) for k in ks]
        found.append((f"Lift of {metric.partition('@')[0]} by K, {attack}", by_k, lengths))
    scale = 100 if is_percent(metric) else 1
    return [(what, _curve_picture(what, lifts, places, scale)) for what, lifts, places in found]


def _curve_picture(
    what: str, lifts: Mapping[str, Mapping[Any, Measured]], places: Sequence[tuple[str, Any]], scale: float
) -> str:
    """One row a method and one panel a point of the curve, all on one scale, with intervals."""
    dots = [
        (title, {method: _dots(LIFT, points[place], scale) for method, points in lifts.items() if place in points})
        for title, place in places
    ]
    marks = [dot for _, some in dots for found in some.values() for dot in found]
    ends = [end for dot in marks for end in (dot.low, dot.value, dot.high) if not math.isnan(end)]
    axis = axis_of("", [0.0, *ends])
    ticks = axis.ticks[:: max(1, len(axis.ticks) // 2)]
    panels = [Panel(title, axis.low, axis.high, ticks, some, line=0) for title, some in dots if some]
    return dot_rows(what, [method for method, points in lifts.items() if points], panels)


def pictures(page: Page) -> dict[str, tuple[str, str]]:
    """The pictures of a page: a name to the SVG and to what it shows."""
    found = {"attacks": (attacks_picture([page]), f"What the attacks do to {page.undefended.default}")}
    for dataset in page.datasets:
        end = "" if len(page.datasets) == 1 else f"-{dataset}"
        found[f"defenses{end}"] = (defenses_picture(page, dataset), f"What the defenses remove and keep, {dataset}")
        for i, (what, picture) in enumerate(curve_pictures(page, dataset), 1):
            found[f"curve-{i}{end}"] = (picture, f"{what}, {dataset}")
    return {name: (picture, text) for name, (picture, text) in found.items() if picture is not None}


def _attack_dots(page: Page, judging: Section, attacks: Iterable[str]) -> dict[str, list[Dot]]:
    """The dots of one data set by row: its first target set and, if there are more, all of them together."""
    metric = judging.metric or ""
    sections = [section for section in page.sections if section.dataset == judging.dataset]
    shown = [(sections[0], Series(f"targets {sections[0].target_set}", "blue", "circle"))]
    if len(sections) > 1:
        shown.append((judging, Series(f"all {len(sections) - 1} target sets", "orange", "square")))
    dots: dict[str, list[Dot]] = {}
    for row in ("clean", *attacks):
        part = "clean" if row == "clean" else "attacked"
        for section, series in shown:
            mine = [
                e
                for e in section.entries
                if e.method == page.undefended.default and (part == "clean" or e.attack == row)
            ]
            lookup = page.published.lookup if page.published and section is sections[0] else None
            cell = measure(mine, part, metric, published=lookup)
            dots.setdefault(row, []).extend(_dots(series, cell, 100))
            if cell.published is not None:
                dots[row].append(Dot(PUBLISHED, cell.published))
    return {row: some for row, some in dots.items() if some}


def _highest(dots: Mapping[str, Sequence[Dot]]) -> float:
    return max((dot.value for some in dots.values() for dot in some), default=0.0)


def _dots(series: Series, cell: Measured, scale: float) -> list[Dot]:
    if cell.interval is None:
        return []
    return [Dot(series, scale * cell.interval.mean, scale * cell.interval.low, scale * cell.interval.high)]
