"""The corruptor: how many sequences are noisy, in how many places, and what stays as it was (P7)."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from recbole_robust.model.sequence_noise import SequenceCorruptor

N_ITEMS, WIDTH = 30, 10


@pytest.fixture
def batch():
    """64 padded sequences of 1 to 10 items, with their lengths and targets."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, WIDTH + 1, (64,), generator=generator)
    sequences = torch.randint(1, N_ITEMS, (64, WIDTH), generator=generator)
    sequences *= torch.arange(WIDTH) < lengths[:, None]
    return sequences, lengths, torch.randint(1, N_ITEMS, (64,), generator=generator)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("n_replaced", [1, 3, 0.25])
def test_it_changes_what_it_says(batch, ratio, n_replaced):
    sequences, lengths, targets = batch
    before = sequences.clone(), targets.clone()
    found = SequenceCorruptor(N_ITEMS, ratio, n_replaced)(*batch, generator=seeded())
    noisy = found.is_clean == 0
    assert noisy.sum() == int(64 * ratio)
    wanted = (n_replaced * lengths).ceil() if n_replaced < 1 else torch.full_like(lengths, n_replaced)
    n_changed = (found.sequences != sequences).sum(dim=1)
    assert torch.equal(n_changed, torch.where(noisy, torch.minimum(wanted, lengths), 0).long())
    assert torch.equal(found.sequences == 0, sequences == 0) and found.sequences.max() < N_ITEMS
    assert torch.equal(found.targets, targets)
    assert torch.equal(sequences, before[0]) and torch.equal(targets, before[1]), "the input stays"


def test_a_seed_is_one_noise_and_leaves_the_global_stream(batch):
    state = torch.get_rng_state()
    first, again, other = (SequenceCorruptor(N_ITEMS)(*batch, generator=seeded(seed)) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again)) and not torch.equal(first.sequences, other.sequences)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_position_and_every_item_is_as_likely():
    """2,000 sequences of one item over and over: chi-squared at p = 0.001, seeded."""
    sequences, lengths = torch.full((2000, WIDTH), 7), torch.full((2000,), WIDTH)
    found = SequenceCorruptor(N_ITEMS, ratio=1.0)(sequences, lengths, lengths, generator=seeded())
    row, place = (found.sequences != 7).nonzero(as_tuple=True)
    assert torch.equal(row, torch.arange(2000))
    assert chisquare(torch.bincount(place, minlength=WIDTH)).pvalue > 0.001
    counts = torch.bincount(found.sequences[row, place], minlength=N_ITEMS)
    assert counts[0] == counts[7] == 0
    assert chisquare(counts[[i for i in range(1, N_ITEMS) if i != 7]]).pvalue > 0.001


def test_items_by_popularity(batch):
    popularity = torch.zeros(N_ITEMS)
    popularity[3], popularity[4] = 300, 100
    sequences, lengths = torch.full((2000, WIDTH), 7), torch.full((2000,), WIDTH)
    corruptor = SequenceCorruptor(N_ITEMS, ratio=1.0, popularity=popularity)
    counts = torch.bincount(corruptor(sequences, lengths, lengths, generator=seeded()).sequences.flatten())
    assert counts[3] + counts[4] == 2000 and abs(int(counts[3]) - 1500) < 80
    found = corruptor(torch.full((50, 3), 3), torch.full((50,), 3), torch.full((50,), 3), generator=seeded())
    assert ((found.sequences != 3).sum(dim=1) == 1).all(), "never the item that it replaces"


def test_the_target_instead_of_the_history(batch):
    sequences, _, targets = batch
    found = SequenceCorruptor(N_ITEMS, 0.5, target_prob=1.0)(*batch, generator=seeded())
    assert torch.equal(found.targets != targets, found.is_clean == 0) and torch.equal(found.sequences, sequences)
    assert found.targets.min() > 0
    found = SequenceCorruptor(N_ITEMS, 1.0, target_prob=0.5)(*batch, generator=seeded())
    in_target, in_history = found.targets != targets, (found.sequences != sequences).any(dim=1)
    assert torch.equal(in_target, ~in_history) and 16 < in_target.sum() < 48
