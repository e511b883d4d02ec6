"""One instance a user, and other users to test on: the evaluation of ATJT's authors."""

from __future__ import annotations

import numpy as np
import torch

from recbole_robust.randomness import stage_rng


def one_instance_a_user(splits: list, n_folds: int, seed: int) -> list:
    """Train, valid and test by users: each has one row, the last item of the log after all that came before it.

    One fold of the users is for testing and one for validation, drawn by the seed: nobody is trained on there. (The
    authors test on one of five, too, and validate on none.)

    Args:
        splits: those of a sequential data set that leaves the last item out; changed in place.
        n_folds: at least 3.
    """
    last = splits[2].inter_feat
    fold = np.empty(len(last), dtype=np.int64)
    fold[stage_rng(seed, "user folds").permutation(len(last))] = np.arange(len(last)) % n_folds
    for split, mine in zip(splits, (fold > 1, fold == 1, fold == 0), strict=True):
        split.inter_feat = last[torch.from_numpy(np.flatnonzero(mine))]
    return splits
