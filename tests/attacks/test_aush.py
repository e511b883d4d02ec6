"""Laws of AUSH; those that every attack has stand in test_heuristic_attacks.py."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from recbole_robust.attacks import AUSH, Average, Random, aush, aush_networks
from recbole_robust.attacks.aush import choose_selected_items
from recbole_robust.attacks.aush_networks import (
    Fillers,
    Network,
    Templates,
    generate,
    generator_losses,
    make_discriminator,
    make_generator,
    train,
)
from recbole_robust.data.poison import with_item_ids
from recbole_robust.randomness import one_thread
from recbole_robust.types import AttackerView, Budget, UserError

SELECTED = np.array([1, 2, 3])
TARGETS = np.array([100, 119])
BUDGET = Budget(n_fake_users=60, n_fillers=23)


@pytest.fixture(scope="module")
def tastes() -> AttackerView:
    """300 users of two tastes, 120 items of falling popularity: a user loves the items of the own parity.

    So an item's ratings have two humps, and what a user rates one item tells what the same user rates another.
    """
    rng = np.random.default_rng(3)
    activity = rng.uniform(0.6, 1.5, (300, 1))
    rated = rng.random((300, 120)) < np.minimum(np.geomspace(0.9, 0.03, 120) * activity, 0.95)
    is_loved = np.arange(300)[:, None] % 2 == np.arange(120) % 2
    ratings = np.where(is_loved, rng.choice([4, 5], (300, 120)), rng.choice([1, 2], (300, 120)))
    return AttackerView(csr_matrix(rated * ratings * 1.0), 1.0, 5.0, 1.0)


def run(attack, view, budget=BUDGET, targets=TARGETS, seed=0):
    return attack(view, targets, budget, rng=np.random.default_rng(seed))


def fit(
    view,
    n_fillers=20,
    weights=(1.0, 1.0, 1.0),
    epochs=20,
    zr_ratio=0.5,
    learning_rate=0.01,
    discriminator_learning_rate=1e-4,
):
    """Train the networks by themselves on all users. Returns templates, generator, discriminator and losses."""
    rng = np.random.default_rng(0)
    templates = Templates.of(view, np.arange(view.n_users), SELECTED, TARGETS, n_fillers)
    generator = make_generator(view.n_items, 3, 32, rng, learning_rate)
    discriminator = make_discriminator(view.n_items, 3, 40, rng, discriminator_learning_rate)
    with one_thread():
        options = {"epochs": epochs, "loss_weights": weights, "zr_ratio": zr_ratio}
        losses = train(generator, discriminator, templates, rng, **options)
    return templates, generator, discriminator, losses


def generated(templates, generator):
    """Generated ratings in stars of five, and the templates they belong to."""
    with one_thread(), torch.no_grad():
        pairs = [(b, generate(generator, f)) for b, f in templates.draw(np.random.default_rng(1)).batches(512)]
    return 5 * torch.cat([fakes for _, fakes in pairs]).numpy(), np.concatenate([batch for batch, _ in pairs])


# --- the profiles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["uniform", "mean", "popularity"])
def test_fillers_and_their_ratings_are_one_real_users(tastes, sampling):
    real = tastes.ratings.toarray()
    fakes = run(AUSH(epochs=1, selected_items=(1, 2, 3), filler_sampling=sampling), tastes).to_csr(120).toarray()
    assert_array_equal((fakes > 0).sum(axis=1), 23 + 2)
    assert (fakes[:, SELECTED] > 0).all() and (fakes[:, TARGETS] == 5).all()
    assert set(fakes.ravel()) <= {0, 1, 2, 3, 4, 5}
    copied = fakes.copy()
    copied[:, [*SELECTED, *TARGETS]] = 0
    sources = [{u for u in range(300) if (real[u, row > 0] == row[row > 0]).all()} for row in copied]
    assert all(len(users) == 1 for users in sources)  # 20 ratings name the template
    templates = [users.pop() for users in sources]
    assert len(set(templates)) == 60  # none twice, as there are more


def test_fillers_follow_their_weights(tastes):
    """Mean popularity and mean rating of the copied items: highest where these make an item likelier."""
    popularity, rating = {}, {}
    for sampling in ("uniform", "mean", "popularity"):
        attack = AUSH(epochs=1, selected_items=(1, 2, 3), filler_sampling=sampling)
        items = run(attack, tastes, Budget(300, 13)).item_ids
        items = items[~np.isin(items, [*SELECTED, *TARGETS])]
        popularity[sampling], rating[sampling] = tastes.item_counts[items].mean(), tastes.item_means[items].mean()
    assert popularity["popularity"] > 1.05 * popularity["uniform"]
    assert rating["mean"] > rating["uniform"]


def test_short_templates_are_topped_up(make_view):
    """Everybody has six items and a fake needs twelve: the budget holds, and every rating is somebody's."""
    rng = np.random.default_rng(0)
    dense = np.zeros((40, 30))
    for row in dense:
        row[rng.choice(30, 6, replace=False)] = rng.integers(1, 6, 6)
    data = make_view(dense)
    fakes = run(AUSH(epochs=2), data, Budget(50, 12), np.array([29])).to_csr(30).toarray()
    assert_array_equal((fakes > 0).sum(axis=1), 13)
    in_all = (fakes > 0).all(axis=0)
    assert in_all.sum() == 4  # the target and the selected items: nothing else
    assert all((dense[:, i] == value).any() for i in np.flatnonzero(~in_all) for value in set(fakes[:, i]) - {0})


def test_selected_items_may_be_all_fillers(tastes):
    fakes = run(AUSH(epochs=2, n_selected=4), tastes, Budget(5, 4)).to_csr(120).toarray()
    assert_array_equal((fakes > 0).sum(axis=0)[(fakes > 0).any(axis=0)], [5] * 6)
    with pytest.raises(UserError, match="n_fillers: expected at least the 4 selected items, got 3"):
        run(AUSH(n_selected=4), tastes, Budget(5, 3))


def test_data_with_one_rating_trains_nothing(tastes, monkeypatch):
    ones = tastes.ratings.copy()
    ones.data[:] = 1
    monkeypatch.setattr(aush, "train", None)
    fakes = run(AUSH(), AttackerView(ones, 1.0, 1.0, 0.0))
    assert set(fakes.ratings) == {1.0} and len(fakes.ratings) == 60 * 25


def test_threads_and_modes_of_torch_change_nothing(tastes):
    before, digests = torch.get_num_threads(), set()
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            with torch.no_grad(), torch.device("meta"):  # as where the default is a GPU: it runs on the CPU
                digests.add(run(AUSH(epochs=4), tastes).digest())
            assert torch.get_num_threads() == n_threads
        with pytest.raises(ZeroDivisionError), one_thread():
            1 / 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert digests == {run(AUSH(epochs=4), tastes).digest()}


def test_the_unit_of_ratings_does_not_matter(tastes):
    """Two to ten in steps of two: the same items, and every rating twice."""
    doubled = AttackerView(2 * tastes.ratings, 2.0, 10.0, 2.0)
    fakes, twice = run(AUSH(epochs=4), tastes), run(AUSH(epochs=4), doubled)
    assert_array_equal(fakes.item_ids, twice.item_ids)
    assert_array_equal(2 * fakes.ratings, twice.ratings)


# --- the selected items -----------------------------------------------------------------------------------------------


def brute_force_sets(view: AttackerView, targets, size: int) -> dict[tuple[int, ...], tuple[int, int]]:
    """All sets of the 20 most rated items: how many users like the whole of it, and how many more than half."""
    dense = view.ratings.toarray()
    counts = {i: (dense[:, i] > 0).sum() for i in range(view.n_items) if i not in targets}
    popular = sorted(counts, key=lambda i: (-counts[i], i))[:20]
    bar = min(3.0, dense[dense > 0].mean())
    likes = [{i for i in popular if row[i] >= bar} for row in dense if any(row[t] == 0 for t in targets)]
    return {
        chosen: tuple(sum(len(liked.intersection(chosen)) >= n for liked in likes) for n in (size, size // 2 + 1))
        for chosen in combinations(sorted(popular), size)
    }


@pytest.mark.parametrize("as_whole", [True, False])
def test_selected_items_are_liked_together(view, monkeypatch, as_whole):
    """As a whole where there is such a set, by more than half elsewhere; every such set can be chosen."""
    targets = np.array([0, 30])
    sets = brute_force_sets(view, targets, 3)
    most_whole = max(whole for whole, _ in sets.values())
    n_users = most_whole if as_whole else sorted(half for _, half in sets.values())[-4]
    assert as_whole or n_users > most_whole
    monkeypatch.setattr(aush, "N_TARGET_USERS", n_users)
    allowed = {chosen for chosen, (whole, half) in sets.items() if (whole if as_whole else half) >= n_users}
    seeds = range(10 * len(allowed))
    chosen = {tuple(choose_selected_items(view, targets, 3, np.random.default_rng(s)).tolist()) for s in seeds}
    assert 1 < len(allowed) < 20 and chosen == allowed


def test_selected_items_nobody_likes_are_the_most_rated(view):
    chosen = choose_selected_items(replace(view, ratings=view.ratings[:29]), np.array([0]), 3, np.random.default_rng(0))
    counts = np.bincount(view.ratings[:29].indices, minlength=60)
    counts[0] = 0
    assert_array_equal(chosen, np.sort(np.argsort(-counts, kind="stable")[:3]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"selected_items": (1, 119)}, r"attack_args.selected_items: expected no target item among them, got \[119\]"),
        ({"selected_items": (1, 120)}, "attack_args.selected_items: expected item ids from 0 to 119"),
        ({"selected_items": (1, 1)}, "attack_args.selected_items: expected distinct items"),
        ({"selected_items": ("a",)}, "attack_args.selected_items: expected a list of item ids"),
    ],
)
def test_bad_selected_items(tastes, arguments, message):
    with pytest.raises(UserError, match=message):
        run(AUSH(**arguments), tastes)


def test_selected_items_are_named_by_token():
    train = SimpleNamespace(iid_field="item_id", field2token_id={"item_id": {"[PAD]": 0, "b": 1, "a": 2}})
    assert with_item_ids(AUSH(selected_items=["a", "b"]), train) == AUSH(selected_items=(1, 0))


# --- the networks -----------------------------------------------------------------------------------------------------


def dense_outputs(network: Network, profiles: np.ndarray, selected: np.ndarray | None = None) -> np.ndarray:
    """The network as its equations say, on dense profiles."""
    hidden = profiles @ network.table + network.biases[0].detach().numpy()
    if selected is not None:
        hidden = hidden + selected @ network.selected.detach().numpy()
    for weights, bias in zip(network.layers, network.biases[1:], strict=True):
        hidden = 1 / (1 + np.exp(-hidden)) @ weights.detach().numpy() + bias.detach().numpy()
    return hidden


def test_sparse_layers_are_matrix_products():
    rng = np.random.default_rng(0)
    profiles = (rng.random((6, 15)) < 0.4) * rng.random((6, 15))
    profiles[2] = 0  # a profile without fillers
    sparse, selected = csr_matrix(profiles), rng.random((6, 3)).astype(np.float32)
    fillers = Fillers.of(sparse.indices.astype(np.int64), sparse.data, np.diff(sparse.indptr), 15)
    generator, discriminator = make_generator(15, 3, 8, rng), make_discriminator(15, 3, 7, rng)
    logits = discriminator.finish(discriminator.read(fillers), torch.from_numpy(selected))
    assert logits.shape == (6, 1)
    assert_allclose(logits.detach().numpy(), dense_outputs(discriminator, profiles, selected), rtol=1e-4, atol=1e-6)
    ratings = generate(generator, fillers).detach().numpy()
    assert_allclose(ratings, 1 / (1 + np.exp(-dense_outputs(generator, profiles))), rtol=1e-5)


def test_steps_are_those_of_adam():
    """Where every item is in the batch, as torch's; an item that is not keeps its weights."""
    rng = np.random.default_rng(1)
    profiles = torch.from_numpy(rng.random((4, 6)).astype(np.float32))
    network = Network(7, 0, [5, 2], rng, learning_rate=0.01, weight_decay=0.1)
    unused = network.table[6].copy()
    ours = (torch.from_numpy(network.table[:6]), *network.layers, *network.biases)
    weights = [w.detach().clone().requires_grad_() for w in ours]
    adam = torch.optim.Adam(weights, 0.01, weight_decay=0.1)
    fillers = Fillers.of(np.tile(np.arange(6), 4), profiles.numpy().ravel(), np.full(4, 6), 7)
    for _ in range(5):
        network.step((network.finish(network.read(fillers)) ** 2).mean())
        adam.zero_grad()
        hidden = torch.sigmoid(profiles @ weights[0] + weights[2])
        ((hidden @ weights[1] + weights[3]) ** 2).mean().backward()
        adam.step()
    for our, expected in zip(ours, weights, strict=True):
        assert_allclose(our.detach().numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert_array_equal(network.table[6], unused)


def test_losses_by_hand():
    """Two fakes of two selected items, in fifths: (5, 2) for a template of (4, none), (3, 1) for (3, 5)."""
    fakes, real = torch.tensor([[1.0, 0.4], [0.6, 0.2]]), torch.tensor([[0.8, 0.0], [0.6, 1.0]])
    wanted = torch.tensor([[True, False], [True, True]])
    adversarial, shilling, reconstruction = generator_losses(fakes, real, wanted, torch.zeros(2, 1)).tolist()
    assert adversarial == pytest.approx(np.log(2))
    assert shilling == pytest.approx((0 + 9 + 4 + 16) / 4)
    assert reconstruction == pytest.approx((1 + 0 + 0 + 16) / 2)


@pytest.mark.parametrize("only", range(3))
def test_each_loss_moves_the_generator(tastes, only):
    """Every layer has a gradient from each loss, the first one too, and the training changes all weights."""
    rng = np.random.default_rng(0)
    templates = Templates.of(tastes, np.arange(300), SELECTED, TARGETS, 20)
    generator, discriminator = make_generator(120, 3, 16, rng), make_discriminator(120, 3, 16, rng)
    batch, fillers = next(templates.draw(rng).batches(300))
    fakes = generate(generator, fillers)
    logits = discriminator.finish(discriminator.read(fillers), fakes)
    loss = generator_losses(fakes, templates.selected[batch], torch.ones(300, 3), logits)[only]
    gradients = torch.autograd.grad(loss, [generator.sums, *generator.parameters])
    assert all((gradient != 0).all() for gradient in gradients)

    table, before = generator.table.copy(), [w.detach().clone() for w in generator.parameters]
    weights = tuple(float(k == only) for k in range(3))
    train(generator, discriminator, templates, rng, epochs=1, loss_weights=weights, zr_ratio=0.5)
    is_copied = np.isin(np.arange(120), templates.items)
    assert is_copied.sum() == 120 - 5 and (generator.table != table)[is_copied].mean() > 0.99
    assert_array_equal(generator.table[~is_copied], table[~is_copied])
    assert all((a != b).float().mean() > 0.99 for a, b in zip(generator.parameters, before, strict=True))


def test_each_loss_falls(tastes):
    *_, both = fit(tastes)
    assert (both[-3:, 1:3].mean(axis=0) < 0.9 * both[0, 1:3]).all()
    *_, shilling = fit(tastes, weights=(0, 1, 0))
    assert shilling[-1, 1] < 0.01 * shilling[0, 1]
    *_, reconstruction = fit(tastes, weights=(0, 0, 1), zr_ratio=0)
    assert reconstruction[-1, 2] < 0.3 * reconstruction[0, 2]
    *_, adversarial = fit(tastes, weights=(1, 0, 0))
    assert adversarial[-1, 0] < adversarial[0, 0]
    assert np.isfinite([both, shilling, reconstruction, adversarial]).all()


def test_the_discriminator_tells_fakes(tastes):
    """Those of a generator that stands still: the loss falls from that of a guess, and the generator's rises."""
    *_, losses = fit(tastes, weights=(1, 0, 0), epochs=60, learning_rate=0, discriminator_learning_rate=0.01)
    assert losses[0, 3] > 0.95 * 2 * np.log(2) and losses[-1, 3] < 0.5 * losses[0, 3]
    assert losses[-1, 0] > 2 * losses[0, 0]


@pytest.mark.parametrize(
    ("rating", "zr_ratio", "expected"), [(3, 0.5, 3.5), (0, 0.5, 2.0), (0, 1.0, 1.25), (0, 0.0, 5)]
)
def test_shilling_and_reconstruction_meet(make_view, rating, zr_ratio, expected):
    """All rate the selected items r, or none does: (x - 5)^2 / 3 + (x - r)^2, of an unrated one zr_ratio of it."""
    dense = np.full((256, 30), 3)
    dense[:, SELECTED] = rating
    templates, generator, _, _ = fit(
        make_view(dense), 10, weights=(0, 1, 1), epochs=50, zr_ratio=zr_ratio, learning_rate=0.03
    )
    assert_allclose(generated(templates, generator)[0].mean(axis=0), expected, atol=0.3)


def test_the_generator_reconstructs(tastes):
    """Without the other losses it rates as the template does; the mean of the item is 1.5 stars off."""
    templates, generator, _, _ = fit(tastes, weights=(0, 0, 1), epochs=40, zr_ratio=0)
    fakes, users = generated(templates, generator)
    real, is_rated = 5 * templates.selected.numpy()[users], templates.is_rated.numpy()[users]
    error = np.sqrt(((fakes - real)[is_rated] ** 2).mean())
    means = np.sqrt(((real - real.sum(axis=0) / is_rated.sum(axis=0))[is_rated] ** 2).mean())
    assert error < 0.8 and means > 1.5


def test_the_shilling_loss_raises_ratings(tastes):
    """Selected ratings are higher than real ones: of those who rated, and the more of those who did not."""
    templates, generator, _, _ = fit(tastes)
    fakes, users = generated(templates, generator)
    real, is_rated = 5 * templates.selected.numpy()[users], templates.is_rated.numpy()[users]
    assert fakes[is_rated].mean() > real[is_rated].mean()
    assert fakes.mean() > real.mean() + 0.5


# --- stealth ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowds(tastes) -> dict[str, np.ndarray]:
    """As many fakes as users, of each attack, and the real users; the targets, on which all fakes agree, left out."""
    attacks = {"AUSH": AUSH(epochs=20, selected_items=(1, 2, 3)), "Average": Average(), "Random": Random()}
    profiles = {name: run(attack, tastes, Budget(300, 23)).to_csr(120) for name, attack in attacks.items()}
    profiles["real"] = tastes.ratings
    return {name: np.delete(matrix.toarray(), TARGETS, axis=1) for name, matrix in profiles.items()}


def test_ratings_are_distributed_as_real_ones(crowds):
    """Total variation distance of an item's ratings, 0 for none, between fakes and users, the mean over the items."""
    shares = {name: np.stack([(dense == r).mean(axis=0) for r in range(6)]) for name, dense in crowds.items()}
    distance = {name: np.abs(share - shares["real"]).sum(axis=0).mean() / 2 for name, share in shares.items()}
    assert distance["AUSH"] < 0.75 * min(distance["Average"], distance["Random"])


def test_a_classifier_tells_aush_least(crowds):
    """Learn to tell fakes from users on one half, do it on the other."""
    auc = {}
    for name in ("AUSH", "Average", "Random"):
        dense, is_fake = np.concatenate([crowds["real"], crowds[name]]), np.repeat([0, 1], 300)
        half = np.random.default_rng(0).permutation(600) % 2 == 0
        classifier = LogisticRegression(C=0.01, max_iter=300).fit(dense[half], is_fake[half])
        auc[name] = roc_auc_score(is_fake[~half], classifier.decision_function(dense[~half]))
    assert 1 - auc["AUSH"] > 5 * (1 - min(auc["Average"], auc["Random"]))  # .97 where the others are found


def test_principal_components_find_aush_least(crowds):
    """Fakes of Random hardly covary with users: smallest loadings (Mehta & Nejdl, UMUAI 2009). 30 fakes among 300."""
    found = {}
    for name in ("AUSH", "Random"):
        dense = np.concatenate([crowds["real"], crowds[name][:30]])
        z = (dense - dense.mean(axis=1, keepdims=True)) / dense.std(axis=1, keepdims=True)
        loadings = np.linalg.svd(z, full_matrices=False)[0][:, :3]
        found[name] = (np.argsort((loadings**2).sum(axis=1))[:30] >= 300).sum()
    assert found["AUSH"] < found["Random"] - 10


# --- hyper-parameters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("selected_items", (), "a list of items, or nothing"),
        ("selected_items", 7, "a list of items, or nothing"),
        ("n_selected", 0, "an integer from 1 to 20"),
        ("n_selected", 2.0, "an integer from 1 to 20"),
        ("filler_sampling", "similar", "one of uniform, mean, popularity"),
        ("epochs", 0, "an integer of at least 1"),
        ("generator_size", 1.5, "an integer of at least 1"),
        ("discriminator_size", None, "an integer of at least 1"),
        ("generator_learning_rate", -0.1, "a number of at least 0"),
        ("discriminator_learning_rate", "fast", "a number of at least 0"),
        ("adversarial_weight", -1, "a number of at least 0"),
        ("shilling_weight", float("nan"), "a number of at least 0"),
        ("reconstruction_weight", "1", "a number of at least 0"),
        ("zr_ratio", 1.5, "a number from 0 to 1"),
    ],
)
def test_bad_arguments(key, value, expected):
    with pytest.raises(UserError, match=rf"^attack_args.{key}: expected {expected}, got "):
        AUSH(**{key: value})


def test_networks_are_as_large_as_told(tastes, monkeypatch):
    """The hyper-parameters arrive: sizes, rates, weights, epochs, zero reconstruction."""
    told = {}

    def spy(generator, discriminator, templates, rng, **options):
        told.update(options, generator=generator, discriminator=discriminator, templates=templates)
        return aush_networks.train(generator, discriminator, templates, rng, **{**options, "epochs": 1})

    monkeypatch.setattr(aush, "train", spy)
    sizes = {"generator_size": 9, "discriminator_size": 11, "n_selected": 2, "epochs": 7, "zr_ratio": 0.25}
    rates = {"generator_learning_rate": 0.5, "discriminator_learning_rate": 0.25}
    run(AUSH(**sizes, **rates, adversarial_weight=2, shilling_weight=3, reconstruction_weight=4), tastes)
    assert [tuple(w.shape) for w in told["generator"].layers] == [(9, 2)]
    assert [tuple(w.shape) for w in told["discriminator"].layers] == [(11, 11), (11, 11), (11, 1)]
    assert [told[key].learning_rate for key in ("generator", "discriminator")] == [0.5, 0.25]
    assert [told[key].weight_decay for key in ("generator", "discriminator")] == [1e-4, 1e-5]
    assert (told["epochs"], told["zr_ratio"], told["loss_weights"]) == (7, 0.25, (2, 3, 4))
    assert told["templates"].n_fillers == 21 and len(told["templates"].selected) > 100
