"""RGCF: its graph, its equations against dense oracles, what it learns, and what it keeps between evaluations."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from recbole.data.interaction import Interaction
from torch.nn import functional as F
from toy_splits import ATTACK, SMALL, average, split

from recbole_robust.data.injection import without_fakes
from recbole_robust.initialisation import build_model
from recbole_robust.model import rgcf
from recbole_robust.model.bipartite_graph import BipartiteGraph, products_at
from recbole_robust.model.rgcf import RGCF
from recbole_robust.types import UserError

N_USERS, N_ITEMS = 61, 81  # of the fixture ratings; user 0 and item 0 are padding


@pytest.fixture
def batch(ratings):
    """300 interactions with negatives; users come several times."""
    negatives = torch.randint(1, N_ITEMS, (300,), generator=torch.Generator().manual_seed(5))
    return Interaction({**ratings.inter_feat[:300].interaction, "neg_item_id": negatives})


@pytest.fixture
def awake(build):
    """``awake(key=value, ...)``: a model in double precision whose vectors are larger than at the start."""

    def make(dataset=None, **keys):
        model = build(RGCF, *([dataset] if dataset else []), **keys).double()
        model.ones = model.ones.double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0).add_(0.03)
        return model

    return make


def dense(graph, values):
    """The adjacency as a dense matrix."""
    matrix = torch.zeros(graph.n_nodes, graph.n_nodes, dtype=values.dtype)
    return matrix.index_put((graph.rows, graph.cols), values, accumulate=True)


def fit(model, rows, steps, lr=0.01, n_items=N_ITEMS, seed=2):
    optimiser, generator = torch.optim.Adam(model.parameters(), lr), torch.Generator().manual_seed(2)
    torch.manual_seed(seed)  # of the new edges
    model.train()
    model.on_epoch_start(0)
    for _ in range(steps):
        negatives = torch.randint(1, n_items, (len(rows),), generator=generator)
        loss = sum(model.calculate_loss(Interaction({**rows.interaction, "neg_item_id": negatives})))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def gradients(model, batch):
    model.zero_grad()
    sum(model.calculate_loss(batch)).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


# --- the graph -------------------------------------------------------------------------------------------------------


@pytest.fixture
def graph():
    """Users 1 to 4 and items 1 to 5 with an interaction that comes twice; user 3 and item 2 have none."""
    user, item = torch.tensor([1, 4, 1, 2, 4, 2, 1]), torch.tensor([5, 1, 3, 3, 4, 3, 1])
    return BipartiteGraph(user, item, 5, 6)


def test_every_pair_is_two_edges_sorted_and_once(graph):
    assert graph.pairs.tolist() == [1 * 6 + 1, 1 * 6 + 3, 1 * 6 + 5, 2 * 6 + 3, 4 * 6 + 1, 4 * 6 + 4]
    edges = list(zip(graph.rows.tolist(), graph.cols.tolist(), strict=True))
    assert len(edges) == 12 and edges == sorted(set(edges))
    assert graph.offsets.tolist()[-1] == 12 and graph.degree[3] == 0 and graph.degree[5 + 2] == 0
    for row in range(graph.n_nodes):
        assert set(graph.rows[graph.offsets[row] : graph.offsets[row + 1]].tolist()) <= {row}


def test_reverse_is_the_other_direction(graph, ratings, build):
    for g in (graph, build(RGCF).graph):
        assert torch.equal(g.rows[g.reverse], g.cols) and torch.equal(g.cols[g.reverse], g.rows)
        assert torch.equal(g.reverse[g.reverse], torch.arange(len(g.rows)))
        x = torch.randn(g.n_nodes, 4, dtype=torch.double)
        products = g.edge_products(x)
        assert torch.allclose(products[g.reverse], products)


def test_sums_and_products_are_those_of_a_dense_matrix(graph):
    values, x = torch.rand(12, dtype=torch.double), torch.randn(11, 3, dtype=torch.double)
    assert torch.allclose(graph.neighbour_sum(values, x), dense(graph, values) @ x)
    assert torch.allclose(graph.row_sums(values), dense(graph, values).sum(1))
    assert torch.allclose(graph.edge_products(x), (x @ x.T)[graph.rows, graph.cols])
    values.requires_grad_()
    x.requires_grad_()
    assert torch.autograd.gradcheck(graph.neighbour_sum, (values, x))
    assert torch.autograd.gradcheck(graph.edge_products, (x,))


def test_has(graph):
    asked = torch.tensor([0, 1 * 6 + 3, 1 * 6 + 2, 4 * 6 + 4, 5 * 6])
    assert graph.has(asked).tolist() == [False, True, False, True, False]


def test_a_graph_without_edges():
    nothing = torch.zeros(0, dtype=torch.long)
    empty, x = BipartiteGraph(nothing, nothing, 3, 4), torch.ones(7, 2, requires_grad=True)
    assert not empty.has(torch.tensor([5])).any()
    assert torch.equal(empty.neighbour_sum(torch.zeros(0), x), torch.zeros(7, 2))
    assert products_at(torch.zeros(4, dtype=torch.long), nothing, x[:3], x[3:]).shape == (0,)


# --- dense oracles ---------------------------------------------------------------------------------------------------


def oracle_h(model, ratings):
    """The rows of the interaction matrix times W_U, its columns times W_I."""
    matrix = torch.zeros(N_USERS, N_ITEMS, dtype=torch.double)
    matrix[ratings.inter_feat["user_id"], ratings.inter_feat["item_id"]] = 1.0
    return matrix, torch.cat((matrix @ model.user_encoder.weight, matrix.T @ model.item_encoder.weight))


def oracle_adjacency(model, ratings):
    matrix, h = oracle_h(model, ratings)
    if model.prune_threshold < 0:
        weights = matrix / (matrix.sum(1, keepdim=True) * matrix.sum(0)).clamp(min=1e-9).sqrt()
    else:
        cosine = F.cosine_similarity(h[:N_USERS, None], h[None, N_USERS:], dim=2)
        weights = matrix * (cosine + 1) / 2
        weights = torch.where(weights < model.prune_threshold, torch.zeros_like(weights), weights)
    zeros = [torch.zeros(n, n, dtype=torch.double) for n in (N_USERS, N_ITEMS)]
    square = torch.cat((torch.cat((zeros[0], weights), 1), torch.cat((weights.T, zeros[1]), 1)))
    return square if model.prune_threshold < 0 else square / (square.sum(1, keepdim=True) + 1e-7)


def oracle_loss(model, ratings, batch):
    """BPR and the ridge term."""
    (_, h), adjacency = oracle_h(model, ratings), oracle_adjacency(model, ratings)
    z = (h + adjacency @ h + adjacency @ adjacency @ h) / 3
    user, positive, negative = batch["user_id"], batch["item_id"] + N_USERS, batch["neg_item_id"] + N_USERS
    difference = (z[user] * (z[positive] - z[negative])).sum(1)
    ridge = sum(h[node].norm() for node in (user, positive, negative)) / len(batch)
    return z, -(1e-10 + difference.sigmoid()).log().mean() + model.reg_weight * ridge


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.02, 0.5])
def test_loss_and_gradient_are_those_of_the_dense_equations(awake, ratings, batch, threshold):
    model = awake(prune_threshold=threshold, MIM_weight=0.0, reg_weight=0.1)
    z, expected = oracle_loss(model, ratings, batch)
    loss, nothing = model.calculate_loss(batch)
    assert nothing == 0 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(torch.cat(model.forward()), z, atol=1e-6)
    found = gradients(model, batch)
    for grad, other in zip(found, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        assert torch.allclose(grad, other, rtol=1e-4, atol=1e-7)
    pruned = (model.reliability(model.ego()) == 0).double().mean()
    assert (pruned > 0.05) if threshold == 0.5 else (pruned == 0)


def test_rows_sum_to_one(awake):
    model = awake(prune_threshold=0.02)
    sums, degree = model.graph.row_sums(model.adjacency(model.ego())), model.graph.degree
    assert torch.allclose(sums[degree > 0], torch.ones_like(sums[degree > 0]), atol=1e-5)
    assert (sums[degree == 0] == 0).all() and degree[0] == degree[N_USERS] == 0


def test_a_node_whose_edges_are_all_pruned_has_a_row_of_zeros(awake):
    model = awake(prune_threshold=1.0)
    sums = model.graph.row_sums(model.adjacency(model.ego()))
    assert (sums == 0).all()
    assert all(vectors.isfinite().all() for vectors in model.forward())


def test_the_diverse_view_and_its_loss_are_those_of_the_dense_equations(awake, ratings, batch):
    model = awake(MIM_weight=0.5, reg_weight=0.0)
    _, mim = model.calculate_loss(batch)
    new, weight = model.diversity
    adjacency = oracle_adjacency(model, ratings).detach()
    assert weight == pytest.approx(model.adjacency(model.ego()).median().item())
    augmented = adjacency + weight * dense(new, torch.ones(len(new.rows), dtype=torch.double))
    augmented = augmented / (augmented.sum(1, keepdim=True) + 1e-7)
    _, h = oracle_h(model, ratings)
    z, _ = oracle_loss(model, ratings, batch)
    z_aug = (h + augmented @ h + augmented @ augmented @ h) / 3
    cosine = F.cosine_similarity(z[batch["user_id"]][:, None], z_aug[None, 1:N_USERS], dim=2) / model.tau
    expected = -sum(row[user - 1] - row.logsumexp(0) for row, user in zip(cosine, batch["user_id"], strict=True))
    assert mim.item() == pytest.approx(0.5 * expected.item(), rel=1e-6)
    grads = torch.autograd.grad(0.5 * expected, list(model.parameters()))
    for found, other in zip(torch.autograd.grad(mim, list(model.parameters())), grads, strict=True):
        assert torch.allclose(found, other, rtol=1e-4, atol=1e-6)


# --- the new edges ---------------------------------------------------------------------------------------------------


def test_new_edges_are_as_many_as_said_new_and_of_real_users_and_items(awake):
    model = awake(aug_ratio=0.1)
    h = model.ego()
    new, _ = model.draw_diversity(h, model.adjacency(h))
    assert len(new.pairs) == int(0.1 * len(model.graph.pairs)) == 200
    assert not model.graph.has(new.pairs).any()
    assert new.user.min() >= 1 and new.item.min() >= 1
    scores = h[:N_USERS] @ h[N_USERS:].T
    assert scores[new.user, new.item].mean() > scores[1:, 1:].mean() + 0.5 * scores[1:, 1:].std()


@pytest.mark.parametrize(("every", "draws"), [(1, 6), (2, 4), (3, 2), ("epoch", 2)])
def test_how_often_new_edges_are_drawn(build, batch, monkeypatch, every, draws):
    """Two epochs of three batches each."""
    calls, draw = [], RGCF.draw_diversity
    monkeypatch.setattr(RGCF, "draw_diversity", lambda self, *args: calls.append(1) or draw(self, *args))
    model = build(RGCF, rgcf_aug_every=every)
    for epoch in range(2):
        model.on_epoch_start(epoch)
        for _ in range(3):
            assert model.calculate_loss(batch)[1] > 0
    assert len(calls) == draws


def test_no_new_edges_where_there_is_no_room(build):
    """Everybody has everything: no pair is new, and the loss is still a number."""
    user, item = torch.meshgrid(torch.arange(1, 4), torch.arange(1, 5), indexing="ij")
    rows = Interaction({"user_id": user.flatten(), "item_id": item.flatten(), "neg_item_id": item.flatten()})
    full = SimpleNamespace(inter_feat=rows, num={"user_id": 4, "item_id": 5}.get)
    for ratio in (0.5, 0.0):
        model = build(RGCF, full, aug_ratio=ratio)
        assert all(loss.isfinite() for loss in model.calculate_loss(rows))
        assert len(model.diversity[0].pairs) == 0


# --- what it learns --------------------------------------------------------------------------------------------------


def test_noise_weighs_less_than_what_fits(build):
    """Two groups of 40 users, each with 40 items of its own; one interaction in eleven is across.

    It does so early: noise is a positive of the BPR loss like any other, and learnt in the end.
    """
    group = torch.arange(80) // 40
    inside = group[:, None] == group[None]
    generator = torch.Generator().manual_seed(3)
    user, item = torch.nonzero(torch.rand(80, 80, generator=generator) < torch.where(inside, 0.3, 0.03), as_tuple=True)
    rows = Interaction({"user_id": user + 1, "item_id": item + 1})
    dataset = SimpleNamespace(inter_feat=rows, num={"user_id": 81, "item_id": 81}.get)
    model = build(RGCF, dataset, embedding_size=16)
    is_noise = ~inside[model.graph.user - 1, model.graph.item - 1]

    def gap():
        with torch.no_grad():
            weights = model.reliability(model.ego())[: len(is_noise)]  # the rows of the users come first
        return (weights[~is_noise].mean() - weights[is_noise].mean()).item()

    assert 80 < is_noise.sum() < 140 and abs(gap()) < 0.05
    fit(model, rows, 40, lr=0.001, n_items=81)
    assert gap() > 0.15


# --- randomness, evaluation, save and load ---------------------------------------------------------------------------


def test_the_seed_decides(build, ratings):
    def trained(seed):
        return fit(build(RGCF, MIM_weight=0.1), ratings.inter_feat, 3, seed=seed).user_encoder.weight

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_evaluation_is_the_same_twice_and_propagates_once(build, ratings, monkeypatch):
    model, calls, forward = build(RGCF).eval(), [], RGCF.forward
    monkeypatch.setattr(RGCF, "forward", lambda self: calls.append(1) or forward(self))
    users = Interaction({"user_id": torch.arange(N_USERS)})
    first, second = model.full_sort_predict(users), model.full_sort_predict(users)
    assert torch.equal(first, second) and len(calls) == 1 and first.shape == (N_USERS * N_ITEMS,)
    pairs = model.predict(ratings.inter_feat)
    expected = first.view(N_USERS, N_ITEMS)[ratings.inter_feat["user_id"], ratings.inter_feat["item_id"]]
    assert torch.allclose(pairs, expected, atol=1e-6) and len(calls) == 1


@pytest.mark.parametrize("change", ["step", "mode", "load"])
def test_what_evaluation_keeps_is_dropped(build, ratings, change):
    model, users = build(RGCF).eval(), Interaction({"user_id": torch.arange(N_USERS)})
    before = model.full_sort_predict(users)
    assert model.propagated is not None
    other = fit(copy.deepcopy(model), ratings.inter_feat, 1)
    if change == "step":
        fit(model, ratings.inter_feat, 1)
        assert model.propagated is None
        model.eval()
    elif change == "mode":
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
                mine.copy_(theirs)
        model.train()
        model.eval()
    else:
        model.load_state_dict(other.state_dict())
    after = model.full_sort_predict(users)
    assert not torch.equal(before, after)
    assert torch.equal(after, other.eval().full_sort_predict(users))


def test_save_and_load(build, ratings, tmp_path):
    model, users = fit(build(RGCF), ratings.inter_feat, 2).eval(), Interaction({"user_id": torch.arange(N_USERS)})
    torch.save(model.state_dict(), tmp_path / "model.pth")
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert set(state) == {"user_encoder.weight", "item_encoder.weight"}  # the graph is the data's
    other = build(RGCF).eval()
    other.load_state_dict(state)
    assert torch.equal(other.full_sort_predict(users), model.full_sort_predict(users))


# --- in the house ----------------------------------------------------------------------------------------------------


def test_fakes_are_in_the_graph_and_genuine_vectors_start_alike(toy_config):
    config = toy_config("RGCF", **SMALL)
    clean, attacked = (split(config, poison).train for poison in (None, average()))
    before, after = (build_model(config, train, without_fakes(train)) for train in (clean, attacked))
    assert torch.equal(before.user_encoder.weight, after.user_encoder.weight)
    n = before.n_users
    assert after.n_users == n + 10 and torch.equal(before.item_encoder.weight, after.item_encoder.weight[:n])
    assert (after.item_encoder.weight[n:] != 0).any(dim=1).all()
    genuine = after.graph.user < n
    assert torch.equal(after.graph.pairs[genuine], before.graph.pairs)
    assert set(after.graph.user[~genuine].tolist()) == set(range(n, n + 10))


def test_it_is_attacked_beside_lightgcn(run, trainings):
    result = run("RGCF", **ATTACK, embedding_size=8)
    assert trainings == ["RGCF clean", "RGCF attacked", "LightGCN clean", "LightGCN attacked"]
    assert result["protocol"] == "recbole" and result["attacked"]["targethr@10"] >= 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("prune_threshold", 1.5), ("MIM_weight", -1), ("tau", 0), ("aug_ratio", -0.1), ("rgcf_aug_every", "batch"),
     ("rgcf_aug_every", 0)],
)  # fmt: skip
def test_wrong_values(toy_config, key, value):
    with pytest.raises(UserError, match=f"{key}: expected"):
        toy_config("RGCF", **{key: value})


def test_every_key_of_the_yaml_is_read(plain_config, model_keys, ratings):
    config = plain_config("RGCF")
    RGCF(config, ratings)
    assert set(model_keys("RGCF")) - config.asked == {"learning_rate", "train_batch_size"}
    assert rgcf.POOL_FACTOR == 10
