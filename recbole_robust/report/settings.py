"""The settings behind a report: what all its runs have in common, and what each row, column or target set adds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_robust.report.tables import Entry, labels

_AXES = ("seed", "dataset", "target_set", "attack", "method")  # a key that follows two of them is told under the first
_TOLD = {"seed", "dataset"}  # by the labels themselves


@dataclass(frozen=True)
class Settings:
    """Settings as (key, value as text), sorted by key.

    Attributes:
        common: the same in every run.
        own: (axis, label) to the settings that follow that label alone.
        several: those that follow no single label, with all their values.
        unset: number of settings that no run gives a value.
    """

    common: Sequence[tuple[str, str]]
    own: Mapping[tuple[str, str], Sequence[tuple[str, str]]]
    several: Sequence[tuple[str, str]]
    unset: int


def settings_of(entries: Sequence[Entry], order: Mapping[str, Sequence[str]]) -> Settings:
    """Sort the settings of all entries by what they depend on; entries that store none are passed over."""
    told = [entry for entry in entries if entry.config]
    texts = [{key: _text(value) for key, value in entry.config.items() if key not in _TOLD} for entry in told]
    keys = sorted({key for one in texts for key in one})
    common, several, unset = [], [], 0
    own: dict[tuple[str, str], list[tuple[str, str]]] = {}
    shown = {axis: labels(told, axis, order) for axis in _AXES[1:]}
    for key in keys:
        values = [one.get(key, "") for one in texts]
        distinct = sorted(set(values))
        if distinct == [""]:
            unset += 1
        elif len(distinct) == 1:
            common.append((key, distinct[0]))
        else:
            found = next((axis for axis in _AXES if _follows(told, values, axis)), None)
            if found is None or found == "seed":
                several.append((key, ", ".join(value or "none" for value in distinct)))
                continue
            by_label = {getattr(entry, found): value for entry, value in zip(told, values, strict=True)}
            for label in shown[found]:
                if by_label[label]:
                    own.setdefault((found, label), []).append((key, by_label[label]))
    ordered = {(axis, label): own[axis, label] for axis in shown for label in shown[axis] if (axis, label) in own}
    return Settings(common, ordered, several, unset)


def _follows(entries: Sequence[Entry], values: Sequence[str], axis: str) -> bool:
    """True where equal labels have equal values."""
    seen: dict[Any, str] = {}
    return all(seen.setdefault(getattr(e, axis), value) == value for e, value in zip(entries, values, strict=True))


def _text(value: Any) -> str:
    """A value on one line; the empty text where nothing is set."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
