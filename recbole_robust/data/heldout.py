"""The exact test rows of a published split."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd

from recbole_robust.types import UserError


def read_heldout(path: str, uid_field: str, iid_field: str) -> list[tuple[str, str]]:
    """The (user, item) tokens of an ``.inter`` file (``.xz`` and ``.gz`` too).

    Raises:
        UserError: no such file, or it lacks the two columns.
    """
    if not os.path.isfile(path):
        raise UserError(f"heldout_file: expected a file, got {path}")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str)
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"heldout_file: {path}: {error}") from None
    table.columns = [name.split(":")[0] for name in table.columns]
    for name in (uid_field, iid_field):
        if name not in table:
            raise UserError(f"heldout_file: {path}: expected a column {name}:token, got {', '.join(table.columns)}")
    return list(zip(table[uid_field], table[iid_field], strict=True))


def heldout_split(dataset, path: str, keep_valid: bool = False) -> list:
    """Split into train, valid and test: the test rows are those of the file, in the data set's order.

    ``keep_valid`` takes each user's last remaining row (the order is random by then) for validation.

    Raises:
        UserError: a row of the file is not in the data set.
    """
    uid, iid = dataset.uid_field, dataset.iid_field
    user_ids, item_ids = dataset.field2token_id[uid], dataset.field2token_id[iid]
    pairs = read_heldout(path, uid, iid)
    keys = np.array([user_ids.get(u, -1) * dataset.item_num + item_ids.get(i, -1) for u, i in pairs])
    users, items = dataset.inter_feat[uid].numpy(), dataset.inter_feat[iid].numpy()
    rows = users.astype(np.int64) * dataset.item_num + items
    missing = np.flatnonzero(~np.isin(keys, rows))
    if len(missing):
        user, item = pairs[missing[0]]
        raise UserError(f"heldout_file: {path}: {len(missing)} rows are not in {dataset.dataset_name} "
                        f"(first: user {user}, item {item})")  # fmt: skip
    test = np.isin(rows, keys)
    valid = np.zeros(len(rows), dtype=bool)
    if keep_valid:
        left = np.flatnonzero(~test)
        unique, last = np.unique(users[left][::-1], return_index=True)
        valid[left[::-1][last]] = True
    dataset._drop_unused_col()
    parts = (~test & ~valid, valid, test)
    return [dataset.copy(dataset.inter_feat[np.flatnonzero(part)]) for part in parts]
