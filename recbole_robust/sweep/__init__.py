"""Sweeps on Ray Tune: each trial reports after every epoch, so that ASHA can stop it. What a sweep is: file.py.

Only this process writes: ``trials.json`` after each trial, whole or not at all. A sweep that was killed replays the
trials that had ended, report by report, to the searcher and the scheduler, and goes on from there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recbole_robust.benchmark import ATTEMPTS, RUN_FOLDERS, kept_folders
from recbole_robust.cluster import at_home, ray_cluster, threads_each
from recbole_robust.schedule import check_workers
from recbole_robust.sweep.book import SweepRun, TrialBook, earlier_trials
from recbole_robust.sweep.file import SIDES, WORST, Sweep, Values, key_of, load_sweep, read_sweep
from recbole_robust.sweep.page import shown
from recbole_robust.types import UserError

logger = logging.getLogger(__name__)

TUNE_SETTINGS = {  # Tune writes nothing that is read, and Ctrl-C is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "3600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


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
            _search(told, condition, epochs, book, n_workers, float(gpu_per_trial), show)
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


# --- Ray Tune ---------------------------------------------------------------------------------------------------------


def _search(
    sweep: Sweep,
    condition: Values,
    epochs: int,
    book: TrialBook,
    n_workers: int,
    gpu_per_trial: float,
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    """One search, of one condition."""
    with _settings(TUNE_SETTINGS), _stopped_by_ctrl_c():
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

        earlier = book.earlier(condition)
        space: dict[str, Any]
        searcher, n_samples = None, 1
        if sweep.method == "tpe":
            first = [trial["values"] for trial in earlier]
            searcher, space, n_samples = _tpe(sweep, first, epochs), {}, sweep.n_trials or 1
        else:
            space = {"point": tune.grid_search(sweep.points())}
        scheduler = FIFOScheduler()
        if sweep.scheduler == "asha":
            scheduler = ASHAScheduler(
                "training_iteration", max_t=epochs, grace_period=sweep.grace, reduction_factor=sweep.reduction
            )
        threads = threads_each(n_workers)
        replay = {key_of(trial["values"]): trial["scores"] for trial in earlier}
        trainable = functools.partial(
            _trial, sweep=sweep, condition=condition, output_dir=str(book.folder.parent), replay=replay,
            folder=os.getcwd(), threads=threads, epochs=epochs,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="sweep-") as scratch:
            tune.run(
                _with_name(trainable, sweep.name),
                metric="score",
                mode="max",
                config=space,
                num_samples=n_samples,
                search_alg=searcher,
                scheduler=scheduler,
                storage_path=scratch,
                resources_per_trial={"cpu": 1, "gpu": gpu_per_trial},
                max_concurrent_trials=n_workers,
                callbacks=[_recorder(condition, book, show)],
                stop=_stopper(),
                reuse_actors=True,
                max_failures=ATTEMPTS - 1,
                raise_on_failed_trial=False,
                verbose=0,
            )


@contextlib.contextmanager
def _settings(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that Tune reads, where the user has not set them; and no talk of optuna's."""
    new = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(new)
    names = ("ray.tune", "ray.air", "optuna")
    levels = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in zip(names, levels, strict=True):
            logging.getLogger(name).setLevel(level)
        for key in new:
            del os.environ[key]


@contextlib.contextmanager
def _stopped_by_ctrl_c() -> Iterator[None]:
    """After Ctrl-C in this block Tune ends its trials, and the interruption comes then; once more, and it comes now."""

    def stop(*_: Any) -> None:
        if _ctrl_c.is_set():
            raise KeyboardInterrupt
        _ctrl_c.set()

    _ctrl_c.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if _ctrl_c.is_set():
        raise KeyboardInterrupt


_ctrl_c = threading.Event()


def is_stopped() -> bool:
    """Whether Ctrl-C was pressed in the search that goes on."""
    return _ctrl_c.is_set()


def _stopper() -> Any:
    from ray.tune import Stopper

    class CtrlC(Stopper):  # Tune pickles it: with the name of the function, not with the event
        def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return is_stopped()

    return CtrlC()


def _tpe(sweep: Sweep, first: list[Values], epochs: int) -> Any:
    """Optuna's tree-structured Parzen estimator; it asks for the points that have ended first.

    A trial that was stopped is told as pruned, with the score of each epoch: at its last one it is no match for the
    score of another at the end.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from ray.tune.search.optuna import OptunaSearch

    class Search(OptunaSearch):
        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            failed = error or (result is not None and result.get("error") is not None)
            whole = result is not None and result["epoch"] + 1 == epochs
            super().on_trial_complete(trial_id, result if whole and not failed else None, error=failed)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds: dict[str, Callable[[list[Any]], Any]] = {
        "choice": CategoricalDistribution,
        "uniform": lambda ends: FloatDistribution(*ends),
        "loguniform": lambda ends: FloatDistribution(ends[0], ends[1], log=True),
        "int": lambda ends: IntDistribution(*ends),
        "logint": lambda ends: IntDistribution(ends[0], ends[1], log=True),
    }
    space = {key: kinds[kind](own) for key, (kind, own) in sweep.space.items()}
    seed = sweep.search_seed + 1000 * len(first)  # or what is drawn after a resumption was drawn before it
    return Search(space, metric="score", mode="max", seed=seed, points_to_evaluate=first or None)


def _with_name(trainable: functools.partial[None], name: str) -> Callable[[Values], None]:
    def train(config: Values) -> None:
        trainable(config)

    train.__name__ = name  # Tune calls the experiment so
    return train


def _trial(
    config: Values,
    *,
    sweep: Sweep,
    condition: Values,
    output_dir: str,
    replay: Mapping[str, list[float]],
    folder: str,
    threads: int,
    epochs: int,
) -> None:
    """What Tune runs, in a process of a worker: a trial, or the reports of one that has ended."""
    values = config.get("point", config)
    best_so_far = sweep.objective.epoch == "best"
    if (scores := replay.get(key_of(values))) is not None:
        for epoch, score in enumerate(itertools.accumulate(scores, max) if best_so_far else scores):
            _report({"score": score, "epoch": epoch, "replayed": True})
        return
    from recbole_robust.sweep.trial import run_trial

    at_home(folder, threads)
    best = -math.inf

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        nonlocal best
        own = sweep.objective.score(metrics)
        best = max(best, own) if best_so_far else own
        _report({"score": best, "own": own, "epoch": epoch, "replayed": False, **metrics})

    try:
        run_trial(sweep, condition, values, output_dir, report)
    except Exception as error:  # the others go on
        told = " ".join(f"{type(error).__name__}: {error}".split())
        _report({"score": WORST, "epoch": -1, "replayed": False, "error": told})


def _report(result: dict[str, Any]) -> None:
    from ray import tune

    if hasattr(tune, "get_context"):  # later than 2.6
        tune.report(result)
    else:
        tune.report(**result)


def _recorder(condition: Values, book: TrialBook, show: Callable[[Mapping[str, Any]], None]) -> Any:
    """Tune's callback that enters each trial that has ended, but for Ctrl-C, into the book."""
    from ray.tune import Callback

    histories: dict[str, dict[int, dict[str, Any]]] = {}
    errors: dict[str, str] = {}
    started: dict[str, float] = {}
    replayed: set[str] = set()

    class Recorder(Callback):
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            started[trial.trial_id] = time.monotonic()

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            if result.get("replayed"):
                replayed.add(trial.trial_id)
            elif "error" in result:
                errors[trial.trial_id] = result["error"]
            elif "epoch" in result:
                metrics = {name: value for name, value in result.items() if name.partition(".")[0] in SIDES}
                histories.setdefault(trial.trial_id, {})[result["epoch"]] = {"score": result["own"], **metrics}

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.enter(trial, errors.get(trial.trial_id))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.enter(trial, f"its worker died {ATTEMPTS} times")

        def enter(self, trial: Any, error: str | None) -> None:
            if is_stopped():
                return
            values = trial.config.get("point", trial.config)
            if trial.trial_id in replayed:
                last = trial.last_result
                told = {"status": "replayed", "score": last["score"], "epochs": last["epoch"] + 1, "seconds": 0.0}
                show({"condition": condition, "values": values, **told})
                return
            seconds = time.monotonic() - started.get(trial.trial_id, time.monotonic())
            show(book.add(condition, values, histories.get(trial.trial_id, {}), error, seconds))

    return Recorder()
