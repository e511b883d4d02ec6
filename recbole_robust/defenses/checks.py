"""Checks of a defense's hyper-parameters, which its errors call ``defense_args.<key>``."""

from __future__ import annotations

import math
from typing import Any

from recbole_robust import arguments
from recbole_robust.arguments import is_number


def require(condition: bool, key: str, expected: str, got: object) -> None:
    """Raise a :class:`UserError` that names ``defense_args.<key>`` unless ``condition`` holds."""
    arguments.require(condition, f"defense_args.{key}", expected, got)


def require_number(key: str, value: Any, low: float, high: float = math.inf, *, integer: bool = False) -> None:
    arguments.require_number(f"defense_args.{key}", value, low, high, integer=integer)


def require_choice(key: str, value: object, choices: Any) -> None:
    arguments.require_choice(f"defense_args.{key}", value, choices)


def require_amount(key: str, value: Any) -> None:
    """Raise a :class:`UserError` unless ``value`` is ``auto``, a count (an integer) or a share (any other number)."""
    is_count = is_number(value, integer=True) and value >= 1
    is_share = is_number(value) and 0 < value < 1
    require(value == "auto" or is_count or is_share, key, "auto, a count of at least 1 or a share below 1", value)
