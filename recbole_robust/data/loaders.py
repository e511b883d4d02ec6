"""A training loader that slices tensors: the batches of RecBole's, without its per-row Python."""

from __future__ import annotations

import torch
from recbole.data.dataloader import TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.utils import InputType, ModelType
from torch import Tensor


class NegativeSampler:
    """Uniform negatives that a user has not interacted with, by rejection against a sorted list of pairs.

    Shape: ``users`` and ``items`` are ``(n_pairs,)``, in RecBole ids (item 0 is padding and never drawn).
    """

    def __init__(self, users: Tensor, items: Tensor, n_items: int) -> None:
        self.n_items = n_items
        self.pairs = torch.unique(users * n_items + items)  # sorted

    def is_seen(self, users: Tensor, items: Tensor) -> Tensor:
        """Whether each pair is in the training rows. Shape: as ``users``, bool."""
        keys = users * self.n_items + items
        where = torch.searchsorted(self.pairs, keys).clamp_(max=len(self.pairs) - 1)
        return self.pairs[where] == keys

    def sample(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """One negative item for each user. Shape: as ``users``."""
        items = torch.randint(1, self.n_items, users.shape, generator=generator)
        again = self.is_seen(users, items).nonzero().squeeze(1)
        while len(again):
            items[again] = torch.randint(1, self.n_items, again.shape, generator=generator)
            again = again[self.is_seen(users[again], items[again])]
        return items


class TensorTrainDataLoader(TrainDataLoader):
    """RecBole's ``TrainDataLoader`` with whole-epoch shuffling, slicing and vectorised negatives.

    Same batches in distribution (same sizes, same columns, each row once an epoch, negatives outside the user's
    training rows); not the same random numbers: ``dataloader: recbole`` gives those.
    """

    def __init__(self, config, dataset, sampler, shuffle=False):
        super().__init__(config, dataset, sampler, shuffle=shuffle)
        self.negatives = None
        if self.neg_sample_args["distribution"] == "uniform":
            rows = dataset.inter_feat
            self.negatives = NegativeSampler(rows[self.uid_field], rows[self.iid_field], dataset.item_num)

    def __iter__(self):
        rows = self._dataset.inter_feat
        columns = rows.interaction
        if self.shuffle:
            order = torch.randperm(len(rows), generator=self.generator)
            columns = {name: column[order] for name, column in columns.items()}
        for start in range(0, len(rows), self.step):
            batch = {name: column[start : start + self.step] for name, column in columns.items()}
            yield Interaction(batch if self.negatives is None else self._with_negatives(batch))

    def _with_negatives(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        n = len(batch[self.uid_field])
        pairwise = self.dl_format == InputType.PAIRWISE
        batch = {name: column.repeat(self.times, *[1] * (column.dim() - 1)) for name, column in batch.items()}
        if pairwise:
            negatives = self.negatives.sample(batch[self.uid_field], self.generator)
            return {**batch, self.neg_item_id: negatives}
        negatives = self.negatives.sample(batch[self.uid_field][n:], self.generator)
        batch[self.iid_field] = torch.cat([batch[self.iid_field][:n], negatives])
        label = torch.zeros(n * self.times)
        label[:n] = 1.0
        return {**batch, self.label_field: label}


def fast_loader_applies(config, dataset) -> bool:
    """Whether :class:`TensorTrainDataLoader` gives what RecBole's loader would: general models, plain sampling."""
    sampling = config["train_neg_sample_args"]
    return (
        config["dataloader"] == "fast"
        and config["MODEL_TYPE"] in (ModelType.GENERAL, ModelType.TRADITIONAL)
        and sampling["distribution"] in ("uniform", "none")
        and not sampling["dynamic"]
        and not config["transform"]
        and config["single_spec"]
        and dataset.user_feat is None
        and dataset.item_feat is None
    )


def use_fast_loader(config, train_data):
    """The fast form of RecBole's training loader where it applies, else the loader itself."""
    if type(train_data) is not TrainDataLoader or not fast_loader_applies(config, train_data._dataset):
        return train_data
    return TensorTrainDataLoader(config, train_data._dataset, train_data._sampler, shuffle=config["shuffle"])

