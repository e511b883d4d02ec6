"""One row a genuine user to ask a model with, in the evaluation of a phase."""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor


def general_queries(train) -> Interaction:
    """Every genuine user, with the user features. Shape: every column has ``n_genuine`` rows."""
    users = torch.arange(1, train.user_num - train.n_fake_users)
    return train.join(Interaction({train.uid_field: users}))


def _last_row_of_each_user(split) -> tuple[Tensor, Tensor]:
    """The genuine users of a split (ascending) and the row of each with the longest history."""
    users = split.inter_feat[split.uid_field].numpy()
    lengths = split.inter_feat[split.item_list_length_field].numpy()
    order = np.lexsort((np.arange(len(users)), lengths, users))
    unique, first_from_end = np.unique(users[order][::-1], return_index=True)
    rows = order[::-1][first_from_end]
    genuine = unique < split.user_num - split.n_fake_users
    return torch.from_numpy(unique[genuine]), torch.from_numpy(rows[genuine])


def _append_own_item(split, rows: Interaction) -> Interaction:
    """Move the item of each row to the end of its history: the query that comes after the row."""
    columns = dict(rows.interaction)
    length_field, suffix = split.item_list_length_field, split.config["LIST_SUFFIX"]
    lengths = columns[length_field]
    longest = split.max_item_list_len
    full, index = lengths >= longest, torch.arange(len(lengths))
    for name in list(columns):
        history = columns.get(name + suffix)
        if history is None:
            continue
        history = history.clone()
        history[full] = history[full].roll(-1, dims=1)
        history[index, lengths.clamp(max=longest - 1)] = columns[name].to(history.dtype)
        columns[name + suffix] = history
    columns[length_field] = (lengths + 1).clamp(max=longest)
    return Interaction(columns)


def sequential_queries(splits, phase: str) -> Interaction:
    """The sequence of every genuine user up to the split of the phase.

    A user with a row in the split is asked with its history; a user without one, with the whole sequence of the
    splits before. Users with a single interaction have no row anywhere in RecBole's sequential data and are left out.
    """
    order = {"valid": [1, 0], "test": [2, 1, 0]}[phase]
    asked, done = [], torch.zeros(0, dtype=torch.long)
    for step, index in enumerate(order):
        split = splits[index]
        if not len(split.inter_feat):
            continue
        users, rows = _last_row_of_each_user(split)
        new = ~torch.isin(users, done)
        part = split.inter_feat[rows[new]]
        asked.append(split.join(part if step == 0 else _append_own_item(split, part)))
        done = torch.cat([done, users[new]])
    names = asked[0].columns
    return Interaction({name: torch.cat([part[name] for part in asked]) for name in names})


def queries_of(splits, phase: str) -> Interaction:
    """The queries of a phase (``valid`` or ``test``) for the data set class at hand."""
    train = splits[0]
    return sequential_queries(splits, phase) if hasattr(train, "item_list_length_field") else general_queries(train)
