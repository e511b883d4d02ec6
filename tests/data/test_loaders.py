"""The fast training loader gives RecBole's batches: same sizes, same columns, each row once, fair negatives."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.dataloader import TrainDataLoader
from scipy.stats import chisquare
from toy_splits import FEATURES, average

from recbole_robust import UserError
from recbole_robust.data.load import prepare
from recbole_robust.data.loaders import NegativeSampler, TensorTrainDataLoader, with_rows

PAIRWISE = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
KINDS = {
    "pairwise": ("BPR", {}),
    "pairwise, 3 negatives": ("BPR", {"train_neg_sample_args": {**PAIRWISE, "sample_num": 3}}),
    "pointwise": ("NeuMF", {}),
    "pointwise, 4 negatives": ("NeuMF", {"train_neg_sample_args": {**PAIRWISE, "sample_num": 4}}),
    "raw ratings": ("MF", {}),
    "imputed ratings": ("MF", {"train_neg_sample_args": {**PAIRWISE, "distribution": "popularity"}}),
    "no sampling": ("Pop", {}),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def loader_of(toy_config, kind, poison=None, **keys):
    model, own = kind
    return prepare(toy_config(model, **{"train_batch_size": 100, **own, **keys}), poison)[0]


def epoch(loader) -> list[dict[str, torch.Tensor]]:
    return [batch.interaction for batch in loader]


def positives(loader, batches) -> Counter:
    """The positive (user, item) pairs of an epoch, once each."""
    times = loader.times if loader.neg_sample_args["distribution"] != "none" else 1
    pairs: Counter = Counter()
    for batch in batches:
        n = len(batch["user_id"]) // times
        pairs.update(zip(batch["user_id"][:n].tolist(), batch["item_id"][:n].tolist(), strict=True))
    return pairs


def negatives(loader, batches) -> tuple[torch.Tensor, torch.Tensor]:
    """Users and items of the negatives of an epoch."""
    if loader.negatives is None:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    if "neg_item_id" in batches[0]:
        return tuple(torch.cat([batch[name] for batch in batches]) for name in ("user_id", "neg_item_id"))
    parts = [(batch["user_id"][batch["label"] == 0], batch["item_id"][batch["label"] == 0]) for batch in batches]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def test_batches_have_the_sizes_the_columns_and_the_types_of_recbole_s(toy_config, kind):
    uniform = {"train_neg_sample_args": PAIRWISE} if kind == KINDS["imputed ratings"] else {}
    fast, stock = loader_of(toy_config, kind), loader_of(toy_config, kind, dataloader="recbole", **uniform)
    assert type(fast) is TensorTrainDataLoader
    assert type(stock) is TrainDataLoader
    assert len(fast) == len(stock)
    for ours, theirs in zip(epoch(fast), epoch(stock), strict=True):
        assert set(ours) == set(theirs)
        for name, column in theirs.items():
            assert ours[name].shape == column.shape, name
            assert ours[name].dtype == column.dtype, name
        if "label" in theirs:
            assert torch.equal(ours["label"], theirs["label"])


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_row_comes_once_an_epoch_with_its_own_columns(toy_config, kind, shuffle):
    loader = loader_of(toy_config, kind, average(n_fake_users=2), shuffle=shuffle)
    rows = loader._dataset.inter_feat
    expected = Counter(zip(rows["user_id"].tolist(), rows["item_id"].tolist(), strict=True))
    for _ in range(2):
        batches = epoch(loader)
        assert positives(loader, batches) == expected
        if "rating" in rows:
            seen = {(int(u), int(i)): float(r) for b in batches
                    for u, i, r in list(zip(b["user_id"], b["item_id"], b["rating"], strict=True))
                    [: len(b["rating"]) // loader.times]}  # fmt: skip
            assert seen == {(int(u), int(i)): float(r) for u, i, r in
                            zip(rows["user_id"], rows["item_id"], rows["rating"], strict=True)}  # fmt: skip
    first = batches[0]["user_id"][: loader.step]
    assert torch.equal(first, rows["user_id"][: loader.step]) is not shuffle


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_loader_of_other_rows_shuffles_as_the_first_one_does(toy_config, shuffle):
    loader = loader_of(toy_config, KINDS["pairwise"], shuffle=shuffle)
    other = with_rows(loader, loader._dataset, loader._sampler)
    assert type(other) is type(loader) and other.shuffle is shuffle


def test_shuffling_differs_between_epochs_and_is_the_seed_s(toy_config, kind):
    def two_epochs(seed):
        loader = loader_of(toy_config, kind, seed=seed, eval_args={"split": {"RS": [1.0, 0.0, 0.0]}, "order": "RO",
                                                                   "group_by": "user", "mode": "full"})  # fmt: skip
        return [torch.cat([torch.cat([part.double() for part in batch.values()]) for batch in epoch(loader)])
                for _ in range(2)]  # fmt: skip

    one, again, other = two_epochs(5), two_epochs(5), two_epochs(6)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], other[0])


def test_negatives_do_not_use_the_global_random_state(toy_config):
    loaders = [loader_of(toy_config, KINDS["pairwise"]) for _ in range(2)]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = epoch(loaders[0])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = epoch(loaders[1])
    assert all(torch.equal(a["neg_item_id"], b["neg_item_id"]) for a, b in zip(first, second, strict=True))


def test_negatives_are_never_train_rows_and_never_the_padding_item(toy_config, kind):
    loader = loader_of(toy_config, kind, average())
    rows = loader._dataset.inter_feat
    seen = set(zip(rows["user_id"].tolist(), rows["item_id"].tolist(), strict=True))
    for _ in range(3):
        users, items = negatives(loader, epoch(loader))
        assert len(users) == (0 if loader.negatives is None else len(rows) * loader.neg_sample_num)
        assert not seen & set(zip(users.tolist(), items.tolist(), strict=True))
        assert (items > 0).all()
        assert (items < loader._dataset.item_num).all()


def test_negatives_are_uniform_over_what_a_user_has_not_rated():
    users = torch.tensor([1, 1, 1, 2])
    sampler = NegativeSampler(users, torch.tensor([1, 2, 9, 5]), n_items=10)
    generator = torch.Generator().manual_seed(3)
    for user, unseen in ((1, [3, 4, 5, 6, 7, 8]), (2, [1, 2, 3, 4, 6, 7, 8, 9]), (3, list(range(1, 10)))):
        drawn = sampler.sample(torch.full((20_000,), user), generator).numpy()
        counts = np.bincount(drawn, minlength=10)
        assert set(np.flatnonzero(counts)) == set(unseen)
        assert chisquare(counts[unseen]).pvalue > 1e-4


@pytest.mark.parametrize("weight", [None, 0.25])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_popular_negatives_are_drawn_by_the_rows_of_an_item(alpha, weight):
    items = torch.tensor([1] * 8 + [2] * 4 + [3] * 2 + [4])
    weights = None
    if weight:  # four times the rows, each a quarter
        items, weights = items.repeat(4), torch.full((60,), weight)
    sampler = NegativeSampler(torch.arange(len(items)) + 10, items, n_items=7, alpha=alpha, weights=weights)
    drawn = sampler.sample(torch.ones(30_000, dtype=torch.long), torch.Generator().manual_seed(3)).numpy()
    expected = np.array([8, 4, 2, 1, 1, 1]) ** alpha  # an item without rows counts as one row
    assert chisquare(np.bincount(drawn, minlength=7)[1:], 30_000 * expected / expected.sum()).pvalue > 1e-4


def test_who_has_rated_all_that_is_rated_gets_a_negative_too():
    sampler = NegativeSampler(torch.tensor([1, 1, 1]), torch.tensor([1, 2, 3]), n_items=6, alpha=1.0)
    assert set(sampler.sample(torch.ones(500, dtype=torch.long), torch.Generator()).tolist()) == {4, 5}


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 11)), min_size=1, max_size=50),
    n_items=st.integers(13, 40),
    asked=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), max_size=40),
)
def test_the_sampler_knows_what_is_seen(pairs, n_items, asked):
    users, items = (torch.tensor(part) for part in zip(*pairs, strict=True))
    sampler = NegativeSampler(users, items, n_items)
    asked_users, asked_items = (torch.tensor([pair[k] for pair in asked], dtype=torch.long) for k in (0, 1))
    expected = [k for k, pair in enumerate(asked) if pair in set(pairs)]
    assert sampler.seen_among(asked_users, asked_items).tolist() == expected
    drawn = sampler.sample(asked_users, torch.Generator().manual_seed(0))
    assert not set(pairs) & set(zip(asked_users.tolist(), drawn.tolist(), strict=True))
    assert ((drawn >= 1) & (drawn < n_items)).all()


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("BPR", {"dataloader": "recbole"}),
        ("BPR", {"train_neg_sample_args": {**PAIRWISE, "dynamic": True, "candidate_num": 2}}),
        ("BPR", {"load_col": FEATURES}),
        ("SASRec", {"train_neg_sample_args": None}),
    ],
)
def test_where_the_fast_loader_does_not_apply_recbole_s_is_taken(toy_config, model, keys):
    assert type(loader_of(toy_config, (model, keys))) is TrainDataLoader


def test_k_may_be_all_items_and_no_more(toy_config):
    prepare(toy_config("BPR", topk=[60]))
    with pytest.raises(UserError, match="topk: expected at most 60"):
        prepare(toy_config("BPR", topk=[61]))
