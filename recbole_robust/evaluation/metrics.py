"""Pure metrics on ranks: per user and target first, means after.

A rank is 1 for the best item. ``NEVER`` stands for a target that cannot be recommended because the user has it in a
masked split. Ties count against the item: a model that scores everything alike hits nothing before rank ``n_items``.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = torch.iinfo(torch.int64).max


def pessimistic_ranks(scores: Tensor, own: Tensor) -> Tensor:
    """Rank of a score in its row, ties and NaN counted against it.

    Shape: ``scores`` ``(B, n_items)`` with -inf at masked items, ``own`` ``(B,)`` one entry of each row; result
    ``(B,)``, int64.
    """
    # Compared straight into floats: five times as fast as torch's sum of booleans, and exact below 2^24 items.
    below = torch.lt(scores, own.unsqueeze(1), out=torch.empty(scores.shape, device=scores.device))
    return scores.shape[1] - below.sum(dim=1).long()


def target_hit(ranks: Tensor, k: int) -> Tensor:
    """1 where the target is among the first ``k``. Shape: as ``ranks``, float."""
    return (ranks <= k).double()


def target_gain(ranks: Tensor, k: int) -> Tensor:
    """``1 / log2(rank + 1)`` among the first ``k``, else 0: the NDCG of a single relevant item. Shape: as ``ranks``."""
    return torch.where(ranks <= k, 1.0 / torch.log2(ranks.double() + 1.0), 0.0)


def mean_over_users(values: Tensor, eligible: Tensor, denominator: str) -> Tensor:
    """The mean of each target over its users; NaN for a target without any.

    Args:
        values: per user and target. Shape: ``(n_users, n_targets)``.
        eligible: users that have the target in no split. Shape: as ``values``, bool.
        denominator: ``eligible`` (VAT, PamaCF, LoRec: those users only) or ``all`` (APT: every genuine user counts in
            the denominator; who has the target in the training rows can never be hit).
    """
    if denominator == "all":
        return values.mean(dim=0)
    return torch.where(eligible, values, 0.0).sum(dim=0) / eligible.sum(dim=0)  # the score of a masked item is -inf


def target_metrics(
    ranks: Tensor, scores: Tensor, eligible: Tensor, topk: list[int], denominator: str
) -> list[dict[str, float]]:
    """All target metrics of each target.

    Shape: ``ranks``, ``scores`` (unmasked predictions) and ``eligible`` are ``(n_users, n_targets)``.

    Returns:
        One mapping a target: ``targethr@k`` (by ``denominator``), ``targethr_all@k``, ``targethr_eligible@k``,
        ``targetndcg@k``, ``targetrank`` and ``targetscore`` (both over eligible users).
    """
    table: dict[str, Tensor] = {}
    for k in topk:
        hits, gains = target_hit(ranks, k), target_gain(ranks, k)
        for which in ("all", "eligible"):
            table[f"targethr_{which}@{k}"] = mean_over_users(hits, eligible, which)
        table[f"targethr@{k}"] = table[f"targethr_{denominator}@{k}"]
        table[f"targetndcg@{k}"] = mean_over_users(gains, eligible, denominator)
    table["targetrank"] = mean_over_users(torch.where(eligible, ranks, 0).double(), eligible, "eligible")
    table["targetscore"] = mean_over_users(scores.double(), eligible, "eligible")
    return [{name: float(values[t]) for name, values in table.items()} for t in range(ranks.shape[1])]


def mean_over_targets(per_target: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every metric over the targets that have it (a target that no user is eligible for has NaN)."""
    means = {}
    for name in per_target[0] if per_target else ():
        values = [target[name] for target in per_target if target[name] == target[name]]
        means[name] = sum(values) / len(values) if values else float("nan")
    return means


def ranking_metrics(ranks: Tensor, rows: Tensor, is_tail: Tensor, topk: list[int]) -> dict[str, float]:
    """Recall, NDCG, hit and tail hit from the ranks of held-out items.

    Shape: ``ranks`` ``(n_positives,)``, ``rows`` the user row of each, ``is_tail`` whether the item is in the tail.
    Means are over the users that have a held-out (tail) item.
    """
    n_users = int(rows.max()) + 1 if len(rows) else 0
    count = torch.zeros(n_users, dtype=torch.double).index_add_(0, rows, torch.ones_like(rows).double())
    tail = torch.zeros_like(count).index_add_(0, rows, is_tail.double())
    ideal = torch.cumsum(1.0 / torch.log2(torch.arange(2, max(topk) + 2).double()), dim=0)
    result = {}
    for k in topk:
        hits = torch.zeros_like(count).index_add_(0, rows, target_hit(ranks, k))
        gain = torch.zeros_like(count).index_add_(0, rows, target_gain(ranks, k))
        tail_hits = torch.zeros_like(count).index_add_(0, rows, target_hit(ranks, k) * is_tail)
        has, has_tail = count > 0, tail > 0
        result[f"recall@{k}"] = float((hits[has] / count[has]).mean())
        result[f"ndcg@{k}"] = float((gain[has] / ideal[count[has].clamp(max=k).long() - 1]).mean())
        result[f"hit@{k}"] = float((hits[has] > 0).double().mean())
        result[f"tailhit@{k}"] = float((tail_hits[has_tail] > 0).double().mean())
    return result
