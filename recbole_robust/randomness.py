"""One generator a stage, all spawned from the run's seed: a stage that draws more changes no other."""

from __future__ import annotations

import zlib

import numpy as np


def stage_rng(seed: int, stage: str) -> np.random.Generator:
    """The generator of a stage (``"targets"``, ``"attack"`` ...) of the run with this seed."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(stage.encode())]))
