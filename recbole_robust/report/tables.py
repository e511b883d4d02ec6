"""Result files as tables of measured numbers, before any markup: what a row is, which values a number averages.

A row is a method, a column a metric on clean or on attacked data, a number the mean over seeds with its interval. The
markup is the business of ``as_markdown.py``, ``as_latex.py`` and ``as_html.py``. Stdlib, numpy and
``statistics.py`` only.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from recbole_robust.statistics import Interval, hierarchical_bootstrap
from recbole_robust.types import UserError

Key = tuple[int, str]  # (seed, target set): the unit that is averaged over
Verdict = Literal["inside", "above", "below"]
VERDICTS: Mapping[Verdict | None, str] = {  # what the mark beside a published value says
    "inside": "the published value may lie inside the measured interval, as it is rounded",
    "above": "the measured interval lies above the published value",
    "below": "the measured interval lies below the published value",
    None: "not to be compared (one seed, or a label of its own for what the publication attacked with)",
}

HALF_DIGIT = 0.005  # so far may a published value be from what its authors measured: two digits after the point

METRICS = ("targethr", "targetndcg", "targetrank", "hit", "recall", "ndcg", "tailhit", "itemcoverage")
_PERCENT = re.compile(
    r"(targethr(_\w+)?|targetndcg(_\w+)?|hit|recall|precision|ndcg|map|mrr|tailhit|itemcoverage|tailpercentage)(@\d+)?"
)
_TARGET = re.compile(r"target|predictionshift|prediction_shift|rankshift|rank_shift")
# Options of a run's command line that say where it ran, not what it is; the others tell its row or column apart.
_PLACE = {"output_dir", "gpu_id", "use_gpu", "data_path", "force", "compare_clean", "baseline", "show_progress"}
_PLACE |= {"save_checkpoint", "log_tensorboard", "cache_clean"}
_AXES = {"model", "dataset", "attack", "defense", "seed"}
_ATTACK_OPTIONS = re.compile(r"attack|new_fans|filler_size|n_fillers|n_fake_users|known_users|poison")
_TARGET_OPTIONS = re.compile(r"target_(?!hr)|n_targets")


@dataclass(frozen=True)
class Entry:
    """One result under the labels of its place in the tables; ``attack`` is None where nothing was attacked.

    ``poison`` and ``n_genuine`` are the result's (empty and None where it has none), ``config`` its resolved settings;
    a baseline's are not stored, so its ``config`` is empty.
    """

    dataset: str
    target_set: str
    attack: str | None
    method: str
    seed: int
    clean: Mapping[str, float]
    attacked: Mapping[str, float]
    lift: Mapping[str, float]
    names: tuple[str, str | None]  # registry names behind the data set's and the attack's label
    command: str
    path: str
    poison: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    n_genuine: int | None = None

    def on_clean(self) -> Entry:
        """The same place without its attack."""
        return replace(self, attack=None, names=(self.names[0], None))


@dataclass(frozen=True)
class Measured:
    """One number of a table: a fraction shown in percent, or a plain number.

    ``published`` is in percent; without ``judged`` it stands beside the number and is no measure of it.
    """

    interval: Interval | None
    percent: bool
    signed: bool = False
    published: float | None = None
    judged: bool = True

    @property
    def numbers(self) -> list[str]:
        """The mean, and the ends of its interval where it has one, as they are shown; none where nothing was measured.

        Percent and ranks have one digit after the point, beside published values below one percent two, small numbers
        three; a lift has its sign.
        """
        if self.interval is None:
            return []
        ends = [] if math.isnan(self.interval.low) else [self.interval.low, self.interval.high]
        return [self._number(value) for value in (self.interval.mean, *ends)]

    @property
    def verdict(self) -> Verdict | None:
        """Where the measurement lies beside the published value; None where it is not to be told, or one is missing."""
        if self.interval is None or self.published is None or not self.judged or math.isnan(self.interval.low):
            return None
        unit = 0.01 if self.percent else 1.0
        least, most = (unit * (self.published + end) for end in (-HALF_DIGIT, HALF_DIGIT))
        return "above" if self.interval.low > most else "below" if self.interval.high < least else "inside"

    def _number(self, value: float) -> str:
        digits = 1 if self.percent or abs(value) >= 10 else 3
        if self.published is not None and self.published < 1:
            digits = 2  # as it is published
        value = round(100 * value if self.percent else value, digits) + 0.0  # + 0.0: no minus before a zero
        return f"{value:+.{digits}f}" if self.signed else f"{value:.{digits}f}"


def legend(marks: Mapping[Verdict | None, str]) -> str:
    """What the marks of a markup say, in one sentence."""
    return "; ".join(f"{mark or 'No mark'}: {VERDICTS[verdict]}" for verdict, mark in marks.items()) + "."


@dataclass
class Table:
    """A table and the remarks below it; a row is its label cells, then :class:`Measured` or text, read as numbers."""

    title: str
    header: list[str]
    rows: list[list[str | Measured]]
    notes: list[str] = field(default_factory=list)

    @property
    def n_labels(self) -> int:
        """Columns of text at the left; those behind them are numbers."""
        return next((i for i, cell in enumerate(self.rows[0]) if isinstance(cell, Measured)), 1) if self.rows else 1

    @property
    def has_published(self) -> bool:
        """Whether published values stand beside some of its numbers."""
        return any(isinstance(cell, Measured) and cell.published is not None for row in self.rows for cell in row)


# (entry, metric) -> published percent, and whether it is of the same attack; clean where entry.attack is None
Lookup = Callable[[Entry, str], tuple[float, bool] | None]


def make_entries(results: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """The results that did not fail, with a run's baseline as a row of its own.

    Raises:
        UserError: two files hold the same cell.
    """
    entries = [entry for result in results if "error" not in result for entry in _entries_of(result)]
    seen: dict[tuple[Any, ...], Entry] = {}
    for entry in entries:
        place = (entry.dataset, entry.target_set, entry.attack, entry.method, entry.seed)
        other = seen.setdefault(place, entry)
        if other is not entry:
            where = ", ".join(str(part) for part in place[:-1] if part)
            raise UserError(
                f"two results for {where}, seed {entry.seed}: {other.path} and {entry.path}; remove one, or report a "
                "folder that holds one of them"
            )
    return entries


def grouped(header: Sequence[str]) -> list[tuple[str | None, list[str]]]:
    """The columns of a table under common headings: ``A: attacked, A: lift`` are two under ``A``; None: no heading."""
    groups: list[tuple[str | None, list[str]]] = []
    for name in header:
        above, colon, below = name.rpartition(": ")
        group = above if colon else None
        if not groups or groups[-1][0] != group:
            groups.append((group, []))
        groups[-1][1].append(below)
    return groups


def labels(entries: Iterable[Entry], axis: str, order: Mapping[str, Sequence[str]]) -> list[str]:
    """The labels of an axis that occur: those of ``order[axis]`` first and in its order, then the others sorted."""
    found = {getattr(entry, axis) for entry in entries} - {None}
    known = [label for label in order.get(axis, ()) if label in found]
    return known + sorted(found - set(known))


def metrics_of(entries: Sequence[Entry], wanted: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Names of the (target, accuracy) metrics that exist, of ``wanted``, by default of :data:`METRICS`."""
    found = {name for entry in entries for name in (*entry.clean, *entry.attacked)}
    if wanted is None:
        wanted = [name for base in METRICS for name in sorted(found, key=_by_cutoff) if name.split("@")[0] == base]
    present = [name for name in dict.fromkeys(wanted) if name in found]
    return [name for name in present if _TARGET.match(name)], [name for name in present if not _TARGET.match(name)]


def is_percent(metric: str) -> bool:
    """True where a metric is a fraction that tables show in percent."""
    return _PERCENT.fullmatch(metric) is not None


def target_table(
    title: str, entries: Sequence[Entry], metric: str, *, order: Mapping[str, Sequence[str]], published: Lookup
) -> Table:
    """Rows: methods. Columns: clean, then each attack's attacked value and lift; then the number of seeds."""
    attacks = labels(entries, "attack", order)
    header = [
        "method",
        "clean",
        *(text for attack in attacks for text in (f"{attack}: attacked", f"{attack}: lift")),
        "seeds",
    ]
    table = Table(title, header, [])
    for method in labels(entries, "method", order):
        mine = [entry for entry in entries if entry.method == method]
        cells = [measure(mine, "clean", metric, published=published)]
        for attack in attacks:
            at = [entry for entry in mine if entry.attack == attack]
            cells += [measure(at, "attacked", metric, published=published), measure(at, "lift", metric)]
        if any(cell.interval for cell in cells):
            table.rows.append([method, *cells, counts(cells)])
            if _differs(mine, metric):
                table.notes.append(
                    f"{method}: {metric} on clean data differs from attack to attack; their mean is shown."
                )
    return table


def accuracy_table(
    title: str, entries: Sequence[Entry], metrics: Sequence[str], *, order: Mapping[str, Sequence[str]]
) -> Table:
    """Rows: each method on clean data and under each attack. Columns: metrics; then the number of seeds."""
    table = Table(title, ["method", "data", *(_with_unit(metric) for metric in metrics), "seeds"], [])
    for method in labels(entries, "method", order):
        mine = [entry for entry in entries if entry.method == method]
        conditions = [("clean", "clean", mine)]
        for attack in labels(entries, "attack", order):
            conditions.append((attack, "attacked", [entry for entry in mine if entry.attack == attack]))
        for name, part, some in conditions:
            cells = [measure(some, part, metric) for metric in metrics]
            if any(cell.interval for cell in cells):
                table.rows.append([method, name, *cells, counts(cells)])
    return table


def values_of(entries: Iterable[Entry], part: str, metric: str) -> dict[Key, float]:
    """A metric by unit; several results of one unit (its clean value under each attack) count once, by their mean."""
    pooled: dict[Key, list[float]] = {}
    for entry in entries:
        value = getattr(entry, part).get(metric)
        if value is not None and math.isfinite(value):
            pooled.setdefault((entry.seed, entry.target_set), []).append(value)
    return {key: math.fsum(values) / len(values) for key, values in sorted(pooled.items())}


def interval_of(values: Mapping[Key, float], bounds: tuple[float, float] = (-math.inf, math.inf)) -> Interval | None:
    """The mean of some units with its interval, over seeds and within each over its sets; None where there are none."""
    if not values:
        return None
    seeds, rng = [seed for seed, _ in values], np.random.default_rng(0)
    return hierarchical_bootstrap(list(values.values()), seeds, rng=rng, bounds=bounds)


def measure(entries: Sequence[Entry], part: str, metric: str, published: Lookup | None = None) -> Measured:
    """The mean of a metric in one ``part`` (clean, attacked, lift) of some entries, with its interval."""
    values = values_of(entries, part, metric)
    percent = is_percent(metric)
    bounds = (-math.inf, math.inf) if not percent else (-1.0, 1.0) if part == "lift" else (0.0, 1.0)
    beside = None
    if published and values:
        beside = published(entries[0].on_clean() if part == "clean" else entries[0], metric)
    value, same = beside or (None, True)
    return Measured(interval_of(values, bounds), percent, signed=part == "lift", published=value, judged=same)


def counts(cells: Sequence[Measured]) -> str:
    """Seeds behind a row, "8 to 10" where its numbers differ; with the number of values where sets are pooled."""
    intervals = [cell.interval for cell in cells if cell.interval]
    seeds, values = ({getattr(interval, name) for interval in intervals} for name in ("n_groups", "n"))
    return span(seeds) if seeds == values else f"{span(seeds)} ({span(values)} values)"


def span(values: Iterable[Any]) -> str:
    """``28``, or ``28 to 30`` where they differ; ``-`` where none is told."""
    told = [value for value in values if value is not None]
    return " to ".join(str(value) for value in sorted({min(told), max(told)})) if told else "-"


def _differs(entries: Sequence[Entry], metric: str) -> bool:
    ends: dict[Key, tuple[float, float]] = {}
    for entry in entries:
        value = entry.clean.get(metric)
        if value is not None:
            low, high = ends.get((entry.seed, entry.target_set), (value, value))
            ends[entry.seed, entry.target_set] = (min(low, value), max(high, value))
    return any(high - low > 1e-9 for low, high in ends.values())


def _with_unit(metric: str) -> str:
    return f"{metric}, %" if is_percent(metric) else metric


def _by_cutoff(metric: str) -> tuple[str, int]:
    """Sort key: the largest K first, which is the one that a protocol judges by."""
    name, _, cutoff = metric.partition("@")
    return name, -int(cutoff) if cutoff.isdigit() else 0


def _entries_of(result: Mapping[str, Any]) -> Iterable[Entry]:
    cell, attack = result.get("cell"), _name(result.get("attack"))
    model, defense, command = result.get("model"), _name(result.get("defense")), str(result.get("command") or "")
    if cell:
        place = (cell["dataset"], cell.get("target_set") or "default", cell.get("attack"), cell["method"], cell["seed"])
        places = [(place, result)]
    else:
        options = _options(command)
        targets = [text for name, text in options if _TARGET_OPTIONS.match(name)]
        attacking = [text for name, text in options if _ATTACK_OPTIONS.match(name)]
        rest = [text for name, text in options if not (_TARGET_OPTIONS.match(name) or _ATTACK_OPTIONS.match(name))]
        method = " ".join([_method(model, defense), *rest])
        column = " ".join([attack, *attacking]) if attack else None
        seed, row = int(result.get("seed") or 0), (result["dataset"], " ".join(targets) or "default", column)
        places = [((*row, method, seed), result)]
        baseline = result.get("baseline")
        if baseline:
            label = f"{_method(baseline.get('model'), _name(baseline.get('defense')))} (baseline of {method})"
            places.append(((*row, label, seed), baseline))
    for place, numbers in places:
        yield Entry(
            *place,
            clean=numbers.get("clean") or {},
            attacked=numbers.get("attacked") or {},
            lift=numbers.get("lift") or {},
            names=(str(result.get("dataset")), attack),
            command=command,
            path=str(result.get("path", "")),
            poison=result.get("poison") or {},
            config=(result.get("config") or {}) if numbers is result else {},
            n_genuine=result.get("n_genuine"),
        )


def _method(model: Any, defense: str | None) -> str:
    return f"{model} + {defense}" if defense else str(model)


def _name(value: Any) -> str | None:
    """A registry name out of a result's ``attack`` or ``defense``: text, a mapping with its name, or nothing."""
    if isinstance(value, Mapping):
        value = value.get("name") or value.get("attack") or value.get("defense")
    return None if value is None or str(value).lower() == "none" else str(value)


def _options(command: str) -> list[tuple[str, str]]:
    """The telling options of a command line as (name, text)."""
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    pairs = [(word[2:].partition("=")[0], word[2:]) for word in words if word.startswith("--")]
    return [(name, text) for name, text in pairs if name not in _AXES | _PLACE]
