"""Fixtures that every test can use: the toy data set, a folder to write to, and a factory of configurations."""

from __future__ import annotations

import contextlib
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers have the cores: one thread each, set before torch is imported
    os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused, toy  # noqa: F401 - fixtures
from toy_splits import attacks, family_config, run, trainings, write_data  # noqa: F401 - fixtures

from recbole_robust.cluster import ray_cluster
from recbole_robust.config import Config

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def no_anomaly_detection() -> None:
    """RecBole's sine.py turns it on for all that is trained after its import: tests outside our trainer would crawl."""
    torch.autograd.set_detect_anomaly(False)


@pytest.fixture(scope="session")
def data_path() -> Path:
    """The folder ``dataset/`` of the repository, which holds the toy data set."""
    return REPOSITORY / "dataset"


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """Where a test's runs write; it is not there yet, so that a test can ask whether anything was left behind."""
    return tmp_path / "output"


@pytest.fixture
def toy_config(data_path: Path, output_dir: Path) -> Callable[..., Config]:
    """Build a Config: by default MF on the toy data set, on the CPU, quiet; any key can be given and wins."""

    def make(model: str | type = "MF", **keys) -> Config:
        quiet = {"use_gpu": False, "show_progress": False, "log_tensorboard": False}
        places = {"data_path": str(data_path), "output_dir": str(output_dir)}
        dataset = keys.pop("dataset", "toy")
        return Config(model, dataset, config_dict={**places, **quiet, **keys})

    return make


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """A Ray of two CPUs and a GPU that is not there, for all tests with ``xdist_group("ray")``."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # stock RecBole, which other tests train, empties it
        n_workers = stack.enter_context(ray_cluster(2, gpus=1))
        import fake_workers
        import ray

        ray.cloudpickle.register_pickle_by_value(fake_workers)
        assert n_workers == 2
        yield ray
