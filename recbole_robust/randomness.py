"""One generator a stage, all spawned from the run's seed: a stage that draws more changes no other."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def stage_rng(seed: int, stage: str) -> np.random.Generator:
    """The generator of a stage (``"targets"``, ``"attack"`` ...) of the run with this seed."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(stage.encode())]))


def global_state() -> dict[str, Any]:
    """The state of the global generators (Python, numpy, torch) as tensors and plain values: fit for a checkpoint."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - RecBole draws from it
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_global_state(state: dict[str, Any]) -> None:
    """The inverse of :func:`global_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])


@contextlib.contextmanager
def global_state_kept() -> Iterator[None]:
    """Whatever is drawn from the global generators inside this block, their state afterwards is that before it."""
    state = global_state()
    try:
        yield
    finally:
        set_global_state(state)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread (its matrix products differ in the last bits between thread counts), with gradients."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(n_threads)
