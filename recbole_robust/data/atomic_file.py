"""RecBole's atomic files: what is wrong with one, told before RecBole and pandas say it in their own way.

A header of ``name:type`` columns, then one row a line. https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_robust.types import UserError

TYPES = ("token", "token_seq", "float", "float_seq")
BLOCK = 1 << 24  # bytes that are looked at at a time


def check_atomic_file(
    path: str, separator: str = "\t", encoding: str | None = None, types: Mapping[str, str] | None = None
) -> None:
    """Raise where the file is no atomic file: bytes instead of text, a bad header, or a row of another length.

    Args:
        types: the type that a column must have if it is there, e.g. ``{"rating": "float"}``.

    Raises:
        UserError: names the file, what was expected and what came.
    """
    try:
        with open(path, encoding=encoding or "utf-8", newline="") as file:
            line = file.readline()
            header = line.rstrip("\r\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except LookupError:
        raise UserError(f"encoding: expected the name of a text encoding, got {encoding!r}") from None
    except ValueError:
        raise UserError(f"{path}: expected {encoding or 'UTF-8'} text, got other bytes") from None
    if header.startswith("\ufeff"):
        raise UserError(f"{path}: expected text without a byte order mark, got one (--encoding=utf-8-sig reads it)")
    names = [_checked(column, path, separator, types or {}) for column in header.split(separator)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: expected each column once, got {', '.join(twice)} twice")
    if header == line:
        raise UserError(f"{path}: expected rows below the header, got none")
    row = _row_of_other_length(path, separator, len(names)) if len(separator) == 1 and separator.isascii() else None
    if row is not None:
        raise UserError(f"{path}: expected {len(names)} columns as in the header, got {row[1]} in line {row[0]}")


def column_names(path: str | Path, separator: str = "\t") -> list[str]:
    """The names in the header of an atomic file; none where there is no such file or no text in it."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [column.partition(":")[0] for column in file.readline().rstrip("\r\n").split(separator)]
    except (OSError, ValueError):
        return []


def _checked(column: str, path: str, separator: str, types: Mapping[str, str]) -> str:
    name, _, kind = column.partition(":")
    if not name.strip() or kind not in TYPES:
        raise UserError(f"{path}: expected a header of name:type columns with {separator!r} between them "
                        f"(type: {', '.join(TYPES)}), got {column[:40]!r}")  # fmt: skip
    if kind != types.get(name, kind):
        raise UserError(f"{path}: expected {name}:{types[name]} in the header, got {column}")
    return name


def _row_of_other_length(path: str, separator: str, n_columns: int) -> tuple[int, int] | None:
    """The first line (from 1) that has another number of columns, and that number. Blank lines are none.

    A file with quotation marks is not looked at: what is inside them may be a separator or the end of a line.
    """
    line = 0
    rest = b""
    with open(path, "rb") as file:
        while block := file.read(BLOCK) or (rest and b"\n"):
            whole, end, rest = (rest + block).rpartition(b"\n")
            if b'"' in whole or b'"' in rest:
                return None
            characters = np.frombuffer(whole + end, dtype=np.uint8)
            ends = np.flatnonzero(characters == ord("\n"))
            found = np.searchsorted(np.flatnonzero(characters == ord(separator)), ends)
            columns = np.diff(found, prepend=0) + 1
            wrong = np.flatnonzero(columns != n_columns)
            starts = np.concatenate([[0], ends[:-1] + 1])
            for k in wrong:
                if whole[starts[k] : ends[k]].strip():
                    return line + int(k) + 1, int(columns[k])
            line += len(ends)
    return None


def cells_as_written(path: str, name: str, separator: str = "\t", encoding: str | None = None) -> pd.Series:
    """The text of a column, of each row below the header; a word that pandas takes for no value (NA, nan) is text."""

    def is_it(column: str) -> bool:
        return column.partition(":")[0] == name

    options: Any = {"usecols": is_it, "dtype": str, "encoding": encoding, "keep_default_na": False}
    return pd.read_csv(path, sep=separator, **options).iloc[:, 0].fillna("")


def bad_number(path: str, separator: str = "\t", encoding: str | None = None) -> str | None:
    """What stands where a column of type float needs a number: the first such cell, in words; None: all are numbers."""
    with open(path, encoding=encoding or "utf-8", newline="") as file:
        columns = [name for name in file.readline().rstrip("\r\n").split(separator) if name.endswith(":float")]
    for name in columns:
        cells = pd.read_csv(path, sep=separator, usecols=[name], dtype=str, encoding=encoding)[name]
        bad = np.flatnonzero(cells.notna() & pd.to_numeric(cells, errors="coerce").isna())
        if len(bad):
            return f"expected numbers in {name}, got {cells.iloc[bad[0]]!r} in row {bad[0] + 1} below the header"
    return None
