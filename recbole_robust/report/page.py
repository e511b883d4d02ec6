"""A report before any markup: sections with their tables, the commands that make them, and what they were made with."""

from __future__ import annotations

import math
import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recbole_robust.report import budget, compare, cutoffs, stealth, tables
from recbole_robust.report.compare import Undefended
from recbole_robust.report.published import Published, load_published, published_table
from recbole_robust.report.tables import Entry, Table

Order = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One target set of one data set (or all of them together, ``target_set`` None) and its tables.

    ``metric`` is the target metric that attacks and defenses are judged by; None where there is none.
    """

    heading: str
    dataset: str
    target_set: str | None
    entries: Sequence[Entry]
    metric: str | None
    accuracy: Sequence[str]
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """Everything a report of one grid says.

    Attributes:
        commands: the seeds, and the commands that were run with these seeds, the seed left open as ``$seed``.
        made_with: versions, device, threads and dates, in one line.
        failed: one line a failed cell.
        left_out: files that were found and not used.
        n_missing: cells that the grid has and no file.
        audit: what the grid's audit says, in lines; the first sums up, the others are the checks that failed.
    """

    title: str
    n_results: int
    published: Published | None
    order: Order
    undefended: Undefended
    source: str | None
    entries: Sequence[Entry]
    sections: Sequence[Section]
    commands: Sequence[tuple[tuple[int, ...], list[str]]]
    made_with: str
    failed: Sequence[str]
    left_out: Sequence[str]
    audit: Sequence[str] = ()
    n_missing: int = 0

    @property
    def summary(self) -> str:
        """How many results there are, and what a number is."""
        missing = f"; {self.n_missing} cells of the grid have not run" if self.n_missing else ""
        return (
            f"{self.n_results} results{missing}. Each number is the mean over seeds with its 95 % interval "
            "(hierarchical bootstrap; none with a single seed); the lift is attacked minus clean."
        )

    @property
    def datasets(self) -> list[str]:
        """The data sets in the order they are shown."""
        return tables.labels(self.entries, "dataset", self.order)

    def judging(self, dataset: str) -> Section:
        """The section in which a data set's defenses are judged: all target sets together, or its only one."""
        return next(section for section in reversed(self.sections) if section.dataset == dataset)

    def command(self, section: Section | None = None) -> str | None:
        """The grid command that makes a section's numbers, or all of them; None without a grid file."""
        if self.source is None:
            return None
        command = f"python run_recbole_robust.py benchmark {shlex.quote(self.source)}"
        if section is None or len(self.sections) == 1:
            return command
        axes = {"dataset": section.dataset, "target_set": section.target_set}
        only = ",".join(f"{axis}={_literal(label)}" for axis, label in axes.items() if label is not None)
        return f"{command} --only={shlex.quote(only)}"


def make_page(
    results: Sequence[Mapping[str, Any]],
    *,
    title: str,
    metrics: Sequence[str] | None = None,
    published: Published | str | None = None,
    order: Order | None = None,
    undefended: str = "MF",
    undefended_of: Mapping[str, str | None] | None = None,
    gains: Sequence[Mapping[str, str]] = (),
    source: str | None = None,
    left_out: Sequence[str] = (),
    audit: Sequence[str] = (),
    n_missing: int = 0,
) -> Page:
    """What a report of some results says.

    Args:
        results: result dictionaries as :func:`recbole_robust.report.load_results` gives them, failed ones too (key
            ``error``).
        title: the page's heading.
        metrics: metrics to show, in order; those that no file has are passed over. None: all the usual ones.
        published: a published table (or its name); its values stand beside the measured ones.
        order: labels by axis (``dataset``, ``target_set``, ``attack``, ``method``) in the order they are shown.
        undefended: label of the method on which the attacks' strength is judged, and which defenses are judged against.
        undefended_of: labels of methods that have another one, and its label; None: victims themselves, no defenses.
        gains: whose accuracy is tested against whose, for :func:`recbole_robust.report.compare.gain_table`.
        source: the grid file that makes all of it in one command.
        left_out: files that were found and not used, listed at the end.
        audit: what the audit of these files says, in lines.
        n_missing: cells that the grid has and no file.

    Raises:
        UserError: two results hold the same cell, or the published table is not there.
    """
    if isinstance(published, str):
        published = load_published(published)
    order, against = order or {}, compare.Undefended(undefended, undefended_of or {})
    entries = tables.make_entries(results)
    failed = [f"{_where(result)}: {result['error']}" for result in results if "error" in result]
    sections = []
    for dataset in tables.labels(entries, "dataset", order):
        here = [entry for entry in entries if entry.dataset == dataset]
        target_sets = tables.labels(here, "target_set", order)
        for name in target_sets:
            some = [entry for entry in here if entry.target_set == name]
            last, its = len(target_sets) == 1, gains if name == target_sets[0] else ()  # of clean data, told once
            sections.append(
                _section(f"{dataset}, targets: {name}", some, name, metrics, published, order, against, last, its)
            )
        if len(target_sets) > 1:
            heading = f"{dataset}, all {len(target_sets)} target sets together"
            sections.append(_section(heading, here, None, metrics, None, order, against, True))
    return Page(
        title,
        len(results) - len(failed),
        published,
        order,
        against,
        source,
        entries,
        sections,
        _commands(entries),
        _environment(results),
        failed,
        list(left_out),
        list(audit),
        n_missing,
    )


def _section(
    heading: str,
    entries: Sequence[Entry],
    target_set: str | None,
    metrics: Sequence[str] | None,
    published: Published | None,
    order: Order,
    undefended: Undefended,
    last: bool,
    gains: Sequence[Mapping[str, str]] = (),
) -> Section:
    """The section of some entries of one data set; ``last``: the one in which its defenses are judged."""
    on_targets, accuracy = tables.metrics_of(entries, metrics)
    judged_by = next((metric for metric in on_targets if metric.startswith("targethr")), None)
    section = Section(heading, entries[0].dataset, target_set, entries, judged_by, accuracy)
    for metric in on_targets:
        unit = " in percent, lift in percentage points" if tables.is_percent(metric) else ""
        lookup = published.lookup if published else lambda entry, name: None
        table = tables.target_table(f"{metric}{unit}", entries, metric, order=order, published=lookup)
        if metric == judged_by:
            table.notes += [note for model in undefended.models for note in _strength(entries, metric, model, order)]
        section.tables.append(table)
        if metric == judged_by:
            beside = [published_table(entries, metric, published, order=order)] if published else []
            title = f"Share of {undefended.name}'s lift removed, share of its accuracy on clean data kept"
            judged = [*beside, compare.defense_table(title, entries, metric, accuracy, undefended, order=order)]
            if last:
                title = f"Mean lift of {metric} over these attacks against {undefended.name}'s, paired tests"
                judged.append(compare.comparison_table(title, entries, metric, undefended, order=order, overall=True))
                title = f"Lift of {metric} against {undefended.name}'s, paired tests"
                judged.append(compare.comparison_table(title, entries, metric, undefended, order=order))
                judged.append(budget.area_table(entries, metric, undefended, order=order))
                judged.append(cutoffs.cutoff_table(entries, metric, order=order))
                judged.append(stealth.attack_table(entries, metric, undefended.default, order=order))
            section.tables.extend(one for one in judged if one.rows)
    if accuracy and target_set is not None:  # accuracy on clean data has nothing of the target set
        section.tables.append(tables.accuracy_table("Accuracy, clean and attacked", entries, accuracy, order=order))
        gained = compare.gain_table("Accuracy on clean data, paired tests", entries, accuracy, gains)
        section.tables.extend([gained] if gained.rows else [])
    return section


def _strength(entries: Sequence[Entry], metric: str, undefended: str, order: Order) -> list[str]:
    """Remarks on the attacks too weak or too strong to judge a defense by."""
    remarks = []
    for attack, gate, n in compare.gates(entries, metric, undefended, order):
        p = "p < 0.001" if gate.p < 0.001 else f"p = {gate.p:.3f}"
        verdict = "" if gate.works else "saturated, judges no defense" if gate.saturated else "judges no defense"
        if not gate.significant and compare.attainable(n) / 2 >= compare.ALPHA:
            verdict += ("; " if gate.saturated else ": ") + "so few pairs cannot, whatever the attack does"
        text = f"{attack}: lift {100 * gate.lift:+.1f} points, {p}, n = {n}"
        remarks.append(f"{text} ({verdict})" if verdict else text)
    if not remarks:
        return []
    return [f"Strength of the attacks on {undefended} (one-sided sign-flip test): " + "; ".join(remarks) + "."]


def _commands(entries: Sequence[Entry]) -> list[tuple[tuple[int, ...], list[str]]]:
    """The commands, each once with the seed left open, by the seeds they were run with."""
    seeds: dict[str, set[int]] = {}
    for entry in entries:
        if entry.command:
            command = re.sub(r"--seed[= ]\S+", "--seed=$seed", " ".join(entry.command.split()))
            seeds.setdefault(command, set()).add(entry.seed)
    groups: dict[tuple[int, ...], list[str]] = {}
    for command, its in seeds.items():
        groups.setdefault(tuple(sorted(its)), []).append(command)
    return sorted(groups.items())


def _environment(results: Iterable[Mapping[str, Any]]) -> str:
    """Versions, device, threads and dates, each value that occurs; and how long the cells took."""
    found: dict[str, set[str]] = {}
    seconds = []
    for result in results:
        took = (result.get("seconds") or {}).get("total")
        seconds += [] if took is None else [float(took)]
        pairs = [
            *(result.get("versions") or {}).items(),
            *((key, result.get(key)) for key in ("code", "device", "threads")),
        ]
        for name, value in [*pairs, ("date", str(result.get("date") or "")[:10])]:
            if value not in (None, ""):
                found.setdefault(str(name), set()).add(str(value))
    told = [f"{name} {', '.join(sorted(values))}" for name, values in found.items()]
    if seconds:
        whole, middle = math.fsum(seconds) / 3600, statistics.median(seconds)
        told.append(f"computing: {whole:.1f} hours for the {len(seconds)} cells together, {middle:.1f} s in the middle")
    return "; ".join(told)


def _where(result: Mapping[str, Any]) -> str:
    cell = result.get("cell") or result
    parts = [cell.get("dataset"), cell.get("target_set"), cell.get("attack") or "clean", cell.get("method")]
    return ", ".join(str(part) for part in parts if part) + f", seed {cell.get('seed')}"


def _literal(label: str) -> str:
    """A label as a pattern of ``--only`` that matches nothing else."""
    return re.sub(r"([*?[])", r"[\1]", label)
