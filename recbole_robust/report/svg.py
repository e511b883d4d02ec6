"""Small pictures without any drawing library: rows of marks with intervals, and charts, written as SVG.

They show on GitHub, follow a dark page, and are the same bytes for the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = {"blue": "#2f74d0", "orange": "#c2571a", "grey": "#7a7f87"}  # 3:1 and more on white and on the dark ground

_STYLE = (
    "text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1b1f24}"
    ".faint{fill:#57606a}.small{font-size:12px}.head{font-weight:600}.ground{fill:#fff}.rule{stroke:#d3d8de}"
    ".zero{stroke:#7a7f87;stroke-dasharray:3 3}"
    "@media(prefers-color-scheme:dark){text{fill:#e4e7eb}.faint{fill:#a2abb5}.ground{fill:#14171b}.rule{stroke:#3a414a}}"
)
_TOP, _GAP, _LETTER = 54, 26, 7.2
_APART = 8  # between marks of one row that have intervals, which must not lie on one another


@dataclass(frozen=True)
class Series:
    """How a kind of mark looks, and what it is; ``shape``: circle, small (circle), square, bar or diamond (open)."""

    name: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Dot:
    """A value of a series, with an interval where there is one."""

    series: Series
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Panel:
    """One column of the picture: its dots by row. ``line``: a value that a dotted line marks, in range.

    A value outside ``low`` to ``high`` stands on the edge, as an arrow head. ``note`` is told below the title.
    """

    title: str
    low: float
    high: float
    ticks: Sequence[float]
    dots: Mapping[str, Sequence[Dot]]
    line: float | None = None
    note: str = ""


def dot_rows(title: str, rows: Sequence[str], panels: Sequence[Panel], width: int = 760) -> str:
    """A picture with one row a label and one panel beside the other; ``title`` is what a screen reader says.

    Raises:
        ValueError: no rows, no panels, or a panel whose range is empty.
    """
    if not rows or not panels or any(panel.low >= panel.high for panel in panels):
        raise ValueError("expected at least one row and one panel, each with low < high")
    left = 20 + _LETTER * max(len(row) for row in rows)
    wide = (width - left - 14 - _GAP * (len(panels) - 1)) / len(panels)
    row_height = 14 + _APART * max(_n_apart(panel, row) for panel in panels for row in rows)
    bottom = _TOP + row_height * len(rows)
    legend = list(dict.fromkeys(d.series for p in panels for row in rows for d in p.dots.get(row, ()) if d.series.name))
    height = bottom + 30 + 24 * (1 if legend else 0)
    lines = [
        *_opening(title, width, height),
        *(
            f'<text x="{_n(left - 10)}" y="{_n(_TOP + row_height * (i + 0.5) + 4)}" text-anchor="end">'
            f"{escape(row)}</text>"
            for i, row in enumerate(rows)
        ),
        *(
            f'<path class="rule" d="M{_n(left)} {_n(_TOP + row_height * i)}H{width - 14}" opacity="0.5"/>'
            for i in range(len(rows) + 1)
        ),
    ]
    for i, panel in enumerate(panels):
        lines += _panel(panel, rows, left + i * (wide + _GAP), wide, row_height)
    return "\n".join([*lines, *_legend(legend, left, bottom + 40), "</svg>"]) + "\n"


@dataclass(frozen=True)
class Axis:
    """What an axis of a chart shows; ``line``: a value that a dotted line marks, in range."""

    title: str
    low: float
    high: float
    ticks: Sequence[float]
    line: float | None = None


@dataclass(frozen=True)
class Curve:
    """Points of a chart, with a mark each, or joined by a line with one mark, at its end."""

    series: Series
    points: Sequence[tuple[float, float]]
    joined: bool = False


def axis_of(title: str, values: Sequence[float], line: float | None = None) -> Axis:
    """An axis on which all the values lie, with four to eight round ticks."""
    found = [*values, *(() if line is None else (line,))]
    low, high = min(found), max(found)
    high = high if high > low else low + (abs(low) or 1.0)
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(step * i, 12) for i in range(first, last + 1)]
    return Axis(title, ticks[0], ticks[-1], ticks, line)


def chart(title: str, x: Axis, y: Axis, curves: Sequence[Curve], width: int = 760, height: int = 360) -> str:
    """A picture with two axes; ``title`` is what a screen reader says. Points outside stand on the edge.

    Raises:
        ValueError: no point, or an axis whose range is empty.
    """
    if not any(curve.points for curve in curves) or x.low >= x.high or y.low >= y.high:
        raise ValueError("expected at least one point, and axes with low < high")
    left, right, top, bottom = 66, width - 18, 40, height - 76

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = ((min(max(value, axis.low), axis.high) - axis.low) / (axis.high - axis.low)
                      for value, axis in zip(point, (x, y), strict=True))  # fmt: skip
        return left + across * (right - left), bottom - up * (bottom - top)

    lines = _opening(title, width, height)
    lines.append(f'<text class="head" x="{left}" y="24">{escape(y.title)}</text>')
    lines.append(f'<text class="faint small" x="{right}" y="{bottom + 36}" text-anchor="end">{escape(x.title)}</text>')
    for tick in x.ticks:
        across = _n(place((tick, y.low))[0])
        lines.append(f'<path class="rule" d="M{across} {top}V{bottom}"/>')
        lines.append(f'<text class="faint small" x="{across}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks:
        up = place((x.low, tick))[1]
        lines.append(f'<path class="rule" d="M{left} {_n(up)}H{right}"/>')
        lines.append(f'<text class="faint small" x="{left - 8}" y="{_n(up + 4)}" text-anchor="end">{tick:g}</text>')
    if x.line is not None:
        lines.append(f'<path class="zero" d="M{_n(place((x.line, y.low))[0])} {top}V{bottom}"/>')
    if y.line is not None:
        lines.append(f'<path class="zero" d="M{left} {_n(place((x.low, y.line))[1])}H{right}"/>')
    for curve in curves:
        placed = [place(point) for point in curve.points]
        if curve.joined and len(placed) > 1:
            path = "L".join(f"{_n(one)} {_n(other)}" for one, other in placed)
            lines.append(f'<path d="M{path}" fill="none" stroke="{COLOURS[curve.series.colour]}" opacity="0.6"/>')
        lines += [_mark(curve.series, *point) for point in (placed[-1:] if curve.joined else placed)]
    lines += _legend(list(dict.fromkeys(curve.series for curve in curves if curve.points)), left, bottom + 58)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _opening(title: str, width: int, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="ground" width="{width}" height="{height}" rx="6"/>',
    ]


def _legend(series: Sequence[Series], x: float, y: float) -> list[str]:
    lines = []
    for one in series:
        lines.append(_mark(one, x + 6, y))
        lines.append(f'<text class="faint small" x="{_n(x + 17)}" y="{_n(y + 4)}">{escape(one.name)}</text>')
        x += 36 + 6.4 * len(one.name)
    return lines


def _n_apart(panel: Panel, row: str) -> int:
    """How many marks of a row stand one below the other: all where one has an interval, else none."""
    dots = panel.dots.get(row, ())
    return len(dots) if any(not math.isnan(dot.low) for dot in dots) else 1


def _panel(panel: Panel, rows: Sequence[str], x0: float, wide: float, row_height: float) -> Iterator[str]:
    def place(value: float) -> float:
        return x0 + wide * (value - panel.low) / (panel.high - panel.low)

    bottom = _TOP + row_height * len(rows)
    yield f'<text class="head" x="{_n(x0)}" y="24">{escape(panel.title)}</text>'
    yield f'<text class="faint small" x="{_n(x0)}" y="41">{escape(panel.note)}</text>'
    for tick in panel.ticks:
        x = _n(place(tick))
        yield f'<path class="rule" d="M{x} {_TOP}V{_n(bottom)}"/>'
        yield f'<text class="faint small" x="{x}" y="{_n(bottom + 16)}" text-anchor="middle">{tick:g}</text>'
    if panel.line is not None:
        yield f'<path class="zero" d="M{_n(place(panel.line))} {_TOP - 4}V{_n(bottom)}"/>'
    for i, row in enumerate(rows):
        dots = panel.dots.get(row, ())
        n = _n_apart(panel, row)
        for j, dot in enumerate(dots):
            y = _TOP + row_height * (i + 0.5) + (_APART * (j - (n - 1) / 2) if n > 1 else 0)
            if not math.isnan(dot.low):
                start, end = (place(min(max(end, panel.low), panel.high)) for end in (dot.low, dot.high))
                colour = COLOURS[dot.series.colour]
                yield f'<path d="M{_n(start)} {_n(y)}H{_n(end)}" stroke="{colour}" stroke-width="1.6"/>'
            if panel.low <= dot.value <= panel.high:
                yield _mark(dot.series, place(dot.value), y)
            else:
                yield from _beyond(dot, place(min(max(dot.value, panel.low), panel.high)), y, dot.value < panel.low)


def _beyond(dot: Dot, x: float, y: float, left: bool) -> Iterator[str]:
    """An arrow head at the edge, with the value behind it; a small mark's has none."""
    way, colour = (1 if left else -1), COLOURS[dot.series.colour]
    if dot.series.shape == "small":
        yield f'<path d="M{_n(x)} {_n(y)}l{5 * way} -3v6z" fill="{colour}" opacity="0.75"/>'
        return
    yield f'<path d="M{_n(x)} {_n(y)}l{9 * way} -5v10z" fill="{colour}"/>'
    anchor = "start" if left else "end"
    yield f'<text class="small" x="{_n(x + 12 * way)}" y="{_n(y - 5)}" text-anchor="{anchor}">{dot.value:.0f}</text>'


def _mark(series: Series, x: float, y: float) -> str:
    colour = COLOURS[series.colour]
    if series.shape == "diamond":
        return f'<path class="ground" d="M{_n(x)} {_n(y - 6)}l6 6l-6 6l-6 -6z" stroke="{colour}" stroke-width="2"/>'
    if series.shape == "bar":
        return f'<rect x="{_n(x - 1.5)}" y="{_n(y - 8)}" width="3" height="16" fill="{colour}"/>'
    if series.shape == "square":
        return f'<rect x="{_n(x - 4)}" y="{_n(y - 4)}" width="8" height="8" fill="{colour}"/>'
    radius, opacity = (2.6, ' opacity="0.75"') if series.shape == "small" else (5, "")
    return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{radius}" fill="{colour}"{opacity}/>'


def _n(value: float) -> str:
    return f"{round(value, 1):g}"
