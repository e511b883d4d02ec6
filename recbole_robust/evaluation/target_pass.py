"""The target pass: the rank of every target item for every genuine user, in one sweep over the users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from recbole_robust.evaluation.metrics import NEVER, pessimistic_ranks, ranking_metrics
from recbole_robust.evaluation.queries import queries_of

CHUNK_PAIRS = 1 << 18  # user-item pairs that are scored at once: 1 MiB of scores stays in the cache


@dataclass(frozen=True)
class TargetRanks:
    """What the target pass found. Shape: every tensor is ``(n_users, n_targets)``, on the CPU.

    Attributes:
        ranks: rank of the target among the items that the user has not in a masked split; ``NEVER`` where masked.
        scores: the model's prediction for it (stars for explicit models), masked or not.
        eligible: whether the user has it in no split.
    """

    ranks: Tensor
    scores: Tensor
    eligible: Tensor


class TargetPass:
    """Ranks target items (and, on demand, the held-out items) for all genuine users.

    Args:
        splits: train, valid and test split of an ``AttackedDataset``.
        target_items: target ids, RecBole's. Shape: ``(n_targets,)``.
        phase: ``valid`` masks the training rows, ``test`` the training and validation rows.
    """

    def __init__(self, splits, target_items: Tensor, phase: str = "test") -> None:
        train, valid, test = splits
        self.n_items = train.item_num
        self.target_items = target_items
        self.queries = queries_of(splits, phase)
        self.users = self.queries[train.uid_field]
        n_genuine = train.user_num - train.n_fake_users
        self.seen = _genuine_matrix([train] if phase == "valid" else [train, valid], n_genuine)
        everywhere = _genuine_matrix([train, valid, test], n_genuine)
        columns = target_items.numpy()
        self.masked = torch.from_numpy(self.seen[self.users.numpy()][:, columns].toarray() > 0)
        self.eligible = torch.from_numpy(everywhere[self.users.numpy()][:, columns].toarray() == 0)
        self.held_out = valid if phase == "valid" else test

    def chunks(self, trainer, max_users: int = 1 << 20):
        """Yield the user rows and the scores of each chunk: ``(start, stop)`` and ``(B, n_items)``, nothing masked."""
        step = min(max_users, max(1, CHUNK_PAIRS // self.n_items))
        for start in range(0, len(self.users), step):
            stop = min(start + step, len(self.users))
            yield start, stop, trainer.full_sort_scores(self.queries[slice(start, stop)])

    def mask(self, scores: Tensor, start: int, stop: int) -> Tensor:
        """Set the scores of seen items and of the padding item to -inf, in place. Shape: ``(B, n_items)``."""
        part = self.seen[self.users[start:stop].numpy()]
        rows = np.repeat(np.arange(stop - start), np.diff(part.indptr))
        scores[
            torch.from_numpy(rows).to(scores.device), torch.from_numpy(part.indices).long().to(scores.device)
        ] = -torch.inf
        scores[:, 0] = -torch.inf
        return scores

    @torch.no_grad()
    def run(self, trainer) -> TargetRanks:
        """Rank the targets by the trainer's model as it is now."""
        trainer.model.eval()
        ranks = torch.empty(len(self.users), len(self.target_items), dtype=torch.int64)
        own = torch.empty(len(self.users), len(self.target_items))
        for start, stop, scores in self.chunks(trainer):
            own[start:stop] = scores[:, self.target_items.to(scores.device)].cpu()
            self._rank(ranks, scores, start, stop)
        return TargetRanks(ranks, own, self.eligible)

    def _rank(self, ranks: Tensor, scores: Tensor, start: int, stop: int) -> None:
        masked = self.mask(scores, start, stop)
        for t, item in enumerate(self.target_items.tolist()):
            ranks[start:stop, t] = pessimistic_ranks(masked, masked[:, item]).cpu()
        ranks[start:stop][self.masked[start:stop]] = NEVER

    @torch.no_grad()
    def run_with_accuracy(self, trainer, topk: list[int], is_tail: Tensor) -> tuple[TargetRanks, dict[str, float]]:
        """The target pass of a CTR model, whose own evaluation ranks nothing: the held-out positives are ranked too.

        Args:
            is_tail: whether an item is in the tail. Shape: ``(n_items,)``, bool.
        """
        trainer.model.eval()
        ranks = torch.empty(len(self.users), len(self.target_items), dtype=torch.int64)
        own = torch.empty(len(self.users), len(self.target_items))
        row_of_user = torch.full((int(self.users.max()) + 1,), -1)
        row_of_user[self.users] = torch.arange(len(self.users))
        rows, items = self._positives(row_of_user)
        found = torch.empty(len(rows), dtype=torch.int64)
        recommended = torch.zeros(max(topk), self.n_items, dtype=torch.bool)
        for start, stop, scores in self.chunks(trainer):
            own[start:stop] = scores[:, self.target_items.to(scores.device)].cpu()
            self._rank(ranks, scores, start, stop)
            here = ((rows >= start) & (rows < stop)).nonzero().squeeze(1)
            mine = scores[(rows[here] - start).to(scores.device)]
            found[here] = pessimistic_ranks(mine, mine.gather(1, items[here, None].to(mine.device)).squeeze(1)).cpu()
            top = scores.topk(max(topk), dim=1).indices.cpu()
            recommended[torch.arange(max(topk)).expand_as(top), top] = True
        metrics = ranking_metrics(found, rows, is_tail[items], topk)
        for k in topk:
            metrics[f"itemcoverage@{k}"] = int(recommended[:k].any(dim=0).sum()) / self.n_items
        return TargetRanks(ranks, own, self.eligible), metrics

    def _positives(self, row_of_user: Tensor) -> tuple[Tensor, Tensor]:
        """User rows and items of the held-out rows that count as positive (label 1 where there are labels)."""
        split = self.held_out
        rows, label = split.inter_feat, split.label_field
        keep = rows[label] > 0 if label in rows else torch.ones(len(rows), dtype=torch.bool)
        users, items = rows[split.uid_field][keep], rows[split.iid_field][keep]
        seen = torch.from_numpy(np.asarray(self.seen[np.array(users), np.array(items)]).ravel() > 0)
        asked = row_of_user[users] >= 0
        return row_of_user[users[asked & ~seen]], items[asked & ~seen]


def _genuine_matrix(splits, n_genuine: int) -> csr_matrix:
    """Which (user, item) pairs of genuine users are in the splits. Shape: ``(n_genuine, n_items)``, RecBole ids."""
    users, items = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for split in splits:
        if len(split.inter_feat):
            pairs = split.inter_matrix(form="coo")
            genuine = pairs.row < n_genuine
            users.append(pairs.row[genuine])
            items.append(pairs.col[genuine])
    row, col = np.concatenate(users), np.concatenate(items)
    matrix = csr_matrix((np.ones(len(row), np.int32), (row, col)), shape=(n_genuine, splits[0].item_num))
    matrix.sum_duplicates()
    return matrix
