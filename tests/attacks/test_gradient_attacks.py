"""Laws of PGA, RevAdv, DADA and TNA: what their objectives want, and that the fakes they choose get it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recbole_robust.attacks import DADA, PGA, TNA, CopyProfile, RevAdv
from recbole_robust.attacks.gradient import Audience, GradientAttack, boundary, margins
from recbole_robust.attacks.surrogate import respond
from recbole_robust.types import AttackerView, Budget, UserError

SMALL = {"n_factors": 6, "reg": 2.0, "top_k": 10}
TARGETS = np.array([45, 52, 59])
BUDGET = Budget(n_fake_users=8, n_fillers=10)

each_objective = pytest.mark.parametrize("attack", [PGA(**SMALL), RevAdv(**SMALL), DADA(**SMALL)], ids=repr)
each_attack = pytest.mark.parametrize(
    "attack", [PGA(**SMALL), RevAdv(**SMALL), DADA(**SMALL), TNA(**SMALL, n_influential=30)], ids=repr
)


@pytest.fixture(scope="module")
def taste_view() -> AttackerView:
    """200 users and 60 items of three tastes; the targets are the least rated items."""
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    taste = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 60))
    chance = np.linspace(0.6, 0.05, 60) / (1 + np.exp(-taste))
    rated = rng.random((200, 60)) < chance
    return AttackerView(csr_matrix(rated * np.clip(np.round(3.3 + 0.8 * taste), 1, 5)), 1.0, 5.0, 1.0)


def surrogate_hits(attack, view, fakes) -> float:
    """The targets' hit ratio in the attack's own surrogate with these fakes in it."""
    everybody = slice(0, view.n_users)
    distance, audience = surrogate_margins(attack, view, fakes)
    return float(audience.mean((distance >= 0).float(), everybody))


def surrogate_margins(attack, view, fakes) -> tuple[torch.Tensor, Audience]:
    """How far the targets are above the end of each user's list there. Shape: ``(n_users, T)``."""
    surrogate = attack.fit(view, np.random.default_rng(5))
    audience = Audience.of(view, surrogate, TARGETS)
    include = torch.from_numpy((fakes.to_csr(view.n_items).toarray() > 0) * 1.0).float()
    a, b = surrogate.equations(surrogate.by_item, surrogate.x)
    moved = respond(surrogate, a, b, include, attack.values(view, surrogate, TARGETS))
    scores = audience.scores(slice(0, view.n_users), moved.y)
    return margins(scores, audience.targets, attack.top_k), audience


def run(attack, view, budget=BUDGET, seed=0):
    return attack(view, TARGETS, budget, rng=np.random.default_rng(seed))


@each_attack
@pytest.mark.parametrize("kind", ["explicit", "implicit"])
def test_fakes_beat_what_they_could_have_been(attack, kind, taste_view):
    """In their own surrogate: the copies that they start from."""
    attack, budget = replace(attack, surrogate=kind), replace(BUDGET, n_fake_users=30)
    if isinstance(attack, TNA):
        attack = replace(attack, influence="all")
    for seed in range(2):
        chosen = surrogate_hits(attack, taste_view, run(attack, taste_view, budget, seed))
        assert chosen > surrogate_hits(attack, taste_view, run(CopyProfile(), taste_view, budget, seed))


@each_objective
def test_where_no_target_reaches_a_list_the_fakes_still_learn(attack, taste_view):
    """Three fakes, one target each: the hit ratio is 0 at every step, and what brings the targets nearer is better."""
    attack, budget = replace(attack, top_k=1, reg=10.0), Budget(n_fake_users=3, n_fillers=10, target_mode="split")
    fakes, start = (run(one, taste_view, budget) for one in (attack, replace(attack, n_steps=0)))
    found = [surrogate_margins(attack, taste_view, one) for one in (fakes, start)]
    everybody = slice(0, taste_view.n_users)
    assert [float(audience.mean((distance >= 0).float(), everybody)) for distance, audience in found] == [0.0, 0.0]
    nearer, before = (float(audience.mean(distance, everybody)) for distance, audience in found)
    assert nearer > before and not np.array_equal(fakes.item_ids, start.item_ids)


@each_objective
def test_a_user_who_has_rated_nearly_all_does_not_hide_how_near_the_targets_are(attack, taste_view):
    """His list has less than K items: a target is in it, at no distance that could be told."""
    ratings = taste_view.ratings.tolil()
    ratings[0, :59] = 3.0
    view = replace(taste_view, ratings=ratings.tocsr())
    attack, budget = replace(attack, top_k=2, reg=10.0), Budget(n_fake_users=3, n_fillers=10, target_mode="split")
    fakes, start = (run(one, view, budget) for one in (attack, replace(attack, n_steps=0)))
    assert not np.array_equal(fakes.item_ids, start.item_ids)


@each_objective
def test_no_step_is_a_copied_profile(attack, taste_view):
    still = run(replace(attack, n_steps=0), taste_view)
    assert np.array_equal(still.item_ids, run(CopyProfile(), taste_view).item_ids)


@each_objective
def test_more_steps_never_lose(attack, taste_view):
    hits = [surrogate_hits(attack, taste_view, run(replace(attack, n_steps=n), taste_view)) for n in (0, 3, 6, 12)]
    assert np.all(np.diff(hits) >= -0.02)  # the surrogate here starts from other vectors than the attack's own


@each_objective
def test_the_objective_rises_along_its_gradient(attack, taste_view):
    surrogate = attack.fit(taste_view, np.random.default_rng(0))
    audience = Audience.of(taste_view, surrogate, TARGETS)

    def value(y: torch.Tensor) -> torch.Tensor:
        users = slice(0, taste_view.n_users)
        return attack.objective(audience.scores(users, y), audience, users)

    y = surrogate.y.clone().requires_grad_()
    before = value(y)
    before.backward()
    with torch.no_grad():
        after = value(y + 1e-3 * y.grad / y.grad.norm())
    assert float(after) > float(before)
    assert torch.isfinite(y.grad).all()


@each_objective
def test_chunks_of_users_add_up(attack, taste_view, monkeypatch):
    surrogate = attack.fit(taste_view, np.random.default_rng(0))
    audience = Audience.of(taste_view, surrogate, TARGETS)
    whole = attack._look(surrogate.y, audience)
    monkeypatch.setattr("recbole_robust.attacks.gradient.CHUNK_SCORES", 60 * 190)  # 190 users, then 10
    parts = attack._look(surrogate.y, audience)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    if not isinstance(attack, DADA):  # its scales are those of a chunk
        torch.testing.assert_close(parts[1], whole[1], rtol=1e-3, atol=1e-6)


def test_who_has_a_target_is_no_audience(taste_view):
    attack = RevAdv(**SMALL)
    surrogate = attack.fit(taste_view, np.random.default_rng(0))
    audience = Audience.of(taste_view, surrogate, TARGETS)
    rated = taste_view.ratings[:, TARGETS].toarray() > 0
    np.testing.assert_array_equal(audience.eligible.numpy(), ~rated)
    values = torch.from_numpy(np.where(rated, np.inf, np.arange(200.0)[:, None]))
    expected = np.mean([np.arange(200.0)[~rated[:, t]].mean() for t in range(3)])
    assert float(audience.mean(values, slice(0, 200))) == pytest.approx(expected, rel=1e-6)


def test_scores_mask_what_is_rated(taste_view):
    surrogate = PGA(**SMALL).fit(taste_view, np.random.default_rng(0))
    audience = Audience.of(taste_view, surrogate, TARGETS)
    scores = audience.scores(slice(30, 90), surrogate.y)
    rated = taste_view.ratings[30:90].toarray() > 0
    np.testing.assert_array_equal(np.isneginf(scores.numpy()), rated)
    users = torch.tensor([2, 31, 199])
    some = audience.select(users)
    torch.testing.assert_close(
        some.scores(some.everybody, surrogate.y), audience.scores(audience.everybody, surrogate.y)[users]
    )
    assert torch.equal(some.eligible, audience.eligible[users])


def hand_made(own: np.ndarray) -> tuple[torch.Tensor, Audience]:
    """Users with the scores ``own`` for one target (item 0), and a list whose boundary is 0."""
    own_ = torch.tensor(own, dtype=torch.float64)
    rest = torch.zeros(len(own), 10, dtype=torch.float64)
    scores = torch.cat([own_.unsqueeze(1), rest], dim=1).requires_grad_()
    eligible = torch.ones(len(own), 1, dtype=torch.bool)
    nobody = torch.zeros(len(own), 1, dtype=torch.float64)
    return scores, Audience(torch.zeros(len(own), 1), torch.tensor([0]), eligible, nobody, (torch.zeros(0),) * 2)


def test_dada_weighs_easy_users_more_and_won_users_not_at_all():
    """The derivative by a user's score grows up to the list's boundary and is 0 beyond (difficulty)."""
    own = np.linspace(-4, 1, 21)
    scores, audience = hand_made(own)
    DADA(diversity=0.0, top_k=10).objective(scores, audience, slice(0, 21)).backward()
    weight = scores.grad[:, 0].numpy()
    assert np.all(weight[own >= 0] == 0)
    assert np.all(np.diff(weight[own < 0]) > 0)
    assert np.all(weight[own < 0] > 0)


def test_dada_weighs_users_who_have_gained_less():
    """The derivative falls with the gain (diversity): users at one distance from the boundary, of different gains."""
    scores, audience = hand_made(np.full(20, -1.0))
    gain = torch.linspace(0, 3, 20, dtype=torch.float64).unsqueeze(1)
    audience = replace(audience, before=-1.0 - gain)
    with_, without = (DADA(diversity=weight, top_k=10) for weight in (1.0, 0.0))
    weights = []
    for attack in (with_, without):
        scores.grad = None
        attack.objective(scores, audience, slice(0, 20)).backward()
        weights.append(scores.grad[:, 0].numpy().copy())
    assert np.all(np.diff(weights[0] - weights[1]) < 0)


def test_dada_with_everybody_won_has_no_gradient():
    scores, audience = hand_made(np.full(4, 2.0))
    DADA(top_k=10).objective(scores, audience, slice(0, 4)).backward()
    assert torch.all(scores.grad == 0)


def test_hits_are_those_of_a_sort():
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 15)))
    order = scores.argsort(dim=1, descending=True)
    for k in (1, 5, 15):
        expected = torch.stack([(order[:, :k] == t).any(dim=1) for t in (3, 7)], dim=1)
        assert torch.equal(margins(scores, torch.tensor([3, 7]), k) >= 0, expected)
        assert torch.equal(boundary(scores, k)[:, 0], scores.sort(dim=1, descending=True).values[:, k - 1])


# --- TNA --------------------------------------------------------------------------------------------------------------


def tna_group(view, **keys) -> np.ndarray:
    attack = TNA(**SMALL, **keys)
    surrogate = attack.fit(view, np.random.default_rng(0))
    audience = Audience.of(view, surrogate, TARGETS)
    return attack._influential(view, surrogate, audience, np.random.default_rng(1)).numpy()


def test_tna_aims_at_users_who_may_get_a_target(make_view, taste_view):
    dense = taste_view.ratings.toarray()
    dense[np.ix_(range(20), TARGETS)] = 5.0  # nobody to win there
    view = make_view(dense)
    for influence in ("highest", "lowest", "random", "all"):
        group = tna_group(view, influence=influence, n_influential=25)
        assert group.min() >= 20
        assert len(group) == (180 if influence == "all" else 25)
    assert not set(tna_group(view, influence="highest", n_influential=25)) & set(
        tna_group(view, influence="lowest", n_influential=25)
    )


def test_tna_on_all_users_is_u_tna(taste_view):
    everybody = run(TNA(**SMALL, influence="all"), taste_view)
    same = run(TNA(**SMALL, influence="highest", n_influential=10_000), taste_view)
    assert np.array_equal(everybody.item_ids, same.item_ids)


def test_tna_builds_on_the_fakes_before(taste_view):
    """The first fakes of a longer attack are those of a shorter one, and the later ones are other profiles."""
    attack = TNA(**SMALL, start="uniform")
    long, short = run(attack, taste_view), run(attack, taste_view, replace(BUDGET, n_fake_users=3))
    np.testing.assert_array_equal(long.item_ids[: short.user_ptr[-1]], short.item_ids)
    assert len({tuple(long.item_ids[a:b]) for a, b in zip(long.user_ptr, long.user_ptr[1:], strict=False)}) > 1


def test_tna_starts_at_real_profiles(taste_view):
    """No step: a copied profile. All steps: fakes that differ more than those that all start alike."""
    still = run(TNA(**SMALL, n_steps=0), taste_view)
    assert np.array_equal(still.item_ids, run(CopyProfile(), taste_view).item_ids)
    shared = {}
    for start in ("profile", "uniform"):
        fakes = run(TNA(**SMALL, start=start), taste_view, replace(BUDGET, n_fake_users=30)).to_csr(taste_view.n_items)
        rated = (fakes > 0).astype(int)
        shared[start] = (rated @ rated.T).mean()  # items that two fakes share
    assert shared["profile"] < shared["uniform"]


def test_tna_rates_fillers_as_the_average_attack_does(taste_view):
    """Each filler's mean over many draws is its item's mean, up to the rounding and the ends of the scale."""
    wide = replace(taste_view, rating_min=-20.0, rating_max=20.0, rating_step=0.0)
    rest = [run(TNA(**SMALL, n_steps=2), wide, seed=seed) for seed in range(20)]
    deviations = np.concatenate([
        (f.ratings - wide.item_means[f.item_ids])[~np.isin(f.item_ids, TARGETS)] for f in rest
    ])  # fmt: skip
    assert abs(deviations.mean()) < 4 * deviations.std() / np.sqrt(len(deviations))


@each_attack
def test_bits_do_not_depend_on_threads(attack, taste_view):
    n_threads = torch.get_num_threads()
    digests = set()
    for n in (1, 2):
        torch.set_num_threads(n)
        digests.add(run(attack, taste_view).digest())
        assert torch.get_num_threads() == n
    torch.set_num_threads(n_threads)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("attack", "arguments", "message"),
    [
        (PGA, {"surrogate": "deep"}, "surrogate: expected one of auto, explicit, implicit, got 'deep'"),
        (PGA, {"reg": 0}, "reg: expected a number above 0, got 0"),
        (RevAdv, {"n_factors": 0}, "n_factors: expected an integer of at least 1, got 0"),
        (DADA, {"diversity": -1}, "diversity: expected a number of at least 0, got -1"),
        (DADA, {"momentum": 1.5}, "momentum: expected a number from 0 to 1, got 1.5"),
        (TNA, {"influence": "some"}, "influence: expected one of highest, lowest, random, all, got 'some'"),
        (TNA, {"n_influential": 0}, "n_influential: expected an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments(attack, arguments, message):
    with pytest.raises(UserError, match=f"attack_args.{message}"):
        attack(**arguments)


def test_the_base_has_no_objective(taste_view):
    with pytest.raises(NotImplementedError):
        run(GradientAttack(**SMALL), taste_view)
