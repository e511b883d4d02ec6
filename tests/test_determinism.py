"""The same seed gives the same bits: in another process, on two threads, and after a break.

Twice in one process: tests/test_runs.py. After a break, the models that are not here: tests/test_trainer.py,
tests/model/test_atjt.py and tests/defenses/test_apt.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_splits import SEQUENTIAL, SMALL, Run, make_run

from recbole_robust.checkpoint import load_checkpoint
from recbole_robust.config import Config
from recbole_robust.defending import under_defenses
from recbole_robust.evaluation import attach_targets
from recbole_robust.quick_start import make_card, train_and_evaluate
from recbole_robust.trainer import RobustTrainerMixin

ATJT = {**SMALL, **SEQUENTIAL, "base_model": "SASRec", "recogniser_dim": 8, "recogniser_pretrain_steps": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "MF": ("MF", {}),
    "MF under AT": ("MF", {"defense": "AT", "defense_args": {"start_epoch": 1}}),
    "PurifyAugMF": ("PurifyAugMF", {"purify_warmup": 1}),
    "PurifyAug": ("PurifyAug", {"base_model": "MF", "purify_warmup": 1}),
    "ATJT": ("ATJT", ATJT),
    "GRU4Rec": ("GRU4Rec", {**SMALL, **SEQUENTIAL}),
}
VALIDATED = {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
             "topk": [5], "valid_metric": "NDCG@5", "eval_step": 1}  # fmt: skip


def digest_of(state: dict[str, Any]) -> str:
    """Of all tensors, bit for bit."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode() + state[name].detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def trained_digests(data_path: str, output_dir: str) -> dict[str, str]:
    """Card, weights and numbers of an attacked training of each model."""
    found = {}
    digests: list[str] = []
    fit = RobustTrainerMixin.fit

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        result = fit(self, *args, **options)
        digests.append(digest_of(self.model.state_dict()))
        return result

    RobustTrainerMixin.fit = noted  # type: ignore[method-assign]
    try:
        for name, (model, keys) in MODELS.items():
            quiet = {"use_gpu": False, "show_progress": False, "log_tensorboard": False, "save_checkpoint": False}
            places = {"data_path": data_path, "output_dir": output_dir}
            poison = {"attack": "AUSH", "attack_args": {"epochs": 1}, "n_fake_users": 5, "n_fillers": 5,
                      "target_items": ["i3"]}  # fmt: skip
            config = Config(model, "toy", config_dict={**places, **quiet, **poison, **keys, "epochs": 2, "topk": [5]})
            card = make_card(config)
            assert card is not None
            outcome = train_and_evaluate(config, card)
            found[name] = f"{card.digest()} {digests[-1]} {json.dumps(outcome.metrics)}"
    finally:
        RobustTrainerMixin.fit = fit  # type: ignore[method-assign]
    return found


@pytest.mark.slow
def test_in_another_process_on_other_hashes(data_path, tmp_path):
    here = trained_digests(str(data_path), str(tmp_path / "here"))
    code = "import json, sys, test_determinism as t; print(json.dumps(t.trained_digests(*sys.argv[1:])))"
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    words = [sys.executable, "-W", "ignore", "-c", code, str(data_path), str(tmp_path / "there")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == here


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["MF", "MF under AT", "PurifyAugMF"])
def test_on_one_thread_and_on_two(name, toy_config, threads):
    """With vectors so long that torch divides the work. Products of matrices differ in their last bits: no networks."""
    model, keys = MODELS[name]
    keys = {**keys, "embedding_size": 512, "epochs": 2, "train_batch_size": 4096}
    if model == "PurifyAugMF":
        keys |= {"purify_steps": 0}  # else the denoiser's products
    digests = []
    for n in (1, 2):
        threads(n)
        digests.append(digest_of(trained(toy_config, model, keys).trainer.model.state_dict()))
    assert digests[0] == digests[1]


# --- after a break ----------------------------------------------------------------------------------------------------


def ready(config: Config) -> Run:
    """As ``make_run``, under the defense of the configuration."""
    run = make_run(config)
    if not config["defense"]:
        return run
    trainer, loader, _ = under_defenses(config, run.loaders[0])
    trainer.know_items(run.splits.train)
    attach_targets(trainer, run.splits, torch.tensor([3]))
    return Run(trainer, (loader, *run.loaders[1:]), run.splits)


def trained(toy_config, model: str, keys: dict[str, Any]) -> Run:
    run = ready(toy_config(model, **keys))
    run.fit(saved=False)
    return run


class Stopped(KeyboardInterrupt):
    """Ctrl-C, by a test."""


def stop_in(epoch: int) -> Callable[[Any, int], None]:
    def hook(trainer: Any, now: int) -> None:
        if now == epoch:
            raise Stopped

    return hook


@pytest.fixture
def with_knowledge(tmp_path, data_path) -> dict[str, Any]:
    """The toy data with a knowledge graph: each item is an entity, and the next three are its neighbours."""
    folder = shutil.copytree(data_path / "toy", tmp_path / "data" / "toy")
    links = [f"i{i}\te{i}" for i in range(60)]
    rows = [f"e{i}\tr{j}\te{(i + j) % 60}" for i in range(60) for j in (1, 2, 3)]
    (folder / "toy.link").write_text("\n".join(["item_id:token\tentity_id:token", *links, ""]))
    (folder / "toy.kg").write_text("\n".join(["head_id:token\trelation_id:token\ttail_id:token", *rows, ""]))
    columns = {"inter": ["user_id", "item_id", "rating", "timestamp"], "kg": ["head_id", "relation_id", "tail_id"],
               "link": ["item_id", "entity_id"]}  # fmt: skip
    return {"data_path": str(tmp_path / "data"), "load_col": columns, "embedding_size": 8}


@pytest.mark.parametrize("name", [*MODELS, "CFKG"])
@pytest.mark.parametrize("stopping_step", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_a_training_that_was_stopped_goes_on_as_if_it_were_not(name, stopping_step, toy_config, with_knowledge):
    """The weights, the optimiser, all random states and the early stopping are those of a training without a break."""
    model, keys = MODELS.get(name, (name, with_knowledge))
    keys = {**keys, **VALIDATED, "stopping_step": stopping_step, "epochs": 5, "train_batch_size": 300}
    whole = ready(toy_config(model, **keys))
    whole.fit()
    broken = ready(toy_config(model, **keys))
    broken.trainer.after_epoch.append(stop_in(min(3, len(whole.trainer.train_loss_dict) - 1)))
    with pytest.raises(Stopped):
        broken.fit()
    torch.rand(7)
    rest = ready(toy_config(model, **keys))
    rest.trainer.resume_checkpoint(broken.trainer.saved_model_file)
    assert rest.trainer.start_epoch >= 1
    rest.fit()
    ours, theirs = (load_checkpoint(run.trainer.saved_model_file) for run in (rest, whole))
    for part in ("state_dict", "epoch", "cur_step", "best_valid_score", "best_valid_result"):
        same = digest_of(ours[part]) == digest_of(theirs[part]) if part == "state_dict" else ours[part] == theirs[part]
        assert same, part
    assert digest_of(rest.trainer.model.state_dict()) == digest_of(whole.trainer.model.state_dict())
    assert max(rest.trainer.train_loss_dict) == max(whole.trainer.train_loss_dict), "stopped at the same epoch"
    for epoch, loss in rest.trainer.train_loss_dict.items():
        assert loss == whole.trainer.train_loss_dict[epoch]
