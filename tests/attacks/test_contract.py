"""What every attack of the registry promises, whatever it does. A new attack is covered by its registry line."""

from __future__ import annotations

import tracemalloc
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import sparse

from recbole_robust import registry
from recbole_robust.attacks import AUSH, Average, Bandwagon, CopyProfile, Segment
from recbole_robust.attacks.gradient import SurrogateAttack
from recbole_robust.attacks.profiles import KNOWLEDGE_LEVELS
from recbole_robust.types import TARGET_MODES, AttackerView, Budget, FakeProfiles, UserError

VARIANTS = [
    Average(shrink=2.5),
    Bandwagon(popular_size=0.3),
    Bandwagon(popular_size=0.4, popular_share=1.0),
    Segment(segment_items=(4, 9)),
    CopyProfile(ratings="copy"),
    AUSH(epochs=2, generator_size=16, discriminator_size=16, selected_items=(4, 9), filler_sampling="popularity"),
]
QUICK = {  # these promises need no long training
    "AUSH": {"epochs": 2, "generator_size": 16, "discriminator_size": 16},
    "TNA": {"n_steps": 3},
    "DPA2DL": {"n_blocks": 2, "n_epochs": 2},
}
REAL = {name: cls for name, cls in registry.ATTACKS.items() if not hasattr(cls, "is_control")}
ATTACKS = [*(cls(**QUICK.get(name, {})) for name, cls in REAL.items()), *VARIANTS]
TARGETS = np.array([0, 30, 59])  # the most popular item, a common one, one with a single rating
BUDGET = Budget(n_fake_users=17, n_fillers=12)
PROPERTIES = Path(__file__).parents[2] / "properties" / "attack"

each_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


def run(attack, view: AttackerView, budget: Budget = BUDGET, targets=TARGETS, seed: int = 0) -> FakeProfiles:
    return attack(view, targets, budget, rng=np.random.default_rng(seed))


def has_intent(attack) -> bool:
    return any(field.name == "intent" for field in fields(attack))


@each_attack
@pytest.mark.parametrize("mode", TARGET_MODES)
@pytest.mark.parametrize("intent", ["push", "nuke"])
def test_profiles_keep_to_the_budget(attack, view, mode, intent):
    budget = replace(BUDGET, target_mode=mode)
    if has_intent(attack):
        attack = replace(attack, intent=intent)
    elif intent == "nuke":
        pytest.skip("pushes only")
    fakes = run(attack, view, budget)
    n_targets = len(TARGETS) if mode == "all" else 1
    np.testing.assert_array_equal(np.diff(fakes.user_ptr), np.full(17, 12 + n_targets))
    dense = fakes.to_csr(view.n_items).toarray()
    np.testing.assert_array_equal((dense > 0).sum(axis=1), np.full(17, 12 + n_targets))  # distinct items
    np.testing.assert_array_equal((dense[:, TARGETS] > 0).sum(axis=1), np.full(17, n_targets))  # no filler is a target
    assert set(dense[:, TARGETS].ravel()) - {0} == {5.0 if intent == "push" else 1.0}
    assert set(fakes.ratings) <= {1, 2, 3, 4, 5}
    assert (dense[:, TARGETS] > 0).any(axis=0).all()


@each_attack
@pytest.mark.parametrize("n_fakes", [1, 200])  # fewer fakes than targets, more fakes than users
def test_any_number_of_fakes(attack, view, n_fakes):
    fakes = run(attack, view, Budget(n_fakes, 12, "split"))
    assert fakes.n_users == n_fakes
    assert set(TARGETS) <= set(fakes.item_ids)


@each_attack
def test_the_longest_profile_rates_everything(attack, view):
    if isinstance(attack, Bandwagon):  # the one pool that leaves room for both halves
        attack = replace(attack, popular_size=29 / 60 if attack.popular_share == 0.5 else 1.0)
    fakes = run(attack, view, Budget(3, view.n_items - len(TARGETS)))
    np.testing.assert_array_equal(np.sort(fakes.item_ids.reshape(3, -1), axis=1), [np.arange(view.n_items)] * 3)


@each_attack
def test_profiles_may_be_targets_alone(attack, view):
    if isinstance(attack, Segment | AUSH):
        pytest.skip("its selected items count as fillers")
    fakes = run(attack, view, Budget(4, 0, "round_robin"))
    np.testing.assert_array_equal(fakes.item_ids, [0, 30, 59, 0])


@each_attack
def test_the_seed_decides_everything(attack, view):
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    assert run(attack, view, seed=1).digest() == run(attack, replace(view), seed=1).digest()
    assert run(attack, view, seed=1).digest() != run(attack, view, seed=2).digest()
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, np.random.get_state(), strict=True))  # noqa: NPY002
    assert torch.equal(torch_state, torch.get_rng_state())


@each_attack
def test_implicit_data_has_one_rating(attack, implicit_view):
    fakes = run(attack, implicit_view)
    assert len(fakes.ratings) == 17 * 15
    assert set(fakes.ratings) == {1.0}
    if has_intent(attack):
        with pytest.raises(UserError, match=r"attack_args.intent: expected push, as the data has one rating only"):
            run(replace(attack, intent="nuke"), implicit_view)


@each_attack
def test_half_stars(attack, view):
    halves = AttackerView(view.ratings - 0.5 * (view.ratings > 3), 0.5, 5.0, 0.5)
    fakes = run(attack, halves)
    assert set(fakes.ratings) <= set(np.arange(0.5, 5.5, 0.5))


@each_attack
def test_the_view_is_left_alone(attack, view):
    before = view.ratings.copy()
    run(attack, view)
    assert (before != view.ratings).nnz == 0


@each_attack
def test_no_dense_matrix(attack):
    """100,000 x 20,000 cells would be gigabytes; the data is 8 MB."""
    if isinstance(attack, SurrogateAttack):
        pytest.skip("fits a model of 120,000 vectors: tests/test_real_data.py measures it on Yelp")
    rng = np.random.default_rng(0)
    cells = np.unique(rng.integers(0, 100_000 * 20_000, 500_000))
    ratings = sparse.csr_matrix((rng.integers(1, 6, len(cells)) * 1.0, (cells // 20_000, cells % 20_000)))
    wide = AttackerView(ratings, 1.0, 5.0, 1.0)
    tracemalloc.start()
    run(attack, wide, Budget(50, 12))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20


@each_attack
def test_yaml_lists_the_fields_with_their_defaults(attack):
    content = yaml.safe_load((PROPERTIES / f"{type(attack).__name__}.yaml").read_text())
    assert content == {"attack_args": asdict(type(attack)())}


@each_attack
def test_knowledge_is_respected(attack, view):
    name, needed = type(attack).__name__, KNOWLEDGE_LEVELS.index(attack.knowledge)
    for i, level in enumerate(KNOWLEDGE_LEVELS):
        limited = replace(view, knowledge=level)
        if i >= needed:
            assert run(attack, limited).digest() == run(attack, view).digest()
        else:
            message = f"knowledge: expected {attack.knowledge} or more for attack {name}, got {level}"
            with pytest.raises(UserError, match=message):
                run(attack, limited)


@each_attack
def test_bad_requests(attack, view):
    with pytest.raises(UserError, match=r"n_fillers: expected at most 57 .* got 58"):
        run(attack, view, Budget(2, 58))
    with pytest.raises(UserError, match="target_items: expected distinct items"):
        run(attack, view, targets=np.array([3, 3]))
