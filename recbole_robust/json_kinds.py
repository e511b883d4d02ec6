"""Kinds of JSON values, for checks of files that somebody may have edited: what is expected, and whether it came."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

LARGEST = 1e300  # of a number; sums and quotients of such are still numbers
_METRIC = re.compile(r"[^@]*(@[0-9]{1,9})?")

Kind = tuple[str, Callable[[Any], bool]]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def are_metrics(value: Any) -> bool:
    """Whether it is a mapping of metric names (``name`` or ``name@K``) to numbers or null."""
    return isinstance(value, dict) and all(
        _METRIC.fullmatch(name) and (one is None or is_number(one)) for name, one in value.items()
    )


TEXT: Kind = ("text", lambda v: isinstance(v, str))
WHOLE: Kind = ("a whole number", is_whole)
NUMBER: Kind = ("a number", is_number)
MAPPING: Kind = ("a mapping", lambda v: isinstance(v, dict))
TEXTS: Kind = ("a list of texts", lambda v: isinstance(v, list) and all(isinstance(one, str) for one in v))


def or_null(kind: Kind) -> Kind:
    return f"{kind[0]} or null", lambda value: value is None or kind[1](value)


def short(value: Any) -> str:
    """A value in an error's line."""
    return repr(value)[:80]
