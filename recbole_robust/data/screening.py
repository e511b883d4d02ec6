"""Users that a detector has flagged leave the training rows; nobody leaves the evaluation."""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray
from recbole.sampler import Sampler

from recbole_robust.data.loaders import with_rows
from recbole_robust.types import UserError


def without_users(train, flagged: NDArray[np.bool_]):
    """A training split without the rows of some users; ids, features and the number of users stay.

    Args:
        flagged: by 0-based id, as in a ``DefenderView``. Shape: ``(n_users,)``.

    Raises:
        UserError: no row is left.
    """
    kept = ~np.concatenate([[False], flagged])[train.inter_feat[train.uid_field].numpy()]
    if not kept.any():
        raise UserError(f"defense: expected some users to train on, got all {int(flagged.sum())} flagged")
    clean = copy.copy(train)
    clean.inter_feat = train.inter_feat[kept]
    clean.n_genuine_rows = int(kept[: train.n_genuine_rows].sum())
    return clean


def screened(loader, flagged: NDArray[np.bool_]):
    """A training loader without the rows of some users, of the same kind and seed as ``loader``."""
    rows, sampler = without_users(loader._dataset, flagged), loader._sampler
    if type(sampler) is Sampler and sampler.distribution == "popularity":  # flagged users make nothing popular
        datasets = [
            rows if phase == "train" else data for phase, data in zip(sampler.phases, sampler.datasets, strict=True)
        ]
        sampler = Sampler(sampler.phases, datasets, "popularity", sampler.alpha).set_phase("train")
    return with_rows(loader, rows, sampler)
