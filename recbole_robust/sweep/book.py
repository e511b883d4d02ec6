"""The trials of a sweep: trials.json, and the best configuration of each condition as a file that ``run`` takes."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from recbole_robust.report import write_text
from recbole_robust.sweep.file import WORST, Sweep, Values, key_of, nested
from recbole_robust.sweep.page import TRIALS_FILE, judged_as_whole, shown, write_page
from recbole_robust.types import UserError

SCHEMA_VERSION = 2
SEARCHERS = ("ray", "optuna")  # what is tried, and when it is stopped, may depend on them


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


def earlier_trials(
    sweep: Sweep, folder: Path, resume: bool, force: bool, epochs: int, data: Callable[[], str]
) -> list[dict[str, Any]]:
    """The trials of an earlier run that are to be kept, of the same sweep by the same sources on the same data."""
    from recbole_robust.results import CODE  # here, so that a sweep can be read without torch

    path = folder / TRIALS_FILE
    if force or not path.is_file():
        return []
    if not resume:
        raise UserError(f"sweep: expected --resume or --force, since {path} is there")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = [trial for trial in content["trials"] if trial["status"] != "failed"]
        told, told_epochs, told_data = (content[key] for key in ("sweep", "epochs", "data"))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"sweep: expected the trials of a sweep in {path}; --force starts anew") from None
    for what, then, now in (
        ("sweep", told, json.loads(json.dumps(dataclasses.asdict(sweep)))),
        ("number of epochs", told_epochs, epochs),
        ("data", told_data, data()),
        ("code of this package", content.get("code"), CODE),
    ):
        if kept and then != now:
            raise UserError(f"sweep: expected the {what} that {path} was made by, got another; --force starts anew")
    return kept


class TrialBook:
    """All trials of a sweep, in memory and in ``trials.json``.

    A trial has: ``condition``, ``values``, ``status`` (``finished``; ``stopped`` by the scheduler; ``failed``, with
    ``error``), ``epochs`` it trained, ``scores`` of each, the ``epoch`` it is judged at, ``score`` and ``metrics``
    there, ``seconds``.
    """

    def __init__(
        self, sweep: Sweep, epochs: int, data: Callable[[], str], folder: Path, earlier: list[dict[str, Any]]
    ) -> None:
        self.sweep, self.epochs, self.data, self.folder = sweep, epochs, data, folder
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
        metrics = history[judged] if history else {}
        trial = {
            "condition": condition,
            "values": values,
            "status": status,
            "epochs": last + 1,
            "epoch": judged + 1,
            "score": history[judged]["score"] if history else WORST,
            "metrics": {name: _number(value) for name, value in metrics.items() if name != "score"},
            "scores": [history[epoch]["score"] for epoch in sorted(history)],
            "seconds": round(seconds, 1),
            **({"error": error} if error is not None else {}),
        }
        self._trials[self._key(condition, values)] = trial
        self._n_run += 1
        self._write()
        return trial

    def best(self, condition: Values) -> dict[str, Any] | None:
        """The trial of the highest score; the first of several."""
        whole = judged_as_whole(self.earlier(condition), self.sweep.objective)
        return max(whole, key=lambda trial: trial["score"], default=None)

    def _write(self) -> None:
        from recbole_robust.results import CODE  # as above

        told = {
            "schema_version": SCHEMA_VERSION,
            "sweep": dataclasses.asdict(self.sweep),
            "epochs": self.epochs,
            "data": self.data(),
            "code": CODE,
            "versions": _versions(),
        }
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
        report = write_page(self.folder)
        n_failed = sum(trial["status"] == "failed" for trial in self._trials.values())
        return SweepRun(self.folder / TRIALS_FILE, report, files, self._n_run, self._n_earlier, n_failed)


@functools.cache
def _versions() -> dict[str, str]:
    from recbole_robust.results import versions  # as above

    return {**versions(), **{name: metadata.version(name) for name in SEARCHERS if find_spec(name)}}


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
    keys["eval_step"] = 0  # no validation chooses another epoch
    bounds = " The bounds hold." if sweep.objective.excess(best["metrics"]) <= 0 else " NO TRIAL KEEPS THE BOUNDS."
    told = ", ".join(f"{name} {shown(best['metrics'][name])}" for name in sweep.objective.metrics)
    head = f"# Sweep {sweep.name}: {told} (validation rows, the sweep's targets)."
    bounded = sweep.objective.at_most or sweep.objective.at_least
    return f"{head}{bounds if bounded else ''}\n" + yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)
