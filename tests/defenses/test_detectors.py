"""The detectors: laws that all keep, each one's formula written as loops, and the project's own fakes among users."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.sparse import csr_matrix, vstack
from toy_ratings import sparse_world

from recbole_robust.attacks import Average, CopyProfile, Random
from recbole_robust.defenses import FAP, PCA, CoRating, detection_report
from recbole_robust.defenses.fap import transitions
from recbole_robust.types import AttackerView, Budget, DefenderView, Detection, UserError

DETECTORS = [
    CoRating(),
    CoRating(evidence="surprise"),
    PCA(),
    PCA(variant="sdlib", n_flag=8),
    FAP(),
    FAP(seed_score="deviation", n_seeds=4),
    FAP(seed_users=(6, 2)),
]
PROPERTIES = Path(__file__).parents[2] / "properties" / "defense"
N_FAKES = 12

each_detector = pytest.mark.parametrize("detector", DETECTORS, ids=repr)


def toy(n_users: int = 40, n_items: int = 25, seed: int = 0) -> np.ndarray:
    """0 is unrated; user 3 has rated nothing, item 5 nobody, user 4 gave one rating."""
    rng = np.random.default_rng(seed)
    ratings = rng.integers(1, 6, (n_users, n_items)) * (rng.random((n_users, n_items)) < 0.3)
    ratings[3], ratings[:, 5], ratings[4] = 0, 0, 0
    ratings[4, 7] = 2
    return ratings.astype(float)


def view_of(ratings) -> DefenderView:
    return DefenderView(csr_matrix(ratings), 1.0, 5.0, 1.0)


def detect(detector, ratings, seed: int = 0) -> Detection:
    return detector(view_of(ratings), rng=np.random.default_rng(seed))


@pytest.fixture(scope="module")
def genuine() -> AttackerView:
    """400 users of two tastes and 300 items, popularity falling like 1 / rank^0.7, profiles of 15 to 100 ratings."""
    rng = np.random.default_rng(11)
    taste = rng.integers(0, 2, 400)[:, None] == (np.arange(300) % 2)[None, :]
    chance = (0.3 + taste) / np.arange(1, 301) ** 0.7
    chance *= (rng.lognormal(3.4, 0.5, 400).clip(15, 100) / chance.sum(axis=1))[:, None]
    stars = rng.normal(2.7 + taste + 0.5 * rng.standard_normal(300), 0.9).round().clip(1, 5)
    return AttackerView(csr_matrix(stars * (rng.random((400, 300)) < chance)), 1.0, 5.0, 1.0)


def poisoned(genuine: AttackerView, attack, mode: str = "all") -> csr_matrix:
    """The fakes are the last rows; five targets with few ratings."""
    targets = np.argsort(genuine.item_counts, kind="stable")[10:60:10]
    budget = Budget(N_FAKES, 20, mode)
    fakes = attack(genuine, targets, budget, rng=np.random.default_rng(5))
    return csr_matrix(vstack([genuine.ratings, fakes.to_csr(genuine.n_items)]))


# --- what all of them promise -----------------------------------------------------------------------------------------


@each_detector
def test_scores_and_flags_are_well_formed_and_the_seed_decides_everything(detector, genuine):
    for ratings in (toy(), toy(20, 60), poisoned(genuine, Average())):
        found, again = detect(detector, ratings), detect(detector, ratings)
        n_users = ratings.shape[0]
        assert found.scores.shape == found.flagged.shape == (n_users,)
        assert found.scores.dtype == float
        assert found.flagged.dtype == bool
        assert np.isfinite(found.scores).all()
        np.testing.assert_array_equal(found.scores, again.scores)
        np.testing.assert_array_equal(found.flagged, again.flagged)
        if found.flagged.any():
            assert found.scores[found.flagged].min() >= found.scores[~found.flagged].max() - 1e-12


@each_detector
def test_a_user_without_ratings_is_the_least_suspicious(detector):
    found = detect(replace(detector, n_flag=1000), toy())
    assert found.scores[3] == found.scores.min()
    assert not found.flagged[3]


@each_detector
@pytest.mark.parametrize("ratings", [np.zeros((7, 4)), np.eye(7, 4), np.ones((7, 4)), np.ones((7, 1)), np.eye(7, 9)])
def test_data_with_nothing_to_see(detector, ratings):
    found = detect(detector, ratings)
    assert np.isfinite(found.scores).all()
    assert not found.flagged[ratings.sum(axis=1) == 0].any()


@each_detector
def test_one_user(detector):
    if detector.__dict__.get("seed_users"):
        detector = replace(detector, seed_users=(0,))
    assert np.isfinite(detect(detector, np.array([[5.0, 0, 3, 4]])).scores).all()


@each_detector
def test_the_order_of_users_and_items_does_not_matter(detector, genuine):
    ratings = poisoned(genuine, CopyProfile())
    found = detect(detector, ratings)
    rng = np.random.default_rng(0)
    users, items = rng.permutation(ratings.shape[0]), rng.permutation(ratings.shape[1])
    if detector.__dict__.get("seed_users"):
        detector = replace(detector, seed_users=np.flatnonzero(np.isin(users, detector.seed_users)))
    moved = detect(detector, ratings[users][:, items])
    np.testing.assert_allclose(moved.scores, found.scores[users], atol=1e-6)
    np.testing.assert_array_equal(moved.flagged, found.flagged[users])


@each_detector
def test_the_view_and_the_global_state_are_left_alone(detector):
    view = view_of(toy())
    before, state = view.ratings.copy(), np.random.get_state()[1].copy()  # noqa: NPY002
    detector(view, rng=np.random.default_rng(0))
    assert (view.ratings != before).nnz == 0
    assert view.ratings.nnz == before.nnz
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@each_detector
def test_a_defender_has_no_labels(detector):
    """Nothing else than these fields exists, and the ratings and their scale are all that a detector reads."""
    assert [field.name for field in fields(DefenderView)] == [
        "ratings", "rating_min", "rating_max", "rating_step", "log",
    ]  # fmt: skip

    class Bare:
        ratings, rating_min, rating_max = csr_matrix(toy()), 1.0, 5.0

    found = detector(Bare(), rng=np.random.default_rng(0))
    np.testing.assert_array_equal(found.scores, detect(detector, toy()).scores)


@each_detector
def test_no_dense_matrix(detector):
    """5,000 users x 100,000 items would be 4 GB as a dense array."""
    rng = np.random.default_rng(0)
    cells = np.unique(rng.integers(0, 5_000 * 100_000, 50_000))
    ratings = csr_matrix((rng.integers(1, 6, len(cells)) * 1.0, (cells // 100_000, cells % 100_000)), (5_000, 100_000))
    tracemalloc.start()
    detect(detector, ratings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20


@each_detector
def test_yaml_lists_the_fields_with_their_defaults(detector):
    text = (PROPERTIES / f"{type(detector).__name__}.yaml").read_text()
    assert yaml.safe_load(text) == {"defense_args": asdict(type(detector)())}
    assert text.count("#") == len(fields(detector)) + 1, "a comment a key, and one on top"


@each_detector
def test_detectors_are_frozen(detector):
    with pytest.raises(FrozenInstanceError):
        detector.n_flag = 3
    assert hash(detector) == hash(replace(detector))


@pytest.mark.parametrize(
    ("detector", "key", "value", "expected"),
    [
        (CoRating, "n_flag", 0, "auto, a count of at least 1 or a share below 1, got 0"),
        (CoRating, "n_neighbours", 2.5, "an integer of at least 1, got 2.5"),
        (CoRating, "evidence", "both", "one of idf, surprise, got 'both'"),
        (CoRating, "idf_power", -1, "a number of at least 0, got -1"),
        (CoRating, "length_power", "half", "a number of at least 0, got 'half'"),
        (CoRating, "top_rating", "5", "a number, got '5'"),
        (PCA, "variant", "pca", "one of mehta, sdlib, got 'pca'"),
        (PCA, "n_components", 0, "an integer of at least 1, got 0"),
        (PCA, "max_flagged", 2, "a number from 0 to 1, got 2"),
        (FAP, "seed_users", [], "a list of user ids from 0 on, or nothing, got []"),
        (FAP, "seed_users", [1, -1], "a list of user ids from 0 on, or nothing, got [1, -1]"),
        (FAP, "seed_users", "12", "a list of user ids from 0 on, or nothing, got '12'"),
        (FAP, "seed_score", "pca", "one of co_rating, deviation, got 'pca'"),
        (FAP, "n_seeds", 1.5, "auto, a count of at least 1 or a share below 1, got 1.5"),
        (FAP, "tolerance", 0, "a number above 0, got 0"),
        (FAP, "max_iterations", 0, "an integer of at least 1, got 0"),
        (FAP, "mad_threshold", None, "a number of at least 0, got None"),
    ],
)
def test_bad_hyper_parameters_are_one_clear_line(detector, key, value, expected):
    with pytest.raises(UserError) as error:
        detector(**{key: value})
    assert str(error.value) == f"defense_args.{key}: expected {expected}"


def test_what_does_not_fit_the_data_is_one_clear_line():
    found, known = (detect(FAP(seed_users=seeds), toy()) for seeds in ((2, 40), (2,)))
    np.testing.assert_array_equal(found.scores, known.scores)
    assert not detect(FAP(seed_users=(40,)), toy()).flagged.any()
    with pytest.raises(UserError, match=r"^defense_args.top_rating: expected at most 5, got 6$"):
        detect(CoRating(top_rating=6), toy())


# --- PCA --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["mehta", "sdlib"])
def test_pca_does_not_depend_on_the_signs_of_the_components(variant, monkeypatch):
    import recbole_robust.defenses.pca as of_detector
    import recbole_robust.scores as of_score

    expected = detect(PCA(variant=variant), toy()).scores
    module = of_score if variant == "mehta" else of_detector
    svds, calls = module.svds, []

    def flipped(*arguments, **settings):
        u, s, vt = svds(*arguments, **settings)
        signs = np.array([-1.0, 1.0, -1.0])
        calls.append(1)
        return u * signs, s, vt * signs[:, None]

    monkeypatch.setattr(module, "svds", flipped)
    np.testing.assert_allclose(detect(PCA(variant=variant), toy()).scores, expected, atol=1e-9)
    assert calls == [1]


def test_sdlib_is_the_dense_computation():
    """Columns over their standard deviation, eigenvectors of the items' Gram matrix, x^2 . v."""
    ratings = toy()
    stds = ratings.std(axis=0)
    scaled = ratings / np.where(stds > 0, stds, 1)
    _, vectors = np.linalg.eigh(scaled.T @ scaled)
    v = vectors[:, -3:]
    v = v * np.sign(v[np.abs(v).argmax(axis=0), np.arange(3)])
    expected = -(ratings**2 @ v).sum(axis=1)
    rated = ratings.any(axis=1)
    np.testing.assert_allclose(detect(PCA(variant="sdlib"), ratings).scores[rated], expected[rated], atol=1e-8)


def test_mehta_flags_the_smallest_loadings():
    ratings = toy()
    z = ratings[[u for u in range(40) if u != 3]]
    z = (z - z.mean(axis=1, keepdims=True)) / z.std(axis=1, keepdims=True)
    loadings = (np.linalg.eigh(z @ z.T)[1][:, -3:] ** 2).sum(axis=1)
    lowest = np.delete(np.arange(40), 3)[np.argsort(loadings)[:5]]
    found = detect(PCA(n_flag=5), ratings)
    assert np.flatnonzero(found.flagged).tolist() == sorted(lowest)
    np.testing.assert_allclose(np.delete(found.scores, 3), -np.log(loadings), atol=1e-6)


# --- CoRating ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "detector",
    [
        CoRating(),
        CoRating(n_neighbours=3, idf_power=1.5, length_power=1.0, top_rating=4),
        CoRating(n_neighbours=100, idf_power=0, length_power=0),
        CoRating(length="chance", top_rating=4),
    ],
    ids=repr,
)
def test_co_rating_is_its_definition(detector):
    ratings = toy()
    n_users = len(ratings)
    top = ratings >= (detector.top_rating or 5)
    idf = [math.log(n_users / max((ratings[:, i] > 0).sum(), 1)) ** detector.idf_power for i in range(25)]
    expected = []
    for u in range(n_users):
        shared = [sum(idf[i] for i in range(25) if top[u, i] and top[v, i]) for v in range(n_users) if v != u]
        k = min(detector.n_neighbours, n_users - 1)
        mean = sum(sorted(shared)[-k:]) / k
        chance = sum(idf[i] * (ratings[:, i] > 0).mean() for i in np.flatnonzero(top[u])) or 1.0
        length = max(top[u].sum(), 1) if detector.length == "count" else chance
        expected.append(mean / length**detector.length_power)
    np.testing.assert_allclose(detect(detector, ratings).scores, expected, atol=1e-12)


# --- FAP --------------------------------------------------------------------------------------------------------------


def test_transitions_are_weights_over_their_sums():
    ratings = toy()
    user_item, item_user = transitions(csr_matrix(ratings))
    np.testing.assert_allclose(user_item.sum(axis=1).A1, ratings.any(axis=1))  # 1, and 0 for who has none
    np.testing.assert_allclose(item_user.sum(axis=1).A1, ratings.any(axis=0))
    assert user_item.min() >= 0
    assert ((user_item > 0) != csr_matrix(ratings > 0)).nnz == 0


@pytest.mark.parametrize("tolerance", [0.2, 0.01, 1e-4])
def test_fap_is_its_iteration(tolerance):
    """The loops of SDLib, with the change taken at its absolute value."""
    ratings, seeds = toy(), (6, 2)
    users, items = range(40), range(25)
    rated = ratings > 0
    mean = ratings[rated].mean()
    w = np.zeros_like(ratings)
    for u in users:
        for i in items:
            if rated[u, i]:
                r = ratings[u, i]
                means = (ratings[u][rated[u]].mean(), ratings[:, i][rated[:, i]].mean(), mean)
                w[u, i] = 1 + sum(abs(r - m) / m for m in means)
    p = [float(u in seeds) for u in users]
    changed = math.inf
    while changed >= tolerance:
        of_items = [sum(w[u, i] * p[u] for u in users) / max(w[:, i].sum(), 1e-300) for i in items]
        new = [sum(w[u, i] * of_items[i] for i in items) / max(w[u].sum(), 1e-300) for u in users]
        new = [1.0 if u in seeds else new[u] for u in users]
        changed = max(abs(a - b) for a, b in zip(new, p, strict=True))
        p = new
    detector = FAP(seed_users=seeds, tolerance=tolerance, max_iterations=10_000)
    np.testing.assert_allclose(detect(detector, ratings).scores, p, atol=1e-12)


def test_fap_keeps_its_seeds_and_its_range(genuine):
    for detector in (FAP(seed_users=(6, 2)), FAP(n_seeds=5), FAP(seed_score="deviation", n_seeds=0.02)):
        scores = detect(detector, genuine.ratings).scores
        n_seeds = 2 if detector.seed_users else 5 if detector.n_seeds == 5 else 8
        assert (scores == 1).sum() == n_seeds
        assert scores.min() >= 0
        assert scores.max() == 1
    assert (detect(FAP(seed_users=(6, 2)), genuine.ratings).scores[[6, 2]] == 1).all()


def test_fap_without_end_would_suspect_everybody():
    """Seeds only give: the tolerance is part of the method."""
    ratings = toy()
    scores = detect(FAP(seed_users=(6,), tolerance=1e-12, max_iterations=5000), ratings).scores
    np.testing.assert_allclose(np.delete(scores, 3), 1, atol=1e-6)
    stopped = detect(FAP(seed_users=(6,), max_iterations=1), ratings).scores
    assert stopped.max() == 1
    assert np.delete(stopped, 6).max() < 0.5


def test_fap_without_seeds_suspects_nobody():
    found = detect(FAP(), np.eye(12) * 5)  # nobody shares anything
    assert not found.flagged.any()
    assert (found.scores == 0).all()


def test_a_seed_without_ratings_has_nothing_to_drop():
    found = detect(FAP(seed_users=(3, 6), n_flag=40), toy())
    assert found.scores[3] == 1
    assert found.flagged[6]
    assert not found.flagged[3]


@pytest.mark.parametrize("attack", [Random(), Average(), CopyProfile()], ids=repr)
@pytest.mark.parametrize("mode", ["all", "split"])
def test_fakes_that_share_a_target_with_a_seed_rank_above_other_users(attack, mode, genuine):
    ratings = poisoned(genuine, attack, mode)
    targets = np.argsort(genuine.item_counts, kind="stable")[10:60:10]
    seed = 400
    shared = (ratings[seed, targets].toarray().ravel() > 0).nonzero()[0]
    is_mate = (ratings[:, targets[shared]] > 0).sum(axis=1).A1 > 0
    mates = np.flatnonzero(is_mate[400:])[1:] + 400
    assert len(mates) == (11 if mode == "all" else 2)
    scores = detect(FAP(seed_users=(seed,)), ratings).scores
    above = scores[mates][:, None] > scores[:400][None, :]
    assert above.mean() > 0.97


# --- the project's own fakes ------------------------------------------------------------------------------------------


def report(detector, ratings) -> dict:
    return detection_report(detect(detector, ratings), np.arange(ratings.shape[0]) >= 400)


@pytest.mark.parametrize("attack", [Random(), Average(), CopyProfile()], ids=repr)
@pytest.mark.parametrize(
    "detector",
    [CoRating(), CoRating(evidence="surprise"), FAP(), FAP(seed_users=(400, 401), n_flag=N_FAKES)],
    ids=repr,
)
def test_fakes_that_share_their_targets_are_caught(detector, attack, genuine):
    found = report(detector, poisoned(genuine, attack))
    assert found["recall"] > 0.9, found
    assert found["n_genuine_lost"] <= 12, found
    assert found["auc"] > 0.99, found


def test_pca_finds_random_fillers_where_the_fakes_are_no_group(genuine):
    found = report(PCA(), poisoned(genuine, Random(), "split"))
    assert found["auc"] > 0.95, found
    copied = report(PCA(), poisoned(genuine, CopyProfile(), "split"))
    assert copied["auc"] < found["auc"], "real users' fillers hide"


def test_pca_is_blind_to_fakes_that_are_a_component_of_their_own(genuine):
    """The known hole of PCA-VarSelect: in small or sparse data the fakes' common targets are a principal component."""
    assert report(PCA(), poisoned(genuine, Random(), "all"))["auc"] < 0.1


def test_only_surprise_finds_fakes_among_users_of_a_few_ratings():
    ratings, _ = sparse_world()
    found = {e: detect(CoRating(evidence=e), ratings).flagged for e in ("idf", "surprise")}
    assert found["surprise"][2000:].all() and not found["idf"][2000:].any()
    assert found["surprise"][:2000].mean() < 0.01


@pytest.mark.parametrize("detector", [CoRating(), CoRating(evidence="surprise"), PCA(), FAP()], ids=repr)
def test_clean_data_lose_few_users(detector, genuine):
    found = report(detector, genuine.ratings)
    assert found["n_genuine_lost"] <= 8, found


# --- what a detection is worth ----------------------------------------------------------------------------------------


def test_report_known_answers():
    detection = Detection(np.array([5.0, 4, 3, 2, 1]), np.array([True, True, True, False, False]))
    assert detection_report(detection, np.array([True, False, False, True, False])) == {
        "precision": pytest.approx(1 / 3),
        "recall": 0.5,
        "f1": pytest.approx(0.4),  # 2 / 3 * 1 / 2 / (5 / 6)
        "auc": pytest.approx(4 / 6),
        "n_flagged": 3,
        "n_genuine_lost": 2,
        "genuine_lost": pytest.approx(2 / 3),
    }


@pytest.mark.parametrize(
    ("flagged", "is_fake", "none", "n_lost"),
    [
        ([1, 0], [0, 0], {"precision", "recall", "f1", "auc"}, 1),
        ([0, 0], [0, 0], {"precision", "recall", "f1", "auc"}, 0),
        ([0, 0], [0, 1], {"precision"}, 0),
        ([1, 0], [1, 1], {"auc", "genuine_lost"}, 0),
    ],
)
def test_report_of_what_is_not_there_is_none(flagged, is_fake, none, n_lost):
    found = detection_report(Detection(np.array([2.0, 1.0]), np.array(flagged, bool)), np.array(is_fake, bool))
    assert {key for key, value in found.items() if value is None} == none
    assert found["n_genuine_lost"] == n_lost


def test_report_of_other_users_is_our_fault():
    with pytest.raises(ValueError, match=r"the same users, got \(2,\), \(2,\) and \(3,\)"):
        detection_report(Detection(np.zeros(2), np.zeros(2, bool)), np.zeros(3, bool))
