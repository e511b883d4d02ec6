"""The sweep file: what is tried, how it is searched, and by what the best is chosen.

::

    name: AT
    model: MF
    dataset: ml-100k
    config: {protocol: apt, defense: AT}            # keys of every trial
    attacks: [Average, {attack: DADA}]              # left out: clean trainings only
    target_sets: [{target_seed: 200, n_targets: 10}]    # the targets of the selection, not those of the results
    seed: 100
    conditions: {noise_ratio: [0.0, 0.2]}           # each has a search, and a best, of its own
    space: {defense_args.eps: {loguniform: [0.01, 1.0]}, defense_args.start_epoch: {choice: [0, 5]}}
    search: {method: tpe, trials: 30, seed: 0}      # or grid, or random
    scheduler: {method: asha, grace: 5, reduction: 3}   # or none
    objective: {maximise: clean.ndcg@50, at_most: {worst_lift.targethr@50: 0.05}}   # or weights: {metric: weight}
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recbole_robust.grid import folder_name, given_or_shipped
from recbole_robust.types import UserError
from recbole_robust.yaml_text import read_yaml

Values = dict[str, Any]

LARGEST = 1.0e15  # of what is tried, so that every draw is exact
WORST = -1.0e9  # the score of a trial that failed, or whose metric is no number
BROKEN = -1.0e6  # a weighted sum lies above, its trial having kept the bounds
FIELDS = (
    "name", "model", "dataset", "config", "attacks", "target_sets", "seed", "conditions", "space", "search",
    "scheduler", "objective",
)  # fmt: skip
OWNED = ("model", "dataset", "attack", "poison", "seed", "output_dir", "tune")  # fields, or none of a trial's business
LISTS, RANGES = ("grid", "choice"), ("uniform", "loguniform", "int", "logint")
METHODS, SCHEDULERS = ("grid", "random", "tpe"), ("none", "asha")
SIDES = ("clean", "attacked", "lift", "worst_lift")
FRACTIONS = ("hit", "recall", "ndcg", "tailhit", "itemcoverage")  # what `maximise` takes: never below 0
EXPOSURE = ("targethr", "targethr_all", "targethr_eligible", "targetndcg", "targetscore")  # the larger, the worse
METRICS = (*FRACTIONS, "targethr", "targethr_all", "targethr_eligible", "targetndcg", "targetrank", "targetscore")


@dataclass(frozen=True)
class Objective:
    """One number to maximise, from the metrics on validation rows and on the validation targets.

    A metric is ``clean.<name>`` (mean over the target sets), ``attacked.<name>``, ``lift.<name>`` (attacked minus
    clean; means over the target sets and attacks) or ``worst_lift.<name>`` (the largest of them).

    Attributes:
        maximise: the accuracy that counts where every bound holds; None: ``weights`` count.
        at_most: upper bounds by metric.
        at_least: lower bounds by metric.
        weights: of a weighted sum, by metric. A lift of the targets below 0 counts as 0 there: pushing them down earns
            nothing.
        epoch: ``last``, a trial is what it is at its last epoch; ``best``, at the epoch of its highest score, and the
            number of epochs is chosen with it.
    """

    maximise: str | None = None
    at_most: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    epoch: str = "last"

    @property
    def metrics(self) -> list[str]:
        """All metrics that it reads, once each."""
        first = [self.maximise] if self.maximise else []
        return list(dict.fromkeys([*first, *self.weights, *self.at_most, *self.at_least]))

    def excess(self, metrics: Mapping[str, float]) -> float:
        """By how much the bounds are broken, summed; 0 where they hold."""
        over = [metrics[name] - bound for name, bound in self.at_most.items()]
        under = [bound - metrics[name] for name, bound in self.at_least.items()]
        return math.fsum(max(0.0, value) for value in (*over, *under))

    def score(self, metrics: Mapping[str, float]) -> float:
        """What counts where the bounds hold; else less than any such score, by how much they are broken.

        That is below 0 with ``maximise``, which is at least 0, and below :data:`BROKEN` with ``weights``. A metric that
        is no number, be it a bound's, gives :data:`WORST`.
        """
        if not all(math.isfinite(metrics[name]) for name in self.metrics):
            return WORST
        if (excess := self.excess(metrics)) > 0:
            return -excess if self.maximise else BROKEN - excess
        if self.maximise:
            return metrics[self.maximise]
        return math.fsum(weight * _counted(name, metrics[name]) for name, weight in self.weights.items())


def _counted(name: str, value: float) -> float:
    side, _, metric = name.partition(".")
    return max(value, 0.0) if side in ("lift", "worst_lift") and metric.partition("@")[0] in EXPOSURE else value


@dataclass(frozen=True)
class Sweep:
    """A sweep file that was read and checked; the fields are those of the file."""

    name: str
    model: str
    dataset: str
    space: Mapping[str, tuple[str, list[Any]]]
    objective: Objective
    config: Values = field(default_factory=dict)
    attacks: list[Values] = field(default_factory=list)
    target_sets: list[Values] = field(default_factory=lambda: [{}])
    seed: int = 100
    conditions: list[Values] = field(default_factory=lambda: [{}])
    method: str = "random"
    n_trials: int | None = None
    search_seed: int = 0
    scheduler: str = "none"
    grace: int = 1
    reduction: int = 3

    def points(self) -> list[Values]:
        """The trials of a grid or of a random search, no two alike; each grid value with each draw of the rest."""
        grids = {key: entries for key, (kind, entries) in self.space.items() if kind == "grid"}
        rng = np.random.default_rng(self.search_seed)
        drawn = {key: own for key, own in self.space.items() if key not in grids}
        points = []
        for _ in range(self.n_trials or 1):
            rest = {key: _draw(rng, *own) for key, own in drawn.items()}
            points += [{**dict(zip(grids, combination, strict=True)), **rest}
                       for combination in itertools.product(*grids.values())]  # fmt: skip
        return list({key_of(point): {key: point[key] for key in self.space} for point in points}.values())

    def corners(self) -> list[Values]:
        """Points that together have every listed value and both ends of every range: what a Config can refuse."""
        most = max(len(entries) for _, entries in self.space.values())
        return [{key: own[min(n, len(own) - 1)] for key, (_, own) in self.space.items()} for n in range(most)]

    def keys(self, condition: Values, values: Values) -> Values:
        """The configuration keys of a trial, less those of attack, targets and seed."""
        return nested(self.config, {**condition, **values})


def _draw(rng: np.random.Generator, kind: str, args: list[Any]) -> Any:
    if kind == "choice":
        return args[int(rng.integers(len(args)))]
    low, high = args
    if kind == "int":
        return int(rng.integers(low, high + 1))
    if kind == "uniform":
        return float(rng.uniform(low, high))
    value = float(np.exp(rng.uniform(np.log(low), np.log(high if kind == "loguniform" else high + 1))))
    return value if kind == "loguniform" else min(int(value), high)


def key_of(values: Mapping[str, Any]) -> str:
    """What tells one point from another, on every machine and day."""
    return json.dumps(values, sort_keys=True)


def nested(base: Mapping[str, Any], values: Mapping[str, Any]) -> Values:
    """``base`` with ``a.b: 1`` as ``a: {b: 1}``, beside what ``a`` has there."""
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in values.items():
        *path, last = key.split(".")
        node = merged
        for step in path:
            node[step] = dict(node.get(step) or {})
            node = node[step]
        node[last] = value
    return merged


# --- reading ----------------------------------------------------------------------------------------------------------


def load_sweep(source: str | Path) -> Sweep:
    """Read a sweep file: a path, or the name of one under ``properties/sweep``.

    Raises:
        UserError: there is no such file, or something in it is wrong.
    """
    return read_sweep(read_yaml(given_or_shipped("sweep", source, "sweep", "a sweep file")))


def read_sweep(content: Mapping[str, Any]) -> Sweep:
    """The sweep of a file's content.

    Raises:
        UserError: an unknown or missing field, or a value that it cannot have.
    """
    _known("sweep", content, FIELDS)
    try:
        json.dumps(content, sort_keys=True)  # what trials.json tells
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"sweep: expected text, numbers, lists and mappings with text as keys, got others ({error})"
        ) from None
    name = folder_name(content.get("name"))
    for key in ("model", "dataset"):
        if not isinstance(content.get(key), str):
            raise UserError(f"{key}: expected a name, got {content.get(key)!r}")
    config = _mapping(content, "config")
    space = {key: _domain(key, entry) for key, entry in _mapping(content, "space").items()}
    conditions = _conditions(_mapping(content, "conditions"))
    if not space:
        raise UserError("space: expected at least one key with what to try, got none")
    for where, keys in (("config", config), ("space", space), ("conditions", conditions[0])):
        for key in keys:
            if key.split(".")[0] in OWNED:
                raise UserError(f"{where}: expected keys other than {', '.join(OWNED)}, got {key!r}")
    if both := set(space) & set(conditions[0]):
        raise UserError(f"conditions: expected keys that are not in space, got {min(both)!r}")
    attacks = [{"attack": entry} if isinstance(entry, str) else entry for entry in _list_of_keys(content, "attacks")]
    target_sets = [
        {"target_items": entry} if isinstance(entry, str) else entry for entry in _list_of_keys(content, "target_sets")
    ]
    search, scheduler = _mapping(content, "search"), _mapping(content, "scheduler")
    _known("search", search, ("method", "trials", "seed"))
    _known("scheduler", scheduler, ("method", "grace", "reduction"))
    method = _one_of("search.method", search.get("method", "random"), METHODS)
    sweep = Sweep(
        name=name,
        model=content["model"],
        dataset=content["dataset"],
        space=space,
        objective=_objective(_mapping(content, "objective"), bool(attacks)),
        config=config,
        attacks=attacks,
        target_sets=target_sets or [{}],
        seed=_whole("seed", content.get("seed", 100), 0),
        conditions=conditions,
        method=method,
        n_trials=None if method == "grid" else _whole("search.trials", search.get("trials"), 1),
        search_seed=_whole("search.seed", search.get("seed", 0), 0),
        scheduler=_one_of("scheduler.method", scheduler.get("method", "none"), SCHEDULERS),
        grace=_whole("scheduler.grace", scheduler.get("grace", 1), 1),
        reduction=_whole("scheduler.reduction", scheduler.get("reduction", 3), 2),
    )
    _check_method(sweep, search)
    return sweep


def file_of(told: Mapping[str, Any]) -> Values:
    """The content of a file that :func:`read_sweep` reads as this sweep, which is given as its fields.

    Left out is what a file may leave out.
    """
    search = {"method": told["method"], "trials": told["n_trials"], "seed": told["search_seed"]}
    scheduler = {"method": told["scheduler"], "grace": told["grace"], "reduction": told["reduction"]}
    axes: dict[str, Values] = {}  # the values of each key of the conditions, once each
    for condition in told["conditions"]:
        for key, value in condition.items():
            axes.setdefault(key, {})[key_of({key: value})] = value
    parts = {
        **{key: told[key] for key in ("name", "model", "dataset", "config", "attacks")},
        "target_sets": [keys for keys in told["target_sets"] if keys],
        "seed": told["seed"],
        "conditions": {key: list(values.values()) for key, values in axes.items()},
        "space": {key: {kind: list(entries)} for key, (kind, entries) in told["space"].items()},
        "search": {key: value for key, value in search.items() if value is not None},
        "scheduler": scheduler if told["scheduler"] != "none" else {},
        "objective": {key: value for key, value in told["objective"].items() if value not in (None, {})},
    }
    return {key: value for key, value in parts.items() if value not in ([], {})}


def _check_method(sweep: Sweep, search: Mapping[str, Any]) -> None:
    kinds = {key: kind for key, (kind, _) in sweep.space.items()}
    if sweep.method == "grid" and (other := [key for key, kind in kinds.items() if kind != "grid"]):
        raise UserError(f"space.{other[0]}: expected grid under search.method grid, got {kinds[other[0]]}")
    if sweep.method == "grid" and "trials" in search:
        raise UserError(f"search.trials: expected none under search.method grid, got {search['trials']!r}")
    if sweep.method == "tpe" and (other := [key for key, kind in kinds.items() if kind == "grid"]):
        raise UserError(f"space.{other[0]}: expected choice instead of grid under search.method tpe")


def _domain(key: str, entry: Any) -> tuple[str, list[Any]]:
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise UserError(f"space.{key}: expected one of {', '.join((*LISTS, *RANGES))} with its values, got {entry!r}")
    ((kind, args),) = entry.items()
    _one_of(f"space.{key}", kind, (*LISTS, *RANGES))
    if kind in LISTS:
        plain = isinstance(args, list) and args and all(isinstance(v, str | int | float | None) for v in args)
        if not plain or len({json.dumps(value) for value in args}) < len(args):
            raise UserError(f"space.{key}: expected a list of different values, got {args!r}")
        return kind, args
    numbers = isinstance(args, list) and len(args) == 2 and all(_is_number(value) for value in args)
    if not numbers or args[0] >= args[1] or max(map(abs, args)) > LARGEST or (kind.startswith("log") and args[0] <= 0):
        above = " above 0" if kind.startswith("log") else ""
        raise UserError(f"space.{key}: expected {kind}: [lowest, highest]{above}, got {args!r}")
    if kind in ("int", "logint"):
        return kind, [_whole(f"space.{key}", value, -(10**12)) for value in args]
    return kind, [float(value) for value in args]


def _conditions(axes: Values) -> list[Values]:
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"conditions.{key}: expected a list of at least one value, got {values!r}")
    return [dict(zip(axes, combination, strict=True)) for combination in itertools.product(*axes.values())]


def _objective(content: Values, attacked: bool) -> Objective:
    _known("objective", content, ("maximise", "at_most", "at_least", "weights", "epoch"))
    if ("maximise" in content) == ("weights" in content):
        raise UserError("objective: expected either maximise or weights, got " + ("both" if content else "neither"))
    bounds = {key: _mapping(content, key) for key in ("at_most", "at_least", "weights")}
    if "weights" in content and not bounds["weights"]:
        raise UserError("objective.weights: expected a weight of at least one metric, got none")
    for key, entries in bounds.items():
        for name, value in entries.items():
            if not _is_number(value):
                raise UserError(f"objective.{key}.{name}: expected a number, got {value!r}")
    if not isinstance(content.get("maximise", ""), str):
        raise UserError(f"objective.maximise: expected the name of a metric, got {content['maximise']!r}")
    objective = Objective(
        content.get("maximise"),
        epoch=_one_of("objective.epoch", content.get("epoch", "last"), ("last", "best")),
        **bounds,
    )
    for name in objective.metrics:
        side, _, metric = str(name).partition(".")
        base, _, k = metric.partition("@")
        sides = SIDES if attacked else SIDES[:1]
        if (
            side not in sides
            or base not in METRICS
            or (base not in ("targetrank", "targetscore")) != (k.isascii() and k.isdigit())
        ):
            metrics = ", ".join(f"{one}@K" for one in METRICS[:-2])
            raise UserError(f"objective: expected {' | '.join(sides)} . {metrics}, targetrank or targetscore, "
                            f"got {name!r}{'' if attacked else ' (there are no attacks)'}")  # fmt: skip
        if side == "worst_lift" and base not in EXPOSURE:
            raise UserError(f"objective: expected worst_lift of one of {', '.join(EXPOSURE)}, got {name!r}")
    side, _, metric = (objective.maximise or "").partition(".")
    if objective.maximise and (metric.partition("@")[0] not in FRACTIONS or side not in SIDES[:2]):
        raise UserError(f"objective.maximise: expected one of {', '.join(FRACTIONS)}, clean or attacked, "
                        f"got {objective.maximise!r}")  # fmt: skip
    return objective


def _list_of_keys(content: Mapping[str, Any], name: str) -> list[Any]:
    entries = content.get(name)
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, str | Mapping) and entry for entry in entries):
        raise UserError(f"{name}: expected a list of names or mappings of configuration keys, got {entries!r}")
    return entries


def _known(where: str, content: Mapping[str, Any], fields: tuple[str, ...]) -> None:
    for key in content:
        if key not in fields:
            raise UserError(f"{where}: expected the fields {', '.join(fields)}, got {key!r}")


def _mapping(content: Mapping[str, Any], name: str) -> Values:
    value = content.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{name}: expected a mapping, got {value!r}")
    return {str(key): entry for key, entry in (value or {}).items()}


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UserError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return str(value)


def _whole(name: str, value: Any, low: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise UserError(f"{name}: expected a whole number{f' >= {low}' if low >= 0 else ''}, got {value!r}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
