"""On a GPU, where there is one: everything trains there, and measures what the CPU would measure."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from toy_splits import ATTACK, FAMILIES, SEQUENTIAL, SMALL, VICTIMS, make_run

from recbole_robust.registry import DEFENSES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

RECOGNISER = {"recogniser_dim": 8, "recogniser_pretrain_steps": 2}
ATJT = {**SMALL, **SEQUENTIAL, **RECOGNISER, "base_model": "SASRec"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, keys) for name, keys in VICTIMS.items()},
    **{name: (name, {}) for name in ("MF", "DampedMean", "Pop", "PCMF", "RGCF")},
    "PurifyAugMF": ("PurifyAugMF", {"purify_warmup": 1}),
    "PurifyAugMF, exact": ("PurifyAugMF", {"purify_warmup": 1, "infer_mode": "exact"}),
    "PurifyAugMF, rerank": ("PurifyAugMF", {"purify_warmup": 1, "infer_mode": "rerank"}),
    "PurifyAug around BPR": ("PurifyAug", {"base_model": "BPR", "purify_warmup": 1}),
    "ATJT": ("ATJT", ATJT),
    "ATJT, GRU": ("ATJT", {**ATJT, "recogniser": "gru"}),
    "ATJT, corrected": ("ATJT", {**ATJT, "preset": "corrected"}),
    "ATJT, calibrated": ("ATJT", {**ATJT, "weight_temperature": "estimated", "weight_noise_share": "estimated"}),
    "ATJT, phased": ("ATJT", {**ATJT, "atjt_schedule": "phased"}),
    "ATJT, oracle": ("ATJT", {**ATJT, "atjt_weights": "oracle", "noise_ratio": 0.5}),
    "ATJT around DIN": ("ATJT", {**SMALL, **FAMILIES["DIN"], **RECOGNISER, "base_model": "DIN", "eval_step": 3}),
    "ATJT around DCN": ("ATJT", {**SMALL, **FAMILIES["DIN"], **RECOGNISER, "base_model": "DCN", "eval_step": 3}),
}
AMP = ("MF", "BPR", "PurifyAugMF", "SASRec", "ATJT", "ATJT, GRU", "ATJT around DIN")


def all_finite(numbers: dict[str, Any]) -> bool:
    return all(math.isfinite(value) for value in numbers.values() if value is not None)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_attacked_there(name, run):
    model, keys = MODELS[name]
    result = run(model, use_gpu=True, baseline="none", **{**ATTACK, "epochs": 4, **keys})
    assert result["device"].startswith("cuda")
    assert all_finite(result["clean"]) and all_finite(result["attacked"])


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_works_there(name, run):
    options = {"start_epoch": 0, "n_gradual": 1, "n_selected": 5, "n_iterations": 2}
    known = {field.name for field in fields(DEFENSES[name])}
    model = "BPR" if name in ("VAT", "PamaCF", "TCE", "RCE") else "MF"
    arguments = {key: value for key, value in options.items() if key in known}
    result = run(model, use_gpu=True, baseline="none", defense=name, defense_args=arguments, **ATTACK)
    assert result["device"].startswith("cuda") and all_finite(result["attacked"])


@pytest.mark.parametrize("name", MODELS)
def test_metrics_are_those_of_the_cpu(name, toy_config):
    """A checkpoint of the GPU, evaluated on both; a near tie may fall the other way, so one user of the toy's 80."""
    model, keys = MODELS[name]
    there, here = (make_run(toy_config(model, use_gpu=gpu, **{"epochs": 4, "topk": [5], **keys}))
                   for gpu in (True, False))  # fmt: skip
    there.fit()
    here.trainer.eval_collector.data_collect(here.loaders[0])  # as fit does
    path = there.trainer.saved_model_file
    found, expected = (one.test(load_best_model=True, model_file=path) for one in (there, here))
    assert found == pytest.approx(expected, abs=0.02, rel=0.02)


@pytest.mark.parametrize("name", AMP)
def test_mixed_precision(name, toy_config):
    """``enable_amp`` changes the loss by the rounding of half precision, no more."""
    model, keys = MODELS[name]
    losses = []
    for amp in (False, True):
        one = make_run(toy_config(model, use_gpu=True, enable_amp=amp, enable_scaler=amp, **{"epochs": 3, **keys}))
        one.fit(saved=False)
        losses.append(list(one.trainer.train_loss_dict.values()))
        assert all_finite(one.test(load_best_model=False))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
