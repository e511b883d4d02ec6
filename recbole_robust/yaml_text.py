"""YAML, and words of the command line, as plain values: parsed by a safe loader, never evaluated, and no larger than
they look.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from recbole_robust.types import UserError

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


class YamlLoader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number, as RecBole's does."""


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)

# What a bare word of the command line may be other than text. YAML's other readings (``off``, ``010``, ``1:30`` and
# ``2020-01-01`` are false, 8, 90 and a date) would spoil item tokens and choices.
_BARE = {
    "null": re.compile(r"~|null|Null|NULL|None"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?(?:0|[1-9][0-9_]*)"),
    "float": re.compile(r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan"),
}


class _ValueLoader(yaml.SafeLoader):
    """Safe YAML in which a bare word is what :data:`_BARE` says, else text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own


for _kind, _pattern in _BARE.items():
    _ValueLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern.pattern})$"), None)
_ValueLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    try:
        content = from_yaml(Path(path).read_text(encoding="utf-8-sig"), YamlLoader)
    except OSError as error:
        raise UserError(f"config file {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"config file {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"config file {path}: expected a mapping of keys, got {type(content).__name__}")
    return content or {}


def parse_value(text: Any, key: str = "value") -> Any:
    """The value of a command-line string: a number, true or false, ``None``, a [list], a {mapping}, else the text.

    Raises:
        UserError: ``{rating:3}``, which YAML reads as one long key without a value.
    """
    if not isinstance(text, str):
        return text
    bare = text.strip()
    if bare[:1] in ("[", "{", "'", '"') or any(pattern.fullmatch(bare) for pattern in _BARE.values()):
        try:
            value = from_yaml(bare, _ValueLoader)
        except ValueError:
            return text
        if _lacks_blank(value, bare):
            raise UserError(f"{key}: expected a blank after each colon, as in {{rating: 3}}, got {text}")
        return value
    return text


def _lacks_blank(value: Any, text: str) -> bool:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if entry is None and ":" in str(key) and f'"{key}"' not in text and f"'{key}'" not in text:
                return True
        value = list(value.values())
    return isinstance(value, list) and any(_lacks_blank(entry, text) for entry in value)
