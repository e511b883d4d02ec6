"""Score functions: equal to their definitions written as loops, free of signs and labels, and right about stealth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix, vstack

from recbole_robust.attacks import Average, Random
from recbole_robust.scores import (
    Length,
    auc,
    co_rating,
    coordinated_raters,
    pca_loading,
    popularity,
    rating_deviation,
    rating_distribution_distance,
    rating_levels,
    stealth,
    two_sided_auc,
)
from recbole_robust.types import AttackerView, Budget, FakeProfiles

LEVELS = np.arange(1.0, 6.0)
KEYS = {"popularity_auc", "deviation_auc", "pca_auc", "co_rating_auc", "tvd", "js"}


def random_ratings(n_users: int = 40, n_items: int = 25, density: float = 0.3, seed: int = 0) -> np.ndarray:
    """A dense toy: 0 is unrated; user 3 has rated nothing, item 5 nobody, user 4 gave one rating."""
    rng = np.random.default_rng(seed)
    ratings = rng.integers(1, 6, (n_users, n_items)) * (rng.random((n_users, n_items)) < density)
    ratings[3], ratings[:, 5], ratings[4] = 0, 0, 0
    ratings[4, 7] = 2
    return ratings.astype(np.float64)


def popular_world(n_users: int = 200, n_items: int = 80, seed: int = 1) -> np.ndarray:
    """Genuine users who share a taste for some items, in the order of popularity, and two sorts of users."""
    rng = np.random.default_rng(seed)
    chance = 0.9 / np.arange(1, n_items + 1) ** 0.5
    liked = rng.random((n_users, n_items)) < chance
    sort = rng.integers(0, 2, n_users)[:, None] == (np.arange(n_items) % 2)[None, :]
    stars = np.clip(rng.normal(3 + 1.2 * sort, 0.8).round(), 1, 5)
    return stars * liked


def view_of(ratings: np.ndarray) -> AttackerView:
    low, high = ratings[ratings > 0].min(), ratings.max()
    return AttackerView(csr_matrix(ratings), low, high, 1.0 if high > low else 0.0)


def profiles_of(ratings: np.ndarray) -> FakeProfiles:
    matrix = csr_matrix(ratings)
    return FakeProfiles(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_popularity_is_its_definition():
    ratings = random_ratings()
    counts = (ratings > 0).sum(axis=0)
    expected = [np.mean([math.log(counts[i]) for i in row.nonzero()[0]]) if row.any() else 0.0 for row in ratings]
    np.testing.assert_allclose(popularity(csr_matrix(ratings)), expected)


@pytest.mark.parametrize("rarity", [0, 1, 2])
def test_rating_deviation_is_its_definition(rarity):
    ratings = random_ratings()
    expected = []
    for row in ratings:
        terms = []
        for i in row.nonzero()[0]:
            of_item = ratings[ratings[:, i] > 0, i]
            terms.append(abs(row[i] - of_item.mean()) / len(of_item) ** rarity)
        expected.append(sum(terms) / len(terms) if terms else 0.0)
    np.testing.assert_allclose(rating_deviation(csr_matrix(ratings), rarity), expected, atol=1e-12)


@pytest.mark.parametrize("n_components", [1, 3])
@pytest.mark.parametrize("shape", [(40, 25), (20, 60)])
def test_pca_loading_is_that_of_the_dense_computation(shape, n_components):
    ratings = random_ratings(*shape)
    rated = ratings.any(axis=1)
    standardised = np.zeros(shape)
    rows = ratings[rated]
    standardised[rated] = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)
    _, vectors = np.linalg.eigh(standardised @ standardised.T)  # the users' covariance; ascending eigenvalues
    expected = (vectors[:, -n_components:] ** 2).sum(axis=1)
    found = pca_loading(csr_matrix(ratings), n_components)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert found.sum() == pytest.approx(n_components), "columns of unit length"


def test_pca_loading_does_not_depend_on_signs_scales_or_the_state_of_a_generator():
    ratings = random_ratings()
    found = pca_loading(csr_matrix(ratings))
    np.testing.assert_array_equal(pca_loading(csr_matrix(ratings)), found)
    np.testing.assert_allclose(pca_loading(csr_matrix(-ratings)), found, atol=1e-8)  # every eigenvector turned round
    scales = np.random.default_rng(0).uniform(0.5, 3, len(ratings))[:, None]
    np.testing.assert_allclose(pca_loading(csr_matrix(ratings * scales)), found, atol=1e-8)


@pytest.mark.parametrize("ratings", [np.zeros((4, 5)), np.ones((4, 5)), np.ones((1, 5)), np.ones((4, 1))])
def test_pca_loading_without_variance_is_zero(ratings):
    assert (pca_loading(csr_matrix(ratings)) == 0).all()


def lengths_by_loops(ratings: np.ndarray, top: np.ndarray, length: str) -> np.ndarray:
    if length == "count":
        return np.maximum(top.sum(axis=1), 1)
    shares = (ratings > 0).mean(axis=0)
    found = [sum(-(math.log(shares[i]) ** 3) * shares[i] for i in np.flatnonzero(row)) for row in top]
    return np.array([one or 1.0 for one in found])


@pytest.mark.parametrize("length", ["count", "chance"])
@pytest.mark.parametrize(("n_neighbours", "top_rating"), [(3, None), (20, 4.0), (100, None)])
def test_co_rating_is_its_definition(n_neighbours, top_rating, length, monkeypatch):
    monkeypatch.setattr("recbole_robust.scores.BLOCK_PAIRS", 280)  # blocks of seven users
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


def coordinated_by_loops(
    ratings: np.ndarray, k: int, top_rating: float, low: float, own_share: float, usual: float
) -> np.ndarray:
    n_users, high = len(ratings), 1.0
    top = ratings >= top_rating
    idf = np.log(n_users / np.maximum((ratings > 0).sum(axis=0), 1))
    lengths = lengths_by_loops(ratings, top, "chance")
    alike = np.array([
        [(u != v) * (idf[top[u] & top[v]] ** 3).sum() / math.sqrt(lengths[u] * lengths[v]) for v in range(n_users)]
        for u in range(n_users)
    ])  # fmt: skip
    roots = np.sqrt(np.sort(alike, axis=1)[:, -k:].sum(axis=1) / k)
    median = np.median(roots[roots > 0])
    theta = (median + 3 * 1.4826 * np.median(np.abs(roots[roots > 0] - median))) ** 2
    mean = np.full_like(ratings, np.nan)
    for u, i in np.argwhere(top):
        others = [v for v in np.flatnonzero(top[:, i]) if v != u]
        own = (1 - own_share) * idf[i] ** 3 / np.sqrt(lengths[u] * lengths[others])
        if others:
            mean[u, i] = np.clip(((alike[u, others] - own) / theta - low) / (high - low), 0, 1).mean()
    told = ~np.isnan(mean) & (top.sum(axis=0) > min(10, top.sum(axis=0).max() - 1))
    q = np.quantile(mean[told], usual) if usual else 0.0
    return np.nan_to_num(np.maximum(mean - q, 0) * (top.sum(axis=0) - 1))


@pytest.mark.parametrize(
    ("n_neighbours", "top_rating", "low", "own_share", "usual"),
    [(20, None, 0.3, 0.5, 0.9), (20, 4.0, 0.1, 1.0, 0.5), (5, 3.0, 0.2, 0.0, 0.0)],
)
def test_coordinated_raters_are_their_definition(n_neighbours, top_rating, low, own_share, usual, monkeypatch):
    monkeypatch.setattr("recbole_robust.scores.BLOCK_PAIRS", 280)  # blocks of seven users
    ratings = random_ratings()
    monkeypatch.setattr("recbole_robust.scores.CHUNK_RATINGS", 50)
    keys = {"low": low, "own_share": own_share, "usual": usual}
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
    monkeypatch.setattr("recbole_robust.scores.N_SAMPLED_USERS", 5)
    ratings = 5.0 * np.eye(20)
    ratings[[1, 3], 0] = 5.0
    ratings[0, 0] = 0.0
    assert (coordinated_raters(csr_matrix(ratings), own_share=0.0) == 0).all()
    monkeypatch.undo()
    assert (coordinated_raters(csr_matrix(ratings), own_share=1.0, usual=0.0) > 0).sum() == 2


def test_group_evidence_of_no_ratings_or_one_user_is_zero():
    assert (coordinated_raters(csr_matrix((3, 4))) == 0).all()
    assert (coordinated_raters(csr_matrix(np.ones((1, 4)))) == 0).all()
    assert (coordinated_raters(csr_matrix(np.ones((6, 4)))) == 0).all()  # all rated all: nothing is rare
    assert (co_rating(csr_matrix((3, 4))) == 0).all()
    assert (co_rating(csr_matrix(np.ones((1, 4)))) == 0).all()


@pytest.mark.parametrize("score", [popularity, rating_deviation, pca_loading, co_rating])
def test_scores_leave_the_matrix_alone_and_follow_the_users(score):
    ratings = csr_matrix(random_ratings())
    before = ratings.copy()
    found = score(ratings)
    assert (ratings != before).nnz == 0
    assert ratings.nnz == before.nnz
    order = np.random.default_rng(0).permutation(ratings.shape[0])
    np.testing.assert_allclose(score(ratings[order]), found[order], atol=1e-8)
    assert np.isfinite(found).all()
    assert found[3] == 0, "a user without a rating"


# --- AUC --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "is_fake", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
        ([1, 2, 2, 3], [0, 1, 0, 1], 0.875),  # (1 + .5 + 1 + 1) / 4
        ([5, 1, 3], [1, 0, 0], 1.0),
    ],
)
def test_auc_known_answers(scores, is_fake, expected):
    assert auc(np.array(scores, dtype=float), np.array(is_fake, dtype=bool)) == expected
    assert two_sided_auc(np.array(scores, dtype=float), np.array(is_fake, dtype=bool)) == max(expected, 1 - expected)


def test_auc_is_the_share_of_pairs():
    rng = np.random.default_rng(0)
    scores, is_fake = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.3
    pairs = [(f > g) + (f == g) / 2 for f in scores[is_fake] for g in scores[~is_fake]]
    assert auc(scores, is_fake) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("kind", [True, False])
def test_auc_of_one_kind_of_users_is_no_number(kind):
    assert math.isnan(auc(np.arange(3.0), np.full(3, kind)))
    assert math.isnan(two_sided_auc(np.arange(3.0), np.full(3, kind)))


# --- distributions ----------------------------------------------------------------------------------------------------


def test_distribution_distance_is_its_definition():
    fakes, genuine = random_ratings(12, seed=1), random_ratings(30, seed=2)
    tvd, js = [], []
    for i in range(fakes.shape[1]):
        p, q = ([np.mean(part[:, i] == level) for level in (0, *LEVELS)] for part in (fakes, genuine))
        tvd.append(sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2)
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        terms = [x * math.log2(x / m) for part in (p, q) for x, m in zip(part, middle, strict=True) if x > 0]
        js.append(sum(terms) / 2)
    found = rating_distribution_distance(csr_matrix(fakes), csr_matrix(genuine), LEVELS)
    assert found == {"tvd": pytest.approx(np.mean(tvd)), "js": pytest.approx(np.mean(js))}


def test_distribution_distance_is_0_for_copies_and_1_for_opposites():
    ratings = csr_matrix(random_ratings())
    assert rating_distribution_distance(ratings, ratings, LEVELS) == {"tvd": 0.0, "js": pytest.approx(0.0)}
    low, high = csr_matrix(np.ones((3, 4))), csr_matrix(np.full((9, 4), 5.0))
    opposite = rating_distribution_distance(low, high, LEVELS)
    assert opposite == {"tvd": pytest.approx(1.0), "js": pytest.approx(1.0)}
    assert rating_distribution_distance(high, low, LEVELS) == opposite, "symmetric"
    assert rating_distribution_distance(csr_matrix((3, 4)), high, LEVELS)["js"] == pytest.approx(1.0), "unrated counts"


def test_an_item_that_every_fake_rates_is_at_a_finite_distance():
    """28 shares of 1/28 do not add up to 1 in floats: the share of the unrated must not fall below 0."""
    rng = np.random.default_rng(0)
    for n_fakes in range(2, 60):
        fakes = csr_matrix(rng.integers(1, 6, (n_fakes, 3)) * 1.0)
        found = rating_distribution_distance(fakes, fakes, LEVELS)
        assert found == {"tvd": 0.0, "js": pytest.approx(0.0)}


def test_ratings_between_two_levels_count_as_the_nearest():
    near, exact = csr_matrix([[1.4, 4.6, 0.2]]), csr_matrix([[1.0, 5.0, 1.0]])
    assert rating_distribution_distance(near, exact, LEVELS)["tvd"] == 0.0


@pytest.mark.parametrize(
    ("low", "high", "step", "levels"),
    [(1, 5, 1, [1, 2, 3, 4, 5]), (0.5, 2, 0.5, [0.5, 1, 1.5, 2]), (1, 1, 0, [1]), (0, 1, 0, np.linspace(0, 1, 11))],
)
def test_rating_levels(low, high, step, levels):
    np.testing.assert_allclose(rating_levels(AttackerView(csr_matrix((1, 1)), low, high, step)), levels)


# --- stealth ----------------------------------------------------------------------------------------------------------


def test_copies_of_all_genuine_users_are_hidden():
    """A fake twin for everybody: each score is a tie of twins, and the distributions are the same."""
    ratings = popular_world()
    found = stealth(view_of(ratings), profiles_of(ratings))
    assert found.keys() == KEYS
    for name in ("popularity_auc", "deviation_auc", "co_rating_auc"):
        assert found[name] == pytest.approx(0.5, abs=1e-3), name
    assert found["pca_auc"] == pytest.approx(0.5, abs=0.02), "twins may differ in the last digits"
    assert found["tvd"] == found["js"] == pytest.approx(0.0)


def test_copies_of_some_genuine_users_are_nearly_hidden():
    ratings = popular_world()
    found = stealth(view_of(ratings), profiles_of(ratings[::4]))
    for name in ("popularity_auc", "deviation_auc"):
        assert found[name] < 0.56, name
    assert found["tvd"] < 0.1


def test_identical_fakes_stand_out():
    ratings = popular_world()
    one = np.zeros(80)
    one[60:] = 5.0  # twenty of the least popular items
    found = stealth(view_of(ratings), profiles_of(np.tile(one, (6, 1))))
    for name in ("popularity_auc", "deviation_auc", "pca_auc", "co_rating_auc"):
        assert found[name] > 0.9, name
    assert found["tvd"] > 0.3
    assert found["js"] > 0.2


@pytest.mark.parametrize("attack", [Random(), Average()])
def test_random_fillers_are_told_by_their_popularity(attack):
    view = view_of(popular_world())
    profiles = attack(view, np.array([70, 75]), Budget(20, 15), rng=np.random.default_rng(0))
    found = stealth(view, profiles)
    assert found["popularity_auc"] > 0.9
    assert json.loads(json.dumps(found)) == found


def test_implicit_data_have_no_deviation():
    ratings = (popular_world() > 0).astype(float)
    found = stealth(view_of(ratings), profiles_of(ratings[:10]))
    assert found.pop("deviation_auc") is None
    assert all(isinstance(value, float) and np.isfinite(value) for value in found.values())


def test_genuine_users_without_a_training_rating_do_not_count():
    ratings = popular_world()
    fakes = profiles_of(ratings[:20][:, ::-1].copy())
    found = stealth(view_of(ratings), fakes)
    idle = csr_matrix(vstack([csr_matrix(ratings), csr_matrix((50, 80))]))
    assert stealth(AttackerView(idle, 1.0, 5.0, 1.0), fakes) == pytest.approx(found)


def test_a_large_catalogue_is_never_dense():
    """40,000 users x 30,000 items would be 9.6 GB as a dense array."""
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 40_000, 100_000), rng.integers(0, 30_000, 100_000)
    ratings = csr_matrix((np.ones(100_000), (rows, columns)), shape=(40_000, 30_000))
    ratings.data[:] = 1.0
    profiles = FakeProfiles(np.array([0, 3, 6]), np.array([0, 1, 2, 0, 1, 3]), np.ones(6))
    assert stealth(AttackerView(ratings, 1.0, 1.0, 0.0), profiles).keys() == KEYS
