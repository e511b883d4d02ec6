"""GroupWeights: a group counts as one, the rows carry it, and every loss that can be weighed takes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from scipy.sparse import csr_matrix
from toy_splits import assert_same_rows, split

from recbole_robust import Average, Poison, UserError
from recbole_robust.criterion_tap import weigh_samples
from recbole_robust.data.load import prepare
from recbole_robust.data.views import defender_view
from recbole_robust.data.weighting import weighted
from recbole_robust.defenses import GroupWeights
from recbole_robust.group_evidence import coordinated_raters
from recbole_robust.initialisation import build_model
from recbole_robust.quick_start import train_and_evaluate
from recbole_robust.types import SAMPLE_WEIGHT, DefenderView

RNG = np.random.default_rng(0)
POISON = Poison(Average(), ["i3", "i40"], n_fake_users=8, n_fillers=6)


def community(n_fakes=8):
    """120 users with tastes of their own, and some who rate the same two cold items and fillers at random."""
    rng = np.random.default_rng(5)
    ratings = np.zeros((120 + n_fakes, 90))
    for row in ratings[:120]:
        row[rng.choice(80, size=20, replace=False)] = rng.integers(1, 6, size=20)
    for row in ratings[120:]:
        row[rng.choice(80, size=12, replace=False)] = 3
        row[[85, 86]] = 5
    return DefenderView(csr_matrix(ratings), 1.0, 5.0, 1.0)


def test_a_group_counts_as_one_and_its_fillers_count_in_full():
    view = community()
    r = view.ratings

    def weights(usual):
        found = GroupWeights(usual=usual)(view, rng=RNG)
        return csr_matrix((found, r.indices, r.indptr), shape=r.shape).toarray()

    pushed = weights(0.0)[120:, [85, 86]]
    assert pushed.sum(axis=0) == pytest.approx([1.0, 1.0], abs=0.05)  # 1 / (1 + 7 others), eight times
    found = weights(0.95)
    assert found[120:, [85, 86]].sum(axis=0).max() < 2.0
    assert (found[120:, :80][r.toarray()[120:, :80] > 0] == 1).all()
    assert (found[:120][r.toarray()[:120] > 0] > 0.9).mean() > 0.95


def test_it_is_the_formula_of_the_score():
    view = community()
    keys = {"low": 0.2, "high": 0.4, "own_share": 1.0, "usual": 0.5}
    expected = 1 / (1 + coordinated_raters(view.ratings, top_rating=5.0, **keys))
    np.testing.assert_array_equal(GroupWeights(**keys)(view, rng=RNG), expected)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"low": 2.0}, "defense_args.low: expected a number below high, 1, got 2.0"),
        ({"low": -1}, "defense_args.low: expected a number of at least 0, got -1"),
        ({"usual": 1.5}, "defense_args.usual: expected a number from 0 to 1, got 1.5"),
        ({"own_share": 2}, "defense_args.own_share: expected a number from 0 to 1, got 2"),
    ],
)
def test_a_wrong_value_is_one_clear_error(keys, message):
    with pytest.raises(UserError, match=message):
        GroupWeights(**keys)


# --- the rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["MF", "BPR", "SASRec"])
def test_rows_carry_the_weight_of_their_pair_and_nothing_else_changes(family_config, model):
    loader = prepare(family_config(model), POISON)[0]
    view = defender_view(loader._dataset)
    weights = np.linspace(0.1, 0.9, view.ratings.nnz)
    found = weighted(loader, view.ratings, weights)
    rows = found._dataset.inter_feat
    matrix = csr_matrix((weights, view.ratings.indices, view.ratings.indptr), shape=view.ratings.shape).toarray()
    expected = matrix[rows["user_id"].numpy() - 1, rows["item_id"].numpy() - 1]
    np.testing.assert_allclose(rows[SAMPLE_WEIGHT].numpy(), expected, rtol=1e-6)
    plain = Interaction({name: rows[name] for name in rows.columns if name != SAMPLE_WEIGHT})
    assert_same_rows(plain, loader._dataset.inter_feat)
    assert SAMPLE_WEIGHT not in loader._dataset.inter_feat and type(found) is type(loader)
    for ours, theirs in zip(found, loader, strict=True):
        assert_same_rows(Interaction({name: ours[name] for name in theirs.columns}), theirs)


def test_a_pair_that_the_view_does_not_have_weighs_one(family_config):
    loader = prepare(family_config("MF"))[0]
    view = defender_view(loader._dataset)
    found = weighted(loader, csr_matrix(view.ratings.shape), np.zeros(0))
    assert (found._dataset.inter_feat[SAMPLE_WEIGHT] == 1).all()


# --- the losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "NeuMF"])
def test_a_model_of_recbole_takes_weights(toy_config, name):
    """Weight 1 is its own loss, and it is linear in the weights; what is left at weight 0 is the regularisation."""
    config = toy_config(name, dropout_prob=0.0)
    train = split(config).train
    model = build_model(config, train, train).train()
    n = 60
    rows = train.inter_feat[:n]
    negatives = torch.randint(1, train.item_num, (n,), generator=torch.Generator().manual_seed(1))
    batch = {key: rows[key] for key in ("user_id", "item_id")}
    if name == "NeuMF":
        batch = {"user_id": batch["user_id"].repeat(2), "item_id": torch.cat([batch["item_id"], negatives])}
        batch["label"] = torch.cat([torch.ones(n), torch.zeros(n)])
    else:
        batch["neg_item_id"] = negatives

    def loss(weights=None):
        weights = {} if weights is None else {SAMPLE_WEIGHT: weights.repeat(2 if name == "NeuMF" else 1)}
        return model.calculate_loss(Interaction({**batch, **weights})).sum()

    plain = loss()
    weigh_samples(model)
    assert model.weighs_samples
    torch.testing.assert_close(loss(torch.ones(n)), plain)
    a, b = torch.rand(n), torch.rand(n)
    rest = loss(torch.zeros(n))
    torch.testing.assert_close(loss(a + b) - rest, loss(a) + loss(b) - 2 * rest)
    assert (loss(a) - rest).abs() > 1e-4 and rest.abs() < 0.01


@pytest.mark.parametrize("model", ["MF", "BPR", "SASRec", "PurifyAugMF"])
def test_it_runs_on_models_of_all_kinds(family_config, toy_config, model):
    make = toy_config if model == "PurifyAugMF" else family_config
    keys = {"purify_warmup": 1} if model == "PurifyAugMF" else {"defense": "GroupWeights"}
    found = train_and_evaluate(make(model, epochs=2, topk=[5], target_items=["i3"], **keys))
    assert np.isfinite(list(found.metrics.values())).all()


def test_the_model_s_own_weights_are_those_of_the_defense(toy_config):
    """group_weights of PurifyAugMF and --defense=GroupWeights are one thing."""
    keys = {"epochs": 2, "topk": [5], "target_items": ["i3"]}
    keys.update(group_low=0.1, group_high=0.2, group_usual=0.5)
    own = train_and_evaluate(toy_config("PurifyAugMF", **keys)).metrics
    args = {"low": 0.1, "high": 0.2, "usual": 0.5}
    keys = {**keys, "group_weights": False}
    defense = train_and_evaluate(toy_config("PurifyAugMF", defense="GroupWeights", defense_args=args, **keys)).metrics
    assert own == defense != train_and_evaluate(toy_config("PurifyAugMF", **keys)).metrics


def test_the_keys_of_purifyaugmf_are_ignored_by_a_model_that_has_none(toy_config, caplog):
    keys = {"epochs": 2, "topk": [5], "target_items": ["i3"]}
    plain = train_and_evaluate(toy_config(**keys)).metrics
    told = train_and_evaluate(toy_config(group_weights=True, group_low=0.1, group_high=0.2, **keys)).metrics
    assert told == plain and "group_weights is not one of MF's" in caplog.text


@pytest.mark.parametrize("other", ["APT", "TCE"])
def test_beside_a_defense_that_does_not_take_weights_it_is_refused(toy_config, other):
    message = f"defense: expected an adversarial loss or a detector beside GroupWeights, got {other}"
    with pytest.raises(UserError, match=message):
        toy_config("MF" if other == "APT" else "BPR", defense=f"GroupWeights,{other}")


def test_on_a_model_that_has_its_weights_already_it_is_refused(toy_config):
    with pytest.raises(
        UserError, match="defense: expected --group_weights=false beside GroupWeights, since PurifyAugMF"
    ):
        toy_config("PurifyAugMF", defense="GroupWeights")


def test_beside_at_the_noise_is_that_of_weighted_samples(toy_config):
    keys = {"epochs": 6, "topk": [5], "target_items": ["i3"], "defense": "GroupWeights,AT"}
    both = train_and_evaluate(
        toy_config(defense_args={"GroupWeights": {"low": 0.1, "high": 0.2, "usual": 0.5}}, **keys)
    ).metrics
    assert both != train_and_evaluate(toy_config(**{**keys, "defense": "AT"})).metrics


def test_a_range_that_is_none_is_one_clear_error(toy_config):
    with pytest.raises(UserError, match=r"group_low: expected a number below group_high, 1\.0, got 2"):
        train_and_evaluate(toy_config("PurifyAugMF", group_low=2.0, topk=[5], target_items=["i3"]))
