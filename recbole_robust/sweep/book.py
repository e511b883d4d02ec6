"""The trials of a sweep: trials.json, the table, and the best configuration as a file that ``run`` takes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recbole_robust.report import write_text
from recbole_robust.sweep.file import WORST, Sweep, Values, key_of, nested
from recbole_robust.types import UserError

SCHEMA_VERSION = 1
TRIALS_FILE = "trials.json"


@dataclass(frozen=True)
class SweepRun:
    """What :func:`run_sweep` did.

    Attributes:
        trials: the file of all trials.
        report: the same as a Markdown table.
        best: for each condition the file of its best configuration; none where every trial has failed.
    """

    trials: Path
    report: Path
    best: list[Path]
    n_run: int
    n_replayed: int
    n_failed: int

    def __str__(self) -> str:
        best = [f"best: {path}" for path in self.best] or ["best: none, no trial came to its last epoch"]
        return "\n".join([f"trials: {self.report}", *best])


def earlier_trials(sweep: Sweep, folder: Path, resume: bool, force: bool) -> list[dict[str, Any]]:
    """The trials of an earlier run that are to be kept."""
    path = folder / TRIALS_FILE
    if force or not path.is_file():
        return []
    if not resume:
        raise UserError(f"sweep: expected --resume or --force, since {path} is there")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        told, trials = content["sweep"], content["trials"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"sweep: expected the trials of a sweep in {path}; --force starts anew") from None
    if told != json.loads(json.dumps(dataclasses.asdict(sweep))):
        raise UserError(f"sweep: expected the sweep that {path} was made by, got another; --force starts anew")
    return [trial for trial in trials if trial["status"] != "failed"]


class TrialBook:
    """All trials of a sweep, in memory and in ``trials.json``.

    A trial has: ``condition``, ``values``, ``status`` (``finished``; ``stopped`` by the scheduler; ``failed``, with
    ``error``), ``epochs`` it trained, ``scores`` of each, ``score`` and ``metrics`` it is judged by, ``seconds``.
    """

    def __init__(self, sweep: Sweep, epochs: int, folder: Path, earlier: list[dict[str, Any]]) -> None:
        self.sweep, self.epochs, self.folder = sweep, epochs, folder
        self._trials = {self._key(trial["condition"], trial["values"]): trial for trial in earlier}
        self._n_earlier, self._n_run = len(earlier), 0
        per_condition = len(sweep.points()) if sweep.method != "tpe" else sweep.n_trials or 0
        self.n_expected = per_condition * len(sweep.conditions)

    def _key(self, condition: Values, values: Values) -> str:
        return key_of({"condition": condition, "values": values})

    def earlier(self, condition: Values) -> list[dict[str, Any]]:
        """The trials of a condition that have ended, in order."""
        return [trial for trial in self._trials.values() if trial["condition"] == condition]

    def add(
        self,
        condition: Values,
        values: Values,
        history: Mapping[int, dict[str, Any]],
        error: str | None,
        seconds: float,
    ) -> dict[str, Any]:
        """Enter a trial by what it has reported, epoch (from 0) to score and metrics, and write the file."""
        last = max(history, default=-1)
        judged = last
        if self.sweep.objective.epoch == "best":
            judged = max(history, key=lambda epoch: (history[epoch]["score"], -epoch), default=-1)
        status = "failed" if error is not None or last < 0 else "finished" if last + 1 == self.epochs else "stopped"
        wanted = self.sweep.objective.metrics
        trial = {
            "condition": condition,
            "values": values,
            "status": status,
            "epochs": last + 1,
            "epoch": judged + 1,
            "score": history[judged]["score"] if history else WORST,
            "metrics": {name: _number(history[judged].get(name)) for name in wanted} if history else {},
            "scores": [history[epoch]["score"] for epoch in sorted(history)],
            "seconds": round(seconds, 1),
            **({"error": error} if error is not None else {}),
        }
        self._trials[self._key(condition, values)] = trial
        self._n_run += 1
        self._write()
        return trial

    def best(self, condition: Values) -> dict[str, Any] | None:
        """The trial of the highest score among those that ended at their last epoch; the first of several."""
        finished = [trial for trial in self.earlier(condition) if trial["status"] == "finished"]
        return max(finished, key=lambda trial: trial["score"], default=None)

    def _write(self) -> None:
        told = {"schema_version": SCHEMA_VERSION, "sweep": dataclasses.asdict(self.sweep), "epochs": self.epochs}
        write_text(
            self.folder / TRIALS_FILE, json.dumps({**told, "trials": list(self._trials.values())}, indent=1) + "\n"
        )

    def close(self) -> SweepRun:
        """Write the table and the best configuration of each condition."""
        self._write()
        files = []
        for condition in self.sweep.conditions:
            if (best := self.best(condition)) is not None:
                path = self.folder / _best_name(condition, self.sweep.conditions)
                write_text(path, _best_file(self.sweep, best))
                files.append(path)
        report = self.folder / "report.md"
        write_text(report, _table(self.sweep, self))
        n_failed = sum(trial["status"] == "failed" for trial in self._trials.values())
        return SweepRun(self.folder / TRIALS_FILE, report, files, self._n_run, self._n_earlier, n_failed)


def _number(value: Any) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _best_name(condition: Values, conditions: list[Values]) -> str:
    if condition == conditions[0]:
        return "best.yaml"
    return f"best-{','.join(f'{key}={value}' for key, value in condition.items())}.yaml".replace("/", "_")


def _best_file(sweep: Sweep, best: Mapping[str, Any]) -> str:
    """The best configuration as ``run`` takes it: on its own targets and seed, under the first attack of the sweep."""
    keys: Values = {"model": sweep.model, "dataset": sweep.dataset}
    keys = nested(
        keys, {**sweep.keys(best["condition"], best["values"]), **(sweep.attacks[0] if sweep.attacks else {})}
    )
    if sweep.objective.epoch == "best":
        keys["epochs"] = best["epoch"]
    bounds = " The bounds hold." if sweep.objective.excess(best["metrics"]) <= 0 else " NO TRIAL KEEPS THE BOUNDS."
    told = ", ".join(f"{name} {shown(value)}" for name, value in best["metrics"].items())
    head = f"# Sweep {sweep.name}: {told} (validation rows, the sweep's targets)."
    return f"{head}{bounds if sweep.objective.maximise else ''}\n" + yaml.safe_dump(
        keys, sort_keys=False, allow_unicode=True
    )


def _table(sweep: Sweep, book: TrialBook) -> str:
    """All trials as a Markdown page, the best first."""
    from tabulate import tabulate

    names = sweep.objective.metrics
    lines = [f"# Sweep {sweep.name}: {sweep.model} on {sweep.dataset}", "", _chosen_by(sweep)]
    for condition in sweep.conditions:
        trials = sorted(book.earlier(condition), key=lambda one: (one["status"] != "finished", -one["score"]))
        if condition:
            lines += ["", f"## {', '.join(f'{key} {value}' for key, value in condition.items())}"]
        rows = [
            [*(shown(trial["values"][key]) for key in sweep.space), trial["status"], trial["epochs"],
             shown(trial["score"] if trial["score"] > WORST else None),
             *(shown(trial["metrics"].get(name)) for name in names), f"{trial['seconds']:.0f}"]
            for trial in trials
        ]  # fmt: skip
        heads = [*sweep.space, "status", "epochs", "score", *names, "seconds"]
        lines += ["", tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)]
        errors = dict.fromkeys(trial["error"] for trial in trials if "error" in trial)
        lines += ["", *(f"- {error}" for error in errors)] if errors else []
    return "\n".join(lines) + "\n"


def _chosen_by(sweep: Sweep) -> str:
    goal = sweep.objective
    what = " plus ".join(f"{weight:g} times `{name}`" for name, weight in goal.weights.items())
    bounds = [f"`{name}` at most {value:g}" for name, value in goal.at_most.items()]
    bounds += [f"`{name}` at least {value:g}" for name, value in goal.at_least.items()]
    below = " with " + " and ".join(bounds) if bounds else ""
    told = (
        f"Chosen by {what or f'the highest `{goal.maximise}`'}{below}, at the {goal.epoch} epoch, on validation rows "
    )
    told += "and on the targets of the sweep alone."
    return told + " A score below 0 says by how much the bounds are broken." if bounds else told


def shown(value: Any) -> str:
    """A value for a reader: four digits of a float, a dash for None."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
