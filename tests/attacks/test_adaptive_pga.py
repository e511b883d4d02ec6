"""The trust of AdaptivePGA is GroupWeights' weights, and its fakes win some back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, vstack
from toy_ratings import popular_world

from recbole_robust.attacks import PGA, AdaptivePGA, adaptive_pga
from recbole_robust.group_evidence import coordinated_raters, limits_of
from recbole_robust.types import AttackerView, Budget, UserError

SMALL = {"n_factors": 8, "n_sweeps": 4, "top_k": 5}
KEYS = {"low": 0.05, "high": 4.0, "own_share": 0.5, "usual": 0.9}  # no pair of the toy is cut off
TARGETS = np.array([116, 118, 119])


@pytest.fixture(scope="module")
def view():
    """Items whose raters all agree, so that a filler's rating is known; the targets are rated by hardly anybody."""
    stars = popular_world(300, 120)
    stars[:, TARGETS] = 0.0
    stars[5, TARGETS] = 3.0
    item_stars = np.where(np.arange(120) % 3 == 0, 5.0, 3.0)
    return AttackerView(csr_matrix((stars > 0) * item_stars), 1.0, 5.0, 1.0)


@pytest.mark.parametrize("evidence", ["idf", "surprise", "either"])
def test_trust_is_the_weight_of_group_evidence(evidence, view, monkeypatch):
    rng = np.random.default_rng(0)
    fillers = np.zeros((9, 120))
    for row in fillers:
        row[rng.choice(116, 20, replace=False)] = 1.0
    pushed = np.zeros((9, 120))
    pushed[:, TARGETS] = rng.random((9, 3)) < 0.8
    fakes = csr_matrix(5.0 * pushed + fillers * view.item_means)
    everyone = csr_matrix(vstack([view.ratings, fakes]))
    everyone.sort_indices()
    monkeypatch.setattr(adaptive_pga, "limits_of", lambda ratings, top, **keys: limits_of(everyone, top, **keys))
    keys = {**KEYS, "evidence": evidence}
    trust = AdaptivePGA(**SMALL, **keys).trust(view, torch.from_numpy(pushed))
    count = csr_matrix((coordinated_raters(everyone, top_rating=5.0, **keys), everyone.indices, everyone.indptr))
    expected = 1 / (1 + count[300:, TARGETS].toarray())
    found = trust(torch.from_numpy(fillers))[:, TARGETS].numpy()
    assert np.median(expected[pushed[:, TARGETS] > 0]) < 0.9
    np.testing.assert_allclose(found[pushed[:, TARGETS] > 0], expected[pushed[:, TARGETS] > 0], atol=1e-9)


@pytest.mark.parametrize("evidence", ["idf", "surprise", "either"])
def test_its_slope_is_that_of_differences(evidence, view):
    """But for the rarity of the fillers, which one fake hardly moves and which is taken for a constant."""
    rng = np.random.default_rng(1)
    pushed = torch.zeros(6, 120, dtype=torch.float64)
    pushed[:, TARGETS] = 1.0
    trust = AdaptivePGA(**SMALL, **KEYS, evidence=evidence).trust(view, pushed)
    fillers = torch.from_numpy(rng.random((6, 120)) * 0.5).requires_grad_()
    (slope,) = torch.autograd.grad(trust(fillers)[:, TARGETS].sum(), fillers)
    direction = torch.from_numpy(rng.standard_normal((6, 120)))
    direction -= direction.mean(dim=0)  # the number of raters of each item stays
    step = 1e-6
    with torch.no_grad():
        ends = [trust(fillers + sign * step * direction)[:, TARGETS].sum() for sign in (1, -1)]
    assert float((ends[0] - ends[1]) / (2 * step)) == pytest.approx(float((slope * direction).sum()), rel=1e-4)


def test_its_fakes_are_trusted_more_than_those_of_pga(view):
    budget, rng = Budget(24, 12, target_mode="split"), np.random.default_rng
    mass = []
    for attack in (PGA(**SMALL), AdaptivePGA(**SMALL)):
        fakes = attack(view, TARGETS, budget, rng=rng(0)).to_csr(120)
        everyone = csr_matrix(vstack([view.ratings, fakes]))
        count = csr_matrix((coordinated_raters(everyone, top_rating=5.0), everyone.indices, everyone.indptr))
        mass.append((1 / (1 + count[300:, TARGETS].toarray()))[fakes[:, TARGETS].toarray() > 0].sum())
    assert mass[1] > 1.05 * mass[0]


def test_without_group_evidence_it_is_pga(view):
    budget = Budget(6, 10)
    other = AttackerView(csr_matrix((view.ratings > 0).astype(np.float64)), 1.0, 1.0, 0.0)  # implicit: no top ratings
    both = PGA(**SMALL, n_steps=5), AdaptivePGA(**SMALL, n_steps=5)
    fakes = [attack(other, TARGETS, budget, rng=np.random.default_rng(0)) for attack in both]
    np.testing.assert_array_equal(fakes[0].item_ids, fakes[1].item_ids)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"low": 1.0}, "low: expected a number below high, 1, got 1.0"),
        ({"own_share": 2}, "own_share: expected a number from 0 to 1, got 2"),
        ({"usual": -1}, "usual: expected a number from 0 to 1, got -1"),
        ({"evidence": "both"}, "evidence: expected one of idf, surprise, either, got 'both'"),
    ],
)
def test_bad_hyper_parameters_are_one_clear_line(keys, message):
    with pytest.raises(UserError, match=message):
        AdaptivePGA(**keys)
