"""One training, and one run: clean, attacked and baseline. Readable from top to bottom."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from recbole.trainer import S3RecTrainer
from recbole.utils import ModelType, init_seed

import recbole_robust
from recbole_robust import results
from recbole_robust.baselines import baseline_config
from recbole_robust.complaints import blaming
from recbole_robust.config import POISON_KEYS, TARGET_KEYS, Config
from recbole_robust.data.card import PoisonCard
from recbole_robust.data.injection import without_fakes
from recbole_robust.data.load import data_digest, prepare
from recbole_robust.data.poison import targets_of
from recbole_robust.data.views import genuine_item_counts
from recbole_robust.defending import under_defenses
from recbole_robust.evaluation import (
    TargetPass,
    TargetRanks,
    attach_targets,
    mean_over_targets,
    tail_items,
    target_metrics,
)
from recbole_robust.evaluation.rating import rating_metrics
from recbole_robust.file_lock import locked
from recbole_robust.poisoning import make_card, run_attack, stored_card
from recbole_robust.sequence_report import export_weights, recognition_of
from recbole_robust.tracking import measuring, tracking
from recbole_robust.trainer import get_trainer
from recbole_robust.types import Outcome, UserError

logger = logging.getLogger(__name__)


def train_and_evaluate(config: Config, card: PoisonCard | None = None, label: str | None = None) -> Outcome:
    """Train the configured model on the clean data, or on the data poisoned by ``card``, and measure it.

    With ``tune: true`` a first training with one more held-out row a user chooses the number of epochs; the model
    that is measured is trained on all rows. Test rows choose nothing.
    """
    selection = None
    if config["tune"]:
        selection = _train(config.derive(tune=False, eval_args=_with_valid(config)), card, label)
        config = config.derive(tune=False, epochs=selection.best_epoch + 1)
    trained = _train(config, card, label)
    started = time.perf_counter()
    metrics, per_target, n_genuine = _measure(config, trained)
    recognition = recognition_of(trained.trainer.model, trained.splits[0])
    if recognition:
        metrics.update({f"recognition_{name}": recognition[name] for name in ("auc", "ap", "effective_size")})
    if config["export_weights"] and (card is not None or not config["attack"]):
        export_weights(trained.trainer.model, trained.splits[0], config["export_weights"])
    return Outcome(
        metrics=metrics,
        per_target=per_target,
        valid_metrics=(selection or trained).valid_metrics,
        seconds={
            "train": trained.seconds + (selection.seconds if selection else 0.0),
            "evaluate": time.perf_counter() - started,
        },
        extra={
            "best_epoch": trained.best_epoch,
            "n_genuine": n_genuine,
            "split_hash": results.split_hash([trained.genuine, *trained.splits[1:]]),
            "reused": trained.reused,
            "detection": trained.detection,
            "recognition": recognition,
        },
    )


def watched_training(config: Config, card: PoisonCard | None, watch: Callable[[dict[str, float]], None]) -> None:
    """A training for selection: ``watch`` is given what each epoch's model does on the validation rows and the targets.

    As under ``tune: true``, one more row a user is held out where the split has no validation rows. Nothing is kept.

    Raises:
        UserError: the split has no validation rows and is not the one that gets them; what RecBole cannot work with.
    """
    with blaming(config.unchecked_keys):
        if config["eval_args"]["split"] == {"LS": "test_only"}:
            config = config.derive(eval_args=_with_valid(config))
        _train(config.derive(tune=False, cache_clean=False, save_checkpoint=False, eval_step=0), card, None, watch)


def _with_valid(config: Config) -> dict[str, Any]:
    if config["eval_args"]["split"] != {"LS": "test_only"}:
        raise UserError(f"tune: expected eval_args.split {{'LS': 'test_only'}}, got {config['eval_args']['split']}")
    return {**config["eval_args"], "split": {"LS": "valid_and_test"}}


@dataclass
class Trained:
    """A model with its best weights in it, and what it was trained on."""

    trainer: Any
    test_data: Any
    splits: list[Any]
    genuine: Any
    targets: dict[str, int]
    ranks_in_test: Callable[[], TargetRanks]
    valid_metrics: dict[str, float] = field(default_factory=dict)
    best_epoch: int = -1
    reused: bool = False
    detection: dict[str, Any] | None = None
    seconds: float = 0.0

    @property
    def target_items(self) -> torch.Tensor:
        return torch.tensor(list(self.targets.values()), dtype=torch.long)


def _train(
    config: Config,
    card: PoisonCard | None,
    label: str | None,
    watch: Callable[[dict[str, float]], None] | None = None,
) -> Trained:
    first_stage = 0.0
    has_stages = config["train_stage"] == "both" and issubclass(get_trainer(config), S3RecTrainer)
    if has_stages:
        started = time.perf_counter()
        config = _pretrained(config, card)
        first_stage = time.perf_counter() - started
    train_data, valid_data, test_data = prepare(config, card)
    splits = [train_data._dataset, valid_data._dataset, test_data._dataset]
    train = splits[0]
    genuine = without_fakes(train)
    tokens = card.target_items if card is not None else targets_of(config, train)
    targets = {token: int(train.token2id(train.iid_field, token)) for token in tokens}
    trainer, train_data, detection = under_defenses(config, train_data)
    trainer.know_items(train)
    trainer.label = label or f"{config['model']} {'clean' if card is None else 'attacked'}"
    target_items = torch.tensor(list(targets.values()), dtype=torch.long)
    ranks_in_test = attach_targets(trainer, splits, target_items)
    if config["track_every"]:
        trainer.after_epoch.append(tracking(config, splits, target_items))
    if watch is not None:
        if not len(splits[1].inter_feat):
            raise UserError(f"eval_args: expected validation rows, got none by split {config['eval_args']['split']}")
        measure = measuring(config, splits, target_items, "valid")
        trainer.after_epoch.append(lambda trainer, epoch: watch(measure(trainer)))
    trained = Trained(trainer, test_data, splits, genuine, targets, ranks_in_test, detection=detection)
    started = time.perf_counter()
    cacheable = card is None and bool(config["cache_clean"]) and not has_stages
    _fit_or_reuse(config, trained, train_data, valid_data, cacheable)
    trained.seconds = first_stage + time.perf_counter() - started
    if has_stages and not config["save_checkpoint"]:
        os.unlink(config["pre_model_path"])
    return trained


def _pretrained(config: Config, card: PoisonCard | None) -> Config:
    """The first stage of S3Rec, on the same data; returns the configuration of the second, which starts from it."""
    first = config.derive(train_stage="pretrain")
    trainer, train_data, _ = under_defenses(first, prepare(first, card)[0])
    trainer.label = f"{config['model']} pre-training"
    trainer.fit(train_data, saved=False, show_progress=config["show_progress"])
    trainer.save_pretrained_model(config["pretrain_epochs"] - 1, trainer.saved_model_file)
    return config.derive(train_stage="finetune", pre_model_path=trainer.saved_model_file)


def _fit_or_reuse(config: Config, trained: Trained, train_data, valid_data, cacheable: bool) -> None:
    """Fit the model and leave the best weights in it; a clean training of the same key is taken from the cache."""
    if not cacheable or config["MODEL_TYPE"] == ModelType.TRADITIONAL:
        _fit(config, trained, train_data, valid_data)
        return
    path = _clean_path(config)
    if _reuse(config, trained, train_data, path, logging.DEBUG):
        return
    with locked(path):  # of several processes one trains, and the others take its weights then
        if not _reuse(config, trained, train_data, path, logging.WARNING):
            _fit(config, trained, train_data, valid_data)
            trained.trainer.save_weights(path, trained.best_epoch, trained.valid_metrics)


def _reuse(config: Config, trained: Trained, train_data, path: str, level: int) -> bool:
    """Whether the weights of a clean training were there to be taken; ``level`` is that of a complaint about them."""
    if config["force"] or not os.path.isfile(path):
        return False
    try:
        state = trained.trainer.load_weights(path)
    except UserError as error:
        logger.log(level, "%s; training again", error)
        return False
    trained.trainer.eval_collector.data_collect(train_data)
    trained.valid_metrics, trained.best_epoch, trained.reused = state["valid_metrics"], state["epoch"], True
    return True


def _fit(config: Config, trained: Trained, train_data, valid_data) -> None:
    trainer = trained.trainer
    validates = bool(valid_data) and config["eval_step"] > 0
    keep = validates or bool(config["save_checkpoint"])
    try:
        _, valid_result = trainer.fit(train_data, valid_data, saved=keep, show_progress=config["show_progress"])
        trained.valid_metrics = {name: float(value) for name, value in (valid_result or {}).items()}
        trained.best_epoch = trainer.epochs - 1
        if validates and os.path.isfile(trainer.saved_model_file):  # none where the validation score was never a number
            trained.best_epoch = trainer.load_weights(trainer.saved_model_file)["epoch"]
    finally:
        if keep and not config["save_checkpoint"]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(trainer.saved_model_file)


def _clean_path(config: Config) -> str:
    """Where the weights of a clean training are kept: its key has nothing of the attack, nor of what is measured."""
    measured = ["rating_metrics", "always_metrics", "baseline", "export_weights"]
    ranks_targets = any(str(m).lower().startswith("target") for m in [config["valid_metric"], *config["metrics"]])
    # Noise leaves the targets alone, and new fans are the targets': other targets, other clean data.
    if not ranks_targets and not config["noise_ratio"] and not config["new_fans"]:
        measured += [*TARGET_KEYS, "target_sets"]
    key = config.key(without=[*POISON_KEYS, *measured])
    version = "-".join([data_digest(config), recbole_robust.__version__, results.CODE, torch.__version__])
    name = hashlib.sha256(f"{key}-{version}".encode()).hexdigest()[:12]
    return os.path.join(config["output_dir"], "clean", f"{config['model']}-{config['dataset']}-{name}.pth")


def _measure(config: Config, trained: Trained) -> tuple[dict[str, float], dict[str, dict[str, float]], int]:
    """All metrics on the test rows, the target metrics of each target, and the number of genuine users asked."""
    trainer, splits, target_items = trained.trainer, trained.splits, trained.target_items
    init_seed(config["seed"], config["reproducibility"])  # sampled test negatives are the same for every training
    found_metrics = trainer.evaluate(trained.test_data, load_best_model=False)
    if found_metrics is None:
        raise UserError(f"eval_args: expected test rows, got none by split {config['eval_args']['split']}")
    metrics = {name: float(value) for name, value in found_metrics.items()}
    if config.is_ranking:
        found = trained.ranks_in_test()
    else:  # a CTR model: its own metrics rank nothing
        target_pass = TargetPass(splits, target_items, "test")
        is_tail = tail_items(splits[0], config["tail_share"])
        found, accuracy = target_pass.run_with_accuracy(trainer, config["topk"], is_tail)
        metrics.update(accuracy)
    if config.is_explicit:
        metrics.update(rating_metrics(trainer, splits[2], config["rating_metrics"]))
    per_target = target_metrics(
        found.ranks, found.scores, found.eligible, config["topk"], config["target_hr_denominator"]
    )
    metrics.update(mean_over_targets(per_target))
    counts = genuine_item_counts(splits[0])
    for row, item in zip(per_target, target_items.tolist(), strict=True):
        row["popularity"] = int(counts[item])
    return metrics, dict(zip(trained.targets, per_target, strict=True)), len(found.ranks)


def run_recbole_robust(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    command_line: Iterable[str] | Mapping[str, Any] = (),
    command: str | None = None,
) -> dict[str, Any]:
    """Run a model, attacked where there is an attack, with its baseline; write and return ``result.json``.

    Args:
        command: the command line to record; None makes one from the arguments.

    Returns:
        The content of result.json (DESIGN: Run), with its ``path``. An equal run's file is reused, if these sources
        made it, unless ``force`` is set or the weights that it exported have gone.
    """
    started = time.perf_counter()
    command_line = command_line if isinstance(command_line, Mapping) else list(command_line)
    config = Config(model, dataset, config_file_list, config_dict, command_line)
    path = Path(config["output_dir"]) / results.run_key(config, data_digest(config)) / "result.json"
    exported = config["export_weights"] is None or os.path.isfile(config["export_weights"])
    usable = path.is_file() and exported and not config["force"]
    if usable and (kept := results.read_of_this_code(path)) is not None:
        return {**kept, "path": str(path)}
    log = Path(config["output_dir"]) / "log" / f"{path.parent.name}.log"
    with results.log_to(log), blaming(config.unchecked_keys):
        planning = time.perf_counter()
        poison = stored_card(config)
        card = poison.card if poison else None
        planned = time.perf_counter()
        outcomes = _clean_and_attacked(config, card)
        baseline = baseline_config(config, config_file_list, config_dict, command_line)
        baseline_outcomes = _clean_and_attacked(baseline, card) if baseline else None
    path = path.parent.with_name(results.run_key(config, data_digest(config))) / path.name  # downloaded meanwhile?
    seconds = {"attack": planned - planning, "total": time.perf_counter() - started}
    result = results.assemble(
        config,
        command or results.command_of(config, command_line),
        poison,
        outcomes,
        (baseline, baseline_outcomes) if baseline and baseline_outcomes else None,
        seconds,
        environment={
            "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "device": str(config["device"]),
            "threads": torch.get_num_threads(),
            "versions": results.versions(),
            "code": results.CODE,
            "machine": platform.machine(),
        },
    )
    results.write(result, path)
    return {**result, "path": str(path)}


def _clean_and_attacked(config: Config, card: PoisonCard | None) -> dict[str, Outcome | None]:
    """The clean outcome (under an attack only with ``compare_clean``) and the attacked one (None: no attack)."""
    name = config["model"]
    clean = attacked = None
    if card is None or config["compare_clean"]:
        pinned = config if card is None else config.derive(target_items=card.target_items)
        clean = train_and_evaluate(pinned, None, f"{name} clean")
    if card is not None:
        attacked = train_and_evaluate(config, card, f"{name} attacked")
    return {"clean": clean, "attacked": attacked}


__all__ = [
    "baseline_config",
    "make_card",
    "run_attack",
    "run_recbole_robust",
    "train_and_evaluate",
    "watched_training",
]
