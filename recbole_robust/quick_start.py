"""One training, and one run: clean, attacked and baseline. Readable from top to bottom."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import ModelType

from recbole_robust import registry, results
from recbole_robust.config import POISON_KEYS, TARGET_KEYS, Config, known_keys
from recbole_robust.data.injection import without_fakes
from recbole_robust.data.load import clean_train_split, prepare
from recbole_robust.data.poison import Poison, PoisonCard, targets_of
from recbole_robust.evaluation import TargetPass, attach_targets, mean_over_targets, tail_items, target_metrics
from recbole_robust.evaluation.rating import rating_metrics
from recbole_robust.initialisation import build_model
from recbole_robust.trainer import get_trainer
from recbole_robust.types import Outcome, UserError

logger = logging.getLogger(__name__)

BASELINES = {"PurifyAugMF": "MF"}


def make_card(config: Config) -> PoisonCard | None:
    """The poison of a configuration: a stored card, or the attack run on the clean training split, or None."""
    if config["poison"]:
        return PoisonCard.load(config["poison"])
    if not config["attack"]:
        return None
    attack = registry.build_attack(config["attack"], config["attack_args"])
    return Poison.from_config(config, attack).plan(clean_train_split(config))


def train_and_evaluate(config: Config, card: PoisonCard | None = None, label: str | None = None) -> Outcome:
    """Train the configured model on the clean data, or on the data poisoned by ``card``, and measure it.

    With ``tune: true`` a first training with one more held-out row a user chooses the number of epochs; the model
    that is measured is trained on all rows. Test rows choose nothing.
    """
    if config["tune"]:
        selection = _train_and_evaluate(config.derive(tune=False, eval_args=_with_valid(config)), card, label)
        n_epochs = selection.extra["best_epoch"] + 1
        outcome = _train_and_evaluate(config.derive(tune=False, epochs=n_epochs), card, label)
        outcome.valid_metrics = selection.valid_metrics
        return outcome
    return _train_and_evaluate(config, card, label)


def _with_valid(config: Config) -> dict[str, Any]:
    if config["eval_args"]["split"] != {"LS": "test_only"}:
        raise UserError(f"tune: expected eval_args.split {{'LS': 'test_only'}}, got {config['eval_args']['split']}")
    return {**config["eval_args"], "split": {"LS": "valid_and_test"}}


def _train_and_evaluate(config: Config, card: PoisonCard | None, label: str | None) -> Outcome:
    train_data, valid_data, test_data = prepare(config, card)
    splits = [train_data._dataset, valid_data._dataset, test_data._dataset]
    train = splits[0]
    genuine = without_fakes(train)
    counts = np.bincount(genuine.inter_matrix(form="coo").col, minlength=train.item_num)
    tokens = card.target_items if card is not None else targets_of(config, train, counts[1:])
    target_items = torch.tensor([train.token2id(train.iid_field, token) for token in tokens])

    model = build_model(config, train, genuine)
    trainer = get_trainer(config)(config, model)
    trainer.know_items(train)
    trainer.label = label or f"{config['model']} {'clean' if card is None else 'attacked'}"
    attach_targets(trainer, splits, target_items)
    started = time.perf_counter()
    fitted = _fit_or_reuse(config, trainer, train_data, valid_data, cacheable=card is None)
    trained = time.perf_counter()

    metrics = {name: float(value) for name, value in trainer.evaluate(test_data, load_best_model=False).items()}
    target_pass = TargetPass(splits, target_items, "test")
    if config.is_ranking:
        found = target_pass.run(trainer)
    else:  # a CTR model: its own metrics rank nothing
        found, accuracy = target_pass.run_with_accuracy(
            trainer, config["topk"], tail_items(train, config["tail_share"])
        )
        metrics.update(accuracy)
    if config.is_explicit:
        metrics.update(rating_metrics(trainer, splits[2], config["rating_metrics"]))
    per_target = target_metrics(
        found.ranks, found.scores, found.eligible, config["topk"], config["target_hr_denominator"]
    )
    metrics.update(mean_over_targets(per_target))
    for row, item in zip(per_target, target_items.tolist(), strict=True):
        row["popularity"] = int(counts[item])
    return Outcome(
        metrics=metrics,
        per_target=dict(zip(tokens, per_target, strict=True)),
        valid_metrics=fitted["valid_metrics"],
        seconds={"train": trained - started, "evaluate": time.perf_counter() - trained},
        extra={
            "best_epoch": fitted["best_epoch"],
            "n_genuine": len(target_pass.users),
            "split_hash": results.split_hash([genuine, *splits[1:]]),
            "reused": fitted["reused"],
        },
    )


def _fit_or_reuse(config: Config, trainer, train_data, valid_data, cacheable: bool) -> dict[str, Any]:
    """Fit the model and leave the best weights in it; a clean training of the same key is taken from the cache."""
    path = _clean_path(config)
    if cacheable and not config["force"] and os.path.isfile(path):
        try:
            state = trainer.load_weights(path)
            trainer.eval_collector.data_collect(train_data)
            return {"valid_metrics": state["valid_metrics"], "best_epoch": state["epoch"], "reused": True}
        except UserError as error:
            logger.warning("%s; training again", error)
    validates = bool(valid_data) and config["eval_step"] > 0
    keep = validates or bool(config["save_checkpoint"])
    _, valid_result = trainer.fit(train_data, valid_data, saved=keep, show_progress=config["show_progress"])
    if validates:
        trainer.load_weights(trainer.saved_model_file)
    if keep and not config["save_checkpoint"]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(trainer.saved_model_file)
    valid_metrics = {name: float(value) for name, value in (valid_result or {}).items()}
    best_epoch = trainer.best_epoch if validates else trainer.epochs - 1
    if cacheable and config["cache_clean"] and config["MODEL_TYPE"] != ModelType.TRADITIONAL:
        trainer.save_weights(path, best_epoch, valid_metrics)
    return {"valid_metrics": valid_metrics, "best_epoch": best_epoch, "reused": False}


def _clean_path(config: Config) -> str:
    """Where the weights of a clean training are kept: its key has nothing of the attack, nor of what is measured."""
    measured = ["always_metrics", "rating_metrics", "tail_share", "baseline", "cache_clean"]
    if not str(config["valid_metric"]).lower().startswith("target"):
        measured += [*TARGET_KEYS, "target_sets"]
    key = config.key(without=[*POISON_KEYS, *measured])
    return os.path.join(config["output_dir"], "clean", f"{config['model']}-{config['dataset']}-{key}.pth")


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
        The content of result.json (DESIGN: Run), with its ``path``. An equal run's file is reused (``force: true``).
    """
    started = time.perf_counter()
    command_line = command_line if isinstance(command_line, Mapping) else list(command_line)
    config = Config(model, dataset, config_file_list, config_dict, command_line)
    path = Path(config["output_dir"]) / results.run_key(config) / "result.json"
    if path.is_file() and not config["force"]:
        return {**results.read(path), "path": str(path)}
    with results.log_to(Path(config["output_dir"]) / "log" / f"{path.parent.name}.log"):
        card = make_card(config)
        card_path = None
        planned = time.perf_counter()
        if card is not None:
            card_path = Path(config["output_dir"]) / "cards" / f"{card.settings.get('attack', 'card')}-{card.digest()}.json"
            card.save(card_path)
        outcomes = _clean_and_attacked(config, card)
        baseline = baseline_config(config, config_file_list, config_dict, command_line)
        baseline_outcomes = _clean_and_attacked(baseline, card) if baseline else None
    seconds = {"attack": planned - started, "total": time.perf_counter() - started}
    result = results.assemble(
        config,
        command or results.command_of(config, command_line),
        card,
        card_path,
        outcomes,
        (baseline, baseline_outcomes) if baseline else None,
        seconds,
        environment={
            "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "device": str(config["device"]),
            "threads": torch.get_num_threads(),
            "versions": results.versions(),
            "machine": platform.machine(),
        },
    )
    results.write(result, path)
    return {**result, "path": str(path)}


def _clean_and_attacked(config: Config, card: PoisonCard | None) -> dict[str, Outcome | None]:
    """The clean outcome (skipped by ``compare_clean: false`` under an attack) and the attacked one (None: no attack)."""
    name = config["model"]
    clean = attacked = None
    if card is None or config["compare_clean"]:
        pinned = config if card is None else config.derive(target_items=card.target_items)
        clean = train_and_evaluate(pinned, None, f"{name} clean")
    if card is not None:
        attacked = train_and_evaluate(config, card, f"{name} attacked")
    return {"clean": clean, "attacked": attacked}


def baseline_config(config: Config, files, config_dict, command_line) -> Config | None:
    """The configuration of the undefended model beside the method, or None.

    It has the user's keys, less those that only the method's model has, under the same protocol.
    """
    name = config["baseline"]
    if name in (None, "none", "None"):
        return None
    if name == "auto":
        name = BASELINES.get(config["model"]) or (config["model"] if config["defense"] else None)
        if name is None:
            return None
    registry.get_model(name)
    _, by_model = known_keys()
    foreign = {key for key, models in by_model.items() if name not in models}
    given = {k: v for k, v in config.external_config_dict.items() if k not in foreign}
    given = {k: v for k, v in given.items() if k not in ("model", "dataset", "preset", "defense", "defense_args")}
    given.update(protocol=config["protocol"], baseline="none")
    return Config(name, config["dataset"], None, given, {".".join(k): v for k, v in config._dotted.items()})


__all__ = ["baseline_config", "make_card", "run_recbole_robust", "train_and_evaluate"]
