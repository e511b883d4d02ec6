"""Tracking writes what the final evaluation would measure, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_robust.quick_start import train_and_evaluate

KEYS = {"epochs": 4, "topk": [5], "target_items": ["i3", "i40"], "log_tensorboard": True}


def events(output_dir):
    (folder,) = (output_dir / "log_tensorboard").iterdir()
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


@pytest.mark.parametrize(("model", "keys"), [
    ("PurifyAugMF", {"purify_warmup": 1}),
    ("PurifyAug", {"base_model": "BPR", "purify_warmup": 1}),
    ("BPR", {}),
])  # fmt: skip
def test_the_last_epoch_is_what_is_measured_and_the_training_is_the_same(toy_config, output_dir, model, keys):
    keys = {**KEYS, **keys, "protocol": "apt"}
    plain = train_and_evaluate(toy_config(model, **keys, output_dir=str(output_dir / "plain"))).metrics
    tracked = train_and_evaluate(
        toy_config(model, **keys, track_every=2, output_dir=str(output_dir / "tracked"))
    ).metrics
    assert tracked == plain
    found = events(output_dir / "tracked")
    for name in ("targethr@5", "hit@5", "ndcg@5", "itemcoverage@5"):
        scalars = found.Scalars(f"Test/{name}")
        assert [event.step for event in scalars] == [1, 3]
        assert scalars[-1].value == pytest.approx(plain[name], abs=1e-6)
    losses = {tag.removeprefix("Loss/Train/") for tag in found.Tags()["scalars"] if tag.startswith("Loss/")}
    assert (
        losses
        == {
            "PurifyAugMF": {"squared error", "mutual KL", "denoising loss"},
            "PurifyAug": {"base model's loss", "mutual KL", "denoising loss"},
            "BPR": {"Loss/Train"},
        }[model]
    )
    gates = [tag for tag in found.Tags()["histograms"] if tag.startswith("Gate/")]
    assert len(gates) == {"PurifyAugMF": 1, "PurifyAug": 2, "BPR": 0}[model]
    for tag in gates:
        histogram = found.Histograms(tag)[-1].histogram_value
        assert 0 < histogram.min <= histogram.max < 1


def test_with_validation_rows_these_are_shown(toy_config, output_dir):
    config = toy_config("BPR", **KEYS, track_every=4, protocol="recbole")
    train_and_evaluate(config)
    tags = events(output_dir).Tags()["scalars"]
    assert "Valid/targethr@5" in tags and not any(tag.startswith("Test/") for tag in tags)


def test_by_default_nothing_is_tracked(toy_config, output_dir):
    torch.manual_seed(0)
    train_and_evaluate(toy_config("MF", **KEYS, protocol="apt"))
    assert not any(tag.startswith("Test/") for tag in events(output_dir).Tags()["scalars"])
