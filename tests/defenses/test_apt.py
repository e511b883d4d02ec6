"""APT: its closed forms against differentiating twice, what its users are, and that nothing else learns of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from scipy.sparse import csr_matrix, vstack
from toy_splits import ATTACK, assert_same_rows, average, split

from recbole_robust import quick_start, registry
from recbole_robust.data.extra_users import with_room
from recbole_robust.data.injection import without_fakes
from recbole_robust.defenses import APT
from recbole_robust.defenses.apt import item_statistics, log_probabilities, mixed_derivative, smallest_profiles, to_grid
from recbole_robust.defenses.squared_error import DAMPING, SquaredError, conjugate_gradients, lissa, partition
from recbole_robust.initialisation import build_model
from recbole_robust.types import DefenderView, FakeProfiles, UserError

PROPERTIES = Path(__file__).parents[2] / "properties" / "defense" / "APT.yaml"
SMALL = {"n_erm_users": 5, "start_epoch": 1, "every": 3, "n_selected": 6, "n_iterations": 20, "batch_size": 256}


def low_rank(seed: int = 0, n_users: int = 80, n_items: int = 60, share: float = 0.2) -> DefenderView:
    """Stars of three tastes, some of them observed; user 3 has rated nothing, item 5 is unrated, item 6 has one."""
    rng = np.random.default_rng(seed)
    stars = 3.2 + 0.8 * rng.normal(size=(n_users, 3)) @ rng.normal(size=(n_items, 3)).T
    stars = np.clip(np.round(stars + 0.4 * rng.normal(size=stars.shape)), 1, 5) * (rng.random(stars.shape) < share)
    stars[3], stars[:, 5:7] = 0, 0
    stars[8, 6] = 2
    return DefenderView(csr_matrix(stars), 1.0, 5.0, 1.0)


def vectors(view: DefenderView, d: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(0.4 * torch.randn(n, d, generator=generator, dtype=torch.float64) for n in view.ratings.shape)


def risk_of(ratings: csr_matrix, x: torch.Tensor) -> torch.Tensor:
    """The definition, to differentiate. Shape: ``x`` is users above items."""
    p, q = x.split(list(ratings.shape))
    pairs = ratings.tocoo()
    users, items = torch.from_numpy(pairs.row).long(), torch.from_numpy(pairs.col).long()
    return ((p[users] * q[items]).sum(dim=1) - torch.from_numpy(pairs.data)).pow(2).mean()


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_gradient_and_hessian_product_are_those_of_differentiating_twice():
    view = low_rank()
    p, q = vectors(view)
    x, v = torch.cat([p, q]), torch.randn(140, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    risk = SquaredError(view.ratings / 5, p, q)
    _, expected = torch.autograd.functional.vhp(lambda x: risk_of(view.ratings / 5, x), x, v)
    torch.testing.assert_close(risk.hessian_product(v), expected, rtol=0, atol=1e-8)
    assert expected.abs().max() > 1e-3
    (gradient,) = torch.autograd.grad(risk_of(view.ratings / 5, x.requires_grad_()), x)
    torch.testing.assert_close(risk.gradient(), gradient, rtol=0, atol=1e-8)


def test_mixed_derivative_is_that_of_differentiating_twice():
    view = low_rank()
    p, q = (part.requires_grad_() for part in vectors(view))
    h = torch.randn(140, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    references = smallest_profiles(view.ratings, 3)
    ratings = torch.from_numpy(view.ratings.toarray() / 5).requires_grad_()
    loss = sum((ratings[u] - q @ p[u]).pow(2).mean() for u in references)
    slopes = torch.autograd.grad(loss, (p, q), create_graph=True)
    (by_rating,) = torch.autograd.grad((torch.cat(slopes) * h).sum(), ratings)
    found = mixed_derivative(p.detach(), q.detach(), h, references)
    torch.testing.assert_close(found, -by_rating.sum(dim=0), rtol=0, atol=1e-8)
    assert found.abs().max() > 1e-3


def test_influence_is_how_a_step_on_a_fake_rating_moves_the_risk():
    """Without the Hessian: raise one rating in the loss of a reference, take a short step, and look at the risk."""
    view, step = low_rank(), 1e-6
    ratings, (p, q) = view.ratings / 5, vectors(view)
    found = APT(ihvp="none", n_reference_users=1).influence(ratings, p, q, np.random.default_rng(0))
    user = int(smallest_profiles(ratings, 1)[0])
    for item in (0, 5, 17):
        risks = []
        for rating in (0.0, 1.0):
            error = q[item] @ p[user] - rating  # the terms of the other items are those of both ratings
            moved_p, moved_q = p.clone(), q.clone()
            moved_p[user] -= step * 2 / 60 * error * q[item]
            moved_q[item] -= step * 2 / 60 * error * p[user]
            risks.append(risk_of(ratings, torch.cat([moved_p, moved_q])))
        torch.testing.assert_close((risks[1] - risks[0]) / step, found[item], rtol=1e-3, atol=1e-7)


def test_the_users_drawn_are_those_of_the_model_s_vectors():
    """Padding and room for ERM users are no users; ratings are on the model's scale; the sign is that of the risk."""
    view, apt = low_rank(), APT(n_erm_users=4, n_selected=8, n_iterations=50, batch_size=512)
    p, q = vectors(view)
    padded = [torch.cat([9 * torch.ones(1, 4), x.float(), 9 * torch.ones(n, 4)]) for x, n in ((p, 4), (q, 0))]
    model = SimpleNamespace(
        rating_scale=5.0,
        user_embedding=SimpleNamespace(weight=padded[0]),
        item_embedding=SimpleNamespace(weight=padded[1]),
    )
    found = apt(model, view, rng=np.random.default_rng(3))
    rng = np.random.default_rng(3)
    influence = apt.influence(view.ratings / 5, p.float(), q.float(), rng).double().numpy()
    expected = apt.profiles(influence, view, rng)
    for mine, other in zip(asdict(found).values(), asdict(expected).values(), strict=True):
        np.testing.assert_array_equal(mine, other)


def dense_hessian(risk: SquaredError, n: int, d: int) -> torch.Tensor:
    units = torch.eye(n * d, dtype=torch.float64)
    return torch.stack([risk.hessian_product(unit.view(n, d)).flatten() for unit in units])


def test_the_inverses_are_those_of_dense_algebra():
    """Around a perfect fit the Hessian is positive; conjugate gradients solve, LiSSA sums its series."""
    p, q = vectors(low_rank(), d=2)
    ratings = csr_matrix((p @ q.T).numpy()[:6, :5])
    p, q = p[:6], q[:5]
    risk = SquaredError(ratings, p, q)
    hessian = dense_hessian(risk, 11, 2)
    assert torch.linalg.eigvalsh(hessian).min() > -1e-9
    g = risk.hessian_product(torch.ones(11, 2, dtype=torch.float64))
    solved = torch.linalg.solve(hessian + DAMPING * torch.eye(22), g.flatten()).view(11, 2)
    assert (conjugate_gradients(risk, g, 100) - solved).norm() < 0.02 * solved.norm()
    term = series = g.flatten()
    for _ in range(30):
        term = term - hessian @ term
        series = series + term
    torch.testing.assert_close(lissa([risk], g, 30).flatten(), series)


@pytest.mark.parametrize("inverse", [lambda risk, g: lissa([risk], g, 2000), lambda *a: conjugate_gradients(*a, 50)])
def test_negative_curvature_leaves_the_gradient(inverse):
    """Small vectors and large errors: the Hessian is all saddle."""
    ratings = csr_matrix(np.full((6, 5), 5.0))
    p, q = torch.full((6, 2), 1e-3), torch.full((5, 2), 1e-3)
    risk = SquaredError(ratings, p, q)
    g = risk.gradient()
    assert torch.equal(inverse(risk, g), g)


def test_batches_are_a_partition():
    view = low_rank()
    p, q = vectors(view)
    batches = partition(view.ratings, p, q, 100, np.random.default_rng(0))
    sizes = [batch.by_user.values().numel() for batch in batches]
    assert sum(sizes) == view.ratings.nnz
    assert max(sizes) <= 100 and max(sizes) - min(sizes) <= 1 and len(sizes) == -(-view.ratings.nnz // 100)
    total = sum(batch.errors[0].to_dense() for batch in batches)
    torch.testing.assert_close(total, SquaredError(view.ratings, p, q).errors[0].to_dense())


# --- its users --------------------------------------------------------------------------------------------------------


def test_probabilities_favour_the_most_negative_influence():
    influence = np.array([-0.2, 0.3, -1.0, 0.0, -0.4])
    p = np.exp(log_probabilities(influence, 20))
    assert p.sum() == pytest.approx(1)
    assert (p > 0).tolist() == [True, False, True, False, True]
    assert p[2] > p[4] > p[0]
    assert p[2] / p[4] == pytest.approx(np.exp(20 * 0.6))
    np.testing.assert_allclose(np.exp(log_probabilities(influence, 0)), [1 / 3, 0, 1 / 3, 0, 1 / 3])
    np.testing.assert_allclose(log_probabilities(1e-9 * influence, 20), log_probabilities(influence, 20))


def test_items_are_drawn_by_their_probabilities():
    influence = np.array([-1.0, -0.5, 0.2, -0.25])
    drawn = APT(n_erm_users=4000, n_selected=1, temperature=2).profiles(
        influence, DefenderView(csr_matrix(np.ones((2, 4))), 1.0, 5.0, 1.0), np.random.default_rng(0)
    )
    shares = np.bincount(drawn.item_ids, minlength=4) / 4000
    np.testing.assert_allclose(shares, np.exp(log_probabilities(influence, 2)), atol=0.025)


@pytest.mark.parametrize(("n_selected", "n_negative", "length"), [(6, 20, 6), (30, 20, 20), (6, 0, 0)])
@pytest.mark.parametrize("temperature", [20.0, 5000.0])
def test_profiles(n_selected, n_negative, length, temperature):
    view = low_rank()
    influence = np.linspace(1, 0.1, 60)
    influence[40 : 40 + n_negative] *= -1
    apt = APT(n_erm_users=7, n_selected=n_selected, temperature=temperature)
    found = apt.profiles(influence, view, np.random.default_rng(0))
    assert found.n_users == 7
    assert np.diff(found.user_ptr).tolist() == [length] * 7
    assert (influence[found.item_ids] < 0).all()
    assert len({*zip(found.user_ids, found.item_ids, strict=True)}) == 7 * length, "no item twice"
    assert np.isin(found.ratings, [1, 2, 3, 4, 5]).all()


@pytest.mark.parametrize(("low", "high", "step"), [(1.0, 5.0, 1.0), (0.5, 4.0, 0.5), (0.0, 1.0, 0.0)])
def test_ratings_are_those_of_the_items_and_a_shift_on_the_grid(low, high, step):
    rng = np.random.default_rng(0)
    grid = np.arange(low, high + step / 2, step) if step else np.linspace(low, high, 101)
    ratings = csr_matrix((rng.choice(grid, 900), (np.repeat(np.arange(30), 30), np.tile(np.arange(30), 30))))
    view = DefenderView(csr_matrix(ratings, shape=(30, 31)), low, high, step)
    mean, std = item_statistics(view)
    np.testing.assert_allclose(mean[:30], ratings.toarray().mean(axis=0))
    np.testing.assert_allclose(std[:30], ratings.toarray().std(axis=0))
    assert (mean[30], std[30]) == (high, 0)
    influence = -np.ones(31)
    plain, up = (
        APT(n_selected=31, rating_shift=shift).profiles(influence, view, np.random.default_rng(1)).ratings
        for shift in (0.0, 0.25)
    )
    if step:
        assert np.isin(plain, grid).all()
        assert np.isin(up, grid).all()
    assert plain.min() >= low and up.max() == high
    np.testing.assert_allclose(up, to_grid(plain + 0.25 * high, view))
    assert up.mean() > plain.mean() + 0.1 * high


def test_references_have_the_shortest_rating_vectors_but_ratings():
    ratings = csr_matrix(np.array([[5, 5, 0], [0, 0, 0], [3, 3, 3], [0, 1, 0], [0, 0, 4]], dtype=float))
    assert smallest_profiles(ratings, 3).tolist() == [3, 4, 2]
    assert smallest_profiles(ratings, 9).tolist() == [3, 4, 2, 0]


def test_erm_users_lower_the_risk_more_than_uniform_ones():
    """One injection, then gradient steps on both; the mean risk on the base data over ten seeds.

    The users start from the vectors of the references, whose influence it is. (From random vectors, as in a training,
    the first of them gain nothing in so few steps.)
    """
    apt = APT(n_erm_users=8, n_selected=12, n_iterations=100, batch_size=512)
    risks: dict[str, list[float]] = {"apt": [], "uniform items": [], "uniform": []}
    for seed in range(10):
        view = low_rank(seed)
        ratings, (p, q) = view.ratings / 5, vectors(view, seed=seed)
        p, q = descend(ratings, p, q, 50)
        own = p[torch.from_numpy(smallest_profiles(ratings, 8))]
        rng = np.random.default_rng(seed)
        influence = apt.influence(ratings, p, q, rng).numpy()
        chosen = apt.profiles(influence, view, rng)
        items = apt.profiles(-np.ones(60), view, rng)
        uniform = FakeProfiles(items.user_ptr, items.item_ids, rng.integers(1, 6, len(items.item_ids)).astype(float))
        assert len(chosen.item_ids) == len(items.item_ids)
        for name, profiles in zip(risks, (chosen, items, uniform), strict=True):
            both = csr_matrix(vstack([ratings, profiles.to_csr(60) / 5]))
            after = descend(both, torch.cat([p, own]), q, 10)
            risks[name].append(float(risk_of(ratings, torch.cat([after[0][:80], after[1]]))))
    assert np.mean(risks["apt"]) < np.mean(risks["uniform items"]) < np.mean(risks["uniform"])


def descend(ratings: csr_matrix, p: torch.Tensor, q: torch.Tensor, n_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    for _ in range(n_steps):
        x = torch.cat([p, q]) - 8 * SquaredError(ratings, p, q).gradient()
        p, q = x.split(list(ratings.shape))
    return p, q


# --- in a training ----------------------------------------------------------------------------------------------------


class Ready(NamedTuple):
    """What ``quick_start`` has put together, not fitted yet."""

    trained: quick_start.Trained
    train_data: object
    valid_data: object

    def fit(self):
        self.trained.trainer.fit(self.train_data, self.valid_data)
        return self.trained.trainer


@pytest.fixture
def ready(toy_config, monkeypatch):
    """Everything up to the training, of a plain or a defended MF."""

    def make(poisoned: bool = False, defense: str | None = "APT", **keys) -> Ready:
        args = {"APT": {**SMALL, **keys.pop("apt", {})}, "CoRating,APT": {"CoRating": {"n_flag": 8}, "APT": SMALL}}
        args = args.get(defense, {})
        config = toy_config(defense=defense, defense_args=args, **{"epochs": 3, **ATTACK, **keys})
        card = quick_start.make_card(config) if poisoned else None
        given = []
        monkeypatch.setattr(quick_start, "_fit_or_reuse", lambda *a, **k: given.append(a))
        trained = quick_start._train(config, card, None)
        return Ready(trained, *given[0][2:4])

    return make


def state(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("poisoned", [False, True])
def test_without_erm_users_it_is_plain_mf(ready, poisoned):
    plain, none = ready(poisoned, None).fit(), ready(poisoned, apt={"n_erm_users": 0}).fit()
    expected = state(plain)
    assert all(torch.equal(value, expected[name]) for name, value in state(none).items())


@pytest.mark.parametrize("poisoned", [False, True])
def test_until_the_first_injection_it_is_plain_mf(ready, poisoned):
    """Room for ERM users changes no vector and no draw; those of the users themselves stay as they began."""
    plain, late = ready(poisoned, None), ready(poisoned, apt={"start_epoch": 9})
    start = state(late.trained.trainer)
    expected, found = state(plain.fit()), state(late.fit())
    n_users = len(expected["user_embedding.weight"])
    assert len(found["user_embedding.weight"]) == n_users + 5
    assert torch.equal(found["user_embedding.weight"][:n_users], expected["user_embedding.weight"])
    assert torch.equal(found["item_embedding.weight"], expected["item_embedding.weight"])
    assert torch.equal(found["user_embedding.weight"][n_users:], start["user_embedding.weight"][n_users:])
    assert (found["user_embedding.weight"][n_users:] != 0).any(dim=1).all()


def test_clean_and_attacked_models_start_alike(ready, toy_config):
    clean, attacked = (state(ready(poisoned).trained.trainer) for poisoned in (False, True))
    assert torch.equal(clean["item_embedding.weight"], attacked["item_embedding.weight"])
    assert torch.equal(clean["user_embedding.weight"][:81], attacked["user_embedding.weight"][:81])
    assert [len(each["user_embedding.weight"]) for each in (clean, attacked)] == [86, 94]
    config, draws = toy_config(), []
    for poison in (None, average()):
        train = split(config, poison).train
        build_model(config, train, without_fakes(train), None, with_room(train, 5, 0))
        draws.append((torch.rand(3).tolist(), np.random.rand(3).tolist()))  # noqa: NPY002
    assert draws[0] == draws[1]


def test_room_leaves_the_split_alone(toy_config):
    train = split(toy_config(), average()).train
    tokens, n_rows = train.field2id_token["user_id"].tolist(), len(train.inter_feat)
    room = with_room(train, 3, 0)
    assert train.field2id_token["user_id"].tolist() == tokens
    assert "__erm_0" not in train.field2token_id["user_id"]
    assert room.field2id_token["user_id"].tolist() == [*tokens, "__erm_0", "__erm_1", "__erm_2"]
    assert room.field2token_id["user_id"]["__erm_2"] == len(tokens) + 2
    assert (room.user_num, room.n_fake_users, len(room.inter_feat)) == (len(tokens) + 3, 13, n_rows)
    assert_same_rows(without_fakes(room).inter_feat, without_fakes(train).inter_feat)
    with pytest.raises(UserError, match=r"^toy: expected no user named __erm_<k>, got __erm_0$"):
        with_room(room, 1, 0)


@pytest.mark.parametrize("dataloader", ["fast", "recbole"])
def test_its_rows_are_appended_and_replaced(ready, dataloader):
    run = ready(True, dataloader=dataloader)
    base = run.train_data._dataset
    before = base.inter_feat[:]
    (hook,) = run.trained.trainer.before_epoch
    seen = [hook(run.trained.trainer, run.train_data, epoch) for epoch in range(6)]
    assert seen[0] is run.train_data
    assert seen[1] is seen[2] is seen[3] and seen[4] is seen[5] is not seen[3], "drawn at epochs 1 and 4"
    for loader in (seen[1], seen[4]):
        rows = loader._dataset.inter_feat
        assert type(loader) is type(run.train_data)
        assert loader.shuffle == run.train_data.shuffle
        assert loader.generator is loader.sampler.generator is run.train_data.generator
        assert len(rows) == len(before) + 5 * 6
        assert_same_rows(rows[: len(before)], before)
        own = rows["user_id"][len(before) :]
        assert own.tolist() == np.repeat(np.arange(81 + 8, 81 + 8 + 5), 6).tolist()
        assert sum(len(batch) for batch in loader) == len(rows)
    assert_same_rows(base.inter_feat, before)
    first, second = (loader._dataset.inter_feat["item_id"][len(before) :] for loader in (seen[1], seen[4]))
    assert (first > 0).all()
    assert not torch.equal(first, second)


def test_a_detector_screens_its_base(ready, monkeypatch):
    views, own = [], APT.__call__
    monkeypatch.setattr(APT, "__call__", lambda s, m, view, *, rng: views.append(view) or own(s, m, view, rng=rng))
    run = ready(True, "CoRating,APT")
    run.fit()
    n_screened = len(run.train_data._dataset.inter_feat)
    assert n_screened < len(run.trained.splits[0].inter_feat)
    assert [view.ratings.nnz for view in views] == [n_screened]


@pytest.mark.parametrize("dataloader", ["fast", "recbole"])
@pytest.mark.parametrize("n_first", [3, 4])
def test_a_resumed_training_has_the_same_users(ready, dataloader, n_first):
    """The users of epoch 1 are in force at epoch 3, where one resumes; those of epoch 4 are drawn anew."""
    whole = ready(True, dataloader=dataloader, epochs=6).fit()
    half = ready(True, dataloader=dataloader, epochs=n_first).fit()
    rest = ready(True, dataloader=dataloader, epochs=6)
    rest.trained.trainer.resume_checkpoint(half.saved_model_file)
    for mine, other in zip(rest.trained.trainer.model.erm_users, half.model.erm_users, strict=True):
        np.testing.assert_array_equal(mine, other)
    rest.fit()
    assert list(rest.trained.trainer.train_loss_dict) == list(range(n_first, 6))
    for mine, other in zip(rest.trained.trainer.model.erm_users, whole.model.erm_users, strict=True):
        np.testing.assert_array_equal(mine, other)
    expected = state(whole)
    assert all(torch.equal(value, expected[name]) for name, value in state(rest.trained.trainer).items())


def test_erm_users_are_in_no_evaluation(run, monkeypatch):
    """What is counted is that of the plain run; what the model answers is not."""
    trainings, measure = [], quick_start._measure
    monkeypatch.setattr(quick_start, "_measure", lambda config, one: trainings.append(one) or measure(config, one))
    result = run(**ATTACK, defense="APT", defense_args=SMALL, metrics=["Hit", "AveragePopularity"])
    assert result["attacked"] != result["baseline"]["attacked"]
    assert result["n_genuine"] == 80
    assert result["detection"] is None
    _, defended, _, plain = trainings
    assert len(defended.trainer.model.erm_users[1]) == 5 * 6
    assert len(defended.trainer.model.user_embedding.weight) == len(plain.trainer.model.user_embedding.weight) + 5
    for left, right in zip(defended.splits, plain.splits, strict=True):
        assert left.user_num == right.user_num == 89
        assert_same_rows(left.inter_feat, right.inter_feat)
    found, expected = defended.ranks_in_test(), plain.ranks_in_test()
    assert found.ranks.shape == expected.ranks.shape == (80, 2)
    assert torch.equal(found.eligible, expected.eligible)
    counts = [one.trainer.eval_collector.data_struct.get("data.count_items") for one in (defended, plain)]
    assert counts[0] == counts[1] and sum(counts[0].values()) == defended.genuine.inter_num
    assert torch.equal(defended.trainer.eval_collector.is_tail, plain.trainer.eval_collector.is_tail)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "keys", "got"),
    [("BPR", {}, "BPR"), ("DampedMean", {}, "DampedMean"), ("PurifyAugMF", {}, "PurifyAugMF"),
     ("MF", {"loss_type": "BPR"}, "MF with loss_type BPR")],
)  # fmt: skip
def test_it_works_on_explicit_mf_only(toy_config, model, keys, got):
    with pytest.raises(UserError) as error:
        toy_config(model, defense="APT", **keys)
    assert str(error.value) == f"defense: expected MF with loss_type MSE under APT, got {got}"


def test_one_defense_changes_the_training():
    with pytest.raises(UserError, match=r"^defense: expected at most one that changes the loss or the training, got A"):
        registry.build_defenses("AT,APT")
    built = registry.build_defenses("PCA,APT", {"APT": {"every": 5}})
    assert built.training == APT(every=5)
    assert built.loss is None
    assert len(built.detectors) == 1


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("n_erm_users", -1, "an integer of at least 0, got -1"),
        ("n_erm_users", 2.5, "an integer of at least 0, got 2.5"),
        ("start_epoch", -1, "an integer of at least 0, got -1"),
        ("every", 0, "an integer of at least 1, got 0"),
        ("n_selected", 0, "an integer of at least 1, got 0"),
        ("temperature", -1, "a number of at least 0, got -1"),
        ("temperature", float("nan"), "a number of at least 0, got nan"),
        ("rating_shift", 2, "a number from -1 to 1, got 2"),
        ("n_reference_users", 0, "an integer of at least 1, got 0"),
        ("ihvp", "exact", "one of lissa, cg, none, got 'exact'"),
        ("n_iterations", 0, "an integer of at least 1, got 0"),
        ("batch_size", True, "an integer of at least 1, got True"),
    ],
)
def test_bad_hyper_parameters(key, value, expected):
    with pytest.raises(UserError) as error:
        registry.build_defenses("APT", {key: value})
    assert str(error.value) == f"defense_args.{key}: expected {expected}"


def test_the_yaml_has_the_defaults():
    assert yaml.safe_load(PROPERTIES.read_text()) == {"defense_args": asdict(APT())}


def test_when_it_is_due():
    assert [epoch for epoch in range(25) if APT().is_due(epoch)] == [15, 17, 19, 21, 23]
    assert not any(APT(n_erm_users=0).is_due(epoch) for epoch in range(25))
