"""Weights, their mean, and the folds of the users (P3, P18)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from recbole_robust.model.sequence_weights import (
    calibration,
    effective_size,
    folds_of,
    group_means,
    most_noise,
    odds_of_noise,
    per_group,
    sequence_weights,
    weighted_mean,
)

LOSSES, WEIGHTS = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 0.25, 0.25])


def test_weights_are_probabilities_above_the_floor():
    logits = torch.tensor([-50.0, 0.0, 1.0, 50.0])
    assert_close(sequence_weights(logits), torch.sigmoid(logits))
    assert_close(sequence_weights(logits, temperature=2.0), torch.sigmoid(logits / 2))
    assert_close(sequence_weights(logits, floor=0.2), 0.2 + 0.8 * torch.sigmoid(logits))
    assert sequence_weights(logits.half()).dtype == torch.float32


def test_the_mean_and_its_derivative():
    weights = WEIGHTS.clone().requires_grad_()
    loss = weighted_mean(LOSSES, weights)
    assert loss.item() == pytest.approx(0.5 + 0.5 + 1.0)
    loss.backward()
    assert_close(weights.grad, (LOSSES - loss.detach()) / WEIGHTS.sum())


@pytest.mark.parametrize("c", [1e-6, 0.3, 5.0])
def test_only_ratios_of_weights_count(c):
    assert_close(weighted_mean(LOSSES, c * WEIGHTS), weighted_mean(LOSSES, WEIGHTS))
    assert_close(weighted_mean(LOSSES, c * WEIGHTS, normalize=False), c * (WEIGHTS * LOSSES).mean())


def test_no_weight_at_all_is_no_loss():
    assert weighted_mean(LOSSES, torch.zeros(3)) == 0


def test_groups_of_equal_means():
    weights, groups = torch.tensor([0.1, 0.3, 0.9, 0.6, 0.3]), torch.tensor([0, 0, 1, 1, 1])
    means = group_means(weights, groups, 3)
    assert_close(means, torch.tensor([0.2, 0.6, 1.0]))
    assert_close(per_group(weights, groups, means), torch.tensor([0.5, 1.5, 1.5, 1.0, 0.5]))


@pytest.mark.parametrize(("ratio", "share"), [(0.5, 0.1), (0.2, 0.3), (0.7, 0.02)])
def test_what_the_recogniser_learned_from_a_noisy_log_is_taken_out(ratio, share):
    """Densities of four kinds of sequences: the odds that it would learn at best give back what is clean."""
    clean, noise = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    log = (1 - share) * clean + share * noise
    logits = torch.log((1 - ratio) * log / (ratio * noise))
    least = odds_of_noise(torch.tensor(share), ratio)
    found = sequence_weights(logits, least_odds=least)
    assert_close(found, (1 - share) * clean / log, atol=1e-6, rtol=0)
    assert_close(sequence_weights(logits, 1.0, 0.2, least), 0.2 + 0.8 * found)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.9])
def test_the_most_noise_that_a_log_can_hold(share):
    """Of a mixture that is known; what is clean reaches a little into what noise looks like."""
    generator = torch.Generator().manual_seed(3)
    n = 20000
    noise, other = (torch.randn(n, generator=generator) - 2 for _ in range(2))
    clean = torch.randn(n, generator=generator) + 2
    log = torch.where(torch.arange(n) < share * n, other, clean)
    assert most_noise(log, noise) == pytest.approx(share, abs=0.03)
    assert most_noise(log + 100, noise) == 0.0
    for nothing in (log - 100, noise):  # what could be noise is worth little, not nothing
        assert most_noise(nothing, noise) == pytest.approx(0.95)


@pytest.mark.parametrize("sureness", [0.5, 1.0, 5.0])
def test_calibrated_logits_are_the_odds_whatever_their_scale(sureness):
    """Of two normal distributions, whose odds are known; the classes need not be of one size."""
    generator = torch.Generator().manual_seed(3)
    log, noise = torch.randn(40000, generator=generator) + 0.5, torch.randn(20000, generator=generator) - 0.5
    scale, shift = calibration(sureness * log + 2, sureness * noise + 2, 0.25)  # the log of the odds: x + log 3
    assert scale * sureness == pytest.approx(1, abs=0.05)
    assert 2 * scale + shift == pytest.approx(math.log(3), abs=0.05)


def test_a_recogniser_that_knows_nothing_weighs_all_the_same():
    generator = torch.Generator().manual_seed(3)
    log, noise = (10 * torch.randn(20000, generator=generator) for _ in range(2))
    for of_log in (log, log - 3):  # no better than chance, and worse
        scale, shift = calibration(of_log, noise, 0.25)
        assert 0 <= scale < 0.002
        assert effective_size(sequence_weights(scale * log + shift, least_odds=3 * 0.5)) > 0.999
        assert effective_size(sequence_weights(log, least_odds=3 * 0.5)) < 0.6


def test_odds_below_those_of_noise_have_no_weight_and_a_finite_derivative():
    logits = torch.tensor([-1e4, -200.0, 0.0, 200.0], requires_grad=True)
    weights = sequence_weights(logits, least_odds=0.3)
    assert_close(weights, torch.tensor([0.0, 0.0, 0.7, 1.0]))
    weights.sum().backward()
    assert_close(logits.grad, torch.tensor([0.0, 0.0, 0.3, 0.0]))
    assert_close(sequence_weights(logits.detach(), least_odds=0.0), torch.ones(4))


def test_effective_size():
    assert effective_size(torch.full((7,), 0.3)) == pytest.approx(1)
    assert effective_size(torch.tensor([1.0, 0, 0, 0])) == pytest.approx(0.25)
    assert effective_size(torch.zeros(3)) == 0


@pytest.mark.parametrize("n_folds", [2, 4, 5])
def test_folds_are_of_equal_size_and_of_the_user_alone(n_folds):
    users = torch.arange(1, 20001)
    folds = folds_of(users, n_folds, seed=2020)
    sizes = torch.bincount(folds, minlength=n_folds)
    assert len(sizes) == n_folds and (sizes / sizes.float().mean() - 1).abs().max() < 0.05
    shuffled = torch.randperm(20000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(folds_of(users[shuffled], n_folds, seed=2020), folds[shuffled])
    other = folds_of(users, n_folds, seed=2021)
    assert abs((other == folds).float().mean() - 1 / n_folds) < 0.02, "another seed is another, independent partition"
    assert abs(np.corrcoef(folds[:-1], folds[1:])[0, 1]) < 0.03, "and so are neighbours"
