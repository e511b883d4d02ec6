"""The figures of a report as plotly's own JSON; nothing is drawn here, and plotly is not imported."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_robust.report import budget, compare, cutoffs, stealth
from recbole_robust.report.page import Page, Section
from recbole_robust.report.tables import Measured, is_percent, labels, measure

# Each has a contrast of 3 or more on white and on the page's dark ground (tests/test_report_html.py), and no two marks
# of one figure share both colour and symbol: whoever does not see the colours goes by the symbols.
PALETTE = ("#2f74d0", "#c2571a", "#2a8a57", "#a154b5", "#c8404a", "#8a6d3b", "#17899c", "#7a7f87")
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "cross", "star", "triangle-down", "hexagon")
FEW_SETS = 6  # with more target sets than this a figure shows all of them together
FARTHEST = -100.0  # percent of the lift "removed"; a defense that makes an attack worse than that stands on the edge


@dataclass(frozen=True)
class Figure:
    """One figure: ``data`` and ``layout`` are plotly's; ``section`` holds the tables with the same numbers."""

    title: str
    text: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    section: Section


def figures(page: Page, dataset: str) -> list[Figure]:
    """The figures of one data set, those with nothing to show left out."""
    section = page.judging(dataset)
    if section.metric is None:
        return []
    curves = (*_budgets(page, section), *_k_curves(page, section))
    found = [_targets(page, section), *_frontiers(page, section), *curves, _stealth(page, section)]
    return [figure for figure in found if figure and figure.data]


def shown(text: str) -> str:
    """Text that plotly shows as it is: in it, too, ``<b>`` would be a tag."""
    return html.escape(text, quote=False)


def _targets(page: Page, section: Section) -> Figure | None:
    """What the attacks do to the targets of the undefended model, beside the published values."""
    metric = section.metric or ""
    model = _reference(section, page)
    apart = [s for s in page.sections if s.dataset == section.dataset and s.target_set is not None]
    chosen = apart if len(apart) <= FEW_SETS else [section]
    attacks = labels(section.entries, "attack", page.order)
    data = []
    for i, one in enumerate(chosen):
        mine = [entry for entry in one.entries if entry.method == model]
        places = {"clean": measure(mine, "clean", metric)}
        places |= {a: measure([e for e in mine if e.attack == a], "attacked", metric) for a in attacks}
        name = one.target_set or f"all {len(apart)} target sets"
        data.append(_trace(i, name, [(shown(place), cell) for place, cell in places.items()]))
    known = _published(page, section.dataset, model, metric, attacks)
    if known:
        data.append(
            {
                **_trace(len(chosen), f"published ({page.published.name})" if page.published else "", []),
                "x": [shown(place) for place in known],
                "y": list(known.values()),
                "text": [f"published, {shown(place)}: {value:g}" for place, value in known.items()],
                "marker": {"symbol": "diamond-open", "size": 12, "line": {"width": 2}, "color": PALETTE[-1]},
            }
        )
    text = f"{metric} of {model} on clean data and under each attack, by target set; 95 % intervals over seeds."
    if known:
        text += " Open diamonds: the published values, for the publication's own targets and settings."
    layout = {
        "xaxis": {"type": "category", "categoryarray": [shown(a) for a in ("clean", *attacks)]},
        "yaxis": {"title": {"text": _unit(metric, metric)}, "rangemode": "tozero"},
        "scattermode": "group",
    }
    return Figure(f"What the attacks do to {model}", text, [t for t in data if t["x"]], layout, section)


def _frontiers(page: Page, section: Section) -> Iterator[Figure]:
    """Accuracy kept against lift removed, one figure for hits and one for hits on rare items."""
    metric = section.metric or ""
    wanted = [n for base in ("hit", "tailhit") for n in section.accuracy if n.split("@")[0] == base]
    told = compare.shares(section.entries, metric, wanted or section.accuracy[:1], page.undefended, page.order)
    found = [one for one in told if one.told]
    methods = labels(section.entries, "method", page.order)  # a method has one mark in all figures
    for name in (wanted or section.accuracy[:1]) if found else ():
        data = []
        for one in found:
            kept, removed = one.kept[name].interval, one.told
            if kept is None:
                continue
            marks = [*sorted(removed.items(), key=lambda item: item[1]), ("all attacks together", one.together)]
            x = [100 * share for _, share in marks]
            lines = [
                f"<b>{shown(one.method)}</b>, {shown(attack)}<br>{share:.1f} % of the lift removed<br>"
                f"{100 * kept.mean:.1f} % of {name} kept"
                for (attack, _), share in zip(marks, x, strict=True)
            ]
            data += _defense(methods.index(one.method), one.method, x, 100 * kept.mean, lines)
        right = 6 + max((x for trace in data for x in trace["x"]), default=100.0)
        text = (
            "Each defense is a line: small marks are the attacks, the large one is all of them together. At the right "
            f"the lift of {metric} on {page.undefended.name} is gone; at 100 and above no {name} on clean data is "
            f"lost. A mark left of {FARTHEST:.0f} stands on the edge, open."
        )
        layout = {
            "xaxis": {
                "title": {"text": "share of the lift removed, %"},
                "range": [FARTHEST - 4, max(right, 108)],
            },
            "yaxis": {"title": {"text": f"{name} kept, %"}, "rangemode": "tozero"},
            "shapes": [
                {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 100, "y1": 100, **_RULE},
                {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 0, "x1": 0, **_RULE},
            ],
        }
        yield Figure(f"Lift removed against {name} kept", text, data, layout, section)


def _defense(i: int, method: str, x: Sequence[float], y: float, lines: Sequence[str]) -> list[dict[str, Any]]:
    """A line through the attacks, and the large mark of all together, which is the last of ``x`` and ``lines``."""
    colour, symbol = _mark(i)
    common = {"type": "scatter", "name": shown(method), "legendgroup": shown(method), "cliponaxis": False}
    parts: list[dict[str, Any]] = [
        {"mode": "lines+markers", "line": {"color": colour, "width": 1}, "showlegend": False},
        {"mode": "markers"},
    ]
    for part, size, some in ((parts[0], 6, slice(None, -1)), (parts[1], 13, slice(-1, None))):
        beyond = [value < FARTHEST for value in x[some]]
        part |= {
            **common,
            "x": [max(value, FARTHEST) for value in x[some]],
            "y": [y] * len(beyond),
            "text": list(lines[some]),
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {
                "color": colour,
                "size": size,
                "symbol": [f"{symbol}-open" if far else symbol for far in beyond] if any(beyond) else symbol,
            },
        }
    return parts


def _budgets(page: Page, section: Section) -> Iterator[Figure]:
    metric = section.metric or ""
    for curve in budget.curves(section.entries, page.order):
        data = []
        for i, method in enumerate(labels(section.entries, "method", page.order)):
            lifts = budget.points(section.entries, curve, method, metric)
            if lifts:
                trace = _trace(i, method, [(100 * size, lift) for size, lift in lifts.items()])
                data.append({**trace, "mode": "lines+markers"})
        text = (
            f"Lift of {metric} by attack size, with 95 % intervals. The area under each curve is in the table "
            "“Area under the budget curve”."
        )
        layout = {
            "xaxis": {"title": {"text": "fake users, % of the genuine ones"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": _unit(f"lift of {metric}", metric)}, "rangemode": "tozero"},
        }
        yield Figure(f"Budget curve of {curve.name}", text, data, layout, section)


def _k_curves(page: Page, section: Section) -> Iterator[Figure]:
    metric = section.metric or ""
    base, found = metric.partition("@")[0], cutoffs.cutoffs(section.entries, metric)
    for attack in labels(section.entries, "attack", page.order) if found else ():
        data = []
        for i, method in enumerate(labels(section.entries, "method", page.order)):
            lifts = cutoffs.points(section.entries, attack, method, metric)
            if lifts:
                data.append({**_trace(i, method, list(lifts.items())), "mode": "lines+markers"})
        text = f"Lift of {base}@K by K, the number of items recommended to a user; 95 % intervals."
        ticks = {"tickvals": found, "ticktext": [str(k) for k in found]}
        layout = {
            "xaxis": {"title": {"text": "K"}, "type": "log", **ticks},
            "yaxis": {"title": {"text": _unit(f"lift of {base}@K", metric)}, "rangemode": "tozero"},
        }
        yield Figure(f"K curve of {attack}", text, data, layout, section)


def _stealth(page: Page, section: Section) -> Figure | None:
    """How well detectors tell the fakes, against what the fakes do; one panel a detector."""
    metric = section.metric or ""
    model = _reference(section, page)
    mine = [entry for entry in section.entries if entry.method == model and stealth.scores_of(entry)]
    scores = stealth.areas(mine)
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"grid": {"rows": (len(scores) + 1) // 2, "columns": 2, "pattern": "independent"}}
    for i, attack in enumerate(labels(mine, "attack", page.order)):
        at = [entry for entry in mine if entry.attack == attack]
        lift = measure(at, "lift", metric)
        for panel, score in enumerate(scores):
            found = stealth.area(at, score).interval
            if found is None or lift.interval is None:
                continue
            number = "" if panel == 0 else str(panel + 1)
            trace = _trace(i, attack, [(found.mean, lift)])
            trace |= {"xaxis": f"x{number}", "yaxis": f"y{number}"}
            trace["text"] = [f"{trace['text'][0]}<br>AUC of {shown(score[:-4])}: {found.mean:.3f}"]
            trace["showlegend"] = panel == 0
            data.append(trace)
            title = {"text": f"AUC, {shown(score[:-4].replace('_', ' '))}"}
            layout[f"xaxis{number}"] = {"title": title, "range": [-0.03, 1.03]}
            unit = _unit("lift", metric) if panel % 2 == 0 else ""
            layout[f"yaxis{number}"] = {"title": {"text": unit}, "rangemode": "tozero"}
    text = (
        f"Lift of {metric} on {model} against how well simple scores tell fake from genuine users, without labels: AUC "
        "1: every fake stands out, 0.5: no better than by chance."
    )
    return Figure("Stealth against lift", text, data, layout, section)


_RULE = {"line": {"dash": "dot", "width": 1, "color": PALETTE[-1]}, "layer": "below"}


def _trace(i: int, name: str, points: Sequence[tuple[Any, Measured]]) -> dict[str, Any]:
    """A series of measured numbers with their intervals; those that were not measured are left out."""
    colour, symbol = _mark(i)
    told = [(x, cell, cell.interval, 100 if cell.percent else 1) for x, cell in points if cell.interval]
    below = [k * (i.mean - i.low) for _, _, i, k in told]
    above = [k * (i.high - i.mean) for _, _, i, k in told]
    arms = [[0.0 if math.isnan(arm) else max(arm, 0.0) for arm in row] for row in (below, above)]
    return {
        "type": "scatter",
        "mode": "markers",
        "cliponaxis": False,
        "name": shown(name),
        "legendgroup": shown(name),
        "x": [x for x, *_ in told],
        "y": [k * interval.mean for _, _, interval, k in told],
        "error_y": {"type": "data", "symmetric": False, "arrayminus": arms[0], "array": arms[1], "thickness": 1.2},
        "text": [f"<b>{shown(name)}</b><br>{_told(x)}: {_interval(cell)}" for x, cell, *_ in told],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": colour, "symbol": symbol, "size": 10},
        "line": {"color": colour, "width": 1.5},
    }


def _published(page: Page, dataset: str, model: str, metric: str, attacks: Sequence[str]) -> dict[str, float]:
    """The published values of the undefended model, by place on the axis."""
    if page.published is None:
        return {}
    found: dict[str, float] = {}
    for place in (None, *attacks):
        some = [e for e in page.entries if e.dataset == dataset and e.method == model and place in (None, e.attack)]
        values = (page.published.lookup(entry.on_clean() if place is None else entry, metric) for entry in some)
        beside = next((value for value in values if value is not None), None)  # of the sets, its own has one
        if beside is not None:
            found[place or "clean"] = beside.percent
    return found


def _reference(section: Section, page: Page) -> str:
    """The undefended model, or the first method where the report has none of that name."""
    methods = labels(section.entries, "method", page.order)
    return page.undefended.default if page.undefended.default in methods else methods[0]


def _mark(i: int) -> tuple[str, str]:
    return PALETTE[i % len(PALETTE)], SYMBOLS[(i + i // len(PALETTE)) % len(SYMBOLS)]


def _unit(text: str, metric: str) -> str:
    return f"{text}, %" if is_percent(metric) else text


def _told(x: Any) -> str:
    return x if isinstance(x, str) else f"{x:.3g}"


def _interval(cell: Measured) -> str:
    mean, *ends = cell.numbers
    return f"{mean} [{ends[0]}, {ends[1]}]" if ends else mean
