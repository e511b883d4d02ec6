"""Training rows with a weight each, for the losses of models that take one."""

from __future__ import annotations

import copy

import torch
from recbole.data.interaction import Interaction
from scipy.sparse import csr_matrix

from recbole_robust.data.instances import instances_of
from recbole_robust.data.loaders import with_rows
from recbole_robust.types import SAMPLE_WEIGHT, FloatArray


def weighted(loader, ratings: csr_matrix, weights: FloatArray):
    """A training loader of the same kind and seed as ``loader``, whose rows carry the weight of their pair.

    Rows of a pair that ``ratings`` does not have weigh 1. A sequence weighs what its last item, the target, does.
    Weights that the rows have already are multiplied.

    Args:
        ratings: of a ``DefenderView``: 0-based ids. Shape: ``(n_users, n_items)``.
        weights: one for each stored rating. Shape: ``(ratings.nnz,)``.
    """
    train = copy.copy(loader._dataset)
    rows = train.inter_feat
    users, items = (rows[field].numpy() - 1 for field in (train.uid_field, train.iid_field))
    less = csr_matrix((weights - 1.0, ratings.indices, ratings.indptr), shape=ratings.shape)
    of_rows = torch.from_numpy(1.0 + less[users, items].A1).float()
    if SAMPLE_WEIGHT in rows:
        of_rows = of_rows * rows[SAMPLE_WEIGHT]
    train.inter_feat = Interaction({**rows.interaction, SAMPLE_WEIGHT: of_rows})
    return with_rows(loader, train, loader._sampler)


def oracle_weighted(loader):
    """A training loader of the same kind and seed, whose sequences weigh 0 where noise or a fake user is in them.

    To compare with in experiments, never a defense: it reads the flags of the injected noise.
    """
    train = copy.copy(loader._dataset)
    found = instances_of(train)
    of_rows = torch.from_numpy(~(found.is_noisy | found.is_fake)).float()
    train.inter_feat = Interaction({**train.inter_feat.interaction, SAMPLE_WEIGHT: of_rows})
    return with_rows(loader, train, loader._sampler)
