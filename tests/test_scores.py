"""Score functions: equal to their definitions written as loops, free of signs and labels, and right about stealth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix, vstack
from toy_ratings import popular_world, random_ratings

from recbole_robust.attacks import Average, Random
from recbole_robust.group_evidence import co_rating
from recbole_robust.scores import (
    auc,
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
