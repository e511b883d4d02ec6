"""How well weights find noise: known answers, and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from recbole_robust.evaluation.recognition import average_precision, effective_size, recognition_report

NONE = np.zeros(4, dtype=bool)


def test_a_known_answer():
    """Two noisy sequences, one in the history, one in the target; only the second weighs more than a clean one."""
    weights = np.array([0.9, 0.5, 0.1, 0.7])
    found = recognition_report(weights, np.array([0, 0, 3, 0]), np.array([False, False, False, True]))
    assert (found["n_sequences"], found["n_noisy"]) == (4, 2)
    assert found["auc"] == pytest.approx(3 / 4)
    assert found["auc_history"] == 1.0 and found["auc_target"] == pytest.approx(1 / 2)
    assert found["ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["mean_weight_clean"] == pytest.approx(0.7) and found["mean_weight_noisy"] == pytest.approx(0.4)
    assert found["gap"] == pytest.approx(0.3)
    assert found["effective_size"] == pytest.approx(2.2**2 / (4 * (0.81 + 0.25 + 0.01 + 0.49)))


@pytest.mark.parametrize("ties", [False, True])
def test_the_areas_are_scikit_learns(ties):
    rng = np.random.default_rng(0)
    weights, history, target = rng.random(300), rng.poisson(0.3, 300), rng.random(300) < 0.1
    weights = np.round(weights, 1) if ties else weights
    is_noisy = target | (history > 0)
    found = recognition_report(weights, history, target)
    assert found["auc"] == pytest.approx(roc_auc_score(is_noisy, -weights))
    assert found["ap"] == pytest.approx(average_precision_score(is_noisy, -weights))
    rows = ~target
    assert found["auc_history"] == pytest.approx(roc_auc_score(history[rows] > 0, -weights[rows]))
    rows = target | (history == 0)
    assert found["auc_target"] == pytest.approx(roc_auc_score(target[rows], -weights[rows]))


def test_of_nothing_there_is_nothing_to_say():
    found = recognition_report(np.ones(4), np.zeros(4, dtype=int), NONE)
    assert np.isnan([found[name] for name in ("auc", "ap", "mean_weight_noisy", "auc_target")]).all()
    assert found["effective_size"] == 1 and np.isnan(average_precision(np.ones(4), NONE))
    assert effective_size(np.zeros(3)) == 0
