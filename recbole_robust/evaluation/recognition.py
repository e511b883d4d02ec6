"""How well weights tell noisy training sequences from clean ones. Pure numpy; the flags are the injected noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recbole_robust.scores import auc
from recbole_robust.types import FloatArray, IntArray


def average_precision(weights: FloatArray, is_noisy: NDArray[np.bool_]) -> float:
    """The mean over the noisy sequences of how many of those that weigh at most as much are noisy, too.

    Shape: two of ``(n,)``.
    """
    if not is_noisy.any():
        return float("nan")
    order = np.argsort(weights, kind="stable")
    last = np.searchsorted(weights[order], weights[order], side="right")  # all that weigh the same are found at once
    found = np.cumsum(is_noisy[order])[last - 1]
    return float((found / last)[is_noisy[order]].mean())


def effective_size(weights: FloatArray) -> float:
    """``(sum w)^2 / (n sum w^2)``: 1 where all weigh the same. Shape: ``(n,)``."""
    squares = len(weights) * np.square(weights, dtype=np.float64).sum()
    return float(np.square(weights.sum(dtype=np.float64)) / squares) if squares else 0.0


def recognition_report(
    weights: FloatArray, history_noise: IntArray, target_noise: NDArray[np.bool_]
) -> dict[str, float | int]:
    """Recognition of sequences with noise anywhere, in the history alone, and in the target; NaN where there is none.

    An AUC is the probability that a noisy sequence weighs less than a clean one.

    Args:
        history_noise: noisy items in each history.
        target_noise: whether the target is noise.

    Shape: all ``(n,)``.
    """
    is_noisy = target_noise | (history_noise > 0)
    mean_clean, mean_noisy = (float(weights[rows].mean()) if rows.any() else float("nan")
                              for rows in (~is_noisy, is_noisy))  # fmt: skip
    return {
        "n_sequences": len(weights),
        "n_noisy": int(is_noisy.sum()),
        "auc": auc(-weights, is_noisy),
        "ap": average_precision(weights, is_noisy),
        "auc_history": auc(-weights[~target_noise], is_noisy[~target_noise]),
        "auc_target": auc(-weights[target_noise | ~is_noisy], target_noise[target_noise | ~is_noisy]),
        "mean_weight_clean": mean_clean,
        "mean_weight_noisy": mean_noisy,
        "gap": mean_clean - mean_noisy,
        "effective_size": effective_size(weights),
    }
