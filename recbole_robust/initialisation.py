"""Clean and attacked models of one seed start from the same vectors."""

from __future__ import annotations

import random

import numpy as np
import torch
from recbole.utils import ModelType, init_seed
from torch import nn


def build_model(config, train, genuine) -> nn.Module:
    """The configured model for a training split, initialised under the run's seed.

    For a poisoned split the model is built at its clean size first, and its vectors are copied: tensors of equal shape
    whole, genuine rows of tables that grew by the fake users. The global random state is then that of the clean run.

    Args:
        genuine: the split without its fake users; ``train`` itself where there are none.
    """
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    if train.n_fake_users == 0 or config["MODEL_TYPE"] == ModelType.TRADITIONAL:
        return config.model_class(config, train).to(config["device"])
    clean = config.model_class(config, genuine)
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    model = config.model_class(config, train)
    copy_initial_vectors(clean, model, train.n_fake_users)
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    return model.to(config["device"])


@torch.no_grad()
def copy_initial_vectors(clean: nn.Module, model: nn.Module, n_fake: int) -> None:
    """Copy the parameters of ``clean`` into ``model``, whose user tables have ``n_fake`` rows (or columns) more."""
    start = dict(clean.named_parameters())
    for name, parameter in model.named_parameters():
        source = start.get(name)
        if source is None or source.dim() != parameter.dim():
            continue
        grown = [d for d in range(source.dim()) if parameter.shape[d] != source.shape[d]]
        if all(parameter.shape[d] == source.shape[d] + n_fake for d in grown):
            parameter[tuple(slice(0, n) for n in source.shape)] = source
