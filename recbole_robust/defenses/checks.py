"""Checks of hyper-parameters: one clear line that names ``defense_args.<key>``, what was expected and what came."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, get_args

from recbole_robust.types import UserError


def require(condition: bool, key: str, expected: str, got: object) -> None:
    """Raise a :class:`UserError` that names ``defense_args.<key>`` unless ``condition`` holds."""
    if not condition:
        raise UserError(f"defense_args.{key}: expected {expected}, got {got!r}")


def is_number(value: Any, *, integer: bool = False) -> bool:
    """A finite number; a boolean is none."""
    return isinstance(value, Integral if integer else Real) and not isinstance(value, bool) and math.isfinite(value)


def require_number(key: str, value: Any, low: float, high: float = math.inf, *, integer: bool = False) -> None:
    """Raise a :class:`UserError` unless ``value`` is a finite number in ``[low, high]``."""
    kind = "an integer" if integer else "a number"
    expected = f"{kind} of at least {low:g}" if high == math.inf else f"{kind} from {low:g} to {high:g}"
    require(is_number(value, integer=integer) and low <= value <= high, key, expected, value)


def require_choice(key: str, value: object, choices: Any) -> None:
    """Raise a :class:`UserError` unless ``value`` is one of the strings of the ``Literal`` type ``choices``."""
    require(value in get_args(choices), key, f"one of {', '.join(get_args(choices))}", value)


def require_amount(key: str, value: Any) -> None:
    """Raise a :class:`UserError` unless ``value`` is ``auto``, a count (an integer) or a share (any other number)."""
    is_count = is_number(value, integer=True) and value >= 1
    is_share = is_number(value) and 0 < value < 1
    require(value == "auto" or is_count or is_share, key, "auto, a count of at least 1 or a share below 1", value)
