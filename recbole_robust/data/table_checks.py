"""What is wrong with a table that RecBole has read from an atomic file, where RecBole says nothing and goes on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype

from recbole_robust.data.atomic_file import cells_as_written
from recbole_robust.types import UserError


def keep_tokens(
    feat: pd.DataFrame, layout: tuple[str, str, str | None], ids: Iterable[str], time: str | None, is_inter: bool
) -> None:
    """A user ``nan`` or an item ``NA`` is one as any other: pandas reads such words as no value, and RecBole then
    drops their rows.

    Args:
        layout: path, separator and encoding of the file.
        ids: the columns of users and items.
        time: the column of times, whose type the header says is float.

    Raises:
        UserError: an interaction without a user or an item, or with a time that is no finite number. (A blank time is
            filled by the mean, as RecBole does.)
    """
    path, separator, encoding = layout
    for name in ids:
        if name in feat and feat[name].isna().any():
            cells = cells_as_written(path, name, separator, encoding)
            blank = np.flatnonzero(cells == "")
            if is_inter and len(blank):
                raise UserError(f"{path}: expected a token of {name} in each row, got none in {len(blank)} rows "
                                f"(first: row {blank[0] + 1} below the header)")  # fmt: skip
            feat[name] = cells.mask(cells == "")
    if is_inter and time is not None and time in feat:
        odd = ~np.isfinite(feat[time].to_numpy())
        if odd.any():
            cells = cells_as_written(path, time, separator, encoding)
            bad = np.flatnonzero(odd & (cells != "").to_numpy())
            if len(bad):
                raise UserError(f"{path}: expected finite numbers in {time}, got {cells.iloc[bad[0]]!r} in "
                                f"{len(bad)} rows (first: row {bad[0] + 1} below the header)")  # fmt: skip


def check_named_columns(feat: pd.DataFrame | None, path: str, load_col: Mapping[str, Any], kind: str) -> None:
    """What the user's ``load_col`` names for this kind of file is there. (RecBole's defaults name more at times.)"""
    names = load_col.get(kind) or []
    found = [] if feat is None else list(feat.columns)
    missing = [] if names == "*" else [name for name in names if name not in found]
    if missing:
        raise UserError(f"{path}: expected a column {missing[0]} (load_col), got {', '.join(found) or 'none'}")


def check_numerical(tables: Iterable[pd.DataFrame | None], dataset: str, names: Collection[str]) -> None:
    """Features that are embedded as numbers (``numerical_features``) are finite; a column of lists is not looked at."""
    for feat in (table for table in tables if table is not None):
        for name in names:
            if name in feat and is_float_dtype(feat[name]) and np.isinf(feat[name].to_numpy()).any():
                raise UserError(f"{dataset}: {name}: expected finite numbers (numerical_features), got inf")
