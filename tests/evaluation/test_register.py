"""Our metrics in RecBole's evaluator, and RecBole's own that it cannot compute by itself."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data import create_dataset, data_preparation
from recbole.evaluator import register
from recbole.trainer import Trainer
from recbole.utils import get_model
from toy_splits import average, make_run

from recbole_robust import UserError
from recbole_robust.evaluation import TargetPass, attach_targets, mean_over_targets, register_metrics, target_metrics
from recbole_robust.evaluation.rating import rating_metrics
from recbole_robust.evaluation.register import RobustCollector, TargetHR, TargetNDCG, TargetRank

OWN = {"targethr", "targetndcg", "targetrank", "tailhit"}


def test_registering_twice_is_registering_once():
    dicts = (register.metrics_dict, register.metric_information, register.metric_types)
    before = [dict(table) for table in dicts], list(register.smaller_metrics)
    register_metrics()
    assert ([dict(table) for table in dicts], list(register.smaller_metrics)) == before
    assert all(table.keys() >= OWN for table in dicts)
    assert Counter(register.smaller_metrics)["targethr"] == 1


def test_the_side_of_the_platform(toy_config):
    bigger = {
        name: toy_config("BPR", valid_metric=f"{name}@10")["valid_metric_bigger"] for name in ("TargetHR", "TailHit")
    }
    assert bigger == {"TargetHR": False, "TailHit": True}
    assert toy_config("BPR", valid_metric="TargetRank")["valid_metric_bigger"] is True


@pytest.mark.parametrize("denominator", ["eligible", "all"])
def test_target_metrics_among_recbole_s(toy_config, denominator):
    keys = {"metrics": ["Recall", "NDCG", "TargetHR", "TargetNDCG", "TargetRank"], "topk": [3, 10], "epochs": 2,
            "metric_decimal_place": 9, "target_hr_denominator": denominator}  # fmt: skip
    run = make_run(toy_config("BPR", **keys), average())
    run.fit()
    for phase, loader in (("valid", run.loaders[1]), ("test", run.loaders[2])):
        for _ in range(2):  # nothing is left over from the evaluation before
            found = run.trainer.evaluate(loader)
            items = torch.tensor([run.splits.train.token2id("item_id", token) for token in ("i3", "i40")])
            ranks = TargetPass(run.splits, items, phase).run(run.trainer)
            own = mean_over_targets(target_metrics(ranks.ranks, ranks.scores, ranks.eligible, [3, 10], denominator))
            own.pop("targetscore")
            assert own.keys() <= found.keys()
            for name, value in own.items():
                assert found[name] == pytest.approx(value, abs=1e-8)
            assert found["targethr@10"] == found[f"targethr_{denominator}@10"]
            assert {"recall@3", "ndcg@10", "tailhit@10", "itemcoverage@3"} <= found.keys()


def test_each_metric_reports_its_own_keys(toy_config):
    run = make_run(toy_config("BPR", topk=[3], epochs=0), average())
    items = torch.tensor([run.splits.train.token2id("item_id", "i3")])
    found = {"rec.target": TargetPass(run.splits, items, "test").run(run.trainer)}
    for metric, keys in (
        (TargetHR, {"targethr@3", "targethr_all@3", "targethr_eligible@3"}),
        (TargetNDCG, {"targetndcg@3"}),
        (TargetRank, {"targetrank"}),
    ):
        assert metric(toy_config("BPR", topk=[3])).calculate_metric(found).keys() == keys
    without = {"topk": [3], "target_hr_denominator": None, "metric_decimal_place": 4}
    by_default = TargetHR(without).calculate_metric(found)
    assert by_default["targethr@3"] == by_default["targethr_eligible@3"]


def test_early_stopping_by_target_hr(toy_config, monkeypatch):
    scores = iter([0.5, 0.3, 0.2, 0.4, 0.3, 0.1, 0.0])
    monkeypatch.setattr(TargetHR, "calculate_metric", lambda self, data: {"targethr@10": next(scores)})
    keys = {"metrics": ["Recall", "TargetHR"], "valid_metric": "TargetHR@10", "epochs": 7, "stopping_step": 1}
    run = make_run(toy_config("BPR", **keys))
    best, result = run.fit()
    assert (best, result["targethr@10"]) == (0.2, 0.2), "the smallest, until patience ends"
    assert run.trainer.best_epoch == 2
    assert len(run.trainer.train_loss_dict) == 5


def stock_run(data_path, tmp_path, monkeypatch, **keys):
    monkeypatch.setattr("sys.argv", ["recbole"])
    monkeypatch.chdir(tmp_path)
    options = {"data_path": str(data_path), "gpu_id": "", "epochs": 1, "show_progress": False, **keys}
    config = RecBoleConfig("BPR", "toy", config_dict=options)
    train_data, valid_data, _ = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, get_model("BPR")(config, train_data._dataset))
    return trainer, train_data, valid_data


@pytest.mark.parametrize(
    ("metric", "says"), [("TargetHR", "target pass of recbole_robust"), ("TailHit", "recbole_robust's collector")]
)
def test_under_a_trainer_that_is_not_ours_one_clear_error(data_path, tmp_path, monkeypatch, metric, says):
    trainer, train_data, valid_data = stock_run(data_path, tmp_path, monkeypatch, metrics=["Recall", metric])
    with pytest.raises(UserError, match=says) as raised:
        trainer.fit(train_data, valid_data)
    assert "\n" not in str(raised.value)


def test_targets_cannot_be_attached_to_recbole_s_trainer(data_path, tmp_path, monkeypatch):
    trainer, train_data, _ = stock_run(data_path, tmp_path, monkeypatch)
    with pytest.raises(UserError, match="expected a trainer of recbole_robust"):
        attach_targets(trainer, [train_data._dataset] * 3, torch.tensor([1]))


# --- tail hits -----------------------------------------------------------------------------------------------------


def items_by_user(*parts) -> dict[int, set[int]]:
    items = defaultdict(set)
    for part in parts:
        for user, item in zip(part.inter_feat["user_id"].tolist(), part.inter_feat["item_id"].tolist(), strict=True):
            items[user].add(item)
    return items


def test_tail_hit_is_the_loop(toy_config):
    run = make_run(toy_config("BPR", epochs=2, topk=[3, 10], metric_decimal_place=9), average())
    run.fit()
    found = run.test()
    train, valid, test = run.splits
    counts = Counter(train.inter_feat["item_id"][: train.n_genuine_rows].tolist())
    by_popularity = sorted(range(1, 61), key=lambda item: (-counts[item], item))
    tail = set(by_popularity[12:])
    scores = run.trainer.full_sort_scores(train.join(type(train.inter_feat)({"user_id": torch.arange(1, 81)})))
    seen, held = items_by_user(train, valid), items_by_user(test)
    for k in (3, 10):
        hits = []
        for user in range(1, 81):
            row = scores[user - 1].tolist()
            first = sorted((item for item in range(1, 61) if item not in seen[user]), key=lambda item: -row[item])[:k]
            if held[user] & tail:
                hits.append(bool(held[user] & tail & set(first)))
        assert hits
        assert found[f"tailhit@{k}"] == pytest.approx(np.mean(hits), abs=1e-8)


def test_the_batches_of_an_evaluation_are_joined_in_their_order(toy_config):
    keys = {"metrics": ["Recall", "ItemCoverage", "TailHit"], "topk": [3, 10], "epochs": 1}
    run = make_run(toy_config("BPR", **keys, eval_batch_size=2 * 41), average())  # two or so users a batch
    run.fit()
    in_batches = run.trainer.evaluate(run.loaders[2])
    assert len(run.loaders[2]) > 10
    in_one = make_run(toy_config("BPR", **keys, eval_batch_size=10**7), average())
    assert len(in_one.loaders[2]) == 1
    assert run.trainer.evaluate(in_one.loaders[2]) == in_batches
    collector = run.trainer.eval_collector
    assert not any(name.startswith("rec.") for name in collector.data_struct._data_dict)  # nothing stays


def test_the_share_of_the_tail_is_the_key(toy_config):
    """With all items in the tail, tail hit is hit; with none, nobody has a tail item to be hit."""
    by_share = {}
    for share in (1e-9, 0.5, 1.0):
        run = make_run(toy_config("BPR", metrics=["Hit", "TailHit"], topk=[10], tail_share=share, epochs=1))
        run.fit(saved=False)
        by_share[share] = run.test(load_best_model=False)
    assert by_share[1.0]["tailhit@10"] == by_share[1.0]["hit@10"] > 0
    assert by_share[0.5]["tailhit@10"] < by_share[0.5]["hit@10"]
    assert np.isnan(by_share[1e-9]["tailhit@10"])


def test_a_target_that_is_in_the_validation_rows_cannot_be_hit_in_the_test(toy_config):
    """The phase of the target pass is that of the loader; both loaders are asked, in either order."""
    keys = {"metrics": ["TargetHR"], "topk": [60], "epochs": 0, "target_hr_denominator": "all"}
    run = make_run(toy_config("BPR", **keys))
    train, valid, _ = run.splits
    item = int(valid.inter_feat["item_id"].mode().values)
    run = make_run(toy_config("BPR", **keys), targets=(train.id2token("item_id", item),))
    train, valid, _ = run.splits
    n_train, n_valid = (
        len(set(part.inter_feat["user_id"][part.inter_feat["item_id"] == item].tolist())) for part in (train, valid)
    )
    assert n_valid
    n_users = train.user_num - 1
    run.trainer.eval_collector.data_collect(run.loaders[0])  # fit() does
    for _ in range(2):
        in_test = run.trainer.evaluate(run.loaders[2], load_best_model=False)["targethr@60"]
        in_valid = run.trainer.evaluate(run.loaders[1], load_best_model=False)["targethr@60"]
        assert in_valid == pytest.approx(1 - n_train / n_users, abs=1e-4)
        assert in_test == pytest.approx(1 - (n_train + n_valid) / n_users, abs=1e-4)


def test_popularity_hits_no_tail(write_data, toy_config):
    """Each user has rated one of the 10 most rated of 50 items: the first 5 of Pop are all head items."""
    rows = [f"u{u}\ti{u % 10}" for u in range(60)] + [
        f"u{u}\ti{10 + (7 * u + k) % 40}" for u in range(60) for k in range(3)
    ]
    keys = write_data(inter=["user_id:token\titem_id:token", *rows])
    split = {"split": {"RS": [0.8, 0.0, 0.2]}, "order": "RO", "group_by": "user", "mode": "full"}
    run = make_run(toy_config("Pop", **keys, topk=[5], eval_args=split, epochs=1), targets=("i3",))
    run.fit(saved=False)
    found = run.test(load_best_model=False)
    assert found["tailhit@5"] == 0
    assert found["itemcoverage@5"] == pytest.approx(10 / 51, abs=0.05)


# --- RecBole's metrics of the whole list ---------------------------------------------------------------------------


def test_the_metrics_that_recbole_s_collector_breaks_run_and_count_genuine_rows_only(toy_config):
    names = ["ItemCoverage", "GiniIndex", "AveragePopularity", "TailPercentage", "ShannonEntropy"]
    run = make_run(toy_config("BPR", metrics=names, valid_metric="ItemCoverage@10", epochs=1), average(n_fake_users=40))
    run.fit()
    found = run.test()
    assert {f"{name.lower()}@10" for name in names} <= found.keys()
    assert all(np.isfinite(value) for value in found.values())
    train = run.splits.train
    counts = Counter(train.inter_feat["item_id"][: train.n_genuine_rows].tolist())
    collected = run.trainer.eval_collector.data_struct.get("data.count_items")
    assert collected == counts, "no fake row makes an item popular"


def test_a_clean_collector_counts_as_recbole_s_does(toy_config):
    config = toy_config("BPR", metrics=["AveragePopularity"], valid_metric="AveragePopularity@10")
    loader = make_run(config).loaders[0]
    collector = RobustCollector(config)
    collector.data_collect(loader)
    assert collector.data_struct.get("data.count_items") == loader._dataset.item_counter


# --- errors of ratings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["max", "none"])
def test_rating_errors_are_numpy_s_on_raw_stars(toy_config, data_path, scale):
    run = make_run(toy_config("MF", epochs=2, rating_scale=scale), average())
    run.fit(saved=False)
    test, model = run.splits.test, run.trainer.model
    lines = [line.split("\t") for line in (data_path / "toy" / "toy.inter").read_text().splitlines()[1:]]
    stars = {(u, i): float(r) for u, i, r, _ in lines}
    users, items = test.inter_feat["user_id"], test.inter_feat["item_id"]
    truth = [stars[test.id2token("user_id", int(u)), test.id2token("item_id", int(i))]
             for u, i in zip(users, items, strict=True)]  # fmt: skip
    with torch.no_grad():
        predicted = (model.user_embedding(users) * model.item_embedding(items)).sum(dim=1) * model.rating_scale
    errors = predicted.numpy() - np.array(truth)
    found = rating_metrics(run.trainer, test, ["RMSE", "MAE"])
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-6)
    assert found["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-6)
    assert rating_metrics(run.trainer, test, ["MAE"]).keys() == {"mae"}
    assert rating_metrics(run.trainer, test, None) == {}


def test_a_model_that_scores_some_items_exactly_is_told_the_targets(toy_config):
    """infer_mode rerank: the targets are ranked as by the whole path wherever that brings them to the reranked ones."""
    run = make_run(toy_config("PurifyAugMF", infer_mode="rerank", rerank_topk=10, topk=[5], epochs=1), average())
    run.fit(saved=False)
    targets = [run.splits.train.token2id("item_id", token) for token in ("i3", "i40")]
    assert run.trainer.model.pinned_items.tolist() == targets
