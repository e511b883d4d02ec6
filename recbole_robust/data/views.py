"""What the attacker and the defender see of a training split, and the raw ratings behind it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from recbole_robust.arguments import share_of
from recbole_robust.types import AttackerView, DefenderView, FloatArray, IntArray, InteractionLog, Knowledge, UserError


@dataclass(frozen=True)
class RawLog:
    """Ratings and times as they stand in the file, before RecBole normalises, binarises or drops them.

    Of repeated (user, item) pairs the last one counts: the latest where there are timestamps, else the last line.

    Shape: every array is ``(n_pairs,)``; ``keys`` is ``user * n_items + item`` in RecBole ids, sorted, unique.
    """

    keys: IntArray
    n_items: int
    ratings: FloatArray | None
    timestamps: FloatArray | None

    @classmethod
    def of(cls, users: IntArray, items: IntArray, n_items: int, ratings, timestamps) -> RawLog:
        keys = users.astype(np.int64) * n_items + items
        if timestamps is not None and np.isnan(timestamps).any():  # a blank: the mean, as RecBole fills it
            timestamps = np.where(np.isnan(timestamps), np.nanmean(timestamps), timestamps)
        order = np.arange(len(keys)) if timestamps is None else np.argsort(timestamps, kind="stable")
        unique, last = np.unique(keys[order][::-1], return_index=True)
        last = order[::-1][last]
        return cls(
            unique,
            n_items,
            None if ratings is None else np.asarray(ratings, dtype=np.float64)[last],
            None if timestamps is None else np.asarray(timestamps, dtype=np.float64)[last],
        )

    def find(self, users: IntArray, items: IntArray) -> IntArray:
        """Positions of the pairs (RecBole ids), which must all be there. Shape: as ``users``."""
        return np.searchsorted(self.keys, users.astype(np.int64) * self.n_items + items)


def rating_grid(ratings: FloatArray | None) -> tuple[tuple[float, float], float]:
    """The range and the step of the ratings, as found: half stars give 0.5, continuous values 0."""
    if ratings is None or len(ratings) == 0:
        return (1.0, 1.0), 0.0
    values = np.unique(ratings)
    step = float(np.diff(values).min()) if 1 < len(values) <= 100 else 0.0
    return (float(values[0]), float(values[-1])), step


def _genuine_pairs(train) -> tuple[IntArray, IntArray]:
    """The distinct (user, item) pairs of a split, in RecBole ids. Shape: two of ``(n_pairs,)``."""
    matrix = train.inter_matrix(form="csr")  # RecBole's: sequential data give back each user's first item too
    matrix.sum_duplicates()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    genuine = rows < train.user_num - train.n_fake_users
    return rows[genuine].astype(np.int64), matrix.indices[genuine].astype(np.int64)


def genuine_item_counts(train) -> IntArray:
    """Genuine users of each item in a training split (before any noise), in RecBole ids. Shape: ``(n_items,)``."""
    if train.counts_before_noise is not None:
        return train.counts_before_noise
    return np.bincount(_genuine_pairs(train)[1], minlength=train.item_num)


def genuine_digest(train) -> str:
    """Sixteen hexadecimal digits of the genuine rows of a training split: tokens, raw ratings and times.

    What the rows' order is, and which columns the victim loads, does not matter: an attacker sees neither.
    """
    users, items = _genuine_pairs(train)
    raw: RawLog = train.raw_log
    where = raw.find(users, items)
    sha = hashlib.sha256()
    n_users = train.user_num - train.n_fake_users
    for table in (train.field2id_token[train.uid_field][:n_users], train.field2id_token[train.iid_field]):
        sha.update("\x1f".join(map(str, table)).encode())
    for ids in (users, items):
        sha.update(b"|" + ids.astype("<i8").tobytes())
    for values in (raw.ratings, raw.timestamps):
        sha.update(b"|" + (b"none" if values is None else values[where].astype("<f8").tobytes()))
    return sha.hexdigest()[:16]


def draw_known_users(n_users: int, share: float, rng: np.random.Generator) -> IntArray | None:
    """The users whose rows an attacker sees: a random share, rounded down, at least one; None: all of them.

    Shape: ``(n_known,)``, 0-based and ascending.

    Raises:
        UserError: no share in (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"known_users: expected a number in (0, 1], got {share!r}")
    if share == 1:
        return None
    return np.sort(rng.choice(n_users, size=max(1, share_of(share, n_users)), replace=False))


def attacker_view(train, knowledge: Knowledge = "white-box", known_users: IntArray | None = None) -> AttackerView:
    """The genuine rows of a training split of an ``AttackedDataset``, with 0-based ids and raw ratings.

    Args:
        known_users: the users whose rows are seen, ascending; the view has no others. None: all of them.

    Raises:
        UserError: none of the known users has a row.
    """
    users, items = _genuine_pairs(train)
    raw: RawLog = train.raw_log
    where = raw.find(users, items)
    n_users = train.user_num - train.n_fake_users - 1
    users, items = users - 1, items - 1
    if known_users is not None:
        row_of = np.full(n_users, -1, dtype=np.int64)
        row_of[known_users] = np.arange(len(known_users))
        seen = row_of[users] >= 0
        users, items, where, n_users = row_of[users[seen]], items[seen], where[seen], len(known_users)
        if not len(users):
            raise UserError(f"known_users: expected users with training rows, got {n_users} without any")
    ratings = np.ones(len(users)) if raw.ratings is None else raw.ratings[where]
    log = None
    if raw.timestamps is not None:
        times = raw.timestamps[where]
        order = np.argsort(times, kind="stable")
        log = InteractionLog(users[order], items[order], ratings[order], times[order])
    low, high = train.rating_range
    matrix = csr_matrix((ratings, (users, items)), shape=(n_users, train.item_num - 1))
    newcomers = None if train.newcomers is None else train.newcomers.to_profiles(train.field2token_id[train.iid_field])
    return AttackerView(matrix, low, high, train.rating_step, knowledge, log, newcomers)


def defender_view(train) -> DefenderView:
    """All rows of a (poisoned) training split, genuine or not, with 0-based ids and ratings in stars."""
    matrix = train.inter_matrix(form="csr")
    matrix.sum_duplicates()
    users = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)).astype(np.int64)
    items = matrix.indices.astype(np.int64)
    ratings = np.ones(len(users))
    first_fake = train.user_num - train.n_fake_users
    genuine = users < first_fake
    if train.raw_log.ratings is not None:
        ratings[genuine] = train.raw_log.ratings[train.raw_log.find(users[genuine], items[genuine])]
    if train.n_fake_users:
        fake = train.profiles.to_csr(train.item_num - 1)
        ratings[~genuine] = np.asarray(fake[users[~genuine] - first_fake, items[~genuine] - 1]).ravel()
    low, high = train.rating_range
    shape = (train.user_num - 1, train.item_num - 1)
    return DefenderView(csr_matrix((ratings, (users - 1, items - 1)), shape=shape), low, high, train.rating_step)
