"""What a result file must be like before anything is made of it: what is there has the kind that it should have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_robust.json_kinds import MAPPING, TEXT, TEXTS, WHOLE, Kind, are_metrics, is_whole, short
from recbole_robust.types import UserError

SCHEMA_VERSION = 1
NAME: Kind = ("a name", lambda v: isinstance(v, str | dict))  # older files have the attack with its settings
GAINS: Kind = (
    "a list of mappings of texts",
    lambda v: (
        isinstance(v, list)
        and all(isinstance(one, dict) and all(isinstance(text, str) for text in one.values()) for one in v)
    ),
)
UNDEFENDED: Kind = (
    "a mapping of texts to texts or null",
    lambda v: isinstance(v, dict) and all(one is None or isinstance(one, str) for one in v.values()),
)
NUMBERS: Kind = ("metric names with numbers", are_metrics)

_RESULT: dict[str, Kind] = {
    "command": TEXT, "model": TEXT, "base_model": TEXT, "dataset": TEXT, "protocol": TEXT, "attack": NAME,
    "defense": NAME, "seed": WHOLE, "config": MAPPING, "split_hash": TEXT, "target_items": TEXTS, "n_genuine": WHOLE,
    "versions": MAPPING, "error": TEXT, "poison": MAPPING, "baseline": MAPPING, "per_target": MAPPING,
}  # fmt: skip
_POISON: dict[str, Kind] = {
    "card": TEXT, "hash": TEXT, "n_fake_users": WHOLE, "n_fillers": WHOLE, "target_items": TEXTS, "stealth": NUMBERS,
}  # fmt: skip
_BLOCKS = {name: NUMBERS for name in ("clean", "attacked", "lift")}
_LABELS = {name: TEXT for name in ("dataset", "attack", "method", "target_set", "grid")}


def check_result(result: Mapping[str, Any], path: Path) -> None:
    """Raise where a field is of another kind than a result's; what is not there, or null, is passed over.

    Raises:
        UserError: names the file, the field, what was expected and what came.
    """
    if result["schema_version"] != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version: expected {SCHEMA_VERSION}, got {short(result['schema_version'])}")
    _check(result, _RESULT, f"{path}: ")
    cell = result.get("cell")
    if cell is not None and not (
        isinstance(cell, dict)
        and all(isinstance(cell.get(name), str) for name in ("dataset", "method"))
        and is_whole(cell.get("seed"))
    ):
        raise UserError(f"{path}: cell: expected a mapping with dataset, method and a whole seed, got {short(cell)}")
    _check(cell or {}, _LABELS, f"{path}: cell.")
    if "error" in result:
        return
    if not all(isinstance(result.get(name), str) for name in ("dataset", "model")) and cell is None:
        raise UserError(f"{path}: expected the keys dataset and model of a result, they are missing")
    _check(result, _BLOCKS, f"{path}: ")
    _check(result.get("baseline") or {}, {**_BLOCKS, "model": TEXT, "defense": NAME}, f"{path}: baseline.")
    _check(result.get("poison") or {}, _POISON, f"{path}: poison.")
    for token, rows in (result.get("per_target") or {}).items():
        place = f"{path}: per_target.{token[:40]}"
        _check({token: rows}, {token: MAPPING}, f"{path}: per_target.")
        _check(rows or {}, _BLOCKS, f"{place}.")


def _check(values: Mapping[str, Any], kinds: Mapping[str, Kind], place: str) -> None:
    for name, (expected, allows) in kinds.items():
        if values.get(name) is not None and not allows(values[name]):
            raise UserError(f"{place}{name}: expected {expected}, got {short(values[name])}")


def check_grid(grid: Any, path: Path) -> dict[str, Any]:
    """The content of a ``grid.json``, if it is one.

    Raises:
        UserError: it is not.
    """
    texts: dict[str, Kind] = {name: TEXT for name in ("name", "source")}
    of_report: dict[str, Kind] = {
        "metrics": TEXTS,
        "title": TEXT,
        "published": TEXT,
        "undefended": TEXT,
        "undefended_of": UNDEFENDED,
        "gains": GAINS,
    }
    try:
        _check({"": grid}, {"": MAPPING}, "")
        _check(grid, {**texts, "cells": TEXTS, "axes": MAPPING, "report": MAPPING}, "")
        _check(grid.get("report") or {}, of_report, "")
        for labels in (grid.get("axes") or {}).values():
            if not isinstance(labels, list) or not all(isinstance(one, str | int | None) for one in labels):
                raise UserError("axes")
    except UserError:
        raise UserError(
            f"{path}: expected the file that a benchmark leaves beside its cells, got something else"
        ) from None
    return {key: value for key, value in grid.items() if value is not None}
