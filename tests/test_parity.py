"""Without an attack and with RecBole's own loader our stack is RecBole: the same metrics to 1e-6.

The stock run is RecBole's ``run_recbole`` in a process of its own, which never sees this package; it is fixed only as
far as it must be to run on today's libraries (names that numpy dropped, torch.load).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_robust.config import Config
from recbole_robust.quick_start import train_and_evaluate

STOCK = """
import json, sys
import numpy as np, torch
for name, value in {"bool8": np.bool_, "float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
    if name not in np.__dict__:
        setattr(np, name, value)
load = torch.load
torch.load = lambda *args, **options: load(*args, **{"weights_only": False, **options})
from scipy.sparse import dok_matrix
if not hasattr(dok_matrix, "_update"):
    dok_matrix._update = lambda self, data: self._dict.update(data)
runs, sys.argv = json.loads(sys.stdin.read()), sys.argv[:1]
from recbole.quick_start import run_recbole
results = {}
for model, (dataset, keys) in runs.items():
    found = run_recbole(model=model, dataset=dataset, config_dict=keys)
    results[model] = {which: dict(found[which]) for which in ("best_valid_result", "test_result")}
assert not any(name.startswith("recbole_robust") for name in sys.modules)
print("RESULTS" + json.dumps(results))
"""

SMALL = {"MAX_ITEM_LIST_LENGTH": 10, "hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 1}
LABELS = {"threshold": {"rating": 4}, "embedding_size": 8, "mlp_hidden_size": [16]}
FEATURES = {"inter": ["user_id", "item_id", "rating", "timestamp"], "user": ["user_id", "age", "gender"],
            "item": ["item_id", "year", "class"]}  # fmt: skip
MODELS = {
    "BPR": {},
    "LightGCN": {"n_layers": 2},
    "SASRec": {**SMALL, "train_neg_sample_args": None},
    "DCN": LABELS,
}
COMMON = {"seed": 7, "epochs": 3, "metric_decimal_place": 9, "gpu_id": "", "use_gpu": False, "show_progress": False,
          "topk": [5, 10], "embedding_size": 16, "stopping_step": 1}  # fmt: skip


def keys_of(model: str, dataset: str, data_path: Path) -> dict:
    keys = {**COMMON, **MODELS[model], "data_path": str(data_path)}
    if dataset == "toy" and model in ("DCN", "SASRec"):  # for ml-100k RecBole knows what to load
        keys["load_col"] = FEATURES if model == "DCN" else {"inter": ["user_id", "item_id", "timestamp"]}
    return keys


def stock_results(dataset: str, data_path: Path, cwd: Path) -> dict:
    runs = {model: (dataset, keys_of(model, dataset, data_path)) for model in MODELS}
    done = subprocess.run(
        [sys.executable, "-c", STOCK], input=json.dumps(runs), cwd=cwd, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS")]
    assert lines, done.stderr[-2000:]
    return json.loads(lines[0].removeprefix("RESULTS"))


@pytest.mark.parametrize("dataset", ["toy", pytest.param("ml-100k", marks=pytest.mark.slow)])
def test_our_stack_is_recbole(dataset, data_path, output_dir, tmp_path):
    stock = stock_results(dataset, data_path, tmp_path)
    for model, expected in stock.items():
        own = {"dataloader": "recbole", "protocol": "recbole", "output_dir": str(output_dir), "cache_clean": False}
        outcome = train_and_evaluate(Config(model, dataset, config_dict={**keys_of(model, dataset, data_path), **own}))
        for which, found in (("best_valid_result", outcome.valid_metrics), ("test_result", outcome.metrics)):
            assert expected[which].keys() <= found.keys(), (model, which)
            for name, value in expected[which].items():
                assert found[name] == pytest.approx(value, abs=1e-6), (model, which, name)
