"""Evaluation: the target pass, pure metrics, and their registration in RecBole's evaluator."""

from recbole_robust.evaluation.metrics import mean_over_targets, target_metrics
from recbole_robust.evaluation.register import attach_targets, register_metrics, tail_items
from recbole_robust.evaluation.target_pass import TargetPass, TargetRanks

__all__ = [
    "TargetPass",
    "TargetRanks",
    "attach_targets",
    "mean_over_targets",
    "register_metrics",
    "tail_items",
    "target_metrics",
]
