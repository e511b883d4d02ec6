"""What a training looks like while it goes on: target hits, accuracy and the model's own distributions, by epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from recbole_robust.evaluation import TargetPass, mean_over_targets, tail_items, target_metrics
from recbole_robust.randomness import global_state, set_global_state


def measuring(config, splits: list[Any], target_items: Tensor, phase: str) -> Callable[[Any], dict[str, float]]:
    """A function of the trainer: accuracy and target metrics of its model as it is; the training does not change."""
    target_pass = TargetPass(splits, target_items, phase)
    is_tail, ks = tail_items(splits[0], config["tail_share"]), config["topk"]

    def measure(trainer: Any) -> dict[str, float]:
        state = global_state()
        found, metrics = target_pass.run_with_accuracy(trainer, ks, is_tail)
        of_targets = target_metrics(found.ranks, found.scores, found.eligible, ks, config["target_hr_denominator"])
        trainer.model.train()
        set_global_state(state)
        return {**metrics, **mean_over_targets(of_targets)}

    return measure


def tracking(config, splits: list[Any], target_items: Tensor) -> Callable[[Any, int], None]:
    """A hook of the trainer that writes to its TensorBoard every ``track_every`` epochs; the training does not change.

    ``Valid/<metric>``, or ``Test/<metric>`` where the protocol has no validation rows: to look at, not to choose by. A
    model may have ``tracked()``: tensors by name, of which histograms are written. (RecBole writes the losses.)
    """
    phase = "valid" if len(splits[1].inter_feat) else "test"
    measure, every = measuring(config, splits, target_items, phase), config["track_every"]

    def after_epoch(trainer: Any, epoch: int) -> None:
        if (epoch + 1) % every:
            return
        for name, value in measure(trainer).items():
            trainer.tensorboard.add_scalar(f"{phase.capitalize()}/{name}", value, epoch)
        state = global_state()
        trainer.model.eval()
        for name, values in getattr(trainer.model, "tracked", dict)().items():
            trainer.tensorboard.add_histogram(name, values, epoch)
        trainer.model.train()
        set_global_state(state)

    return after_epoch
