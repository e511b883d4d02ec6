"""The training sequences of a split, one by one: whose they are, where in the log, and whether noise is in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recbole_robust.data.noise import rank_in_group
from recbole_robust.types import IntArray


@dataclass(frozen=True)
class Instances:
    """One row a training sequence, in the order of the split. The flags are for evaluation only.

    Attributes:
        users, items: tokens of the user and of the target.
        positions: place of the target in the user's training log; 0, the first item, has no sequence of its own.
        history_noise: noisy items in the history.
        target_noise: whether the target is noise.
        is_fake: whether it is a fake user's.

    Shape: all ``(n_rows,)``.
    """

    users: NDArray[np.str_]
    items: NDArray[np.str_]
    positions: IntArray
    history_noise: IntArray
    target_noise: NDArray[np.bool_]
    is_fake: NDArray[np.bool_]

    @property
    def is_noisy(self) -> NDArray[np.bool_]:
        """Whether anything in the sequence is noise."""
        return self.target_noise | (self.history_noise > 0)


def instances_of(train) -> Instances:
    """The sequences of a training split, before any defense has taken rows away."""
    users, items = (train.inter_feat[name].numpy() for name in (train.uid_field, train.iid_field))
    n, n_genuine = len(users), len(users) if not train.n_fake_users else train.n_genuine_rows
    history, target = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
    if train.noise_flags is not None:
        history[:n_genuine], target[:n_genuine] = train.noise_flags.in_history, train.noise_flags.rows
    return Instances(
        users=np.asarray(train.id2token(train.uid_field, users), dtype=str),
        items=np.asarray(train.id2token(train.iid_field, items), dtype=str),
        positions=1 + rank_in_group(users, np.arange(n, dtype=np.float64)),
        history_noise=history,
        target_noise=target,
        is_fake=np.arange(n) >= n_genuine,
    )
