"""Laws of DPA2DL: its loss, its model, and the chance that keeps fakes apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from recbole_robust.attacks.dpa2dl import DPA2DL, Poisoned
from recbole_robust.attacks.gradient import Audience
from recbole_robust.types import AttackerView, Budget, UserError

ATTACK = DPA2DL(n_factors=5, reg=2.0, top_k=10, n_blocks=3, n_epochs=15)
TARGETS = np.array([40, 59])
BUDGET = Budget(n_fake_users=9, n_fillers=8)


@pytest.fixture
def fitted(view):
    def fit(attack: DPA2DL = ATTACK, on: AttackerView = view):
        surrogate = attack.fit(on, np.random.default_rng(0))
        return surrogate, Audience.of(on, surrogate, TARGETS), attack.values(on, surrogate, TARGETS)

    return fit


@pytest.mark.parametrize("kind", ["explicit", "implicit"])
def test_the_models_loss_is_that_of_the_data_with_the_fakes_in_it(view, fitted, kind):
    surrogate, _, values = fitted(replace(ATTACK, surrogate=kind))
    model = Poisoned(surrogate, values)
    fakes = [torch.tensor([40, 59, 3]), torch.tensor([40, 59])]
    model.enter(fakes[:1])
    model.settle(fakes[:1])
    model.enter(fakes[1:])
    dense = np.vstack([view.ratings.toarray(), np.zeros((2, 60))])
    for row, items in enumerate(fakes, start=80):
        dense[row, items] = values[items]
    rated, x = dense > 0, torch.cat([model.x, model.x_fake])
    assert x.shape == (82, 5)
    p = dense if kind == "explicit" else rated * 1.0
    scores = (x @ model.y.T).numpy()
    total = surrogate.c1 * ((p - scores)[rated] ** 2).sum() + surrogate.c0 * (scores[~rated] ** 2).sum()
    total += surrogate.reg * float((x**2).sum() + (model.y**2).sum())
    assert float(model.loss()) == pytest.approx(total / rated.sum(), rel=1e-4)


def test_the_attacks_loss_written_out(view, fitted):
    surrogate, audience, values = fitted()
    model = Poisoned(surrogate, values)
    model.unit = 0.3
    users = torch.tensor([1, 7, 40, 79])
    scores = (surrogate.x @ surrogate.y.T).numpy() / 0.3
    rated, expected = view.ratings.toarray() > 0, []
    for user in users.tolist():
        best = np.sort(scores[user][~rated[user]])[-10]
        for target in TARGETS:
            margin = np.log1p(np.exp(-scores[user, target])) - np.log1p(np.exp(-best))
            expected.append(0.0 if rated[user, target] else max(margin, -0.1))
    found = replace(ATTACK, kappa=0.1).attack_loss(model, audience, users)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-4, abs=1e-6)


def test_training_lifts_the_targets_in_the_model(fitted):
    surrogate, audience, values = fitted()
    everybody = torch.arange(80)
    losses = []
    for weight in (0.0, 5.0):
        attack, model = replace(ATTACK, attack_weight=weight, n_epochs=30), Poisoned(surrogate, values)
        model.unit = 0.3
        model.enter([torch.from_numpy(TARGETS)] * 3)
        attack._train(model, audience, np.random.default_rng(0))
        losses.append(float(attack.attack_loss(model, audience, everybody)))
    assert losses[1] < losses[0] - 0.1


def test_the_discount_spreads_the_fillers(view):
    def n_distinct(discount: float) -> int:
        attack = replace(ATTACK, n_epochs=0, discount=discount)
        fakes = attack(view, TARGETS, BUDGET, rng=np.random.default_rng(0))
        return len(set(fakes.item_ids[~np.isin(fakes.item_ids, TARGETS)]))

    assert n_distinct(1.0) < n_distinct(0.9) <= n_distinct(0.0) == 58  # 72 fillers, 58 items: all, and again


def test_blocks_see_the_blocks_before(view):
    """In one block all fakes of equal targets differ by the discount alone; a second block learns from the first."""
    one, many = (
        replace(ATTACK, n_blocks=n)(view, TARGETS, BUDGET, rng=np.random.default_rng(0)).digest() for n in (1, 9)
    )
    assert one != many


def test_implicit_data(view):
    ones = csr_matrix((np.ones(view.ratings.nnz), view.ratings.indices, view.ratings.indptr), shape=(80, 60))
    fakes = ATTACK(AttackerView(ones, 1.0, 1.0, 0.0), TARGETS, BUDGET, rng=np.random.default_rng(0))
    assert set(fakes.ratings) == {1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_blocks": 0}, "n_blocks: expected an integer of at least 1, got 0"),
        ({"discount": 2}, "discount: expected a number from 0 to 1, got 2"),
        ({"kappa": -1}, "kappa: expected a number of at least 0, got -1"),
        ({"n_epochs": 1.5}, "n_epochs: expected an integer of at least 0, got 1.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=f"attack_args.{message}"):
        DPA2DL(**arguments)
