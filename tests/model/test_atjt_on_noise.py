"""ATJT on logs with noise in them: it finds the noise, the oracle gains by it, and where there is none little is lost.

The data are walks through clusters of items, and chains from item to item (P11 to P14). What takes minutes is slow.
"""

from __future__ import annotations

import numpy as np
import pytest
from markov_sequences import chains, walks, write_walks
from toy_splits import SMALL

from recbole_robust.quick_start import run_recbole_robust

SEEDS = (0, 1, 2)


@pytest.fixture
def run(tmp_path):
    """``run(model, seed, data, key=value, ...)`` on sequences of 12 items, 10 of them to train on; walks if none."""

    def go(model: str, seed: int, data=None, **keys):
        name = f"sequences{seed}"
        if not (tmp_path / name).exists():
            write_walks(tmp_path / name, walks(500, 12, 100, 5, stay=0.95, seed=seed) if data is None else data)
        base = {"base_model": "SASRec", "recogniser_dim": 8} if model == "ATJT" else {}
        keys = {**SMALL, "hidden_size": 16, "inner_size": 16, "learning_rate": 0.005, "train_batch_size": 512,
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "topk": [5], "metrics": ["NDCG", "GAUC"],
                "valid_metric": "NDCG@5", "epochs": 1, "noise_strength": 0.5, "seed": seed, **base, **keys}  # fmt: skip
        places = {"data_path": str(tmp_path), "output_dir": str(tmp_path / "output"), "save_checkpoint": False}
        quiet = {"show_progress": False, "log_tensorboard": False, "use_gpu": False, "baseline": "none", "n_targets": 1}
        return run_recbole_robust(model, name, config_dict={**places, **quiet, **keys})

    return go


@pytest.mark.parametrize(
    ("seeds", "keys"),
    [
        ((0,), {"recogniser": "gru", "recogniser_pretrain_steps": 60, "n_replaced": 0.3, "recogniser_dropout": 0.1}),
        pytest.param(SEEDS, {"recogniser": "paper", "recogniser_pretrain_steps": 600}, marks=pytest.mark.slow),
        pytest.param(SEEDS, {"recogniser": "gru", "recogniser_pretrain_steps": 300}, marks=pytest.mark.slow),
    ],
    ids=["quick", "paper", "gru"],
)
def test_it_finds_injected_noise(run, seeds, keys):
    """P11: of a fifth of the users, half of the training items are replaced; nobody tells the recogniser."""
    for seed in seeds:
        keys = {**keys, "noise_ratio": 0.2}
        found = run("ATJT", seed, **keys)["recognition"]["clean"]
        assert found["auc"] > 0.7 and found["gap"] > 0, found


@pytest.mark.slow
def test_it_gains_by_weights_where_weights_can_gain(run):
    """P12 and P13, on chains from item to item: the oracle beats the base model, and ATJT brings back a part of that.

    Walks cannot show it: any item of the cluster may come next there, and the base model learns that through noise.
    """
    found = {name: [] for name in ("base", "oracle", "paper", "targets too")}
    keys = {"epochs": 15, "eval_step": 5, "stopping_step": 15, "noise_ratio": 0.2, "learning_rate": 0.004,
            "hidden_size": 32, "inner_size": 64, "recogniser_dim": 16}  # fmt: skip
    plain = {key: value for key, value in keys.items() if key != "recogniser_dim"}
    for seed in range(5):
        data = chains(1200, 12, 300, 5, stay=0.95, seed=seed)
        found["base"].append(run("SASRec", seed, data, **plain)["clean"]["ndcg@5"])
        found["oracle"].append(run("ATJT", seed, data, **keys, atjt_weights="oracle")["clean"]["ndcg@5"])
        found["paper"].append(run("ATJT", seed, data, **keys)["clean"]["ndcg@5"])
        found["targets too"].append(run("ATJT", seed, data, **keys, replace_target_prob=0.5)["clean"]["ndcg@5"])
    gains = {name: np.mean(values) / np.mean(found["base"]) - 1 for name, values in found.items()}
    assert all(oracle > base for oracle, base in zip(found["oracle"], found["base"], strict=True)), found
    assert gains["oracle"] > 0.03, gains
    assert gains["paper"] > -0.005, gains
    assert gains["targets too"] > gains["oracle"] / 3, gains


@pytest.mark.slow
def test_where_there_is_no_noise_little_is_lost(run):
    """P14."""
    keys = {"epochs": 15, "stopping_step": 15}
    data = {seed: walks(1200, 12, 100, 5, stay=0.95, seed=seed) for seed in SEEDS}
    pairs = [
        [run(model, seed, data[seed], **keys, **more)["clean"]["gauc"] for model, more in
         (("SASRec", {}), ("ATJT", {"recogniser": "gru", "recogniser_pretrain_steps": 150}))]
        for seed in SEEDS
    ]  # fmt: skip
    base, learned = np.mean(pairs, axis=0)
    assert learned > 0.98 * base, pairs
