"""Each heuristic attack's own law. What all attacks promise: test_contract.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse, stats

from recbole_robust.attacks import Average, Bandwagon, CopyProfile, Diluted, LoveHate, Random, Segment
from recbole_robust.group_evidence import co_rating
from recbole_robust.types import AttackerView, Budget, FakeProfiles, UserError

HEURISTICS = [
    Random(),
    Average(),
    Average(shrink=2.5),
    Bandwagon(popular_size=0.3),
    Bandwagon(popular_size=0.4, popular_share=1.0),
    Segment(),
    Segment(segment_items=(4, 9)),
    LoveHate(),
    CopyProfile(),
    CopyProfile(ratings="copy"),
    Diluted(),
    Diluted(popular_share=0.3),
]
TARGETS = np.array([0, 30, 59])  # the most popular item, a common one, one with a single rating
BUDGET = Budget(n_fake_users=17, n_fillers=12)


def run(attack, view: AttackerView, budget: Budget = BUDGET, targets=TARGETS, seed: int = 0) -> FakeProfiles:
    return attack(view, targets, budget, rng=np.random.default_rng(seed))


def fillers(fakes: FakeProfiles, n_fillers: int, targets=TARGETS) -> tuple[np.ndarray, np.ndarray]:
    """Items and ratings of the fillers. Shape: ``(n_fake_users, n_fillers)``."""
    is_filler = ~np.isin(fakes.item_ids, targets)
    shape = (fakes.n_users, n_fillers)
    return fakes.item_ids[is_filler].reshape(shape), fakes.ratings[is_filler].reshape(shape)


def z_score(values: np.ndarray, mean: float, std: float) -> float:
    return float((values.mean() - mean) / (std / np.sqrt(values.size)))


@pytest.mark.parametrize(
    ("attack", "arguments", "message"),
    [
        *[(type(a), {"intent": "demote"}, "intent: expected one of push, nuke, got 'demote'") for a in HEURISTICS],
        (Average, {"shrink": -1}, "shrink: expected a number of at least 0, got -1"),
        (Average, {"shrink": "much"}, "shrink: expected a number of at least 0, got 'much'"),
        (Bandwagon, {"popular_share": 1.5}, "popular_share: expected a number from 0 to 1, got 1.5"),
        (Bandwagon, {"popular_size": None}, "popular_size: expected a number from 0 to 1, got None"),
        (Segment, {"n_segment_items": 0}, "n_segment_items: expected an integer of at least 1, got 0"),
        (Segment, {"n_segment_items": 2.0}, "n_segment_items: expected an integer of at least 1, got 2.0"),
        (Segment, {"segment_items": ()}, "segment_items: expected a list of items, or nothing, got"),
        (Segment, {"segment_items": 7}, "segment_items: expected a list of items, or nothing, got 7"),
        (Diluted, {"popular_share": 1.5}, "popular_share: expected a number from 0 to 1, got 1.5"),
        (Diluted, {"top_share": -0.1}, "top_share: expected a number from 0 to 1, got -0.1"),
        (CopyProfile, {"ratings": "mine"}, "ratings: expected one of item_normal, copy, got 'mine'"),
    ],
)
def test_bad_arguments(attack, arguments, message):
    with pytest.raises(UserError, match=f"attack_args.{message}"):
        attack(**arguments)


# --- Random -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [Random(), Average(), LoveHate()], ids=repr)
def test_fillers_are_uniform(attack, view):
    n_fakes, n_fillers, n_candidates = 1500, 12, view.n_items - len(TARGETS)
    items, _ = fillers(run(attack, view, Budget(n_fakes, n_fillers)), n_fillers)
    counts = np.bincount(items.ravel(), minlength=view.n_items)
    np.testing.assert_array_equal(counts[TARGETS], 0)
    p = n_fillers / n_candidates
    # Draws without replacement vary less than a multinomial's by 1 - p.
    statistic = ((np.delete(counts, TARGETS) - n_fakes * p) ** 2).sum() / (n_fakes * p * (1 - p))
    assert 1e-3 < stats.chi2.sf(statistic * (n_candidates - 1) / n_candidates, n_candidates - 1) < 1 - 1e-3


def test_random_draws_around_the_global_mean(unbounded_view):
    _, drawn = fillers(run(Random(), unbounded_view, Budget(400, 30)), 30)
    mean, std = unbounded_view.ratings.data.mean(), unbounded_view.ratings.data.std()
    assert abs(z_score(drawn, mean, std)) < 3
    assert abs(drawn.std() - std) < 3 * std / np.sqrt(2 * drawn.size)
    assert stats.kstest(drawn.ravel(), "norm", (mean, std)).pvalue > 1e-3


def test_random_stars_are_a_normal_cut_at_the_halves(view):
    _, drawn = fillers(run(Random(), view, Budget(400, 30)), 30)
    cuts = stats.norm.cdf([1.5, 2.5, 3.5, 4.5], view.rating_mean, view.rating_std)
    expected = np.diff([0, *cuts, 1]) * drawn.size
    assert stats.chisquare(np.bincount(drawn.ravel().astype(int), minlength=6)[1:], expected).pvalue > 1e-3


# --- Average ----------------------------------------------------------------------------------------------------------


def item_z_scores(attack, view: AttackerView, means: np.ndarray) -> np.ndarray:
    items, drawn = fillers(run(attack, view, Budget(1500, 20)), 20)
    counts = np.bincount(items.ravel(), minlength=view.n_items)
    sums = np.bincount(items.ravel(), weights=drawn.ravel(), minlength=view.n_items)
    rated = counts > 0
    return ((sums / np.maximum(counts, 1) - means) * np.sqrt(counts) / view.item_stds)[rated]


def test_average_draws_around_each_item_mean(unbounded_view):
    dense = unbounded_view.ratings.toarray()
    means = dense.sum(axis=0) / (dense > 0).sum(axis=0)
    z = item_z_scores(Average(), unbounded_view, means)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert np.abs(z).max() < 4.5
    assert np.abs(item_z_scores(Random(), unbounded_view, means)).max() > 4.5  # the test can tell


@pytest.mark.parametrize("attack", [Average(), CopyProfile()], ids=repr)
def test_ratings_spread_as_each_item_does(make_view, attack):
    """Two users rate item j 100 - j and 100 + j: its mean is 100 and its sd is j."""
    spread = np.arange(31.0)
    data = make_view(np.stack([100 - spread, 100 + spread]), low=-1e9, high=1e9, step=0.0)
    items, ratings = fillers(run(attack, data, Budget(2000, 20), [30]), 20, [30])
    counts = np.bincount(items.ravel())
    variances = np.bincount(items.ravel(), weights=((ratings - 100) ** 2).ravel()) / counts
    assert variances[0] == 0
    z = (variances[1:] / spread[1:30] ** 2 - 1) * np.sqrt(counts[1:] / 2)
    assert np.abs(z).max() < 4
    assert stats.kstest(z, "norm").pvalue > 1e-3


def test_average_shrinks_towards_the_global_mean(unbounded_view):
    dense = unbounded_view.ratings.toarray()
    counts = (dense > 0).sum(axis=0)
    means = (dense.sum(axis=0) + 10 * unbounded_view.rating_mean) / (counts + 10)
    z = item_z_scores(Average(shrink=10), unbounded_view, means)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert np.abs(z).max() < 4.5


@pytest.mark.parametrize("shrink", [0, 0.5, 100])
def test_average_rates_items_with_no_or_one_rating(make_view, shrink):
    """Item 1 has a single 2, item 2 none: one draws around (2 + shrink * mean) / (1 + shrink), one around the mean."""
    data = replace(make_view([[1, 2, 0, 4], [5, 0, 0, 3]]), rating_min=-1e9, rating_max=1e9, rating_step=0.0)
    fakes = run(Average(shrink=shrink), data, Budget(4000, 3), targets=np.array([3]))
    ratings = fakes.to_csr(4).toarray()
    assert np.isfinite(ratings).all()
    assert abs(z_score(ratings[:, 1], (2 + shrink * 3) / (1 + shrink), data.rating_std)) < 3.5
    assert abs(z_score(ratings[:, 2], 3.0, data.rating_std)) < 3.5


# --- Bandwagon --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "n_popular"), [(0.0, 0), (0.3, 5), (0.5, 8), (1.0, 15)])  # halves go up
def test_bandwagon_share_of_popular_items(view, unbounded_view, share, n_popular):
    data = replace(unbounded_view, rating_max=50.0)
    items, ratings = fillers(run(Bandwagon(popular_share=share, popular_size=0.3), data, Budget(400, 15)), 15)
    counts = np.delete(np.bincount(view.ratings.indices, minlength=60), TARGETS)
    pool = np.delete(np.arange(60), TARGETS)[np.argsort(-counts, kind="stable")[:18]]
    is_popular = np.isin(items, pool)
    np.testing.assert_array_equal(is_popular.sum(axis=1), n_popular)
    assert (ratings[is_popular] == 50.0).all()
    if n_popular < 15:
        assert abs(z_score(ratings[~is_popular], view.rating_mean, view.rating_std)) < 3
    if 0 < n_popular < 15:  # both halves are drawn anew for each fake, uniformly
        assert {len(set(map(tuple, np.where(half, items, -1)))) > 300 for half in (is_popular, ~is_popular)} == {True}
        assert set(items.ravel()) == set(range(60)) - set(TARGETS)


def test_bandwagon_needs_a_pool(view):
    message = r"attack_args.popular_size: expected a pool of 8 to 50 items for 15 fillers .* got 0.1, which is 6 items"
    with pytest.raises(UserError, match=message):
        run(Bandwagon(), view, Budget(5, 15))
    with pytest.raises(UserError, match="popular_size: expected a pool of 20 to 37 items"):
        run(Bandwagon(popular_size=0.9), view, Budget(5, 40))


# --- Segment ----------------------------------------------------------------------------------------------------------


def test_segment_named_items(view):
    items, ratings = fillers(run(Segment(segment_items=[9, 4]), view, Budget(300, 12)), 12)
    in_segment = np.isin(items, [4, 9])
    np.testing.assert_array_equal(in_segment.sum(axis=1), 2)
    assert set(ratings[in_segment]) == {5.0}
    assert set(ratings[~in_segment]) == {1.0}
    assert set(items.ravel()) == set(range(60)) - set(TARGETS)


def test_segment_is_what_the_fans_rate(make_view):
    """Users 0 and 1 know the target (item 0) and rate 5, 6; everyone else rates 1, 2, 3."""
    dense = np.zeros((10, 8))
    dense[:2, [0, 5, 6]] = dense[2:, 1:4] = 4
    dense[0, 1] = dense[2, 3] = 4  # item 1: one fan. Then items without a fan, by popularity: 2 and 3 tie
    for n_segment, expected in ((2, {5, 6}), (3, {1, 5, 6}), (5, {1, 2, 3, 5, 6})):
        fakes = run(Segment(n_segment_items=n_segment), make_view(dense), Budget(1, 5), targets=np.array([0]))
        loved = set(fakes.item_ids[fakes.ratings == 5])
        assert loved == expected | {0}


def test_segment_of_an_unknown_target_is_popular(make_view):
    dense = np.triu(np.full((6, 6), 3.0))  # item j has j + 1 ratings
    dense[:, 2] = 0
    fakes = run(Segment(n_segment_items=3), make_view(dense), Budget(4, 4), targets=np.array([2]))
    assert set(fakes.item_ids[fakes.ratings == 5]) == {2, 3, 4, 5}


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (Segment(n_segment_items=13), "n_fillers: expected at least the 13 segment items, got 12"),
        (Segment(segment_items=(1, 30)), r"attack_args.segment_items: expected no target item among them, got \[30\]"),
        (Segment(segment_items=(1, 60)), "attack_args.segment_items: expected item ids from 0 to 59"),
        (Segment(segment_items=(1, 1)), "attack_args.segment_items: expected distinct items"),
        (Segment(segment_items=("a",)), "attack_args.segment_items: expected a list of item ids"),
    ],
)
def test_segment_bad_items(view, attack, message):
    with pytest.raises(UserError, match=message):
        run(attack, view)


# --- LoveHate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("intent", "loved", "hated"), [("push", "targets", "fillers"), ("nuke", "fillers", "targets")])
def test_love_hate_uses_both_ends(view, intent, loved, hated):
    fakes = run(LoveHate(intent=intent), view)
    is_target = np.isin(fakes.item_ids, TARGETS)
    ratings = {"targets": set(fakes.ratings[is_target]), "fillers": set(fakes.ratings[~is_target])}
    assert ratings == {loved: {5.0}, hated: {1.0}}


# --- CopyProfile ------------------------------------------------------------------------------------------------------


def test_copied_fillers_are_one_users(view):
    """Also for every fake another user, as there are more users with 12 items than fakes."""
    n_fakes, rated = 40, view.ratings.toarray() > 0
    items, _ = fillers(run(CopyProfile(), view, Budget(n_fakes, 25)), 25)
    matches = np.array([[rated[u, row].all() for u in range(view.n_users)] for row in items])
    assert matches.any(axis=1).all()
    random_items, _ = fillers(run(Random(), view, Budget(n_fakes, 25)), 25)
    assert not any(rated[u, row].all() for row in random_items for u in range(view.n_users))  # the test can tell


@pytest.mark.parametrize("n_fakes", [30, 500])
def test_copied_ratings_name_their_user(make_view, n_fakes):
    """User u rates everything u + 1: a copied profile has one rating. Users with too few items are no templates."""
    rng = np.random.default_rng(0)
    rated = rng.random((60, 40)) < np.linspace(0.2, 0.9, 60)[:, None]
    data = make_view(rated * (np.arange(60)[:, None] + 1), low=1, high=60)
    items, ratings = fillers(run(CopyProfile(ratings="copy"), data, Budget(n_fakes, 15), [0, 1]), 15, [0, 1])
    assert (ratings == ratings[:, :1]).all()
    users = ratings[:, 0].astype(int) - 1
    assert all(rated[u, row].all() for u, row in zip(users, items, strict=True))
    eligible = np.flatnonzero(rated[:, 2:].sum(axis=1) >= 15)
    assert set(users) <= set(eligible)
    if n_fakes < len(eligible):
        assert len(set(users)) == n_fakes  # no template twice
    else:
        assert set(users) == set(eligible)


def test_copied_items_are_uniform_within_the_template(make_view):
    items, _ = fillers(run(CopyProfile(), make_view(np.full((1, 21), 3)), Budget(4000, 5), [20]), 5, [20])
    counts = np.bincount(items.ravel(), minlength=20)
    statistic = ((counts - 1000) ** 2).sum() / (1000 * 0.75) * 19 / 20
    assert 1e-3 < stats.chi2.sf(statistic, 19) < 1 - 1e-3


def test_copied_ratings_are_item_normal(unbounded_view):
    dense = unbounded_view.ratings.toarray()
    z = item_z_scores(CopyProfile(), unbounded_view, dense.sum(axis=0) / (dense > 0).sum(axis=0))
    assert stats.kstest(z, "norm").pvalue > 1e-3


def test_short_templates_are_topped_up(make_view):
    """Ten users with four items each, none shared: ten fillers are two whole users and half of a third."""
    data = make_view(np.kron(np.eye(10), np.full((1, 4), 3)))
    data = replace(data, ratings=sparse.hstack([data.ratings, sparse.csr_matrix((10, 1))], format="csr"))
    items, _ = fillers(run(CopyProfile(), data, Budget(200, 10), [40]), 10, [40])
    from_user = np.array([np.bincount(row // 4, minlength=10) for row in items])
    np.testing.assert_array_equal(np.sort(from_user, axis=1), [[0] * 7 + [2, 4, 4]] * 200)
    assert (from_user > 0).any(axis=0).all()
    everything, _ = fillers(run(CopyProfile(), data, Budget(3, 40), [40]), 40, [40])  # goes round all the users
    np.testing.assert_array_equal(everything, [np.arange(40)] * 3)


def test_copies_need_enough_rated_items(make_view):
    dense = np.zeros((3, 10))
    dense[:, :4] = 2
    with pytest.raises(UserError, match="n_fillers: expected at most the 3 items that a user has rated, got 4"):
        run(CopyProfile(), make_view(dense), Budget(2, 4), targets=np.array([0]))


# --- Diluted ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "n_popular"), [(0.0, 0), (0.5, 8), (1.0, 15)])  # halves go up
def test_diluted_share_of_the_most_popular_items(view, share, n_popular):
    items, ratings = fillers(run(Diluted(popular_share=share), view, Budget(40, 15)), 15)
    counts = np.delete(np.bincount(view.ratings.indices, minlength=60), TARGETS)
    most = np.delete(np.arange(60), TARGETS)[np.argsort(-counts, kind="stable")[:n_popular]]
    is_popular = np.isin(items, most)
    np.testing.assert_array_equal(is_popular.sum(axis=1), n_popular)
    assert (ratings[is_popular] == view.rating_max).all()
    rated = view.ratings.toarray() > 0
    for row, own in zip(items, is_popular, strict=True):
        assert any(rated[u, row[~own]].all() for u in range(view.n_users))


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.35), (0.5, 0.5, 0.7), (1.0, 1.0, 1.0)])
def test_diluted_share_of_the_copied_fillers_at_the_top(view, share, low, high):
    _, ratings = fillers(run(Diluted(popular_share=0.0, top_share=share), view, Budget(200, 15)), 15)
    assert low <= (ratings == view.rating_max).mean() <= high


@pytest.mark.parametrize("mode", ["all", "split"])
def test_diluted_fakes_are_less_of_a_group(make_view, mode):
    """By co-rating evidence for a user's number of top ratings, against CopyProfile with as many fillers."""
    rng = np.random.default_rng(0)
    popularity = 0.9 * np.arange(1, 121) ** -0.5
    stars = rng.integers(1, 6, size=(300, 120)) * (rng.random((300, 120)) < popularity)
    data, targets = make_view(stars), np.array([117, 118, 119])
    budget = Budget(20, 24, target_mode=mode)
    evidence = []
    for attack in (CopyProfile(), Diluted()):
        fakes = run(attack, data, budget, targets).to_csr(120)
        everyone = sparse.csr_matrix(sparse.vstack([data.ratings, fakes]))
        evidence.append(co_rating(everyone, top_rating=5.0, length_power=0.75)[300:].mean())
    assert evidence[1] < 0.7 * evidence[0]
