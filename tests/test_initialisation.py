"""Clean and attacked models of one seed start alike, and draw the same random numbers from then on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_splits import FAMILIES, FEATURES, SMALL, average, split

from recbole_robust.data.injection import without_fakes
from recbole_robust.initialisation import build_model
from recbole_robust.randomness import global_state, global_state_kept, set_global_state

N_USERS, N_FAKE = 81, 10
SEQUENTIAL = {"train_neg_sample_args": None}
MODELS = {
    "MF": {}, "BPR": {}, "LightGCN": {}, "NeuMF": {}, "DMF": {}, "MultiVAE": {}, "PurifyAugMF": {},
    "PCMF": {}, "RGCF": {},
    "SASRec": SEQUENTIAL, "GRU4Rec": SEQUENTIAL, "DIN": FAMILIES["DIN"], "DCN": FAMILIES["DCN"],
    "FM": FAMILIES["DCN"], "DeepFM": FAMILIES["DCN"],
}  # fmt: skip


def start(toy_config, model, poison, seed=2020):
    small = {} if model in ("MF", "PurifyAugMF", "PCMF") else SMALL
    config = toy_config(model, **{**small, **MODELS[model], "seed": seed})
    train = split(config, poison).train
    torch.rand(17 if poison else 3)
    return build_model(config, train, without_fakes(train)), [part.tolist() for part in draws()]


def draws():
    return torch.rand(3), np.random.rand(3)  # noqa: NPY002


@pytest.mark.parametrize("model", MODELS)
def test_clean_and_attacked_models_start_alike(toy_config, model):
    clean, clean_draws = start(toy_config, model, None)
    attacked, attacked_draws = start(toy_config, model, average())
    assert attacked_draws == clean_draws
    before, after = dict(clean.named_parameters()), dict(attacked.named_parameters())
    assert before.keys() == after.keys()
    grown = 0
    for name, parameter in before.items():
        if parameter.shape == after[name].shape:
            assert torch.equal(parameter, after[name]), name
            continue
        grown += 1
        shared = after[name]
        for dim, n in enumerate(parameter.shape):
            if shared.shape[dim] != n:
                assert shared.shape[dim] == n + N_FAKE, name
                # Genuine users are first; what stands behind the users in a common table moves by the fakes.
                behind = torch.arange(N_USERS + N_FAKE, n + N_FAKE)
                shared = shared.index_select(dim, torch.cat([torch.arange(min(N_USERS, n)), behind]))
        assert torch.equal(parameter, shared), name
    assert grown == 0 if model in ("MultiVAE", "SASRec", "GRU4Rec") else grown > 0
    if model == "MF":
        assert (attacked.user_embedding.weight[N_USERS:] != 0).any(dim=1).all(), "fakes have vectors of their own"


def test_a_clean_model_starts_as_recbole_s_does(toy_config):
    from recbole.utils import init_seed

    config = toy_config("BPR")
    train = split(config).train
    init_seed(config["seed"], True)
    expected = config.model_class(config, train).state_dict()
    found = build_model(config, train, train).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_another_seed_is_another_start(toy_config):
    first, other = (start(toy_config, "BPR", average(), seed)[0] for seed in (1, 2))
    assert not torch.equal(first.item_embedding.weight, other.item_embedding.weight)


def test_the_order_of_fields_in_a_common_table(toy_config):
    """DCN looks its features up in one table: each value must find the vector that it has in the clean model."""
    keys = {**SMALL, **FAMILIES["DCN"], "load_col": FEATURES}
    clean, attacked = (split(toy_config("DCN", **keys), poison).train for poison in (None, average()))
    models = [build_model(toy_config("DCN", **keys), train, without_fakes(train)) for train in (clean, attacked)]
    batch = clean.join(clean.inter_feat[:50])
    with torch.no_grad():
        found = [model.eval().predict(batch) for model in models]
    assert torch.equal(*found)


def test_the_global_state_can_be_put_back():
    import random

    state = global_state()
    first = random.random(), *draws()
    set_global_state(state)
    second = random.random(), *draws()
    assert first[0] == second[0]
    assert all(np.array_equal(a, b) for a, b in zip(first[1:], second[1:], strict=True))
    torch.manual_seed(1)
    expected = draws()
    torch.manual_seed(1)
    np_state = np.random.get_state()[1].copy()  # noqa: NPY002
    with global_state_kept():
        draws()
    assert np.array_equal(np.random.get_state()[1], np_state)  # noqa: NPY002
    assert torch.equal(draws()[0], expected[0])
