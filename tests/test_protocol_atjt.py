"""``--protocol=atjt`` and the settings of its data sets: what they measure, and what they read (P20)."""

from __future__ import annotations

import pytest
import torch
from markov_sequences import walks, write_walks
from sklearn.metrics import roc_auc_score
from toy_splits import SMALL, make_run, split

from recbole_robust import UserError
from recbole_robust.data.load import prepare

COLUMNS = {
    "ml-20m": "user_id:token\titem_id:token\trating:float\ttimestamp:float",
    "Amazon_Electronics": "user_id:token\titem_id:token\trating:float\ttimestamp:float",
    "yelp": "review_id:token\tuser_id:token\tbusiness_id:token\tstars:float\tuseful:float\tdate:float",
}


@pytest.mark.parametrize("base", ["SASRec", "DCN"])
def test_gauc_is_the_mean_of_the_users_own(toy_config, tmp_path, base):
    """P20: scikit-learn's AUC of the held-out item among the 63 sampled ones, user by user, each item once."""
    write_walks(tmp_path / "walks", walks(60, 8, 200, 5, stay=0.9, seed=0))
    config = toy_config("ATJT", dataset="walks", data_path=str(tmp_path), base_model=base, protocol="atjt", epochs=1,
                        recogniser_pretrain_steps=1, train_batch_size=256, **SMALL)  # fmt: skip
    assert config["metrics"] == ["GAUC", "Hit", "NDCG"] and config["topk"] == [5]
    run = make_run(config, targets=("i3",))
    run.fit(saved=False)
    evaluate, found = run.trainer._neg_sample_batch_eval, []

    def noted(batch):
        rows, user_of_row, users, items = batch
        with torch.no_grad():
            scores = run.trainer.model.predict(rows.to("cpu"))
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            mine = (user_of_row == user).nonzero().squeeze(1)
            assert len(mine) == 64
            score_of = dict(zip(rows["item_id"][mine].tolist(), scores[mine].tolist(), strict=True))
            found.append(roc_auc_score([other == item for other in score_of], list(score_of.values())))
        return evaluate(batch)

    run.trainer._neg_sample_batch_eval = noted
    metrics = run.test(load_best_model=False)
    assert len(found) == 60 and metrics["gauc"] == pytest.approx(sum(found) / 60, abs=1e-5)
    assert set(metrics) >= {"gauc", "hit@5", "ndcg@5"}


@pytest.mark.parametrize("dataset", COLUMNS)
@pytest.mark.parametrize("base", ["SASRec", "DCN"])
def test_the_data_sets_are_read_as_recbole_offers_them(toy_config, write_data, dataset, base):
    """A file of that name and those columns, of 12 users with 6 items and one with 2."""
    columns = COLUMNS[dataset].split("\t")
    lines = []
    for user in range(13):
        for t in range(6 if user < 12 else 2):
            values = {"user_id": f"u{user}", "item_id": f"i{(user + t) % 12}", "business_id": f"i{(user + t) % 12}",
                      "rating": "3", "stars": "3", "timestamp": str(t), "date": str(t), "review_id": f"r{user}-{t}",
                      "useful": "0"}  # fmt: skip
            lines.append("\t".join(values[column.split(":")[0]] for column in columns))
    keys = write_data(dataset, inter=[COLUMNS[dataset], *lines])
    keys.pop("dataset")
    config = toy_config("ATJT", dataset=dataset, **keys, base_model=base, topk=[2], **SMALL)
    train, _, test = (loader._dataset for loader in prepare(config))
    n_users = 13 if dataset == "ml-20m" else 12
    assert train.user_num == n_users + 1 and train.item_num == 13
    assert len(train.inter_feat) == 12 * 3 + (dataset == "ml-20m") and len(test.inter_feat) == 12
    assert config["rating_range"][1] == 5


@pytest.mark.parametrize("base", ["SASRec", "DCN"])
def test_users_may_be_split_instead_of_their_logs(toy_config, base):
    """The authors' way: everybody's last item with all that came before it, once, for training or testing."""
    keys = {"base_model": base, "protocol": "atjt", "epochs": 1, "recogniser_pretrain_steps": 1, **SMALL}
    whole = split(toy_config("ATJT", **keys)).test
    run = make_run(toy_config("ATJT", **keys, user_folds=5))
    sizes = [len(part.inter_feat) for part in run.splits]
    assert sizes == [48, 16, 16]
    users = torch.cat([part.inter_feat["user_id"] for part in run.splits])
    assert sorted(users.tolist()) == list(range(1, 81))
    for name in ("item_id", "item_id_list", "item_length"):
        theirs = torch.cat([part.inter_feat[name] for part in run.splits])
        assert torch.equal(theirs[users.argsort()], whole.inter_feat[name][whole.inter_feat["user_id"].argsort()])
    run.fit(saved=False)
    assert 0 <= run.test(load_best_model=False)["gauc"] <= 1
    again, other = (split(toy_config("ATJT", **keys, user_folds=5, seed=seed)).test for seed in (2020, 2021))
    mine, same, others = (set(part.inter_feat["user_id"].tolist()) for part in (run.splits.test, again, other))
    assert mine == same and mine != others


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        ("ATJT", {"user_folds": 2}, "user_folds: expected a whole number >= 3, got 2"),
        ("ATJT", {"user_folds": 5, "noise_ratio": 0.2}, "noise_ratio: expected none under user_folds, got 0.2"),
        ("ATJT", {"user_folds": 5, "attack": "Average"}, "attack: expected none under user_folds, got Average"),
        ("MF", {"user_folds": 5}, "user_folds: expected a sequential model and"),
    ],
)
def test_users_are_not_split_where_that_means_nothing(toy_config, model, keys, message):
    base = {"base_model": "SASRec"} if model == "ATJT" else {}
    with pytest.raises(UserError, match=message):
        toy_config(model, **base, protocol="atjt", **keys)
