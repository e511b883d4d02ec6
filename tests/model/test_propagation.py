"""The faster product of LightGCN and NCL is the product, forward and backward."""

from __future__ import annotations

import pytest
import torch
from toy_splits import split

from recbole_robust.initialisation import build_model
from recbole_robust.model.propagation import SYMMETRIC, SymmetricMatrix, hasten


@pytest.fixture
def matrix():
    """A random symmetric matrix of 12 rows, one of them empty, one entry given twice; in double precision."""
    generator = torch.Generator().manual_seed(3)
    dense = torch.rand(12, 12, generator=generator, dtype=torch.double)
    dense = (dense + dense.T) * (dense + dense.T > 1.1)
    dense[4] = dense[:, 4] = 0.0
    sparse = dense.to_sparse()
    indices, values = sparse.indices(), sparse.values()
    values[0] /= 2
    return torch.sparse_coo_tensor(
        torch.cat([indices, indices[:, :1]], dim=1), torch.cat([values, values[:1]]), (12, 12), dtype=torch.double
    )


def test_product_and_gradient_are_those_of_the_dense_matrix(matrix):
    fast, x = SymmetricMatrix(matrix), torch.randn(12, 3, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(torch.sparse.mm(fast, x), matrix.to_dense() @ x)
    assert torch.autograd.gradcheck(lambda x: torch.sparse.mm(fast, x), x)
    assert torch.autograd.gradgradcheck(lambda x: torch.sparse.mm(fast, x).pow(2), x)


def test_any_other_function_of_the_matrix_is_refused(matrix):
    with pytest.raises(TypeError):
        torch.sparse.sum(SymmetricMatrix(matrix))


@pytest.fixture
def build(toy_config):
    """``build(name)``: the model of RecBole on the toy data set, untrained."""

    def make(name):
        config = toy_config(name)
        train = split(config).train
        return build_model(config, train, train)

    return make


@pytest.mark.parametrize("name", ["LightGCN", "NCL"])
def test_vectors_and_gradients_are_those_of_recbole(build, name):
    model = build(name)

    def propagated():
        vectors = torch.cat(model.forward()[:2])
        weights = torch.arange(vectors.numel(), dtype=vectors.dtype).view_as(vectors).sin()
        return [vectors, *torch.autograd.grad((vectors * weights).sum(), list(model.parameters()))]

    theirs = propagated()
    hasten(model)
    assert isinstance(getattr(model, SYMMETRIC[name]), SymmetricMatrix)
    for own, expected in zip(propagated(), theirs, strict=True):
        torch.testing.assert_close(own, expected)


def test_a_subclass_is_hastened_too_and_twice_is_once(build):
    model = build("LightGCN")
    model.__class__ = type("Defended", (type(model),), {})
    hasten(model)
    matrix = model.norm_adj_matrix
    hasten(model)
    assert isinstance(matrix, SymmetricMatrix) and model.norm_adj_matrix is matrix


@pytest.mark.parametrize("name", ["BPR", "NGCF"])
def test_other_models_stay_as_they_are(build, name):
    model = build(name)
    before = dict(vars(model))
    hasten(model)
    assert vars(model).keys() == before.keys() and all(vars(model)[key] is before[key] for key in before)
