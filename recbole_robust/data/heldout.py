"""The exact test rows of a published split."""

from __future__ import annotations

import os
from lzma import LZMAError

import numpy as np
import pandas as pd

from recbole_robust.data.leave_one_out import take_rows
from recbole_robust.types import UserError


def read_heldout(path: str, uid_field: str, iid_field: str) -> list[tuple[str, str]]:
    """The (user, item) tokens of an ``.inter`` file (``.xz`` and ``.gz`` too).

    Raises:
        UserError: no such file, or it lacks the two columns.
    """
    if not os.path.isfile(path):
        raise UserError(f"heldout_file: expected a file, got {path}")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except (ValueError, EOFError, OSError, LZMAError, pd.errors.ParserError) as error:
        raise UserError(f"heldout_file: {path}: expected an .inter file, got {' '.join(str(error).split())}") from None
    table.columns = [name.split(":")[0] for name in table.columns]
    for name in (uid_field, iid_field):
        if name not in table:
            raise UserError(
                f"heldout_file: {path}: expected a column {name}:token, got {str(list(table.columns))[:80]}"
            )
    if table.empty:
        raise UserError(f"heldout_file: {path}: expected rows below the header, got none")
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
    known = [(user_ids.get(u), item_ids.get(i)) for u, i in pairs]
    keys = np.array([-1 if u is None or i is None else u * dataset.item_num + i for u, i in known], dtype=np.int64)
    users, items = dataset.inter_feat[uid].numpy(), dataset.inter_feat[iid].numpy()
    rows = users.astype(np.int64) * dataset.item_num + items
    missing = np.flatnonzero(~np.isin(keys, rows))
    if len(missing):
        user, item = pairs[missing[0]]
        raise UserError(f"heldout_file: {path}: {len(missing)} rows are not in {dataset.dataset_name} "
                        f"(first: user {user}, item {item})")  # fmt: skip
    test = np.isin(rows, keys)
    if test.all():
        raise UserError(f"heldout_file: {path}: expected to leave rows of {dataset.dataset_name} to train on, got all")
    valid = np.zeros(len(rows), dtype=bool)
    if keep_valid:
        left = np.flatnonzero(~test)
        _, last = np.unique(users[left][::-1], return_index=True)
        valid[left[::-1][last]] = True
    return take_rows(dataset, [np.flatnonzero(part) for part in (~test & ~valid, valid, test)])
