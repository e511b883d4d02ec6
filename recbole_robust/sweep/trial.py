"""One trial of a sweep: its clean and attacked trainings side by side, epoch by epoch, so that it can end early."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recbole_robust.config import Config
from recbole_robust.grid import RUN_DEFAULTS
from recbole_robust.quick_start import make_card, watched_training
from recbole_robust.randomness import global_state, set_global_state
from recbole_robust.sweep.file import Sweep, Values

Metrics = Mapping[str, float]


def trial_config(sweep: Sweep, condition: Values, values: Values, output_dir: str, *more: Values) -> Config:
    """The configuration of a trial; ``more`` are the keys of an attack and of a target set."""
    keys = {**RUN_DEFAULTS, **sweep.keys(condition, values), "seed": sweep.seed, "output_dir": output_dir}
    for own in more:
        keys.update(own)
    return Config(sweep.model, sweep.dataset, config_dict=keys)


def run_trial(
    sweep: Sweep, condition: Values, values: Values, output_dir: str, report: Callable[[int, dict[str, float]], None]
) -> None:
    """Train as the values say, clean and under each attack, for each target set; report after each epoch (from 0).

    All that is reported is measured on validation rows and on the targets of the sweep; test rows choose nothing.
    """
    pairs: list[tuple[Training, list[Training]]] = []
    epochs = trial_config(sweep, condition, values, output_dir)["epochs"]
    for targets in sweep.target_sets:
        clean, attacked = trial_config(sweep, condition, values, output_dir, targets), []
        for attack in sweep.attacks:
            config = trial_config(sweep, condition, values, output_dir, targets, attack)
            card = make_card(config)
            assert card is not None
            clean = clean.derive(target_items=card.target_items)
            attacked.append(Training(functools.partial(watched_training, config, card)))
        pairs.append((Training(functools.partial(watched_training, clean, None)), attacked))
    with _ending([training for first, rest in pairs for training in (first, *rest)]):
        for epoch in range(epochs):
            report(epoch, combined([(clean.step(), [one.step() for one in rest]) for clean, rest in pairs]))


def combined(pairs: list[tuple[Metrics, list[Metrics]]]) -> dict[str, float]:
    """One mapping from those of the clean trainings, each with the attacked ones of its target set."""
    lifts = [
        {name: one[name] - clean[name] for name in clean if name in one}
        for clean, attacked in pairs
        for one in attacked
    ]
    found = {f"clean.{name}": value for name, value in _means([clean for clean, _ in pairs]).items()}
    for side, metrics in (("attacked", [one for _, attacked in pairs for one in attacked]), ("lift", lifts)):
        found.update({f"{side}.{name}": value for name, value in _means(metrics).items()})
    for name in lifts[0] if lifts else ():
        found[f"worst_lift.{name}"] = max(lift[name] for lift in lifts)
    return found


def _means(metrics: list[Any]) -> dict[str, float]:
    return {name: sum(one[name] for one in metrics) / len(metrics) for name in (metrics[0] if metrics else ())}


class Training(threading.Thread):
    """A training that waits after every epoch. Of several one runs at a time, each with random numbers of its own.

    So each gives what it would give alone, tensor for tensor.

    Args:
        work: trains, and calls what it is given with the metrics of each epoch.
    """

    def __init__(self, work: Callable[[Callable[[Metrics], None]], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._metrics: Metrics = {}
        self._error: BaseException | None = None
        self._ended = self._unwanted = False

    def run(self) -> None:
        self._go.acquire()
        try:
            if not self._unwanted:
                self._work(self._pause)
        except BaseException as error:  # told in the thread that asks for the next epoch
            self._error = error
        self._ended = True
        self._waits.release()

    def _pause(self, metrics: Metrics) -> None:
        self._metrics, state = metrics, global_state()
        self._waits.release()
        self._go.acquire()
        if self._unwanted:
            raise SystemExit
        set_global_state(state)

    def step(self) -> Metrics:
        """Train one epoch and return its metrics.

        Raises:
            Exception: what the training raises.
        """
        if not self.is_alive():
            self.start()
        self._go.release()
        self._waits.acquire()
        if self._error is not None:
            raise self._error
        if self._ended:
            raise RuntimeError("a training has ended before its last epoch")
        return self._metrics

    def end(self) -> None:
        """Let it go, at its last epoch or before."""
        self._unwanted = True
        if self.is_alive():
            self._go.release()
            self.join()


@contextlib.contextmanager
def _ending(trainings: list[Training]) -> Iterator[None]:
    try:
        yield
    finally:
        for training in trainings:
            training.end()
