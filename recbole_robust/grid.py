"""The grid file and what it expands to: data sets x attacks x methods x target sets x seeds.

The axes are lists of names or of mappings of configuration keys with an optional ``label``::

    name: apt_ml100k
    datasets: [ml-100k]
    attacks: [Random, {attack: Average, n_fillers: 105, label: "Average, 105 fillers"}]   # null: clean cells only
                                       # or a poison card to replay: {poison: cards/mine, label: mine}
    methods: [{model: MF}, {label: "MF, decay 3e-5", model: MF, weight_decay: 3.0e-5}]
    target_sets: [apt_0, {label: random, target_choice: random, n_targets: 10}]   # left out: the protocol's targets
    seeds: {start: 0, count: 10}                                                  # or a list
    config: {protocol: apt}                                                       # keys of every cell
    report: {title: "MF under attack", metrics: [targethr@50, hit@50], published: purifyaug_table1}

``report.gains`` asks for paired tests of accuracy: ``[{method: ATJT, over: SASRec, bound: oracle}]``, by labels of
methods; ``bound`` (it may be left out) is one whose gain is the most that there is to be had. ``report.undefended`` is
the method that defenses are judged against (MF); ``report.undefended_of`` gives single methods another one, or, with
null, says that they are victims themselves: ``{RGCF: LightGCN, ItemKNN: ~}``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_robust.arguments import LARGEST_SEED
from recbole_robust.properties_path import properties_dir
from recbole_robust.report import REPORT_OPTIONS, load_published
from recbole_robust.types import UserError
from recbole_robust.yaml_text import YamlLoader, from_yaml

AXES = ("dataset", "attack", "method", "target_set", "seed")
# A grid compares methods by its own rows, and keeps numbers, not weights.
RUN_DEFAULTS = {"baseline": "none", "show_progress": False, "save_checkpoint": False, "log_tensorboard": False}
_FIELDS = ("name", "datasets", "attacks", "methods", "target_sets", "seeds", "config", "report")
_MAIN_KEY = {"datasets": "dataset", "attacks": "attack", "methods": "model", "target_sets": "target_items"}
_OWNED = ("model", "dataset", "attack", "poison", "seed")  # set by the axes, so not by ``config``
# Keys that say where a cell runs and what else it leaves there, not what it is.
_PLACE = ("output_dir", "gpu_id", "show_progress", "save_checkpoint", "log_tensorboard", "cache_clean", "force")


@dataclass(frozen=True)
class Cell:
    """One training (or clean and attacked pair) of a grid.

    Attributes:
        grid: the grid's name.
        dataset: label of the data set.
        attack: label of the attack; None where nothing is attacked.
        method: label of the method.
        target_set: label of the target set; ``default`` where the grid names none.
        seed: the seed.
        keys: every configuration key that the grid sets for this cell, ``model``, ``dataset`` and ``seed`` included.
    """

    grid: str
    dataset: str
    attack: str | None
    method: str
    target_set: str
    seed: int
    keys: Mapping[str, Any]

    @property
    def id(self) -> str:
        """A readable name with a hash of the keys: equal for equal cells, on every machine and day."""
        parts = (self.dataset, self.attack or "clean", self.method, self.target_set, f"seed{self.seed}")
        slug = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part).strip("_")[:32] for part in parts)
        keys = {key: value for key, value in self.keys.items() if key not in _PLACE}
        told = json.dumps([self.labels(), keys], sort_keys=True, default=str)
        return f"{slug}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"

    def labels(self) -> dict[str, Any]:
        """The key ``cell`` of the result file."""
        return {"grid": self.grid, **{axis: getattr(self, axis) for axis in AXES}}

    def command(self) -> str:
        """The command line that makes this one cell."""
        settings = {key: value for key, value in {**RUN_DEFAULTS, **self.keys}.items() if key not in _PLACE}
        first = {key: settings.pop(key) for key in _OWNED if key in settings}
        options = [
            f"--{key}={_on_command_line(value)}" for key, value in _flat({**settings, "seed": first.pop("seed")})
        ]
        return shlex.join(["python", "run_recbole_robust.py", *(f"--{k}={v}" for k, v in first.items()), *options])


def expand(grid: Mapping[str, Any]) -> list[Cell]:
    """The cells of a grid, seeds outermost: stopped half way, a grid has every row, over fewer seeds.

    Raises:
        UserError: an unknown or missing field, an empty list, a duplicate, or a key that two axes set.
    """
    unknown = [name for name in grid if name not in _FIELDS]
    if unknown:
        raise UserError(f"grid: expected the fields {', '.join(_FIELDS)}, got {unknown[0]!r}")
    name = folder_name(grid.get("name"))
    axes = {
        "datasets": _axis(grid, "datasets"),
        "target_sets": _axis(grid, "target_sets") if "target_sets" in grid else [("default", {})],
        "attacks": _axis(grid, "attacks") if "attacks" in grid else [("", {})],
        "methods": _axis(grid, "methods"),
    }
    _check_overlap(axes)
    _check_plain("config", grid.get("config"))
    config, seeds = _mapping(grid, "config"), _seeds(grid)
    for key in _OWNED:
        if key in config:
            raise UserError(f"config: expected keys other than {', '.join(_OWNED)} (axes of the grid), got {key!r}")
    _check_report(_mapping(grid, "report"), [label for label, _ in axes["methods"]])
    cells = []
    for seed in seeds:
        for combination in itertools.product(*axes.values()):
            keys = config
            for _, own in combination:
                keys = _merged(keys, own)
            dataset, target_set, attack, method = (label for label, _ in combination)
            cells.append(Cell(name, dataset, attack or None, method, target_set, seed, {**keys, "seed": seed}))
    return cells


def folder_name(name: Any) -> str:
    """The name of a grid or a sweep, which is that of its folder, too.

    Raises:
        UserError: it is none that every file system takes.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise UserError(f"name: expected a folder name of at most 100 letters, digits, dots, - and _, got {name!r}")
    return name


def given_or_shipped(kind: str, source: str | Path, command: str, what: str) -> Path:
    """A YAML file: the path of one, or the name of one under ``properties/<kind>``.

    Raises:
        UserError: there is neither; ``command`` and ``what`` are how it tells what it expected, with the names
            that begin so if there are any.
    """
    path = Path(source)
    if path.is_file():
        return path
    name = path.name.removesuffix(".yaml")
    shipped = properties_dir() / kind / f"{name}.yaml"
    if not shipped.is_file():
        names = sorted(file.stem for file in shipped.parent.glob("*.yaml"))
        near = [one for one in names if one.startswith(name)] or names
        raise UserError(f"{command}: expected {what} or one of {', '.join(near) or 'none'}, got {str(source)!r}")
    return shipped


def load_grid(source: str | Path) -> dict[str, Any]:
    """Read a grid file: a path, or the name of one under ``properties/benchmark``.

    Raises:
        UserError: there is no such file, or it is not a YAML mapping.
    """
    path = given_or_shipped("benchmark", source, "benchmark", "a grid file")
    try:
        grid = from_yaml(path.read_text(encoding="utf-8"), YamlLoader)
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(grid, dict):
        raise UserError(f"{path}: expected a mapping with the fields {', '.join(_FIELDS)}, got {type(grid).__name__}")
    return grid


def _axis(grid: Mapping[str, Any], field: str) -> list[tuple[str, dict[str, Any]]]:
    """The entries of an axis as (label, configuration keys); labels and keys are unique."""
    entries = grid.get(field)
    main = _MAIN_KEY[field]
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise UserError(f"{field}: expected a list of at least one name or mapping, got {entries!r}")
    axis: list[tuple[str, dict[str, Any]]] = []
    for i, entry in enumerate(entries):
        if field == "attacks" and (entry is None or str(entry).lower() == "none"):
            pair: tuple[str, dict[str, Any]] = ("", {})
        elif isinstance(entry, str):
            pair = (entry, {main: entry})
        elif isinstance(entry, Mapping) and entry:
            keys = {str(key): value for key, value in entry.items() if key != "label"}
            name = "poison" if field == "attacks" and "poison" in keys and "attack" not in keys else main
            if field != "target_sets" and not isinstance(keys.get(name), str):
                raise UserError(f"{field}[{i}].{name}: expected a name, got {keys.get(name)!r}")
            if not keys:
                raise UserError(f"{field}[{i}]: expected configuration keys beside the label, got none")
            label = entry.get("label", _default_label(keys, main))
            if not isinstance(label, str) or not label.strip():
                raise UserError(f"{field}[{i}].label: expected text, got {label!r}")
            pair = (label, keys)
        else:
            raise UserError(f"{field}[{i}]: expected a name or a mapping of configuration keys, got {entry!r}")
        _check_plain(f"{field}[{i}]", pair[1])
        for label, keys in axis:
            if label == pair[0] or keys == pair[1]:
                same = "label" if label == pair[0] else "keys"
                raise UserError(f"{field}[{i}]: expected entries that differ, got the {same} of {label!r} again")
        axis.append(pair)
    return axis


def _check_plain(place: str, value: Any) -> None:
    """What a cell is known by can be told as JSON: no mapping with text and numbers as its keys."""
    try:
        json.dumps(value, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{place}: expected text, numbers, lists and mappings with text as keys ({error})") from None


def _default_label(keys: Mapping[str, Any], main: str) -> str:
    head = " + ".join(str(keys[key]) for key in (main, "defense") if keys.get(key))
    rest = [f"{key}={_on_command_line(value)}" for key, value in _flat(keys) if key not in (main, "defense")]
    return ", ".join([head, *rest] if head else rest)


def _check_overlap(axes: Mapping[str, list[tuple[str, dict[str, Any]]]]) -> None:
    """A key belongs to one axis: were two to set it, the labels would not say which value a cell has."""
    owners: dict[str, str] = {"seed": "seeds"}
    for field, entries in axes.items():
        for key in sorted({key for _, keys in entries for key in keys}):
            if owners.setdefault(key, field) != field:
                raise UserError(f"{field}: expected keys of its own, got {key!r}, which {owners[key]} sets too")
    for key, field in (("model", "methods"), ("dataset", "datasets"), ("attack", "attacks"), ("poison", "attacks")):
        if owners.get(key, field) != field:
            raise UserError(f"{owners[key]}: expected keys other than {key!r}, which belongs to {field}")


def _seeds(grid: Mapping[str, Any]) -> list[int]:
    given = grid.get("seeds")
    seeds = given
    if isinstance(given, Mapping):
        span = {"start": 0, **given}
        if (
            set(span) != {"start", "count"}
            or not all(_whole(value) for value in span.values())
            or not 1 <= span["count"] <= 10**5
        ):
            raise UserError(f"seeds: expected a list or {{start: 0, count: 10}} with count >= 1, got {dict(given)!r}")
        seeds = range(span["start"], span["start"] + span["count"])
    if not isinstance(seeds, Sequence) or isinstance(seeds, str) or not seeds or not all(_whole(s) for s in seeds):
        raise UserError(f"seeds: expected a list of whole numbers >= 0 or {{start: 0, count: 10}}, got {given!r}")
    if max(seeds) > LARGEST_SEED:
        raise UserError(f"seeds: expected at most {LARGEST_SEED}, got {max(seeds)}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds: expected seeds that differ, got {list(seeds)!r}")
    return list(seeds)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _mapping(grid: Mapping[str, Any], field: str) -> dict[str, Any]:
    value = grid.get(field)
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{field}: expected a mapping, got {value!r}")
    return dict(value or {})


def _check_report(report: Mapping[str, Any], methods: Sequence[str]) -> None:
    for key, value in report.items():
        if key not in REPORT_OPTIONS:
            raise UserError(f"report: expected the keys {', '.join(REPORT_OPTIONS)}, got {key!r}")
        if key == "metrics":
            if not isinstance(value, list) or not value or not all(isinstance(metric, str) for metric in value):
                raise UserError(f"report.metrics: expected a list of metric names, got {value!r}")
        elif key == "gains":
            _check_gains(value, methods)
        elif key == "undefended_of":
            _check_undefended_of(value, methods)
        elif not isinstance(value, str):
            raise UserError(f"report.{key}: expected text, got {value!r}")
        elif key == "published":
            load_published(value)  # a name that is not there is told before the grid runs, not after


def _check_gains(gains: Any, methods: Sequence[str]) -> None:
    """Comparisons of two methods of the grid, or of three with a bound."""
    for i, gain in enumerate(gains if isinstance(gains, list) and gains else [gains]):
        if not isinstance(gain, Mapping) or not {"method", "over"} <= gain.keys() <= {"method", "over", "bound"}:
            raise UserError(f"report.gains[{i}]: expected the keys method, over and perhaps bound, got {gain!r}")
        for key, label in gain.items():
            if label not in methods:
                raise UserError(f"report.gains[{i}].{key}: expected one of {', '.join(methods)}, got {label!r}")


def _check_undefended_of(models: Any, methods: Sequence[str]) -> None:
    """Methods of the grid, and the method of the grid that each is judged against."""
    if not isinstance(models, Mapping):
        raise UserError(f"report.undefended_of: expected a mapping of methods to methods or null, got {models!r}")
    for method, model in models.items():
        for label in (method, method if model is None else model):
            if label not in methods:
                raise UserError(f"report.undefended_of: expected labels of {', '.join(methods)}, got {label!r}")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``over``, nested mappings (attack_args, defense_args) key by key."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _flat(keys: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in keys.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _on_command_line(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
