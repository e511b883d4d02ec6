"""CPU time of a training epoch under each defense, as a ratio to the plain model's, side by side on one thread.

    python benchmarks/bench_defenses.py [defense ...]

ML-100K (ships with RecBole): MF on ratings under the APT protocol, BPR and LightGCN. Minimum of 5 alternating epochs.
Asked: AT, VAT, PamaCF at most 2.2x, GDA (5 candidates) 3x, PCMF, RCE and TCE 1.3x; RGCF beside LightGCN is shown.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time

import torch
from tabulate import tabulate

from recbole_robust import registry
from recbole_robust.config import Config
from recbole_robust.data.load import prepare
from recbole_robust.defenses import defended
from recbole_robust.initialisation import build_model
from recbole_robust.trainer import get_trainer
from recbole_robust.types import UserError

REPEATS = 5
PAIRS = {
    "MF": ["AT", "VAT", "PamaCF", "GDA", "PCMF"],
    "BPR": ["AT", "VAT", "PamaCF", "GDA", "RCE", "TCE"],
    "LightGCN": ["AT", "VAT", "PamaCF", "GDA", "RCE", "TCE", "RGCF"],
}


def epochs_of(folder: str, model: str, defense: str | None = None):
    """A function that trains one epoch more and returns its CPU seconds."""
    keys = {"output_dir": folder, "gpu_id": "", "show_progress": False, "log_tensorboard": False}
    if defense in registry.DEFENSES:
        start = {"start_epoch": 0} if "start_epoch" in registry.DEFENSES[defense].__dataclass_fields__ else {}
        keys.update(defense=defense, defense_args=start)
    config = Config(model if defense in (None, *registry.DEFENSES) else defense, "ml-100k", config_dict=keys)
    train_data = prepare(config)[0]
    loss = registry.build_defenses(config["defense"], config["defense_args"]).loss
    model_class = defended(config.model_class, loss) if loss else config.model_class
    trainer = get_trainer(config)(config, build_model(config, train_data._dataset, train_data._dataset, model_class))
    epoch = iter(range(10**6))

    def run() -> float:
        trainer.model.train()
        started = time.process_time()
        trainer._train_epoch(train_data, next(epoch))
        return time.process_time() - started

    return run


def main() -> None:
    torch.set_num_threads(1)
    wanted, rows = sys.argv[1:], []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for model, defenses in PAIRS.items():
            runs = {None: epochs_of(folder, model)}
            for name in defenses:
                if not wanted or name in wanted:
                    try:
                        runs[name] = epochs_of(folder, model, name)
                    except UserError as error:
                        print(f"{model} under {name}: {error}", file=sys.stderr)
            times = {name: [] for name in runs}
            for _ in range(REPEATS + 1):
                for name, run in runs.items():
                    times[name].append(run())
            least = {name: min(found[1:]) for name, found in times.items()}
            rows += [(model, name or "plain", seconds, seconds / least[None]) for name, seconds in least.items()]
    print(tabulate(rows, ("model", "defense", "CPU s / epoch", "times plain"), floatfmt=("", "", ".3f", ".2f")))


if __name__ == "__main__":
    main()
