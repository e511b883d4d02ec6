"""Hyper-parameters: checks, in one clear line that names key, expected and given, and fractions as counts."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, get_args

import numpy as np

from recbole_robust.types import UserError

LARGEST_SEED = 2**32 - 1  # that numpy's global generator takes


def require(condition: bool, key: str, expected: str, got: object) -> None:
    """Raise a :class:`UserError` that names ``key`` unless ``condition`` holds."""
    if not condition:
        raise UserError(f"{key}: expected {expected}, got {got!r}")


def is_number(value: Any, *, integer: bool = False) -> bool:
    """A finite number; a boolean is none."""
    kind = Integral if integer else Real
    return isinstance(value, kind) and not isinstance(value, bool) and bool(np.isfinite(value))  # type: ignore


def require_number(key: str, value: object, low: float, high: float = np.inf, *, integer: bool = False) -> None:
    """Raise a :class:`UserError` unless ``value`` is a finite number in ``[low, high]``."""
    kind = "an integer" if integer else "a number"
    expected = f"{kind} of at least {low:g}" if high == np.inf else f"{kind} from {low:g} to {high:g}"
    require(is_number(value, integer=integer) and low <= value <= high, key, expected, value)  # type: ignore


def require_choice(key: str, value: object, choices: Any) -> None:
    """Raise a :class:`UserError` unless ``value`` is one of the strings of the ``Literal`` type ``choices``."""
    require(value in get_args(choices), key, f"one of {', '.join(get_args(choices))}", value)


def chosen(config: Any, key: str, *options: str) -> str:
    """The value of a key that has a few choices; raise a :class:`UserError` where it is none of them."""
    value = "off" if config[key] is False else config[key]  # YAML reads a bare off as false
    require(value in options, key, f"one of {', '.join(options)}", value)
    return value


def share_of(fraction: float, whole: int) -> int:
    """``fraction * whole``, rounded down, where 0.29 of 100 is 29 (in floats it is 28.999999999999996)."""
    return int(fraction * whole + 1e-9)
