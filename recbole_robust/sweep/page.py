"""The page of a sweep, from its trials.json: all trials as tables, and pictures of what each key does."""

from __future__ import annotations

import bisect
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from recbole_robust.report import write_text
from recbole_robust.report.svg import Curve, Dot, Panel, Series, axis_of, chart, dot_rows
from recbole_robust.sweep.file import WORST, Objective, file_of
from recbole_robust.types import UserError

Trial = dict[str, Any]

TRIALS_FILE = "trials.json"
BESIDE = ("tailhit", "itemcoverage")  # who recommends to all what is popular is accurate, and no defense
N_BINS = 4  # of a range of tried values
BEST = Series("the best trial", "blue", "circle")
FINISHED, STOPPED = Series("other trials", "orange", "small"), Series("stopped early", "grey", "small")


def write_page(folder: str | Path, out: str | Path | None = None) -> Path:
    """Render the trials of a sweep: a Markdown page, ``report.md`` in the folder if not said, and SVG beside it.

    Raises:
        UserError: no trials there, or something else under their name.
    """
    path = Path(folder) / TRIALS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        page = Path(out) if out is not None else Path(folder) / "report.md"
        text, pictures = rendered(content, page.stem)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected the trials of a sweep, got {type(error).__name__}: {error}") from None
    for name, picture in pictures.items():
        write_text(page.with_name(name), picture)
    write_text(page, text)
    return page


def rendered(content: Mapping[str, Any], stem: str = "report") -> tuple[str, dict[str, str]]:
    """The page, and its pictures by file name, of the content of a trials.json."""
    sweep, goal = content["sweep"], Objective(**content["sweep"]["objective"])
    lines, pictures = [f"# Sweep {sweep['name']}: {sweep['model']} on {sweep['dataset']}", "", _chosen_by(goal)], {}
    for i, condition in enumerate(sweep["conditions"]):
        trials = [trial for trial in content["trials"] if trial["condition"] == condition]
        if condition:
            lines += ["", f"## {', '.join(f'{key} {value}' for key, value in condition.items())}"]
        lines += ["", _counts(trials, content["epochs"])]
        for kind, (picture, text) in _pictures(trials, sweep["space"], goal, content["epochs"]).items():
            name = f"{stem}-{kind}.svg" if i == 0 else f"{stem}-{i + 1}-{kind}.svg"
            pictures[name] = picture
            lines += ["", f"![{text}]({name})"]
        lines += ["", _table(trials, list(sweep["space"]), goal)]
        errors = dict.fromkeys(trial["error"] for trial in trials if "error" in trial)
        lines += ["", *(f"- {error}" for error in errors)] if errors else []
    lines += ["", *_made_by(content)]
    return "\n".join(lines) + "\n", pictures


def _made_by(content: Mapping[str, Any]) -> list[str]:
    """The file of the sweep, the command that runs it, and what it ran on."""
    versions = ", ".join(f"{package} {version}" for package, version in content.get("versions", {}).items())
    code = f", code {content['code']}" if "code" in content else ""
    text = yaml.safe_dump(file_of(content["sweep"]), sort_keys=False, allow_unicode=True, default_flow_style=None)
    name = content["sweep"]["name"]
    return ["## The sweep", "", f"`recbole-robust sweep {name}.yaml`, with this as `{name}.yaml`:", "", "```yaml",
            *text.splitlines(), "```", "", *([f"Made with {versions}{code}."] if versions else [])]  # fmt: skip


def shown(value: Any) -> str:
    """A value for a reader: four digits of a float, a dash for None."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def judged_as_whole(trials: Sequence[Trial], goal: Objective) -> list[Trial]:
    """The trials that have a score and may be the best.

    One that was stopped is no trial of the sweep's number of epochs, and counts only where this is chosen, too.
    """
    statuses = ("finished", "stopped") if goal.epoch == "best" else ("finished",)
    return [trial for trial in trials if trial["status"] in statuses and trial["score"] > WORST]


def told_metrics(trials: Sequence[Trial], goal: Objective) -> list[str]:
    """The objective's metrics, and on the same side and at the same K those that tell what accuracy does not."""
    names = goal.metrics
    accuracy = next((name for name in names if name.startswith(("clean.", "attacked."))), "")
    side, k = accuracy.partition(".")[0], accuracy.partition("@")[2]
    more = [f"{side}.{name}@{k}" for name in BESIDE]
    return [*names, *(name for name in more if name not in names and any(name in one["metrics"] for one in trials))]


def _counts(trials: Sequence[Trial], epochs: int) -> str:
    by_status = [(status, sum(trial["status"] == status for trial in trials))
                 for status in ("finished", "stopped", "failed")]  # fmt: skip
    told = ", ".join(f"{n} {status}" for status, n in by_status if n)
    trained = sum(trial["epochs"] for trial in trials)
    return f"{len(trials)} trials of {epochs} epochs: {told}; {trained} of {len(trials) * epochs} epochs trained."


def _table(trials: Sequence[Trial], keys: Sequence[str], goal: Objective) -> str:
    """All trials, the best first."""
    names, last = told_metrics(trials, goal), goal.epoch != "best"
    ranked = sorted(trials, key=lambda one: (last and one["status"] != "finished", -one["score"]))
    rows = [
        [*(shown(trial["values"][key]) for key in keys), trial["status"], trial["epochs"],
         *([] if last else [trial["epoch"]]), shown(trial["score"] if trial["score"] > WORST else None),
         *(shown(trial["metrics"].get(name)) for name in names), f"{trial['seconds']:.0f}"]
        for trial in ranked
    ]  # fmt: skip
    heads = [*keys, "status", "epochs", *([] if last else ["best epoch"]), "score", *names, "seconds"]
    return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)


def _chosen_by(goal: Objective) -> str:
    what = " plus ".join(f"{weight:g} times `{name}`" for name, weight in goal.weights.items())
    bounds = [f"`{name}` at most {value:g}" for name, value in goal.at_most.items()]
    bounds += [f"`{name}` at least {value:g}" for name, value in goal.at_least.items()]
    below = " with " + " and ".join(bounds) if bounds else ""
    told = (
        f"Chosen by {what or f'the highest `{goal.maximise}`'}{below}, at the {goal.epoch} epoch, on validation rows "
    )
    told += "and on the targets of the sweep alone."
    return f"{told} A score below 0 says by how much the bounds are broken." if bounds and goal.maximise else told


# --- pictures ---------------------------------------------------------------------------------------------------------


def _pictures(
    trials: Sequence[Trial], space: Mapping[str, Any], goal: Objective, epochs: int
) -> dict[str, tuple[str, str]]:
    """A name to the SVG and to what it shows."""
    whole = judged_as_whole(trials, goal)
    if not whole:
        return {}
    best = max(whole, key=lambda trial: trial["score"])
    found = {"keys": (_by_key(whole, best, space, goal), "What each value leads to, trial by trial")}
    accuracy, lift = (next((n for n in goal.metrics if n.startswith(side)), None)
                      for side in (("clean.", "attacked."), ("lift.", "worst_lift.")))  # fmt: skip
    if accuracy and lift:
        bounds = {**goal.at_least, **goal.at_most}
        points = [(one, (one["metrics"].get(lift), one["metrics"].get(accuracy))) for one in whole]
        placed = [(one, point) for one, point in points if None not in point]
        if placed:
            x, y = (axis_of(name, [point[i] for _, point in placed], bounds.get(name))
                    for i, name in enumerate((lift, accuracy)))  # fmt: skip
            curves = [Curve(_series(one, best), [point]) for one, point in sorted(placed, key=lambda p: p[0] is best)]
            found["trade"] = (chart("Accuracy and lift of each trial", x, y, curves), "Accuracy beside lift")
    if epochs > 1:
        curves = [Curve(_series(one, best), [(e + 1.0, score) for e, score in enumerate(one["scores"])], joined=True)
                  for one in sorted(trials, key=lambda one: one is best) if one["scores"]]  # fmt: skip
        ends = [score for curve in curves for _, score in curve.points if abs(score) < 1e3]
        if ends:
            ages = axis_of("epoch", [1.0, float(epochs)])
            picture = chart("Score of each trial by epoch", ages, axis_of("score", ends), curves)
            found["epochs"] = (picture, "Score by epoch; where a line ends early its trial was stopped")
    return found


def _series(trial: Trial, best: Trial) -> Series:
    return BEST if trial is best else FINISHED if trial["status"] == "finished" else STOPPED


def _by_key(trials: Sequence[Trial], best: Trial, space: Mapping[str, Any], goal: Objective) -> str:
    """One row a value (or bin of values) of each key, one panel a metric: a dot a trial."""
    rows: dict[str, list[Trial]] = {}
    for key, (kind, entries) in space.items():
        for label, some in _by_value(key, kind, entries, trials).items():
            rows[f"{key.rpartition('.')[2]} {label}"] = some
    panels = []
    for name in told_metrics(trials, goal)[:3]:
        dots = {row: [Dot(_series(one, best), one["metrics"][name]) for one in sorted(some, key=lambda t: t is best)
                      if one["metrics"].get(name) is not None] for row, some in rows.items()}  # fmt: skip
        values = [dot.value for some in dots.values() for dot in some]
        if values:
            line = {**goal.at_least, **goal.at_most}.get(name)
            axis = axis_of(name, values, line)
            panels.append(Panel(name, axis.low, axis.high, axis.ticks[:: max(1, len(axis.ticks) // 3)], dots, line))
    return dot_rows("What each value of each key leads to", list(rows), panels)


def _by_value(key: str, kind: str, entries: Sequence[Any], trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """The trials by the value of a key, or by the bin of its range that has the value; empty bins are left out."""
    if kind in ("grid", "choice"):
        return {shown(entry): [one for one in trials if one["values"][key] == entry] for entry in entries}
    low, high = entries
    if kind.startswith("log"):
        ends = [math.exp(math.log(low) + math.log(high / low) * i / N_BINS) for i in range(N_BINS + 1)]
    else:
        ends = [low + (high - low) * i / N_BINS for i in range(N_BINS + 1)]
    bins: list[list[Trial]] = [[] for _ in range(N_BINS)]
    for one in trials:
        bins[bisect.bisect(ends[1:-1], one["values"][key])].append(one)
    names = (f"{start:.2g} to {end:.2g}" for start, end in itertools.pairwise(ends))
    return {name: some for name, some in zip(names, bins, strict=True) if some}
