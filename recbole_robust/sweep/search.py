"""One search of a sweep on Ray Tune: its searcher and scheduler, what a trial reports, and what becomes of Ctrl-C."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recbole_robust.benchmark import ATTEMPTS
from recbole_robust.cluster import at_home, threads_each
from recbole_robust.sweep.book import TrialBook
from recbole_robust.sweep.file import SIDES, WORST, Sweep, Values, key_of

TUNE_SETTINGS = {  # Tune writes nothing that is read, and Ctrl-C is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "3600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def search(
    sweep: Sweep,
    condition: Values,
    epochs: int,
    book: TrialBook,
    n_workers: int,
    gpu_per_trial: float,
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    """One search by Ray Tune, of one condition; the trials that end are entered into the book, and shown."""
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
