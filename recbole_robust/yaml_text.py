"""YAML as plain values: by a safe loader, and no larger than it looks."""

from __future__ import annotations

import math
from typing import Any

import yaml

LARGEST = 1_000_000  # values, each alias counted as what it stands for


def from_yaml(text: str, loader: type[yaml.SafeLoader]) -> Any:
    """What some YAML says.

    Raises:
        ValueError: not YAML, nested too deep, or a few lines whose aliases stand for millions of values, or for
            themselves.
    """
    try:
        content = yaml.load(text, Loader=loader)  # a SafeLoader
        size = _size(content, {})
    except RecursionError:
        raise ValueError("nested too deep") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None  # !!bool x is a KeyError
    if size > LARGEST:
        raise ValueError(f"its aliases stand for more than {LARGEST} values")
    return content


def _size(value: Any, known: dict[int, float]) -> float:
    """The number of values in a value; infinity where it is in itself."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]
