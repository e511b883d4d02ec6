"""Pure metrics against loops that are too simple to be wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_robust.evaluation.metrics import (
    NEVER,
    mean_over_targets,
    pessimistic_ranks,
    ranking_metrics,
    target_gain,
    target_hit,
    target_metrics,
)

SCORES = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf]), st.floats(-5, 5, width=32), st.integers(-3, 3)
)


def rank_by_hand(row: list[float], own: int) -> int:
    """One plus the others that are not surely worse: ties, and whatever cannot be compared, count against the item."""
    return 1 + sum(1 for j, score in enumerate(row) if j != own and not score < row[own])


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_rank_counts_what_is_not_surely_worse(data):
    n = data.draw(st.integers(1, 8))
    rows = data.draw(st.lists(st.lists(SCORES, min_size=n, max_size=n), min_size=1, max_size=5))
    own = data.draw(st.lists(st.integers(0, n - 1), min_size=len(rows), max_size=len(rows)))
    scores = torch.tensor(rows, dtype=torch.float)
    ranks = pessimistic_ranks(scores, scores[torch.arange(len(rows)), torch.tensor(own)])
    assert ranks.tolist() == [rank_by_hand(row, item) for row, item in zip(scores.tolist(), own, strict=True)]
    assert ranks.dtype == torch.int64


def test_scores_that_say_nothing_hit_nothing():
    scores = torch.zeros(3, 50)
    assert (pessimistic_ranks(scores, scores[:, 7]) == 50).all(), "all alike: last"
    scores[:, 7] = torch.nan
    assert (pessimistic_ranks(scores, scores[:, 7]) == 50).all(), "NaN: last"
    scores[:] = torch.nan
    scores[:, 7] = 1.0
    assert (pessimistic_ranks(scores, scores[:, 7]) == 50).all(), "nothing to compare with: last"


def metrics_by_hand(ranks, scores, eligible, k, denominator):
    """The definitions, user by user."""
    hits, gains, all_ranks, all_scores, n = 0, 0.0, [], [], 0
    for rank, score, may in zip(ranks, scores, eligible, strict=True):
        if may:
            all_ranks.append(rank)
            all_scores.append(score)
        if denominator == "all" or may:
            n += 1
            if rank <= k:
                hits += 1
                gains += 1 / math.log2(rank + 1)

    def mean(values):
        return sum(values) / len(values) if values else math.nan

    return {
        "targethr": hits / n if n else math.nan, "targetndcg": gains / n if n else math.nan,
        "targetrank": mean(all_ranks), "targetscore": mean(all_scores),
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("denominator", ["eligible", "all"])
def test_target_metrics_are_the_loop(denominator, data):
    n_users, n_targets = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 3))
    shape = (n_users, n_targets)
    eligible = np.array(data.draw(st.lists(st.booleans(), min_size=n_users * n_targets, max_size=n_users * n_targets)))
    ranks = np.array(data.draw(st.lists(st.integers(1, 9), min_size=eligible.size, max_size=eligible.size)))
    eligible, ranks = eligible.reshape(shape), ranks.reshape(shape)
    ranks = np.where(eligible, ranks, data.draw(st.sampled_from([NEVER, 2])))  # 2: held out in a later split
    scores = np.where(eligible, ranks * 0.5 - 1.0, data.draw(st.sampled_from([-np.inf, np.nan, 7.0])))
    found = target_metrics(torch.tensor(ranks), torch.tensor(scores), torch.tensor(eligible), [1, 3], denominator)
    assert len(found) == n_targets
    for t, target in enumerate(found):
        for k in (1, 3):
            for which in ("all", "eligible"):
                expected = metrics_by_hand(ranks[:, t], scores[:, t], eligible[:, t], k, which)
                assert target[f"targethr_{which}@{k}"] == pytest.approx(expected["targethr"], nan_ok=True)
            expected = metrics_by_hand(ranks[:, t], scores[:, t], eligible[:, t], k, denominator)
            assert target[f"targethr@{k}"] == pytest.approx(expected["targethr"], nan_ok=True)
            assert target[f"targetndcg@{k}"] == pytest.approx(expected["targetndcg"], nan_ok=True)
        assert target["targetrank"] == pytest.approx(expected["targetrank"], nan_ok=True)
        assert target["targetscore"] == pytest.approx(expected["targetscore"], nan_ok=True)


def test_the_mean_over_targets_leaves_out_targets_without_eligible_users():
    assert mean_over_targets([{"a": 1.0, "b": math.nan}, {"a": 2.0, "b": 4.0}]) == {"a": 1.5, "b": 4.0}
    assert math.isnan(mean_over_targets([{"a": math.nan}])["a"])
    assert mean_over_targets([]) == {}


def test_hit_and_gain_at_the_edge():
    ranks = torch.tensor([1, 2, 3, 4, NEVER])
    assert target_hit(ranks, 3).tolist() == [1, 1, 1, 0, 0]
    assert target_gain(ranks, 3).tolist() == pytest.approx([1, 1 / math.log2(3), 0.5, 0, 0])
    assert target_gain(ranks, 10**6)[-1] == 0


def ranking_by_hand(ranks, rows, tail, k):
    users = sorted(set(rows))
    recall, ndcg, hit, tail_hit = [], [], [], []
    for user in users:
        mine = [(rank, is_tail) for rank, row, is_tail in zip(ranks, rows, tail, strict=True) if row == user]
        inside = [rank for rank, _ in mine if rank <= k]
        recall.append(len(inside) / len(mine))
        ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(mine)) + 1))
        ndcg.append(sum(1 / math.log2(rank + 1) for rank in inside) / ideal)
        hit.append(float(bool(inside)))
        if any(is_tail for _, is_tail in mine):
            tail_hit.append(float(any(is_tail and rank <= k for rank, is_tail in mine)))
    values = {"recall": recall, "ndcg": ndcg, "hit": hit, "tailhit": tail_hit}
    return {name: sum(value) / len(value) if value else math.nan for name, value in values.items()}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12), st.randoms())
def test_ranking_metrics_are_the_loop(positives, random):
    rows, tail = zip(*positives, strict=True)
    ranks = random.sample(range(1, 20), len(rows))
    found = ranking_metrics(torch.tensor(ranks), torch.tensor(rows), torch.tensor(tail), [2, 5])
    for k in (2, 5):
        for name, expected in ranking_by_hand(ranks, rows, tail, k).items():
            assert found[f"{name}@{k}"] == pytest.approx(expected, nan_ok=True), name
