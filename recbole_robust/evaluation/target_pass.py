"""The target pass: the rank of every target item for every genuine user, in one sweep over the users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from recbole_robust.evaluation.metrics import NEVER, pessimistic_ranks, ranking_metrics
from recbole_robust.evaluation.queries import queries_of

UNKNOWN = -1  # the rank of a user that has not been asked yet
CHUNK_PAIRS = 1 << 18  # user-item pairs that are ranked at once: 1 MiB of scores stays in the cache
CHUNK_USERS = 64  # users that are scored at once, at least: with many items a product with few rows is slow
CHUNK_VALUES = 1 << 24  # values of the queries of those pairs, where a model scores pairs one by one: 128 MiB


@dataclass(frozen=True)
class TargetRanks:
    """What the target pass found. Shape: every tensor is ``(n_users, n_targets)``, on the CPU.

    Attributes:
        ranks: rank of the target among the items that the user has not in a masked split; ``NEVER`` where masked.
        scores: the model's prediction for it (stars for explicit models), masked or not.
        eligible: whether the user has it in no split, in the phase ``valid`` but for the test split.
    """

    ranks: Tensor
    scores: Tensor
    eligible: Tensor


class TargetPass:
    """Ranks target items (and, on demand, the held-out items) for all genuine users.

    Args:
        splits: train, valid and test split of an ``AttackedDataset``.
        target_items: target ids, RecBole's; perhaps none, then nothing is scored. Shape: ``(n_targets,)``.
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
        # What selects sees no test row, not even to leave a user out.
        everywhere = _genuine_matrix([train, valid] if phase == "valid" else [train, valid, test], n_genuine)
        columns = target_items.numpy()
        self.masked = torch.from_numpy(self.seen[self.users.numpy()][:, columns].toarray() > 0)
        self.eligible = torch.from_numpy(everywhere[self.users.numpy()][:, columns].toarray() == 0)
        self.held_out = valid if phase == "valid" else test
        self.row_of_user = torch.full((n_genuine,), -1)
        self.row_of_user[self.users] = torch.arange(len(self.users))
        self.start()

    def start(self) -> None:
        """Forget the ranks of an earlier evaluation."""
        shape = (len(self.users), len(self.target_items))
        self.ranks = torch.full(shape, UNKNOWN)
        self.own = torch.zeros(shape)

    def take(self, users: Tensor, scores: Tensor) -> None:
        """Rank the targets of some users by scores that another pass has just computed.

        Shape: ``users`` ``(B,)``, ``scores`` ``(B, n_items)``, left as they are. Items masked for a reason of the
        other pass must be items that this pass masks too; their ``own`` score is lost.
        """
        self._rank(scores.clone(), self.row_of_user[users.cpu()])

    @torch.no_grad()
    def finish(self, trainer) -> TargetRanks:
        """Rank the targets for the users that are left, by the trainer's model as it is now."""
        trainer.model.eval()
        left = (self.ranks[:, :1] == UNKNOWN).nonzero()[:, 0]  # nobody, where there are no targets
        for rows, scores in self.chunks(trainer, left):
            self._rank(scores, rows)
        return TargetRanks(self.ranks, self.own, self.eligible)

    def run(self, trainer) -> TargetRanks:
        """Rank the targets for all users, by the trainer's model as it is now."""
        self.start()
        return self.finish(trainer)

    def chunks(self, trainer, rows: Tensor):
        """Yield some query rows and their scores: ``(B,)`` and ``(B, n_items)``, nothing masked."""
        n_users = max(CHUNK_USERS, CHUNK_PAIRS // self.n_items)
        if getattr(trainer, "scores_by_pairs", False):
            width = sum(column[:1].numel() for column in self.queries.interaction.values())
            n_users = max(1, min(CHUNK_PAIRS, CHUNK_VALUES // width) // self.n_items)
        for part in rows.split(n_users):
            if len(part):
                yield part, trainer.full_sort_scores(self.queries[part])

    def mask(self, scores: Tensor, users: Tensor) -> Tensor:
        """Set the scores of seen items and of the padding item to -inf, in place. Shape: ``(B, n_items)``."""
        part = self.seen[users.numpy()]
        rows = np.repeat(np.arange(len(users)), np.diff(part.indptr))
        scores[
            torch.from_numpy(rows).to(scores.device), torch.from_numpy(part.indices).long().to(scores.device)
        ] = -torch.inf
        scores[:, 0] = -torch.inf
        return scores

    def _rank(self, scores: Tensor, rows: Tensor) -> None:
        """Enter the ranks of some query rows; masks ``scores`` in place."""
        self.own[rows] = scores[:, self.target_items.to(scores.device)].float().cpu()
        masked = self.mask(scores, self.users[rows])
        n_users = max(1, CHUNK_PAIRS // self.n_items)
        for part, block in zip(rows.split(n_users), masked.split(n_users), strict=True):
            for t, item in enumerate(self.target_items.tolist()):
                self.ranks[part, t] = pessimistic_ranks(block, block[:, item]).cpu()
        self.ranks[rows] = torch.where(self.masked[rows], NEVER, self.ranks[rows])

    @torch.no_grad()
    def run_with_accuracy(self, trainer, topk: list[int], is_tail: Tensor) -> tuple[TargetRanks, dict[str, float]]:
        """The target pass of a CTR model, whose own evaluation ranks nothing: the held-out positives are ranked too.

        Args:
            is_tail: whether an item is in the tail. Shape: ``(n_items,)``, bool.
        """
        trainer.model.eval()
        self.start()
        rows, items = self._positives()
        found = torch.empty(len(rows), dtype=torch.int64)
        recommended = torch.zeros(max(topk), self.n_items, dtype=torch.bool)
        for part, scores in self.chunks(trainer, torch.arange(len(self.users))):
            self._rank(scores, part)
            here = torch.isin(rows, part).nonzero().squeeze(1)
            mine = scores[(rows[here] - part[0]).to(scores.device)]
            found[here] = pessimistic_ranks(mine, mine.gather(1, items[here, None].to(mine.device)).squeeze(1)).cpu()
            top = scores.topk(max(topk), dim=1).indices.cpu()
            recommended[torch.arange(max(topk)).expand_as(top), top] = True
        metrics = ranking_metrics(found, rows, is_tail[items], topk)
        for k in topk:
            metrics[f"itemcoverage@{k}"] = int(recommended[:k].any(dim=0).sum()) / self.n_items
        return TargetRanks(self.ranks, self.own, self.eligible), metrics

    def _positives(self) -> tuple[Tensor, Tensor]:
        """User rows and items of the held-out rows that count as positive (label 1 where there are labels)."""
        split = self.held_out
        rows, label = split.inter_feat, split.label_field
        keep = rows[label] > 0 if label in rows else torch.ones(len(rows), dtype=torch.bool)
        users, items = rows[split.uid_field][keep], rows[split.iid_field][keep]
        seen = torch.from_numpy(np.asarray(self.seen[np.array(users), np.array(items)]).ravel() > 0)
        asked = self.row_of_user[users] >= 0
        return self.row_of_user[users[asked & ~seen]], items[asked & ~seen]


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
