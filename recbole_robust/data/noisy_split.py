"""InteractionNoise in the training split of a RecBole data set, and nowhere that anything is measured.

Noise comes after the split, into the rows that the split has given to training. Before the split it would edit
held-out rows too, so that accuracy would be measured on noise, and it would move the split itself: a user with one row
more has another last row. After the split, validation and test rows, and the targets of an attack, are tensor for
tensor those of the run without noise. A sequential training split has one row a prefix of a history: there the edited
log of each user is made into prefixes again, so that a false item stands in all later histories.

What a sequential model reads at validation and test time are histories, too. They stay genuine as well
(``noise_scope: train``), so that the loss of accuracy is what training on noise has cost; with
``noise_scope: histories`` they are those of the noisy log, as they would be in service. The held-out items themselves
are genuine in both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction

from recbole_robust.data.injection import augmented
from recbole_robust.data.noise import InteractionNoise, NoisyRows
from recbole_robust.data.views import RawLog, genuine_item_counts
from recbole_robust.types import IntArray, UserError

KEPT_ROWS, KEPT_ROWS_OF_A_SEQUENCE = 1, 2  # a sequence of one item has nothing to predict


@dataclass(frozen=True)
class NoiseFlags:
    """The ground truth of a split: for evaluation only, no defense is shown it.

    Attributes:
        rows: genuine rows whose own item is noise. Shape: ``(n_genuine_rows,)``.
        in_history: noisy items in the history of each row, 0 without sequences. Shape: ``(n_genuine_rows,)``.
        users: RecBole ids of the users whose log was edited, ascending.
        n_edits: rows of the log that were replaced, inserted, dropped or moved.
    """

    rows: NDArray[np.bool_]
    in_history: IntArray
    users: IntArray
    n_edits: int


def add_noise(noise: InteractionNoise, splits, target_tokens: list[str]) -> None:
    """Edit the training split (see the module's docstring) and note in it what was done.

    ``noise_flags`` of a split are its :class:`NoiseFlags`, ``counts_before_noise`` of the training split the popularity
    by which targets and tail are chosen.
    """
    train = splits[0]
    train.counts_before_noise = genuine_item_counts(train)
    if not hasattr(train, "data_augmentation"):
        log = train.inter_feat
        noisy = _edit(noise, train, log, target_tokens, KEPT_ROWS)
        train.inter_feat = _noisy(train, log, noisy)
        train.noise_flags = NoiseFlags(noisy.is_noise, np.zeros(len(noisy.items), np.int64), noisy.users, noisy.n_edits)
    else:
        if train.benchmark_filename_list is not None:
            raise UserError(f"noise_ratio: expected 0 for sequences that are made already (benchmark_filename), "
                            f"got {noise.ratio}")  # fmt: skip
        parts = splits if noise.scope == "histories" else splits[:1]
        whole, part_of_row = history_of(parts)
        log = _take(whole, np.flatnonzero(part_of_row == 0))
        noisy = _edit(noise, train, log, target_tokens, KEPT_ROWS_OF_A_SEQUENCE)
        _rebuild(noise, parts, log, noisy, _take(whole, np.flatnonzero(part_of_row)), part_of_row[part_of_row > 0])
    train.raw_log = _with_noise(train.raw_log, train, log, noisy)


def history_of(parts) -> tuple[Interaction, IntArray]:
    """The log behind the prefixes of sequential splits: rows by user and time, and the split that each is from.

    Each user's first item has no row of its own: it is the history of the second, and counts to that one's split.
    """
    rows = {name: torch.cat([part.inter_feat[name] for part in parts]) for name in parts[0].inter_feat.columns}
    part_of_row = np.repeat(np.arange(len(parts)), [len(part.inter_feat) for part in parts])
    users = rows[parts[0].uid_field].numpy()
    leads = np.unique(users, return_index=True)[1]
    position = np.concatenate([np.zeros(len(leads)), np.arange(len(users)) + 1])
    order = np.lexsort((position, np.concatenate([users[leads], users])))
    log = {}
    for name in parts[0].raw_columns():
        lists = rows.get(name + parts[0].config["LIST_SUFFIX"])
        firsts = rows[name][leads] if lists is None else lists[leads][:, 0]
        log[name] = torch.cat([firsts, rows[name]])[order]
    return Interaction(log), np.concatenate([part_of_row[leads], part_of_row])[order]


def _edit(noise: InteractionNoise, train, log: Interaction, target_tokens: list[str], least_left: int) -> NoisyRows:
    ids = train.field2token_id[train.iid_field]
    targets = np.array([ids[token] for token in target_tokens], dtype=np.int64)
    users, items = log[train.uid_field].numpy().astype(np.int64), log[train.iid_field].numpy().astype(np.int64)
    known = train.raw_log.keys
    sizes = {"n_users": train.user_num, "n_items": train.item_num}
    return noise.edit(users, items, known, **sizes, protected=targets, least_left=least_left)


def _take(rows: Interaction, index: IntArray) -> Interaction:
    where = torch.from_numpy(np.ascontiguousarray(index))
    return Interaction({name: column[where] for name, column in rows.interaction.items()})


def _noisy(train, log: Interaction, noisy: NoisyRows) -> Interaction:
    """The rows of a log with noise: users and times by place, items as drawn, everything else by source."""
    rows, places = _take(log, noisy.source), _take(log, noisy.place)
    for name in (train.uid_field, train.time_field):
        if name in log:
            rows[name] = places[name]
    rows[train.iid_field] = torch.from_numpy(noisy.items).to(log[train.iid_field].dtype)
    return rows


def _rebuild(
    noise: InteractionNoise, parts, log: Interaction, noisy: NoisyRows, heldout: Interaction, heldout_part: IntArray
) -> None:
    """Make the prefixes of the noisy log, and of the held-out rows after it, and hand each split its own.

    Users come in the order of their first clean row, each one's rows in order of time: that of the clean split.
    """
    train = parts[0]
    rows = _noisy(train, log, noisy)
    rows = Interaction({name: torch.cat([rows[name], heldout[name]]) for name in rows.columns})
    part_of_row = np.concatenate([np.zeros(len(noisy.items), np.int64), heldout_part])
    is_noise = np.concatenate([noisy.is_noise, np.zeros(len(heldout_part), dtype=bool)])
    order = np.argsort(rows[train.uid_field].numpy(), kind="stable")
    rows, part_of_row, is_noise = _take(rows, order), part_of_row[order], is_noise[order]
    users = rows[train.uid_field].numpy()
    prefixes = augmented(train, rows, noise.seed)
    targets = np.flatnonzero(users[1:] == users[:-1]) + 1  # the rows that are the item of a prefix, in its order
    n_noise = np.concatenate([[0], np.cumsum(is_noise)])
    lengths = prefixes[train.item_list_length_field].numpy()
    in_history = n_noise[targets] - n_noise[targets - lengths]
    for number, part in enumerate(parts):
        mine = np.flatnonzero(part_of_row[targets] == number)
        clean_users, first_row = np.unique(part.inter_feat[train.uid_field].numpy(), return_index=True)
        first = first_row[np.searchsorted(clean_users, users[targets[mine]])]
        mine = mine[np.argsort(first, kind="stable")]
        found = _take(prefixes, mine)
        part.inter_feat = Interaction({name: found[name] for name in part.inter_feat.columns})
        part.noise_flags = NoiseFlags(is_noise[targets[mine]], in_history[mine], noisy.users, noisy.n_edits)


def _with_noise(raw: RawLog, train, log: Interaction, noisy: NoisyRows) -> RawLog:
    """The raw log with the noisy pairs in it, at the ratings and times of the rows that they were made of."""
    users, items = log[train.uid_field].numpy(), log[train.iid_field].numpy()
    rows = np.flatnonzero(noisy.is_noise)
    clean = raw.find(users, items)
    source, place = clean[noisy.source[rows]], clean[noisy.place[rows]]
    keys = users[noisy.place[rows]].astype(np.int64) * raw.n_items + noisy.items[rows]
    unique, first = np.unique(np.concatenate([keys, raw.keys]), return_index=True)  # of a moved pair, the new time
    ratings, times = raw.ratings, raw.timestamps
    return replace(
        raw,
        keys=unique,
        ratings=None if ratings is None else np.concatenate([ratings[source], ratings])[first],
        timestamps=None if times is None else np.concatenate([times[place], times])[first],
    )
