"""The target pass on real splits: who is asked, what is masked, who counts."""

from __future__ import annotations

import pytest
import torch
from toy_splits import FEATURES, average, make_run, split

from recbole_robust.evaluation import TargetPass, mean_over_targets, tail_items, target_metrics
from recbole_robust.evaluation.metrics import NEVER
from recbole_robust.evaluation.queries import queries_of

K = [3, 10]


def pairs_of(*parts) -> set[tuple[int, int]]:
    """(user, item) of the rows of some splits, a sequence's first item included."""
    found = set()
    for part in parts:
        if len(part.inter_feat):
            matrix = part.inter_matrix(form="coo")
            found |= set(zip(matrix.row.tolist(), matrix.col.tolist(), strict=True))
    return found


def by_hand(splits, table, target: int, phase: str, k: int) -> dict[str, float]:
    """TargetHR by its definition: for every genuine user, sort what is not masked."""
    train, valid, test = splits
    masked = pairs_of(train) if phase == "valid" else pairs_of(train, valid)
    anywhere = pairs_of(train, valid) if phase == "valid" else pairs_of(train, valid, test)
    hits_all, hits_eligible, n_eligible, ranks = 0, 0, 0, []
    users = range(1, train.user_num - train.n_fake_users)
    for user in users:
        ranking = sorted(
            (item for item in range(1, train.item_num) if (user, item) not in masked),
            key=lambda item: -float(table[user, item]),
        )
        hit = target in ranking[:k]
        hits_all += hit
        if (user, target) not in anywhere:
            n_eligible += 1
            hits_eligible += hit
            ranks.append(ranking.index(target) + 1)
    return {
        f"targethr_all@{k}": hits_all / len(users), f"targethr_eligible@{k}": hits_eligible / n_eligible,
        "targetrank": sum(ranks) / len(ranks),
    }  # fmt: skip


def ids(splits, *tokens: str) -> torch.Tensor:
    return torch.tensor([splits.train.token2id("item_id", token) for token in tokens])


def measure(found, denominator="eligible") -> list[dict[str, float]]:
    return target_metrics(found.ranks, found.scores, found.eligible, K, denominator)


@pytest.fixture
def table() -> torch.Tensor:
    return torch.rand(91, 61, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("poison", [None, average()])
@pytest.mark.parametrize("phase", ["valid", "test"])
@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_the_pass_is_the_loop_over_users(family_config, score_table, table, model, phase, poison):
    splits = split(family_config(model), poison)
    targets = ids(splits, "i3", "i40", "i0")
    found = measure(TargetPass(splits, targets, phase).run(score_table(table)))
    for target, metrics in zip(targets.tolist(), found, strict=True):
        for k in K:
            for name, expected in by_hand(splits, table, target, phase, k).items():
                assert metrics[name] == pytest.approx(expected), (name, k)


def test_chunks_change_nothing(family_config, score_table, table, monkeypatch):
    splits = split(family_config("BPR"))
    whole = TargetPass(splits, ids(splits, "i3"), "test").run(score_table(table))
    monkeypatch.setattr("recbole_robust.evaluation.target_pass.CHUNK_PAIRS", 61 * 7)
    parts = TargetPass(splits, ids(splits, "i3"), "test").run(score_table(table))
    assert torch.equal(whole.ranks, parts.ranks)
    assert torch.equal(whole.scores, parts.scores)


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_oracle_and_anti_oracle(family_config, score_table, table, model):
    splits = split(family_config(model), average())
    targets = ids(splits, "i3", "i40", "i0")
    for value, expected in ((2.0, 1.0), (-1.0, 0.0)):
        scores = table.clone()
        scores[:, targets] = value + 0.01 * torch.arange(3)
        metrics = mean_over_targets(measure(TargetPass(splits, targets, "test").run(score_table(scores))))
        assert metrics["targethr_eligible@3"] == expected
        assert metrics["targethr@3"] == expected
        if expected:
            assert metrics["targethr_all@3"] < 1.0, "users who have a target cannot be hit"


def test_fake_users_move_nothing(family_config, score_table, table):
    clean = split(family_config("BPR"))
    targets = ids(clean, "i3", "i40")
    reference = TargetPass(clean, targets, "test").run(score_table(table))
    for poison in (average(), average(n_fake_users=3, target_items=["i3", "i40"])):
        attacked = split(family_config("BPR"), poison)
        scores = table.clone()
        scores[81:] = 0.0
        scores[81:, targets] = 9.0
        found = TargetPass(attacked, targets, "test").run(score_table(scores))
        assert torch.equal(found.ranks, reference.ranks)
        assert torch.equal(found.eligible, reference.eligible)
        assert measure(found) == measure(reference)


def test_random_scores_give_about_k_of_the_items(family_config, score_table):
    splits = split(family_config("BPR"))
    targets = torch.arange(1, splits.train.item_num)  # all items: a mean over many draws
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(10):
        found = TargetPass(splits, targets, "valid").run(score_table(torch.rand(81, 61, generator=generator)))
        rates.append(mean_over_targets(measure(found))["targethr_all@10"])
    # A user's first 10 are 10 of what the user has not in train: 10 / 60 of all pairs are hits, whatever is masked.
    assert sum(rates) / len(rates) == pytest.approx(10 / 60, abs=1e-9)
    one = TargetPass(splits, ids(splits, "i3"), "test").run(score_table(torch.rand(81, 61, generator=generator)))
    n_free = 60 - sum(user == 1 for user, _ in pairs_of(splits.train, splits.valid))
    assert measure(one)[0]["targethr_eligible@10"] == pytest.approx(10 / n_free, abs=0.15)


@pytest.mark.parametrize("score", [0.5, float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_all_alike_hit_nothing(family_config, score_table, score):
    splits = split(family_config("BPR"))
    found = TargetPass(splits, ids(splits, "i3", "i40"), "test").run(score_table(torch.full((81, 61), score)))
    metrics = mean_over_targets(measure(found, "all"))
    assert metrics["targethr@10"] == metrics["targetndcg@10"] == 0


def test_users_who_have_the_target(family_config, score_table, table):
    splits = split(family_config("BPR"))
    target = splits.test.inter_feat["item_id"][:1]
    scores = table.clone()
    scores[:, target] = 5.0
    for phase, parts in (("valid", splits[:1]), ("test", splits[:2])):
        the_pass = TargetPass(splits, target, phase)
        found = the_pass.run(score_table(scores))
        has = {user for user, item in pairs_of(*parts) if item == target}
        never = set(the_pass.users[found.ranks[:, 0] == NEVER].tolist())
        assert never == has, "masked in this phase: cannot be recommended"
        assert (found.ranks[:, 0][~torch.isin(the_pass.users, torch.tensor(sorted(has)))] == 1).all()
        looked_at = splits[:2] if phase == "valid" else splits  # what selects sees no test row
        anywhere = {user for user, item in pairs_of(*looked_at) if item == target}
        assert set(the_pass.users[~found.eligible[:, 0]].tolist()) == anywhere, "no split holds it"
        metrics = measure(found)[0]
        assert metrics["targethr_all@10"] == pytest.approx(1 - len(has) / 80)
        assert metrics["targethr_eligible@10"] == 1.0


# --- sequences -----------------------------------------------------------------------------------------------------

HEAD = "user_id:token\titem_id:token\ttimestamp:float"
LENGTHS = {"a": 2, "b": 3, "c": 4, "d": 9, "e": 7}  # a and b have too few for all three splits
TO = {"train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 4, "topk": [2],
      "load_col": {"inter": ["user_id", "item_id", "timestamp"]}}  # fmt: skip


def sequences(write_data, toy_config, extra: bool, **keys):
    """Splits of five users; ``extra``: each has one interaction more, at the end."""
    rows = [f"{u}\ti{(k + n) % 10}\t{10 * k}" for u, n in LENGTHS.items() for k in range(n)]
    if extra:
        rows += [f"{u}\ti0\t1000" for u in LENGTHS]
    found = write_data("longer" if extra else "short", inter=[HEAD, *rows, "z\ti9\t5"])
    return toy_config("SASRec", **found, **TO, **keys)


def by_user(queries, train) -> dict[str, dict[str, object]]:
    """The history of each user: tokens, times, length."""
    rows = {}
    for user, items, times, n in zip(
        queries["user_id"], queries["item_id_list"], queries["timestamp_list"], queries["item_length"], strict=True
    ):
        tokens = [train.id2token("item_id", int(item)) for item in items]
        rows[train.id2token("user_id", int(user))] = {"items": tokens, "times": times.tolist(), "n": int(n)}
    return rows


def test_every_sequential_user_is_asked_with_the_whole_past(write_data, toy_config):
    splits = split(sequences(write_data, toy_config, extra=False))
    held = [set(part.inter_feat["user_id"].tolist()) for part in splits]
    assert (len(held[0]), len(held[1]), len(held[2])) == (5, 3, 4), "one user has no test row, two no valid row"
    asked = by_user(queries_of(splits, "test"), splits.train)
    assert asked.keys() == LENGTHS.keys(), "z has one interaction: RecBole has no row for z anywhere"
    for user, n in LENGTHS.items():
        past = [f"i{(k + n) % 10}" for k in range(n if n == 2 else n - 1)]  # all but the test item, where there is one
        assert asked[user]["items"][: asked[user]["n"]] == past[-4:]
    asked = by_user(queries_of(splits, "valid"), splits.train)
    for user, n in LENGTHS.items():
        past = [f"i{(k + n) % 10}" for k in range({2: 2, 3: 2}.get(n, n - 2))]
        assert asked[user]["items"][: asked[user]["n"]] == past[-4:], user


def test_a_validation_row_stands_in_for_a_test_row(write_data, toy_config):
    """It and its item are all that comes before the test item: the query is the same without the test row."""
    splits = split(sequences(write_data, toy_config, extra=False))
    before = by_user(queries_of(splits, "test"), splits.train)
    both = torch.isin(splits.test.inter_feat["user_id"], splits.valid.inter_feat["user_id"])
    assert 0 < both.sum() < len(both)
    splits.test.inter_feat = splits.test.inter_feat[~both]
    after = by_user(queries_of(splits, "test"), splits.train)
    assert {user: row["items"] for user, row in after.items()} == {user: row["items"] for user, row in before.items()}


def test_an_appended_query_is_what_recbole_s_augmentation_makes(write_data, toy_config):
    """A user without a row to ask with gets the row that RecBole would make of one more interaction."""
    all_train = {"eval_args": {"split": {"RS": [1.0, 0.0, 0.0]}, "order": "TO", "group_by": "user", "mode": "full"}}
    splits = split(sequences(write_data, toy_config, extra=False, **all_train))
    assert not len(splits.valid.inter_feat) + len(splits.test.inter_feat)
    queries = queries_of(splits, "test")
    longer = split(sequences(write_data, toy_config, extra=True, **all_train)).train
    rows = longer.inter_feat
    last = rows[(rows["timestamp"] == 1000).nonzero().squeeze(1)]
    expected = by_user(last, longer)
    expected.pop("z", None)
    assert by_user(queries, splits.train) == expected
    assert set(queries.columns) == set(last.columns)


def test_fake_sequences_are_not_asked(write_data, toy_config):
    config = sequences(write_data, toy_config, extra=False)
    clean = queries_of(split(config), "test")
    attacked = queries_of(split(config, average(n_fake_users=2, n_fillers=4, n_targets=1)), "test")
    assert torch.equal(clean["user_id"], attacked["user_id"])
    assert torch.equal(clean["item_id_list"], attacked["item_id_list"])


def test_general_queries_have_the_user_features(family_config):
    splits = split(family_config("DCN"), average())
    queries = queries_of(splits, "test")
    assert torch.equal(queries["user_id"], torch.arange(1, 81))
    assert torch.equal(queries["age"], splits.train.user_feat["age"][1:81])


# --- accuracy beside it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_accuracy_of_the_pass_is_recbole_s_on_the_same_ranks(family_config, model):
    keys = {"topk": K, "repeatable": model == "SASRec", "metric_decimal_place": 9, "load_col": FEATURES}
    run = make_run(family_config(model, epochs=2, eval_step=0, **keys), average())
    run.fit(saved=False)
    theirs = run.test(load_best_model=False)
    train = run.splits.train
    the_pass = TargetPass(run.splits, ids(run.splits, "i3"), "test")
    if model == "SASRec":  # RecBole masks nothing there
        the_pass.seen = the_pass.seen * 0
        the_pass.seen.eliminate_zeros()
    found, ours = the_pass.run_with_accuracy(run.trainer, K, tail_items(train))
    for k in K:
        for name in ("recall", "ndcg", "hit", "tailhit", "itemcoverage"):
            assert ours[f"{name}@{k}"] == pytest.approx(theirs[f"{name}@{k}"], abs=1e-8), name
    assert torch.equal(found.ranks, the_pass.run(run.trainer).ranks)


def test_negative_labels_are_no_positives(family_config, score_table):
    splits = split(family_config("DCN"))
    the_pass = TargetPass(splits, ids(splits, "i3"), "test")
    rows = splits.test.inter_feat
    perfect = torch.zeros(81, 61)
    liked = rows["label"] > 0
    assert 0 < liked.sum() < len(rows)
    perfect[rows["user_id"][liked], rows["item_id"][liked]] = 1 + torch.arange(int(liked.sum())) / 1000
    _, metrics = the_pass.run_with_accuracy(score_table(perfect), [10, 40], tail_items(splits.train))
    assert metrics["recall@40"] == metrics["hit@10"] == metrics["ndcg@40"] == 1.0


def test_a_held_out_item_that_training_rows_have_is_no_positive(family_config, score_table):
    """It is masked, and nobody could find it."""
    splits = split(family_config("DCN"))
    the_pass = TargetPass(splits, ids(splits, "i3"), "test")
    rows = splits.test.inter_feat
    liked = (rows["label"] > 0).nonzero()[:, 0]
    user = rows["user_id"][liked[0]]
    rows["item_id"][liked[0]] = int(the_pass.seen[int(user)].indices[0])
    perfect = torch.zeros(81, 61)
    perfect[rows["user_id"][liked], rows["item_id"][liked]] = 1 + torch.arange(len(liked)) / 1000
    others = liked[rows["user_id"][liked] != user]
    _, metrics = the_pass.run_with_accuracy(score_table(perfect), [10, 40], tail_items(splits.train))
    assert metrics["recall@40"] == metrics["hit@10"] == 1.0 and len(others)


def test_the_tail_is_what_genuine_users_rate_least(family_config):
    clean, attacked = split(family_config("BPR")), split(family_config("BPR"), average(n_fake_users=40))
    tail = tail_items(clean.train)
    assert torch.equal(tail_items(attacked.train), tail), "fakes do not move an item out of the tail"
    assert int(tail.sum()) == 48
    assert not tail[0]
    counts = torch.bincount(clean.train.inter_feat["item_id"], minlength=61)
    assert counts[1:][tail[1:]].max() <= counts[1:][~tail[1:]].min()
    assert int(tail_items(clean.train, tail_share=0.5).sum()) == 30


def test_models_of_pairs_are_asked_in_chunks_that_fit(family_config, monkeypatch):
    run = make_run(family_config("DIN", epochs=0))
    assert run.trainer.scores_by_pairs
    assert not make_run(family_config("BPR", epochs=0)).trainer.scores_by_pairs
    the_pass = TargetPass(run.splits, ids(run.splits, "i3"), "test")
    whole = the_pass.run(run.trainer)
    width = sum(column[0].numel() for column in the_pass.queries.interaction.values())
    monkeypatch.setattr("recbole_robust.evaluation.target_pass.CHUNK_VALUES", 61 * 7 * width)
    sizes = [len(rows) for rows, _ in the_pass.chunks(run.trainer, torch.arange(80))]
    assert sizes == [7] * 11 + [3]
    assert torch.equal(the_pass.run(run.trainer).ranks, whole.ranks)
