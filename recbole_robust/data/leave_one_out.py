"""RecBole's leave-one-out split, row for row, without its Python loop over the interactions."""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.interaction import Interaction

HELD_OUT = {"valid_and_test": 2, "valid_only": 1, "test_only": 1}


def leave_one_out_rows(users: np.ndarray, mode: str) -> list[np.ndarray]:
    """The rows of train, valid and test: each user's last rows are held out, the first one never.

    Rows are grouped by user in the order in which users first appear, as in RecBole's ``Dataset.leave_one_out``.

    Shape: ``users`` ``(n_rows,)`` in the order of the split; result three arrays of row numbers.
    """
    n_held_out = HELD_OUT[mode]
    _, first, group = np.unique(users, return_index=True, return_inverse=True)
    order = np.argsort(first[group], kind="stable")
    sizes = np.bincount(group)[group[order]]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(group[order])) + 1])
    position = np.arange(len(users)) - np.repeat(starts, np.diff(np.append(starts, len(users))))
    # The part of a row: 0 for train, else counted from the end (1: last, 2: the one before).
    from_end = sizes - position
    part = np.where(from_end <= np.minimum(n_held_out, sizes - 1), from_end, 0)
    empty = np.zeros(0, dtype=np.int64)
    last, before = order[part == 1], order[part == 2]
    rest = order[part == 0]
    return {
        "valid_and_test": [rest, before, last],
        "valid_only": [rest, last, empty],
        "test_only": [rest, empty, last],
    }[mode]


def take_rows(dataset, rows: list[np.ndarray]) -> list:
    """The parts of a data set with these rows. (``Interaction[...]`` would go through Python lists.)"""
    dataset._drop_unused_col()
    columns = dataset.inter_feat.interaction
    index = [torch.from_numpy(np.ascontiguousarray(part)) for part in rows]
    return [dataset.copy(Interaction({name: column[part] for name, column in columns.items()})) for part in index]
