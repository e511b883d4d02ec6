"""Sequential data for context-aware models: the history is a field like any other."""

from __future__ import annotations

import numpy as np
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureType


class SequentialContextDataset(SequentialDataset):
    """RecBole's ``SequentialDataset``, whose list fields have a vocabulary.

    RecBole gives ``item_id_list`` a type but no tokens, so that a model that asks how many there are fails. They are
    those of ``item_id``. The length of a history, a token too, has itself as its token.
    """

    def _aug_presets(self) -> None:
        super()._aug_presets()
        suffix, length = self.config["LIST_SUFFIX"], self.item_list_length_field
        for name in list(self.inter_feat):
            if name != self.uid_field and self.field2type[name] in (FeatureType.TOKEN, FeatureType.TOKEN_SEQ):
                self.field2id_token[name + suffix] = self.field2id_token[name]
                self.field2token_id[name + suffix] = self.field2token_id[name]
        tokens = ["[PAD]", *(str(n) for n in range(1, self.max_item_list_len + 1))]
        self.field2id_token[length] = np.array(tokens)
        self.field2token_id[length] = {token: number for number, token in enumerate(tokens)}
