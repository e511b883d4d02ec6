"""Clean and attacked models of one seed start from the same vectors."""

from __future__ import annotations

import torch
from recbole.utils import ModelType, init_seed
from torch import Tensor, nn

from recbole_robust.foreign_files import read_as_data
from recbole_robust.randomness import global_state, set_global_state


def build_model(config, train, genuine, model_class: type | None = None, room=None) -> nn.Module:
    """The configured model for a training split, initialised under the run's seed.

    For a poisoned split the model is built at its clean size first, and its vectors are copied: tensors of equal shape
    whole, genuine rows of tables that grew by the fake users. The global random state is then that of the clean run.

    Args:
        genuine: the split without its fake users; ``train`` itself where there are none.
        model_class: the configured one if None; a defense may have made another of it.
        room: the split with room for users of a defense, whose model has the vectors of that of ``train``, and more.
    """
    model_class = model_class or config.model_class
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    with read_as_data():
        return _built(config, train, genuine, model_class, room).to(config["device"])


def _built(config, train, genuine, model_class: type, room) -> nn.Module:
    if config["MODEL_TYPE"] == ModelType.TRADITIONAL:
        return model_class(config, train)
    model, size = model_class(config, genuine), genuine.user_num
    state = global_state()
    for split in (train, train if room is None else room):
        if split.user_num > size:
            larger = model_class(config, split)
            copy_initial_vectors(model, larger, split.user_num - size)
            model, size = larger, split.user_num
    set_global_state(state)
    return model


@torch.no_grad()
def copy_initial_vectors(clean: nn.Module, model: nn.Module, n_fake: int) -> None:
    """Copy the parameters of ``clean`` into ``model``, whose user tables have ``n_fake`` rows (or columns) more.

    RecBole's context-aware models have one table for several fields, one after the other: the fields after the users
    begin ``n_fake`` rows later, and each is copied to where it begins.
    """
    start, offsets = dict(clean.named_parameters()), _field_offsets(clean)
    for name, parameter in model.named_parameters():
        source = start.get(name)
        if source is None or source.dim() != parameter.dim():
            continue
        if name in offsets:
            _copy_fields(source, offsets[name], parameter, _field_offsets(model)[name])
            continue
        grown = [d for d in range(source.dim()) if parameter.shape[d] != source.shape[d]]
        if all(parameter.shape[d] == source.shape[d] + n_fake for d in grown):
            parameter[tuple(slice(0, n) for n in source.shape)] = source


def _field_offsets(model: nn.Module) -> dict[str, list[int]]:
    """Where each field begins, for every table of several fields, by the name of its weight."""
    modules = model.named_modules()
    return {f"{name}.embedding.weight": list(module.offsets) for name, module in modules if hasattr(module, "offsets")}


def _copy_fields(source: Tensor, source_starts: list[int], target: Tensor, target_starts: list[int]) -> None:
    source_ends, target_ends = [*source_starts[1:], len(source)], [*target_starts[1:], len(target)]
    for begin, end, to, limit in zip(source_starts, source_ends, target_starts, target_ends, strict=True):
        target[to : min(to + end - begin, limit)] = source[begin:end]
