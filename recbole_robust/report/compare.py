"""Methods against the undefended model: what attacks do to it, what a defense removes of that, and what it costs.

Every comparison passes the gate of :func:`recbole_robust.statistics.attack_works` first: an attack that does nothing to
the undefended model, or saturates it, judges no defense. Stdlib, numpy and ``statistics.py`` only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from recbole_robust.report.tables import Entry, Key, Measured, Table, counts, interval_of, is_percent, labels, values_of
from recbole_robust.statistics import (
    EXACT_LIMIT,
    Gate,
    attack_works,
    holm,
    paired_effect_size,
    paired_permutation_test,
    student_interval,
)

ALPHA = 0.05
N_PERMUTATIONS = 10_000
NO_SHARE = Measured(None, percent=True)

Order = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Undefended:
    """The undefended model of each method: ``default``, but for those in ``own``, where None is a victim itself."""

    default: str = "MF"
    own: Mapping[str, str | None] = field(default_factory=dict)

    def of(self, method: str) -> str | None:
        """The model that a method is judged against, by their labels."""
        return None if method in self.models else self.own.get(method, self.default)

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys([self.default, *(model for model in self.own.values() if model is not None)]))

    @property
    def name(self) -> str:
        """What it is called in a heading."""
        return self.default if len(self.models) == 1 else "the undefended model"

    @property
    def told(self) -> str:
        own = [f"of {method}: {model}" for method, model in self.own.items() if model is not None]
        return f"{self.name} ({'; '.join([self.default, *own])})" if own else self.name


@dataclass(frozen=True)
class Shares:
    """What one method removes of the undefended lift, by attack, and what it keeps of its accuracy on clean data."""

    method: str
    removed: Mapping[str, Measured]
    kept: Mapping[str, Measured]
    lifts: Mapping[str, float]  # of the undefended model, means over the units that both have

    @property
    def told(self) -> dict[str, float]:
        """The shares removed, fractions by attack, without those that are not told."""
        return {attack: cell.interval.mean for attack, cell in self.removed.items() if cell.interval}

    @property
    def together(self) -> float:
        """What is removed of all these lifts together; the mean of the shares would be that of the weakest attack."""
        told = self.told
        return math.fsum(told[a] * self.lifts[a] for a in told) / math.fsum(self.lifts[a] for a in told)


def shares(
    entries: Sequence[Entry], metric: str, accuracy: Sequence[str], undefended: Undefended, order: Order
) -> list[Shares]:
    """The shares of every method but the undefended ones that is measured under an attack that judges defenses.

    Both are ratios of means over the units that method and undefended model share. Attacks too weak or too strong to
    judge a defense by (:func:`gates`) are left out, and no share is told of a lift or an accuracy that the seeds do
    not agree on (:func:`share_of_shown`).
    """
    found = []
    for method, model, judged in _judged(entries, metric, undefended, order):
        own_entries, plain_entries = ([e for e in entries if e.method == name] for name in (method, model))
        removed, kept, lifts = {}, {}, {}
        for attack in judged:
            plain, own = _paired([plain_entries, own_entries], attack, metric)
            if gone := {key: plain[key] - own[key] for key in own if key in plain}:
                removed[attack] = share_of_shown(plain, gone)
                lifts[attack] = math.fsum(plain[key] for key in gone) / len(gone)
        for name in accuracy:
            plain, own = (values_of(some, "clean", name) for some in (plain_entries, own_entries))
            kept[name] = share_of_shown(plain, own)
        if removed:
            found.append(Shares(method, removed, kept, lifts))
    return found


def defense_table(
    title: str, entries: Sequence[Entry], metric: str, accuracy: Sequence[str], undefended: Undefended, *, order: Order
) -> Table:
    """Rows: the other methods. Columns: their :func:`shares`, of the lift by attack, then of accuracy."""
    found = shares(entries, metric, accuracy, undefended, order)
    judged = [attack for attack in labels(entries, "attack", order) if any(attack in one.removed for one in found)]
    header = ["method", *(f"{attack}: removed, %" for attack in judged), *(f"{name} kept, %" for name in accuracy)]
    table = Table(title, [*header, "seeds"], [])
    for one in found:
        removed = [one.removed.get(attack, NO_SHARE) for attack in judged]
        cells = [*removed, *one.kept.values()]
        table.rows.append([one.method, *cells, counts(cells)])
    if any(len(one.told) < len(one.removed) or NO_SHARE in one.kept.values() for one in found):
        table.notes.append(
            "No share of a lift or an accuracy that could be 0 by Student's interval over the means of the seeds: it "
            "could be any."
        )
    return table


def comparison_table(
    title: str, entries: Sequence[Entry], metric: str, undefended: Undefended, *, order: Order, overall: bool = False
) -> Table:
    """Rows: each other method under each attack that judges defenses. Columns: its lift minus its undefended model's,
    p-value, p-value after Holm over the table, effect size, verdict and number of pairs.

    A pair is a seed and a target set that both have. ``overall``: one row a method, its mean lift over these attacks,
    where there are several; few pairs can show that more often than they can show each attack by itself.
    """
    header = ["method", "attack", "difference of lifts", "p", "p (Holm)", "Hedges' g", "verdict", "pairs"]
    table = Table(title, header, [])
    tests: list[tuple[str, str, Measured, float, float, int]] = []
    for method, model, judged in _judged(entries, metric, undefended, order):
        both = [[e for e in entries if e.method == name] for name in (model, method)]
        lifts = {attack: _paired(both, attack, metric) for attack in judged}
        if overall:
            lifts = {f"mean of {len(judged)}": _means(list(lifts.values()))} if len(judged) > 1 else {}
        for attack, (plain, own) in lifts.items():
            keys = [key for key in own if key in plain]
            if keys:
                before, after = ([values[key] for key in keys] for values in (plain, own))
                rng = np.random.default_rng(0)
                p = paired_permutation_test(after, before, n_permutations=N_PERMUTATIONS, rng=rng)
                change = interval_of({key: own[key] - plain[key] for key in keys})
                difference = Measured(change, is_percent(metric), signed=True)
                tests.append((method, attack, difference, p, paired_effect_size(after, before), len(keys)))
    for (method, attack, difference, p, effect, n), adjusted in zip(tests, holm([t[3] for t in tests]), strict=True):
        size = "-" if math.isnan(effect) else f"{effect:+.1f}".replace("inf", "∞")
        cells = [_p_value(p), _p_value(float(adjusted)), size, _verdict(difference, float(adjusted)), str(n)]
        table.rows.append([method, attack, difference, *cells])
    if tests:
        table.notes.append(
            f"Two-sided sign-flip tests against {undefended.told} under the same attack, paired by seed and target set "
            "(the pairs of one seed share a split; they are taken to be independent all the same); Holm over the "
            f"{len(tests)} tests of this table, level {ALPHA:g}. Hedges' g: the mean of the differences in units of "
            "their standard deviation over the pairs, corrected for few pairs; below 0 where the lift is less."
        )
        table.notes += _too_few([n for *_, n in tests])
    return table


def _means(lifts: Sequence[Sequence[Mapping[Key, float]]]) -> list[dict[Key, float]]:
    """Of each model its mean over the attacks, by unit; a unit that one of them lacks has none."""
    return [
        {key: math.fsum(one[key] for one in own) / len(own) for key in own[0] if all(key in one for one in own)}
        for own in zip(*lifts, strict=True)
    ]


def gain_table(
    title: str, entries: Sequence[Entry], metrics: Sequence[str], gains: Sequence[Mapping[str, str]]
) -> Table:
    """Rows: each gain (``method`` over ``over``) in each metric that both have on clean data.

    Columns: difference, the same as a share of ``over``'s value, p-value, p-value after Holm over the table; where a
    gain has a ``bound``, the share of the bound's gain (if that has an interval above 0); and the number of pairs:
    seeds that both have.
    """
    bounded = any("bound" in gain for gain in gains)
    header = ["method", "over", "metric", "difference", "change, %", "p", "p (Holm)"]
    table = Table(title, [*header, *(["share of the bound, %"] if bounded else []), "pairs"], [])
    tests: list[tuple[list[str | Measured], float, list[Measured], int]] = []
    for gain in gains:
        for metric in metrics:
            own, base, bound = (
                values_of([e for e in entries if e.method == gain.get(who)], "clean", metric)
                for who in ("method", "over", "bound")
            )
            keys = [key for key in own if key in base]
            if not keys:
                continue
            change = {key: own[key] - base[key] for key in keys}
            after, before = ([values[key] for key in keys] for values in (own, base))
            rng = np.random.default_rng(0)
            p = paired_permutation_test(after, before, n_permutations=N_PERMUTATIONS, rng=rng)
            room = {key: bound[key] - base[key] for key in keys if key in bound}
            share = share_of_shown(room, change)
            told: list[str | Measured] = [
                gain["method"], gain["over"], metric, Measured(interval_of(change), is_percent(metric), signed=True),
                replace(share_of(base, change), signed=True),
            ]  # fmt: skip
            tests.append((told, p, [share] if bounded else [], len(keys)))
    for (told, p, shown, n), adjusted in zip(tests, holm([p for _, p, _, _ in tests]), strict=True):
        table.rows.append([*told, _p_value(p), _p_value(float(adjusted)), *shown, str(n)])
    if tests:
        table.notes.append(
            f"Two-sided sign-flip tests over pairs of one seed; Holm over the {len(tests)} tests of this table."
            + (" No share of a bound whose own gain is not shown." if bounded else "")
        )
        table.notes += _too_few([n for *_, n in tests])
    return table


def _too_few(n_pairs: Sequence[int]) -> list[str]:
    """A remark where no test of a table, of so many pairs each, can be significant after Holm."""
    least = attainable(max(n_pairs))
    if least * len(n_pairs) <= ALPHA:
        return []
    return [
        f"With at most {max(n_pairs)} pairs p cannot fall below {least:.2g}: after Holm over {len(n_pairs)} tests "
        "nothing here can be significant, whatever is done."
    ]


def attainable(n_pairs: int) -> float:
    """The smallest two-sided p-value that a sign-flip test of so many pairs can give."""
    return 2.0 ** (1 - n_pairs) if n_pairs <= EXACT_LIMIT else 1 / (1 + N_PERMUTATIONS)


def _judged(
    entries: Sequence[Entry], metric: str, undefended: Undefended, order: Order
) -> Iterator[tuple[str, str, list[str]]]:
    """Each method, its undefended model, and the attacks that are strong enough on that to judge it by."""
    works = {
        model: [attack for attack, gate, _ in gates(entries, metric, model, order) if gate.works]
        for model in undefended.models
    }
    for method in labels(entries, "method", order):
        model = undefended.of(method)
        if model is not None and works[model]:
            yield method, model, works[model]


def gates(entries: Sequence[Entry], metric: str, undefended: str, order: Order) -> list[tuple[str, Gate, int]]:
    """For each attack on the undefended method: its gate and the number of pairs behind it."""
    found = []
    for attack in labels(entries, "attack", order):
        at = [entry for entry in entries if entry.method == undefended and entry.attack == attack]
        clean, attacked = values_of(at, "clean", metric), values_of(at, "attacked", metric)
        keys = [key for key in clean if key in attacked]
        if keys:
            before, after = ([values[key] for key in keys] for values in (clean, attacked))
            gate = attack_works(before, after, [seed for seed, _ in keys], rng=np.random.default_rng(0))
            found.append((attack, gate, len(keys)))
    return found


def _verdict(difference: Measured, p: float) -> str:
    if p >= ALPHA or difference.interval is None:
        return "not shown"
    return "less lift" if difference.interval.mean < 0 else "more lift"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _paired(both: Sequence[Sequence[Entry]], attack: str, metric: str) -> list[dict[Key, float]]:
    """The lifts under one attack, by unit: of the undefended model and of a method."""
    return [values_of([e for e in some if e.attack == attack], "lift", metric) for some in both]


def share_of(whole: Mapping[Key, float], part: Mapping[Key, float]) -> Measured:
    """The mean of ``part`` as a share of the mean of ``whole``, over the units that both have.

    The interval is that of the ratio, linearised: where the share is the same in each unit, it is a point.
    """
    keys = [key for key in part if key in whole]
    mean = math.fsum(whole[key] for key in keys) / len(keys) if keys else 0.0
    if not mean:
        return NO_SHARE
    share = math.fsum(part[key] for key in keys) / len(keys) / mean
    return Measured(interval_of({key: share + (part[key] - share * whole[key]) / mean for key in keys}), percent=True)


def share_of_shown(whole: Mapping[Key, float], part: Mapping[Key, float]) -> Measured:
    """As :func:`share_of`, where the whole is above 0 over the seeds; else the share could be anything, and is none.

    By Student's interval over the means of the seeds: unlike that of the tables it does not widen where target sets
    differ from one another, which says nothing against any of them. With a single seed, which has none, by the mean.
    """
    keys = [key for key in part if key in whole]
    if not keys:
        return NO_SHARE
    interval = student_interval([whole[key] for key in keys], [seed for seed, _ in keys])
    if (interval.mean if math.isnan(interval.low) else interval.low) <= 0:
        return NO_SHARE
    return share_of(whole, part)
