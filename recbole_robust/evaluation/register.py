"""Our metrics in RecBole's evaluator: ``metrics: [Recall, NDCG, TargetHR]`` and ``valid_metric: TargetHR@10``.

The registration is in place (RecBole's other modules hold references to the same dicts) and may run twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.evaluator import register
from recbole.evaluator.base_metric import AbstractMetric
from recbole.evaluator.collector import Collector, DataStruct
from recbole.utils import EvaluatorType
from torch import Tensor

from recbole_robust.evaluation.metrics import mean_over_targets, target_metrics
from recbole_robust.evaluation.target_pass import TargetPass, TargetRanks
from recbole_robust.types import UserError


class _TargetMetric(AbstractMetric):
    """A metric of the target pass; ``prefixes`` are the keys that it reports.

    ``smaller`` is the side of the platform, which trains the model: with ``valid_metric: TargetHR@10`` the epoch that
    exposes the targets least is the best one.
    """

    metric_type = EvaluatorType.RANKING
    metric_need = ("rec.target",)
    prefixes: tuple[str, ...] = ()

    def __init__(self, config) -> None:
        super().__init__(config)
        self.topk = config["topk"]
        self.denominator = config["target_hr_denominator"] or "eligible"

    def calculate_metric(self, dataobject) -> dict[str, float]:
        if "rec.target" not in dataobject:
            raise UserError(
                f"metric {type(self).__name__}: expected the target pass of recbole_robust's trainer "
                "(recbole_robust.quick_start, or evaluation.attach_targets(trainer, splits, targets)), got a trainer "
                "that does not rank target items"
            )
        found = dataobject.get("rec.target")
        means = mean_over_targets(
            target_metrics(found.ranks, found.scores, found.eligible, self.topk, self.denominator)
        )
        return {k: round(v, self.decimal_place) for k, v in means.items() if k.split("@")[0] in self.prefixes}


class TargetHR(_TargetMetric):
    """Share of genuine users with a target item among their first K, as a mean over the targets."""

    smaller = True
    prefixes = ("targethr", "targethr_all", "targethr_eligible")


class TargetNDCG(_TargetMetric):
    """Mean of ``1 / log2(rank + 1)`` of a target item among the first K."""

    smaller = True
    prefixes = ("targetndcg",)


class TargetRank(_TargetMetric):
    """Mean rank of the target items over the users that have them in no split; smaller is more exposed."""

    prefixes = ("targetrank",)


class TailHit(AbstractMetric):
    """Share of the users with a held-out tail item that get one among their first K.

    The tail is all items but the ``1 - tail_share`` (20 %) most rated of the genuine training rows: a popularity
    ranking scores 0 for every user who has K most rated items left to see.
    """

    metric_type = EvaluatorType.RANKING
    metric_need = ("rec.items", "rec.tail")

    def __init__(self, config) -> None:
        super().__init__(config)
        self.topk = config["topk"]

    def calculate_metric(self, dataobject) -> dict[str, float]:
        if "rec.tail" not in dataobject:
            raise UserError("metric TailHit: expected recbole_robust's collector, got a trainer that has RecBole's")
        found = dataobject.get("rec.tail")
        hits, count = found[:, :-1], found[:, -1]
        hits = hits[count > 0].cumsum(dim=1) > 0
        means = {f"tailhit@{k}": float(hits[:, k - 1].double().mean()) if len(hits) else np.nan for k in self.topk}
        return {key: round(value, self.decimal_place) for key, value in means.items()}


def register_metrics() -> None:
    """Make our metrics known to RecBole."""
    for metric in (TargetHR, TargetNDCG, TargetRank, TailHit):
        name = metric.__name__.lower()
        register.metrics_dict[name] = metric
        register.metric_information[name] = list(metric.metric_need)
        register.metric_types[name] = metric.metric_type
        if metric.smaller and name not in register.smaller_metrics:
            register.smaller_metrics.append(name)


def _n_fake(train) -> int:
    return getattr(train, "n_fake_users", 0)


def tail_items(train, tail_share: float = 0.8) -> Tensor:
    """All items but the most rated ``1 - tail_share``, by genuine training rows without noise.

    Shape: ``(n_items,)``, bool.

    The padding item is in neither part; among equally rated items the lower id counts as more popular.
    """
    counts = getattr(train, "counts_before_noise", None)
    if counts is None:
        pairs = train.inter_matrix(form="coo")
        genuine = pairs.row < train.user_num - _n_fake(train)
        counts = np.bincount(pairs.col[genuine], minlength=train.item_num)
    counts = counts[1:]
    n_head = round((1 - tail_share) * len(counts))
    is_tail = torch.ones(train.item_num, dtype=torch.bool)
    is_tail[1 + torch.from_numpy(np.argsort(-counts, kind="stable")[:n_head].copy())] = False
    is_tail[0] = False
    return is_tail


class _Batches(DataStruct):
    """RecBole's values, but those of an evaluation are kept by batch and joined once.

    RecBole joins at every batch, and so copies all rows before (evaluator/collector.py:49): at K = 1000 that was most
    of an evaluation.
    """

    def update_tensor(self, name: str, value: Tensor) -> None:
        self._data_dict.setdefault(name, []).append(value.detach().clone())

    def join(self) -> None:
        for name, batches in self._data_dict.items():
            if isinstance(batches, list):
                self._data_dict[name] = torch.cat(batches)


class RobustCollector(Collector):
    """RecBole's collector, plus what our metrics need; fake rows count in no popularity.

    Attributes:
        target_pass: ranks the targets in the evaluation at hand; None where nobody asks for them.
        shares_scores: whether that evaluation's own scores serve the target pass, so that nothing is scored twice.
        train: the training split before any defense; None: that of the loader it is handed.
    """

    target_pass: TargetPass | None = None
    shares_scores = False
    trainer = None
    train = None

    def __init__(self, config) -> None:
        super().__init__(config)
        self.data_struct = _Batches()

    def data_collect(self, train_data) -> None:
        """RecBole's, which fails on the loaders of knowledge-aware models, from the genuine rows of the split."""
        train = train_data._dataset if self.train is None else self.train
        n_fake = _n_fake(train)
        rows = slice(train.n_genuine_rows if n_fake else None)
        values = {
            "data.num_items": lambda: train.item_num,
            "data.num_users": lambda: train.user_num - n_fake,
            "data.count_items": lambda: Counter(train.inter_feat[train.iid_field][rows].numpy()),
            "data.count_users": lambda: Counter(train.inter_feat[train.uid_field][rows].numpy()),
        }
        for key, value in values.items():
            if self.register.need(key):
                self.data_struct.set(key, value())
        if self.register.need("rec.tail"):
            self.is_tail = tail_items(train, self.config["tail_share"] or 0.8).to(self.device)

    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i) -> None:
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        if self.target_pass is not None and self.shares_scores:
            self.target_pass.take(interaction[self.config["USER_ID_FIELD"]], scores_tensor)
        if self.register.need("rec.tail"):
            positive = torch.zeros_like(scores_tensor, dtype=torch.int)
            positive[positive_u, positive_i] = self.is_tail[positive_i].int().to(scores_tensor.device)
            top = self.data_struct["rec.items"][-1]  # of this batch, as RecBole has just ranked it
            found = torch.cat([positive.gather(1, top), positive.sum(dim=1, keepdim=True)], dim=1)
            self.data_struct.update_tensor("rec.tail", found)

    def get_data_struct(self) -> DataStruct:
        """RecBole's, with the batches of each value as one tensor."""
        self.data_struct.join()
        return super().get_data_struct()

    def model_collect(self, model) -> None:
        super().model_collect(model)
        if self.target_pass is not None and self.register.need("rec.target"):
            self.data_struct.set("rec.target", self.target_pass.finish(self.trainer))


def attach_targets(trainer, splits, target_items: Tensor) -> Callable[[], TargetRanks]:
    """Let a :class:`~recbole_robust.trainer.RobustTrainer` rank the targets in every evaluation that reports them.

    Args:
        splits: train, valid and test split of an ``AttackedDataset``.
        target_items: RecBole's ids of the targets. Shape: ``(n_targets,)``.

    Returns:
        A function that gives the ranks of the last evaluation of the test split (asking the model for what is left).

    Raises:
        UserError: the trainer is not one of ours.
    """
    if not hasattr(trainer, "before_evaluate"):
        raise UserError(f"attach_targets: expected a trainer of recbole_robust, got RecBole's {type(trainer).__name__}")
    if hasattr(trainer.model, "pinned_items"):  # a model that scores only some items exactly must score these so
        trainer.model.pinned_items = target_items
    collector = RobustCollector(trainer.config)
    collector.trainer, collector.train = trainer, splits[0]
    trainer.eval_collector = collector
    passes: dict[str, TargetPass] = {}

    def choose_pass(trainer, eval_data) -> None:
        phase = "test" if eval_data._dataset is splits[2] else "valid"
        collector.target_pass = None
        if phase == "test" or collector.register.need("rec.target"):
            if phase not in passes:
                passes[phase] = TargetPass(splits, target_items, phase)
            collector.target_pass = passes[phase]
            collector.target_pass.start()
            # RecBole's own full ranking masks what the target pass masks: its scores serve both.
            collector.shares_scores = isinstance(eval_data, FullSortEvalDataLoader) and not eval_data.is_sequential

    trainer.before_evaluate.append(choose_pass)

    def found_in_test() -> TargetRanks:
        if "test" not in passes:
            passes["test"] = TargetPass(splits, target_items, "test")
        return passes["test"].finish(trainer)

    return found_in_test
