"""A training loader that slices tensors: the batches of RecBole's, without its per-row Python."""

from __future__ import annotations

import torch
from recbole.data.dataloader import TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.utils import InputType, ModelType
from torch import Tensor

from recbole_robust.types import SAMPLE_WEIGHT, UserError


class NegativeSampler:
    """Negatives that a user has not interacted with, by rejection against a sorted list of pairs.

    An item is drawn in proportion to its number of rows (at least 1), fake ones too, to the power of ``alpha``. Rows
    that weigh less count for less: else a group whose praise is not believed would bury an item by its mere number.

    Shape: ``users``, ``items`` and ``weights`` are ``(n_rows,)``, in RecBole ids (item 0 is padding and never drawn).
    """

    def __init__(
        self, users: Tensor, items: Tensor, n_items: int, alpha: float = 0.0, weights: Tensor | None = None
    ) -> None:
        self.n_items = n_items
        self.cumulative = None
        if alpha:
            # A row at least: who has rated all that others have must find a negative too.
            counts = torch.bincount(items, weights, minlength=n_items)[1:]
            self.cumulative = counts.clamp(min=1).double().pow(alpha).cumsum(0)
        self.pairs = torch.unique(users * n_items + items)  # sorted
        # A sieve in front of the binary search: a pair whose slot is empty is surely unseen. With 8 slots a pair at
        # most one negative in eight has to be searched for.
        n_slots = 1 << (8 * max(1, len(self.pairs)) - 1).bit_length()
        self.slot_mask = n_slots - 1
        self.sieve = torch.zeros(n_slots, dtype=torch.bool)
        self.sieve[self.pairs & self.slot_mask] = True

    def seen_among(self, users: Tensor, items: Tensor) -> Tensor:
        """The positions of the pairs that are in the training rows. Shape: ``(n_seen,)``, ascending."""
        keys = users * self.n_items + items
        maybe = self.sieve[keys & self.slot_mask].nonzero().squeeze(1)
        keys = keys[maybe]
        where = torch.searchsorted(self.pairs, keys).clamp_(max=len(self.pairs) - 1)
        return maybe[self.pairs[where] == keys]

    def sample(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """One negative item for each user. Shape: as ``users``."""
        items = self._draw(users.shape, generator)
        again = self.seen_among(users, items)
        while len(again):
            items[again] = self._draw(again.shape, generator)
            again = again[self.seen_among(users[again], items[again])]
        return items

    def _draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        if self.cumulative is None:
            return torch.randint(1, self.n_items, shape, generator=generator)
        place = torch.rand(shape, generator=generator, dtype=torch.double).mul_(self.cumulative[-1])
        return torch.searchsorted(self.cumulative, place, right=True).clamp_(max=self.n_items - 2) + 1


class TensorTrainDataLoader(TrainDataLoader):
    """RecBole's ``TrainDataLoader`` with whole-epoch shuffling, slicing and vectorised negatives.

    Same batches in distribution (same sizes, same columns, each row once an epoch, negatives outside the user's
    training rows); not the same random numbers: ``dataloader: recbole`` gives those. Popularity is that of the training
    rows; RecBole counts valid and test rows too.
    """

    def __init__(self, config, dataset, sampler, shuffle=False):
        super().__init__(config, dataset, sampler, shuffle=shuffle)
        self.negatives = None
        distribution, alpha = self.neg_sample_args["distribution"], self.neg_sample_args["alpha"]
        if distribution != "none":
            rows = dataset.inter_feat
            alpha = alpha if distribution == "popularity" else 0.0
            weights = rows.interaction.get(SAMPLE_WEIGHT)
            users, items = rows[self.uid_field], rows[self.iid_field]
            self.negatives = NegativeSampler(users, items, dataset.item_num, alpha, weights)

    def __iter__(self):
        rows = self._dataset.inter_feat
        columns = rows.interaction
        if self.shuffle:
            order = torch.randperm(len(rows), generator=self.generator)
            columns = {name: column[order] for name, column in columns.items()}
        if self.negatives is not None:  # for the whole epoch at once: a few long vectors instead of many short ones
            users = columns[self.uid_field].repeat(self.neg_sample_num)
            negatives = self.negatives.sample(users, self.generator).view(self.neg_sample_num, -1)
        for start in range(0, len(rows), self.step):
            here = slice(start, start + self.step)
            batch = {name: column[here] for name, column in columns.items()}
            yield Interaction(batch if self.negatives is None else self._with_negatives(batch, negatives[:, here]))

    def _with_negatives(self, batch: dict[str, Tensor], negatives: Tensor) -> dict[str, Tensor]:
        """A batch in RecBole's layout: rows repeated ``times``, the negatives in the order of the repeats."""
        n, negatives = negatives.shape[1], negatives.reshape(-1)
        if self.times > 1:
            batch = {name: column.repeat(self.times, *[1] * (column.dim() - 1)) for name, column in batch.items()}
        if self.dl_format == InputType.PAIRWISE:
            return {**batch, self.neg_item_id: negatives}
        batch[self.iid_field] = torch.cat([batch[self.iid_field][:n], negatives])
        label = torch.zeros(n * self.times)
        label[:n] = 1.0
        return {**batch, self.label_field: label}


def against_fast_loader(config, dataset) -> dict[str, str]:
    """The keys that ask for what :class:`TensorTrainDataLoader` does not do, each with what it would need there."""
    with_features = dataset.user_feat is not None or dataset.item_feat is not None
    needs = {
        "dataloader": (config["dataloader"] == "fast", "fast"),
        "train_neg_sample_args.dynamic": (not config["train_neg_sample_args"]["dynamic"], "false"),
        "transform": (not config["transform"], "none"),
        "load_col": (not with_features, "no features of users and items"),
    }
    return {key: expected for key, (holds, expected) in needs.items() if not holds}


def fast_loader_applies(config, dataset) -> bool:
    """Whether :class:`TensorTrainDataLoader` gives what RecBole's loader would: general models, plain sampling."""
    is_general = config["MODEL_TYPE"] in (ModelType.GENERAL, ModelType.TRADITIONAL)
    return bool(is_general and config["single_spec"] and not against_fast_loader(config, dataset))


def use_fast_loader(config, train_data):
    """The fast form of RecBole's training loader where it applies, else the loader itself.

    Raises:
        UserError: unrated pairs of a model of ratings by popularity, which RecBole counts in valid and test rows too.
    """
    against = against_fast_loader(config, train_data._dataset)
    by_popularity = config["train_neg_sample_args"]["distribution"] == "popularity"
    if against and by_popularity and getattr(config, "is_explicit", False):
        key, expected = next(iter(against.items()))
        raise UserError(
            f"{key}: expected {expected} beside unrated pairs by popularity, which RecBole's own loader counts in "
            f"test rows too (--train_neg_sample_args=~ goes without), got {config[key.split('.')[0]]}"
        )
    if type(train_data) is not TrainDataLoader or not fast_loader_applies(config, train_data._dataset):
        return train_data
    return TensorTrainDataLoader(config, train_data._dataset, train_data._sampler, shuffle=config["shuffle"])


def with_rows(loader, train, sampler):
    """A training loader of the same kind and seed as ``loader`` on other rows."""
    return type(loader)(loader.config, train, sampler, shuffle=loader.shuffle)
