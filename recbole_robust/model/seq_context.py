"""Context-aware models (DCN, WideDeep, DeepFM ...) that see the user's sequence: one more field, a list of items.

Their data set is :class:`recbole_robust.data.seq_context.SequentialContextDataset`.
"""

from __future__ import annotations

import functools

from recbole.model.abstract_recommender import ContextRecommender
from recbole.utils import ModelType

from recbole_robust.types import UserError

PREFIX = "Seq"  # SeqDCN is DCN with the sequence


@functools.cache
def as_sequential(base: type) -> type:
    """The sequential form of a context-aware model: same layers, and a history field beside the others.

    RecBole's context-aware models embed every field of the data set; the history is a token sequence, whose vectors,
    from a table of its own, are averaged over what is no padding. So nothing but the model's type has to change: it
    decides on split, augmentation and evaluation.

    Raises:
        UserError: no context-aware model, or one of two towers, which takes no field of the interactions.
    """
    if not issubclass(base, ContextRecommender) or base.__name__ == "DSSM":
        raise UserError(f"model: expected a context-aware model of one tower beneath {PREFIX}, got {base.__name__}")
    members = {"type": ModelType.SEQUENTIAL, "base_class": base, "sees_history": True, "__doc__": base.__doc__}
    return type(f"{PREFIX}{base.__name__}", (base,), members)
