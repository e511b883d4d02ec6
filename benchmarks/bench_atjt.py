"""ATJT, its corrected form and the calibrated one beside their base model: CPU time of an epoch, and peak memory.

    RECBOLE_ROBUST_DATA=<folder with <name>.inter.xz> python benchmarks/bench_atjt.py [batches]

One thread, epochs in turn, the least of each. ``batches`` cuts an epoch short (left out: whole epochs, hours on a CPU);
the whole one is told from it, and from what the corrected forms ask of their recognisers when an epoch starts. The
recognisers' pre-training is not in it: it is once a training. Asked of ATJT: at most 1.5 times SASRec (64 d, 2 layers)
on amazon-beauty, 2 times DIN and DCN on ml-100k; below 4 GiB on ml-1m-seq.
"""

from __future__ import annotations

import functools
import itertools
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from bench_purifyaug import least
from data import place
from tabulate import tabulate

from recbole_robust.config import Config
from recbole_robust.data.load import prepare
from recbole_robust.defending import under_defenses

CASES: list[tuple[str, str, dict[str, Any]]] = [  # of RecBole's settings: 64 d, 2 layers; 10 d, three layers of 256
    ("ml-1m-seq", "SASRec", {"hidden_size": 32, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 20, "epochs": 1}),
    ("ml-100k", "DIN", {}),
    ("ml-100k", "DCN", {}),
    ("amazon-beauty", "SASRec", {}),
]

REPEATS = 3
FORMS: dict[str, dict[str, Any]] = {
    "ATJT": {},
    "corrected": {"preset": "corrected"},
    "calibrated": {"preset": "corrected", "weight_temperature": "estimated"},
}


class Short:
    """The first batches of a loader."""

    def __init__(self, loader: Any, n_batches: int) -> None:
        self.loader, self.n_batches = loader, min(n_batches, len(loader))

    def __iter__(self):
        return itertools.islice(iter(self.loader), self.n_batches)

    def __len__(self) -> int:
        return self.n_batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


class Epoch(NamedTuple):
    """A short epoch and what it starts with, as functions, and how many of the batches of a whole one it has."""

    run: Callable[[], Any]
    start: Callable[[], Any]
    n_batches: int
    n_all: int

    def whole(self, seconds: float, of_start: float) -> float:
        """The seconds of a whole epoch."""
        return of_start + (seconds - of_start) * self.n_all / self.n_batches


def epoch_of(folder: str, dataset: str, n_batches: int, **keys: Any) -> Epoch:
    """An epoch, after one batch that is not measured."""
    places = {"dataset": dataset, "data_path": folder, "output_dir": os.path.join(folder, "out"), "gpu_id": ""}
    quiet = {"show_progress": False, "log_tensorboard": False, "recogniser_pretrain_steps": 0, "seed": 0}
    if keys["model"] != "ATJT":
        quiet.pop("recogniser_pretrain_steps")
    config = Config(config_dict={**places, **quiet, **keys})
    trainer, loader, _ = under_defenses(config, prepare(config)[0])
    trainer.model.train()
    trainer._train_epoch(Short(loader, 1), 0)
    cut = Short(loader, n_batches)
    start = functools.partial(trainer._hook, "on_epoch_start", 1)
    return Epoch(lambda: trainer._train_epoch(cut, 1), start, len(cut), len(loader))


def main() -> None:
    torch.set_num_threads(1)
    n_batches = int(sys.argv[1]) if sys.argv[1:] else sys.maxsize
    with tempfile.TemporaryDirectory() as folder:
        for dataset in ("ml-1m-seq", "amazon-beauty"):
            place(folder, dataset)
        rows = []
        for dataset, base, keys in CASES:  # ml-1m-seq first: a peak stays
            plain = f"Seq{base}" if base == "DCN" else base
            runs = {"base": epoch_of(folder, dataset, n_batches, model=plain, **keys)}
            for name, form in FORMS.items():
                runs[name] = epoch_of(folder, dataset, n_batches, model="ATJT", base_model=base, **keys, **form)
            starts = least({name: epoch.start for name, epoch in runs.items()}, REPEATS)
            seconds = least({name: epoch.run for name, epoch in runs.items()}, REPEATS)
            seconds = {name: epoch.whole(seconds[name], starts[name]) for name, epoch in runs.items()}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            ratios = [seconds[name] / seconds["base"] for name in FORMS]
            told = f"{runs['base'].n_batches} of {runs['base'].n_all}"
            rows.append([f"{base}, {dataset}", told, seconds["base"], *ratios, peak])
        heads = ["", "batches", "base, CPU s", *(f"{name}, times base" for name in FORMS), "peak so far, MiB"]
        print(tabulate(rows, headers=heads, floatfmt=("", "", ".1f", ".2f", ".2f", ".2f", ".0f")))


if __name__ == "__main__":
    main()
