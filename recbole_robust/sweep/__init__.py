"""Sweeps on Ray Tune: each trial reports after every epoch, so that ASHA can stop it. What a sweep is: file.py.

Only this process writes: ``trials.json`` after each trial, whole or not at all. A sweep that was killed replays the
trials that had ended, report by report, to the searcher and the scheduler, and goes on from there.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recbole_robust.benchmark import RUN_FOLDERS, kept_folders
from recbole_robust.cluster import ray_cluster
from recbole_robust.schedule import check_workers
from recbole_robust.sweep.book import SweepRun, TrialBook, earlier_trials
from recbole_robust.sweep.file import Sweep, load_sweep, read_sweep
from recbole_robust.sweep.page import shown
from recbole_robust.sweep.search import search
from recbole_robust.types import UserError

logger = logging.getLogger(__name__)


def run_sweep(
    sweep: str | Path | Mapping[str, Any],
    *,
    output_dir: str | Path,
    workers: int = 1,
    address: str | None = None,
    gpu_per_trial: float = 0.0,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
) -> SweepRun:
    """Search for the best configuration by Ray Tune, one search a condition; write trials, table and best.yaml.

    Args:
        sweep: a sweep, its file, or the name of one that ships with the project.
        output_dir: parent of the sweep's folder; poison cards are kept there too.
        workers: trials that run at once; they share the cores. 0 with an address: one a CPU of the cluster.
        address: as for :func:`recbole_robust.benchmark.run_grid`.
        gpu_per_trial: GPUs of each trial; 0.5 lets two trials share one.
        resume: go on with the trials of an earlier run of the same sweep.
        force: forget them.
        progress: show a bar and one line a trial on stderr.

    Raises:
        UserError: a bad sweep, or trials of an earlier run without ``resume`` or ``force``; no optuna for tpe.
    """
    check_workers(workers)
    if not workers and address is None:
        raise UserError("workers: expected at least 1 trial at once, got 0")
    if not isinstance(gpu_per_trial, int | float) or not gpu_per_trial >= 0 or math.isinf(gpu_per_trial):
        raise UserError(f"gpu_per_trial: expected a number >= 0, got {gpu_per_trial!r}")
    told = read_sweep(sweep) if isinstance(sweep, Mapping) else load_sweep(sweep)
    if told.method == "tpe" and importlib.util.find_spec("optuna") is None:
        raise UserError("search.method: expected optuna to be installed for tpe (pip install 'recbole-robust[sweep]')")
    folder = Path(output_dir).absolute() / told.name
    epochs, data = _check_by_configs(told, str(folder.parent))
    earlier = earlier_trials(told, folder, resume, force, epochs, data)
    book = TrialBook(told, epochs, data, folder, earlier)
    with (
        kept_folders(folder.parent / name for name in RUN_FOLDERS),
        ray_cluster(workers, address) as n_workers,
        tqdm(total=book.n_expected, desc=told.name, unit="trial", disable=not progress, file=sys.stderr) as bar,
    ):
        _check_gpus(gpu_per_trial)
        for condition in told.conditions:
            show = functools.partial(_show, bar, progress)
            search(told, condition, epochs, book, n_workers, float(gpu_per_trial), show)
    return book.close()


def _check_by_configs(sweep: Sweep, output_dir: str) -> tuple[int, Callable[[], str]]:
    """The number of epochs, and a function that gives the digest of the data; what a trial would stumble over is told.

    Raises:
        UserError: a key, or a value at the ends of a range, that a Config refuses; a key that makes a trial's data or
            its measure another; a metric at a K that none measures; an epoch to choose where there is none.
    """
    from recbole_robust.config import POISON_KEYS, TARGET_KEYS  # here, so that a sweep can be read without torch
    from recbole_robust.data.load import data_digest
    from recbole_robust.sweep.trial import trial_config

    measuring = ("protocol", "topk", "tail_share", "eval_args", "val_interval", "user_folds", "heldout_file")
    fixed = {"epochs": "(objective.epoch: best chooses it)", "new_fans": "(they belong into config)"}
    noise = [key for key in sweep.space if key.startswith("noise_")]
    for key in {*noise, *POISON_KEYS, *TARGET_KEYS, *measuring, "target_sets"}:
        fixed.setdefault(key, "(data and measures are not chosen: conditions have a search each)")
    for key in sweep.space:
        if (why := fixed.get(key.split(".")[0])) is not None:
            raise UserError(f"space: expected keys other than {key} {why}")
    for where, entries, known in (
        ("conditions", sweep.conditions, None),
        ("attacks", sweep.attacks, POISON_KEYS),
        ("target_sets", sweep.target_sets, TARGET_KEYS),
    ):
        for key in (key for entry in entries for key in entry):
            if key == "epochs" or (known is not None and key.split(".")[0] not in known):
                told = "keys other than epochs" if known is None else f"the keys {', '.join(known)}"
                raise UserError(f"{where}: expected {told}, got {key!r}")
    first, attacks = sweep.corners()[0], sweep.attacks or [{}]
    asked = [(condition, values, attacks[0]) for condition in sweep.conditions for values in sweep.corners()]
    asked += [(sweep.conditions[0], first, attack) for attack in attacks[1:]]
    epochs = 0
    for condition, values, attack in asked:
        config = trial_config(sweep, condition, values, output_dir, sweep.target_sets[0], attack)
        if sweep.attacks and not (config["attack"] or config["poison"]):
            raise UserError(f"attacks: expected an attack, got {attack!r}")
        if sweep.objective.epoch == "best" and config["atjt_schedule"] == "phased":
            raise UserError(
                "objective.epoch: expected last, since atjt_schedule phased has its number of epochs, got best"
            )
        epochs = max(epochs, config["epochs"])
    if sweep.scheduler == "asha" and sweep.grace > epochs:
        raise UserError(f"scheduler.grace: expected at most the {epochs} epochs, got {sweep.grace}")
    for name in sweep.objective.metrics:
        k = name.partition("@")[2]
        if k and int(k) not in config["topk"]:
            raise UserError(f"objective: expected a K of topk {config['topk']}, got {name!r}")
    return epochs, functools.partial(data_digest, config)


def _show(bar: Any, progress: bool, trial: Mapping[str, Any]) -> None:
    """One line a trial that has ended."""
    bar.update()
    if progress:
        values = ", ".join(f"{key} {shown(value)}" for key, value in {**trial["condition"], **trial["values"]}.items())
        end = f"FAILED, {trial['error']}" if "error" in trial else f"{trial['status']}, score {shown(trial['score'])}"
        bar.write(f"{values}: {end}, {trial['epochs']} epochs, {trial['seconds']:.1f} s", file=sys.stderr)


def _check_gpus(gpu_per_trial: float) -> None:
    import ray

    there = ray.cluster_resources().get("GPU", 0)
    if gpu_per_trial > there:  # Tune would wait for ever
        raise UserError(f"gpu_per_trial: expected at most the {there:g} GPUs that there are, got {gpu_per_trial:g}")
    if there and not gpu_per_trial:
        logger.warning("gpu_per_trial: 0, so the %g GPUs that there are stand idle", there)
