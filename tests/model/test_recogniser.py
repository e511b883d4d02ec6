"""The recognisers: what they must not look at, and that they learn (P10)."""

from __future__ import annotations

import pytest
import torch
from markov_sequences import walks
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from recbole_robust.model.recogniser import PReLU, TargetAttentionRecogniser, build_recogniser, dropped
from recbole_robust.model.sequence_noise import SequenceCorruptor

NAMES = ["paper", "gru"]


@pytest.fixture(params=NAMES)
def recogniser(request):
    torch.manual_seed(0)
    return build_recogniser(request.param, n_items=20, dim=4, dropout=0.5, mean_pool=True)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 3, 6, 6])
    sequences = torch.randint(1, 20, (4, 6), generator=generator) * (torch.arange(6) < lengths[:, None])
    return sequences, lengths, torch.tensor([3, 5, 7, 9])


def test_padding_does_not_matter(recogniser, batch):
    sequences, lengths, targets = batch
    logits = recogniser(*batch)
    assert logits.shape == (4,)
    assert_close(recogniser(F.pad(sequences, (0, 5)), lengths, targets), logits)
    assert_close(recogniser(sequences[:1, :1], lengths[:1], targets[:1]), logits[:1])


def test_history_and_target_do(recogniser, batch):
    sequences, lengths, targets = batch
    logits = recogniser(*batch)
    assert (recogniser(sequences, lengths, targets % 19 + 1) != logits).all()
    other = sequences.clone()
    other[:, 0] = other[:, 0] % 19 + 1
    assert (recogniser(other, lengths, targets) != logits).all()


def test_only_the_gru_sees_the_order(recogniser, batch):
    sequences, lengths, targets = (part[2:] for part in batch)
    turned = recogniser(sequences.flip(1), lengths, targets)
    is_blind = isinstance(recogniser, TargetAttentionRecogniser)
    assert torch.allclose(turned, recogniser(sequences, lengths, targets), atol=1e-6) == is_blind


def test_dropout_is_the_generators_alone(recogniser, batch):
    state = torch.get_rng_state()
    quiet = recogniser.train()(*batch)
    assert_close(quiet, recogniser.eval()(*batch), rtol=0, atol=0)
    first, again, other = (recogniser(*batch, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, quiet)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(rate):
    """And drops the share that it says, whatever the shape; the gradient is that of what is kept."""
    x = torch.ones(333, 301, requires_grad=True)
    found = dropped(x, rate, torch.Generator().manual_seed(0))
    assert abs((found == 0).float().mean() - rate) < 0.01 and abs(found.mean() - 1) < 0.02
    found.sum().backward()
    assert torch.equal(x.grad, found.detach())


def test_the_rectifier_is_torchs():
    x, ours, theirs = torch.randn(50, 7), PReLU(), nn.PReLU()
    found = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        found.append((layer(x), leaf.grad, layer.weight.grad))
    for mine, expected in zip(*found, strict=True):
        assert_close(mine, expected)


def test_the_attention_is_the_network_on_four_blocks(batch):
    """The first layer, taken apart, is the one that is written down: ``[h, t, h - t, h * t]`` through one matrix."""
    torch.manual_seed(0)
    model = TargetAttentionRecogniser(20, dim=4)
    h, target, row = torch.randn(5, 4), torch.randn(2, 4), torch.tensor([0, 0, 1, 1, 1])
    t = target[row]
    x = model.compare(torch.cat([h, t, h - t, h * t], dim=1))
    for layer in model.attend:
        x = layer(x)
    assert_close(model._attention(h, target, row, None), model.score(x))


@pytest.mark.parametrize("name", NAMES)
def test_categories_are_seen_and_follow_the_item(name, batch):
    """Of two items alike in all but their category one is not the other; of the same category they are."""
    sequences, lengths, targets = batch
    categories = torch.arange(20) % 4
    torch.manual_seed(0)
    model = build_recogniser(name, 20, dim=4, dropout=0.0, mean_pool=True, categories=categories)
    with torch.no_grad():
        model.items.weight[1:] = model.items.weight[1]
    logits = model(*batch)
    assert_close(model(sequences, lengths, (targets + 3) % 16 + 1), logits)
    assert (model(sequences, lengths, targets + 1) != logits).all()
    assert "category_of" not in model.state_dict()


def test_the_padding_item_is_never_learned(recogniser, batch):
    recogniser(*batch).sum().backward()
    assert recogniser.items.weight[0].abs().max() == 0 and recogniser.items.weight.grad[0].abs().max() == 0


def learned(name: str, steps: int, lr: float) -> float:
    """AUC of a recogniser on the replaced items of users that it has not seen."""
    torch.manual_seed(0)
    items = torch.from_numpy(walks(1200, 12, 100, 5, stay=0.98, seed=0))
    recogniser = build_recogniser(name, n_items=101, dim=8, dropout=0.2, mean_pool=True)
    corruptor, generator = SequenceCorruptor(101), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(recogniser.parameters(), lr=lr)
    for _ in range(steps):
        rows = items[torch.randint(600, (256,), generator=generator)]
        logit, is_clean = of_noisy(recogniser, corruptor, rows, generator, generator)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logit, is_clean).backward()
        optimizer.step()
    with torch.no_grad():
        logit, is_clean = of_noisy(recogniser, corruptor, items[600:], generator, None)
    return float(roc_auc_score(is_clean, logit))


def of_noisy(recogniser: nn.Module, corruptor: SequenceCorruptor, rows, noise, dropout):
    lengths = torch.full((len(rows),), rows.shape[1] - 1)
    found = corruptor(rows[:, :-1], lengths, rows[:, -1], generator=noise)
    return recogniser(found.sequences, lengths, found.targets, dropout), found.is_clean


@pytest.mark.parametrize(
    ("name", "steps", "lr"), [pytest.param("paper", 400, 0.02, marks=pytest.mark.slow), ("gru", 80, 0.02)]
)
def test_it_learns_to_tell_replaced_items_of_users_it_has_never_seen(name, steps, lr):
    assert learned(name, 0, lr) < 0.6
    assert learned(name, steps, lr) > 0.65
