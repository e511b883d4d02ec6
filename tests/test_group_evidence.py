"""Group evidence against its definition by loops, and what a group can do about it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import poisson
from toy_ratings import popular_world, random_ratings, sparse_world

from recbole_robust.group_evidence import Length, _Surprise, co_rating, coordinated_raters, limits_of


def lengths_by_loops(ratings: np.ndarray, top: np.ndarray, length: str) -> np.ndarray:
    if length == "count":
        return np.maximum(top.sum(axis=1), 1)
    shares = (ratings > 0).mean(axis=0)
    found = [sum(-(math.log(shares[i]) ** 3) * shares[i] for i in np.flatnonzero(row)) for row in top]
    return np.array([one or 1.0 for one in found])


@pytest.mark.parametrize("length", ["count", "chance"])
@pytest.mark.parametrize(("n_neighbours", "top_rating"), [(3, None), (20, 4.0), (100, None)])
def test_co_rating_is_its_definition(n_neighbours, top_rating, length, monkeypatch):
    monkeypatch.setattr("recbole_robust.group_evidence.BLOCK_PAIRS", 280)  # blocks of seven users
    ratings = random_ratings()
    n_users = len(ratings)
    top = ratings >= (top_rating or 5.0)
    idf = np.log(n_users / np.maximum((ratings > 0).sum(axis=0), 1))
    lengths = lengths_by_loops(ratings, top, length)
    expected = []
    for u in range(n_users):
        shared = sorted((sum(idf[top[u] & top[v]] ** 3) for v in range(n_users) if v != u), reverse=True)
        k = min(n_neighbours, n_users - 1)
        expected.append(sum(shared[:k]) / k / math.sqrt(lengths[u]))
    found = co_rating(csr_matrix(ratings), n_neighbours, top_rating, length=length)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def surprise_by_loops(top: np.ndarray, u: int, v: int, without: float = 0.0) -> float:
    """Minus the logarithm of Chernoff's bound on that many shared items, ``without`` of one left out."""
    m, shared = top.sum(axis=0), (top[u] & top[v]).sum() - without
    by_u, by_v = (m[top[a]].sum() * top[b].sum() / m.sum() for a, b in ((u, v), (v, u)))
    by_chance = math.sqrt(by_u * by_v)
    return shared * math.log(shared / by_chance) - shared + by_chance if shared > by_chance else 0.0


def test_surprise_bounds_how_likely_chance_is():
    rng = np.random.default_rng(0)
    mean = rng.uniform(0.01, 30, 200)
    count = np.ceil(mean * rng.uniform(1, 5, 200))
    measure = _Surprise(csr_matrix((2, 3)))
    measure.root = np.sqrt(np.concatenate([mean, mean]))
    bound = np.exp(-measure(count, np.arange(200), np.arange(200, 400)))
    assert (poisson.sf(count - 1, mean) <= bound).all() and bound.min() < 1e-6 < 0.1 < bound.max()


@pytest.mark.parametrize(("n_neighbours", "top_rating"), [(3, None), (20, 4.0), (100, 3.0)])
def test_surprise_is_its_definition(n_neighbours, top_rating, monkeypatch):
    monkeypatch.setattr("recbole_robust.group_evidence.BLOCK_PAIRS", 280)  # blocks of seven users
    ratings = random_ratings()
    top = ratings >= (top_rating or 5.0)
    k = min(n_neighbours, len(top) - 1)
    pairs = [[surprise_by_loops(top, u, v) for v in range(len(top)) if v != u] for u in range(len(top))]
    found = co_rating(csr_matrix(ratings), n_neighbours, top_rating, evidence="surprise")
    assert (found > 0).any()
    np.testing.assert_allclose(found, np.sort(pairs, axis=1)[:, -k:].sum(axis=1) / k, atol=1e-12)


def test_only_surprise_sees_fakes_among_users_of_a_few_ratings():
    """What one rare item says of a pair of them is more than five common targets."""
    ratings, targets = sparse_world()
    everyone = csr_matrix(ratings)
    left, kept = {}, {}
    for evidence in ("idf", "surprise"):
        count = csr_matrix((coordinated_raters(everyone, evidence=evidence), everyone.indices, everyone.indptr))
        weights = 1 / (1 + count.toarray())
        left[evidence] = weights[2000:, targets].sum(axis=0).mean()
        kept[evidence] = weights[:2000][ratings[:2000] == 5].mean()
    assert left["surprise"] < 2.0 < 40.0 < left["idf"]
    assert kept["surprise"] > max(kept["idf"], 0.95)


def coordinated_by_loops(
    ratings: np.ndarray,
    k: int,
    top_rating: float,
    low: float,
    high: float,
    own_share: float,
    usual: float,
    evidence: str = "idf",
) -> np.ndarray:
    n_users = len(ratings)
    top = ratings >= top_rating
    idf = np.log(n_users / np.maximum((ratings > 0).sum(axis=0), 1))
    lengths = lengths_by_loops(ratings, top, "chance")

    def of_pair(u: int, v: int, without: int | None = None) -> float:
        """The evidence, of ``without`` only ``own_share``."""
        if evidence == "surprise":
            return surprise_by_loops(top, u, v, 0.0 if without is None else 1 - own_share)
        shared = (idf[top[u] & top[v]] ** 3).sum() - (0.0 if without is None else (1 - own_share) * idf[without] ** 3)
        return shared / math.sqrt(lengths[u] * lengths[v])

    alike = np.array([[of_pair(u, v) if u != v else 0.0 for v in range(n_users)] for u in range(n_users)])
    roots = np.sqrt(np.sort(alike, axis=1)[:, -k:].sum(axis=1) / k)
    median = np.median(roots[roots > 0])
    theta = (median + 3 * 1.4826 * np.median(np.abs(roots[roots > 0] - median))) ** 2
    mean = np.full_like(ratings, np.nan)
    for u, i in np.argwhere(top):
        others = [v for v in np.flatnonzero(top[:, i]) if v != u]
        if others:
            found = np.array([of_pair(u, v, i) if alike[u, v] > low * theta else 0.0 for v in others])
            mean[u, i] = np.clip((found / theta - low) / (high - low), 0, 1).mean()
    told = ~np.isnan(mean) & (top.sum(axis=0) > min(10, top.sum(axis=0).max() - 1))
    q, n_told = 0.0, np.maximum(told.sum(axis=1), 1)
    votes = sorted((mean[u, i], 1 / n_told[u]) for u, i in np.argwhere(told))
    if usual:
        needed = usual * told.any(axis=1).sum()
        q = next(value for k, (value, _) in enumerate(votes) if sum(v for _, v in votes[: k + 1]) > needed - 1e-9)
    return np.nan_to_num(np.maximum(mean - q, 0) * (top.sum(axis=0) - 1))


@pytest.mark.parametrize("evidence", ["idf", "surprise"])
@pytest.mark.parametrize(
    ("n_neighbours", "top_rating", "low", "high", "own_share", "usual"),
    [(20, None, 0.3, 1.0, 0.5, 0.9), (20, 4.0, 0.1, 0.8, 1.0, 0.5), (5, 3.0, 0.2, 1.5, 0.0, 0.0)],
)
def test_coordinated_raters_are_their_definition(
    n_neighbours, top_rating, low, high, own_share, usual, evidence, monkeypatch
):
    monkeypatch.setattr("recbole_robust.group_evidence.BLOCK_PAIRS", 280)  # blocks of seven users
    ratings = random_ratings()
    monkeypatch.setattr("recbole_robust.group_evidence.CHUNK_RATINGS", 50)
    keys = {"low": low, "high": high, "own_share": own_share, "usual": usual, "evidence": evidence}
    found = coordinated_raters(csr_matrix(ratings), n_neighbours, top_rating, **keys)
    expected = coordinated_by_loops(ratings, n_neighbours, top_rating or 5.0, **keys)
    assert (found > 0).any()
    np.testing.assert_allclose(found, expected[ratings > 0], atol=1e-9)


def test_a_group_is_one_rater_of_its_targets_and_who_found_an_item_alone_is_none():
    """Profiles that push four rare items together: each has all the others behind it. Ratings below the top: nobody.
    Twelve users who share one item, rarer still, are taken for a group only where that item is evidence itself."""
    genuine = popular_world(400, 120)
    genuine[:, -5:] = 0.0
    genuine[:12, -5] = 5.0  # fans of one rare item, with nothing else in common
    rng = np.random.default_rng(0)
    fakes = np.where(rng.random((8, 120)) < 0.15, 3.0, 0.0)
    fakes[:, -4:] = 5.0
    everyone = csr_matrix(np.vstack([genuine, fakes]))

    def counted(**keys: float) -> np.ndarray:
        return csr_matrix((coordinated_raters(everyone, **keys), everyone.indices, everyone.indptr)).toarray()

    count, with_own = counted(own_share=0.0, usual=0.0), counted(own_share=1.0, usual=0.0)
    np.testing.assert_allclose(count[400:, -4:], 7.0)
    np.testing.assert_allclose((1 / (1 + count[400:, -4:])).sum(axis=0), 1.0)
    assert (count[400:, :-5] == 0).all()
    assert count[:12, -5].max() < 1.0 < with_own[:12, -5].min()
    less_usual = counted()
    assert (less_usual <= counted(usual=0.0)).all()
    assert (1 / (1 + less_usual[:400][genuine == 5])).mean() > 0.95
    assert less_usual[400:, -4:].min() > 3.0


def test_what_everybody_rates_highest_hides_fakes_by_count_and_hardly_by_chance():
    """Fakes with two rare targets in common; then the eight most rated items beside them, at the top, too."""
    genuine = popular_world(400, 120)
    fakes = np.zeros((15, 120))
    fakes[:, -2:] = 5.0
    diluted = fakes.copy()
    diluted[:, np.argsort(-(genuine > 0).sum(axis=0), kind="stable")[:8]] = 5.0

    def kept(length: Length) -> float:
        scores = [co_rating(csr_matrix(np.vstack([genuine, f])), length=length)[400:].mean() for f in (fakes, diluted)]
        return scores[1] / scores[0]

    assert kept("count") < 0.6  # 2 top ratings become 10
    assert kept("chance") > 0.8


def test_without_a_measure_of_chance_nobody_is_coordinated(monkeypatch):
    """The users that are sampled share nothing; two others do."""
    monkeypatch.setattr("recbole_robust.group_evidence.N_SAMPLED_USERS", 5)
    ratings = 5.0 * np.eye(20)
    ratings[[1, 3], 0] = 5.0
    ratings[0, 0] = 0.0
    assert (coordinated_raters(csr_matrix(ratings), own_share=0.0) == 0).all()
    monkeypatch.undo()
    assert (coordinated_raters(csr_matrix(ratings), own_share=1.0, usual=0.0) > 0).sum() == 2


def test_either_is_the_larger_count_of_both():
    world = csr_matrix(random_ratings())
    keys = {"low": 0.1, "usual": 0.5}
    one, other = (coordinated_raters(world, evidence=kind, **keys) for kind in ("idf", "surprise"))
    assert (one > other).any() and (one < other).any()
    np.testing.assert_array_equal(coordinated_raters(world, evidence="either", **keys), np.maximum(one, other))


@pytest.mark.parametrize("evidence", ["idf", "surprise"])
def test_group_evidence_of_no_ratings_or_one_user_is_zero(evidence):
    for ratings in (csr_matrix((3, 4)), csr_matrix(np.ones((1, 4)))):
        assert (coordinated_raters(ratings, evidence=evidence) == 0).all()
        assert (co_rating(ratings, evidence=evidence) == 0).all()
    assert (coordinated_raters(csr_matrix(np.ones((6, 4))), evidence=evidence) == 0).all()  # all rated all: no news


@pytest.mark.parametrize("measured", [co_rating, limits_of])
@pytest.mark.parametrize("evidence", ["either", "rarity"])
def test_one_measure_is_of_one_kind(measured, evidence):
    with pytest.raises(ValueError, match=f"evidence: expected idf or surprise, got '{evidence}'"):
        measured(csr_matrix(random_ratings()), evidence=evidence)


def test_limits_are_those_of_the_count():
    ratings = random_ratings()
    keys = {"low": 0.1, "usual": 0.5}
    limits = limits_of(csr_matrix(ratings), **keys)
    everyone = coordinated_raters(csr_matrix(ratings), low=0.1, usual=0.0)
    others = np.broadcast_to((ratings == 5.0).sum(axis=0) - 1, ratings.shape)[ratings > 0]
    expected = np.maximum(everyone - limits.usual * np.maximum(others, 0), 0.0)
    assert limits.theta > 0 < limits.usual
    np.testing.assert_allclose(coordinated_raters(csr_matrix(ratings), **keys), expected, atol=1e-12)


def test_decoys_do_not_become_usual():
    """Twelve fakes with four targets in common beside 400 users; then half only share 190 rare items instead."""
    genuine = popular_world(400, 400)
    genuine[:, -4:] = 0.0
    rng = np.random.default_rng(0)
    fakes = np.where(rng.random((12, 400)) < 0.1, 3.0, 0.0)
    fakes[:, -4:] = 5.0
    decoys = fakes.copy()
    decoys[6:] = 0.0
    decoys[6:, 200:390] = 5.0
    weights = []
    for some in (fakes, decoys):
        everyone = csr_matrix(np.vstack([genuine, some]))
        count = csr_matrix((coordinated_raters(everyone), everyone.indices, everyone.indptr), shape=everyone.shape)
        weights.append((1 / (1 + count.toarray()[400:406, -4:])).mean())
    assert weights[0] < 0.2
    assert weights[1] < 0.35  # a group of six
