"""Laws of the surrogate: its least squares, the two-hop gradient, the update of rank one, influence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import spearmanr

from recbole_robust.attacks.influence import user_influence
from recbole_robust.attacks.surrogate import (
    CHUNK_RATINGS,
    ItemState,
    Ratings,
    Surrogate,
    respond,
    solve,
    two_hop_gradient,
)
from recbole_robust.types import AttackerView

each_kind = pytest.mark.parametrize("kind", ["explicit", "implicit"])


def fit(view: AttackerView, kind: str, n_sweeps: int = 6, d: int = 5) -> Surrogate:
    rng = np.random.default_rng(0)
    return Surrogate(view, kind, n_factors=d, reg=3.0, alpha=4.0, n_sweeps=n_sweeps, rng=rng, dtype=torch.float64)


def with_fakes(s: Surrogate, include: torch.Tensor, values: torch.Tensor):
    return respond(s, *s.equations(s.by_item, s.x), include, values)


def loss(view: AttackerView, s: Surrogate) -> float:
    """The problem in the module's docstring, written out on dense arrays."""
    dense = view.ratings.toarray()
    rated = dense > 0
    p = dense if s.c0 == 0 else rated * 1.0
    scores = (s.x @ s.y.T).numpy()
    fit_part = s.c1 * ((p - scores)[rated] ** 2).sum() + s.c0 * (scores[~rated] ** 2).sum()
    return float(fit_part + s.reg * ((s.x**2).sum() + (s.y**2).sum()))


def some_fakes(view: AttackerView, n_fakes: int, *, degrees: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    include = rng.random((n_fakes, view.n_items))
    include = include if degrees else (include < 0.2) * 1.0
    return torch.from_numpy(include), torch.from_numpy(rng.uniform(1, 5, view.n_items))


@each_kind
def test_every_sweep_lowers_the_loss(view, kind):
    losses = [loss(view, fit(view, kind, n)) for n in range(1, 9)]
    assert np.all(np.diff(losses) < 0)


@each_kind
def test_normal_equations_are_the_dense_ones(make_view, kind, monkeypatch):
    monkeypatch.setattr("recbole_robust.attacks.surrogate.CHUNK_RATINGS", 7)  # many chunks
    rng = np.random.default_rng(2)
    dense = (rng.random((9, 7)) < 0.5) * rng.integers(1, 6, (9, 7)) * 1.0
    dense[4] = dense[:, 2] = 0  # a user and an item without ratings
    s = fit(make_view(dense), kind)
    a, b = s.equations(s.by_user, s.y)
    y, rated = s.y.numpy(), dense > 0
    weights = np.where(rated, s.c1, s.c0)
    values = dense if s.c0 == 0 else rated * 1.0
    for u in range(9):
        np.testing.assert_allclose(a[u], s.reg * np.eye(5) + y.T @ (weights[u][:, None] * y), rtol=1e-10)
        np.testing.assert_allclose(b[u], s.c1 * (values[u] @ y), atol=1e-10)


def test_chunks_hold_each_rating_once(view):
    long = csr_matrix(np.ones((3, CHUNK_RATINGS + 5)))  # a row longer than a chunk
    for matrix in (view.ratings, long, csr_matrix((4, 4))):
        found = [(row, where[real]) for rows, wheres, reals in Ratings.of(matrix).chunks()
                 for row, where, real in zip(rows, wheres, reals, strict=True)]  # fmt: skip
        positions = np.concatenate([part for _, part in found] or [np.zeros(0, int)])
        np.testing.assert_array_equal(np.sort(positions), np.arange(matrix.nnz))
        for row, part in found:
            assert np.all((matrix.indptr[row] <= part) & (part < matrix.indptr[row + 1]))


@each_kind
def test_a_whole_rating_is_one_more_row_of_data(view, kind):
    """Degrees of 0 and 1: the moved items solve the normal equations of the data with these fakes in it."""
    s = fit(view, kind)
    include, values = some_fakes(view, 3, degrees=False)
    values = torch.ones_like(values) if kind == "implicit" else values
    moved = with_fakes(s, include, values)
    both = csr_matrix(np.vstack([view.ratings.toarray(), (include * values).numpy()]))
    again = fit(AttackerView(both, 1.0, 5.0, 1.0), kind, 1)
    again.x = torch.cat([s.x, moved.x])
    torch.testing.assert_close(moved.y, solve(*again.equations(again.by_item, again.x)))
    fakes = fit(AttackerView(csr_matrix((include * values).numpy()), 1.0, 5.0, 1.0), kind, 1)
    torch.testing.assert_close(moved.x, solve(*fakes.equations(fakes.by_user, s.y)))


@each_kind
def test_two_hop_gradient_against_central_differences(view, kind):
    s = fit(view, kind)
    a, b = s.equations(s.by_item, s.x)
    include, values = some_fakes(view, 4, degrees=True)

    def objective(y: torch.Tensor) -> torch.Tensor:
        return (s.x @ y.T).log_softmax(dim=1)[:, [0, 30]].sum()

    response = respond(s, a, b, include, values)
    y = response.y.clone().requires_grad_()
    objective(y).backward()
    gradient = two_hop_gradient(s, response, y.grad).numpy()
    rng, step = np.random.default_rng(3), 1e-5
    entries = np.stack([rng.integers(0, 4, 50), rng.integers(0, view.n_items, 50)], axis=1)
    differences = []
    for v, i in entries:
        sides = []
        for sign in (1, -1):
            shifted = include.clone()
            shifted[v, i] += sign * step
            sides.append(float(objective(respond(s, a, b, shifted, values).y)))
        differences.append((sides[0] - sides[1]) / (2 * step))
    found = gradient[entries[:, 0], entries[:, 1]]
    assert np.corrcoef(found, differences)[0, 1] > 0.999
    np.testing.assert_allclose(found, differences, rtol=1e-4, atol=1e-6)


@each_kind
def test_rank_one_is_the_full_solution(view, kind):
    s = fit(view, kind)
    include, values = some_fakes(view, 2, degrees=True)
    state, everything = ItemState(s), torch.arange(view.n_items)
    focus = state.look_at(everything)
    for v in range(2):
        one, full = focus.respond(include[v], values), with_fakes(s, include[v : v + 1], values)
        torch.testing.assert_close(one.y, full.y, rtol=1e-4, atol=1e-10)
        torch.testing.assert_close(one.x, full.x[0])
        g = torch.from_numpy(np.random.default_rng(v).normal(size=one.y.shape))
        torch.testing.assert_close(focus.gradient(include[v], values, one, g), two_hop_gradient(s, full, g)[0])
    for v in range(2):
        state.add(include[v], values)
    torch.testing.assert_close(state.look_at(everything).y, with_fakes(s, include, values).y, rtol=1e-4, atol=1e-10)
    state.refresh()
    torch.testing.assert_close(state.y, with_fakes(s, include, values).y, rtol=1e-4, atol=1e-10)


@each_kind
def test_looking_at_some_items_leaves_their_numbers(view, kind):
    s = fit(view, kind)
    include, values = some_fakes(view, 1, degrees=True)
    few, g = torch.tensor([3, 17, 40]), torch.zeros(view.n_items, 5, dtype=torch.float64)
    g[few] = 1.0
    all_, some = ItemState(s).look_at(torch.arange(view.n_items)), ItemState(s).look_at(few)
    whole, part = all_.respond(include[0], values), some.respond(include[0], values)
    torch.testing.assert_close(part.y, whole.y[few])
    whole_gradient = all_.gradient(include[0], values, whole, g)
    torch.testing.assert_close(some.gradient(include[0], values, part, g[few]), whole_gradient)


@each_kind
def test_influence_ranks_users_as_leaving_them_out_does(make_view, kind):
    """Refits without one user each, on a toy of 40 users and 20 items, from the fitted vectors on."""
    rng = np.random.default_rng(4)
    taste = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 20))
    dense = np.clip(np.round(3 + taste), 1, 5) * (rng.random((40, 20)) < 1 / (1 + np.exp(-taste)))
    view, targets = make_view(dense), np.array([2, 11])
    eligible = (dense[:, targets] == 0) * 1.0
    s = fit(view, kind, 300, d=3)

    def held_up(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((torch.from_numpy(eligible) * (x @ y[targets].T)).sum())

    lost = []
    for user in range(40):
        left = dense.copy()
        left[user] = 0
        again = fit(make_view(left), kind, 1, d=3)
        again.x, again.y = s.x.clone(), s.y.clone()
        for _ in range(15):
            again.sweep()
        lost.append(held_up(s.x, s.y) - held_up(again.x, again.y))
    found = user_influence(s, view.ratings, eligible, targets)
    assert spearmanr(found, lost).statistic > 0.5
