"""PGA by an attacker who knows that ratings are weighed by group evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm as normal
from torch import Tensor

from recbole_robust.attacks.pga import PGA
from recbole_robust.attacks.profiles import require, require_choice, require_number
from recbole_robust.group_evidence import Evidence, kinds_of, limits_of
from recbole_robust.types import AttackerView


@dataclass(frozen=True)
class AdaptivePGA(PGA):
    """PGA through the purifier: the surrogate believes the fakes' target ratings as far as GroupWeights would.

    The weight ``1 / (1 + c_ut)`` of each fake's target rating is a function of the fillers, which is differentiated:
    fillers that make a fake longer and have little in common with the other fakes' win back trust. Of the genuine users
    only the limits theta and q are looked at, and a filler counts as a top rating by the probability that it is drawn
    as one. ``a_uvt`` is not cut off at 1, so that there is a slope however clear the evidence is.

    Reference: the project's own, to test GroupWeights and PurifyAugMF by an attacker who knows them; the ascent is that
    of B. Li et al. Data Poisoning Attacks on Factorization-Based Collaborative Filtering. NIPS 2016.

    Knowledge: white-box; all ratings, and the defense with its hyper-parameters.

    Args:
        n_steps: as in PGA, but more. (Default: 60)
        low, high, own_share, usual, evidence: those of the defense (:class:`recbole_robust.defenses.GroupWeights`).
    """

    n_steps: int = 60
    low: float = 0.3
    high: float = 1.0
    own_share: float = 0.5
    usual: float = 0.95
    evidence: Evidence = "idf"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("low", self.low, 0)
        require_number("high", self.high, 0)
        require(self.low < self.high, "low", f"a number below high, {self.high:g}", self.low)
        require_number("own_share", self.own_share, 0, 1)
        require_number("usual", self.usual, 0, 1)
        require_choice("evidence", self.evidence, Evidence)

    def trust(self, view: AttackerView, rated_targets: Tensor) -> Callable[[Tensor], Tensor] | None:
        """As GroupWeights, with c_ut over the other fakes. Shape: ``(n_fake_users, n_items)`` each."""
        if view.rating_min == view.rating_max:  # implicit data have no top ratings
            return None
        keys = {"low": self.low, "high": self.high, "own_share": self.own_share, "usual": self.usual}
        found = {e: limits_of(view.ratings, view.rating_max, evidence=e, **keys) for e in kinds_of(self.evidence)}
        told = {kind: limits for kind, limits in found.items() if limits.theta > 0}
        if not told:
            return None
        dtype, n_users = rated_targets.dtype, view.n_users + len(rated_targets)
        is_top = torch.from_numpy(top_probability(view)).to(dtype)
        genuine, beside_fakes = torch.from_numpy(view.item_counts).to(dtype), rated_targets.sum(dim=0)
        targets = beside_fakes.nonzero().squeeze(1)
        pushed = rated_targets[:, targets].T  # (T, F)
        n_top = torch.from_numpy(
            np.bincount(view.ratings.indices[view.ratings.data >= view.rating_max], minlength=view.n_items)
        ).to(dtype)
        others = n_top[targets] + pushed.sum(dim=1) - 1
        pairs = pushed[:, :, None] * pushed[:, None, :] * (1 - torch.eye(len(rated_targets), dtype=dtype))  # (T, F, F)

        def rarity_shared(top: Tensor, share: Tensor) -> Tensor:
            """The evidence ``idf`` of each pair of fakes for each target. Shape: ``(T, F, F)``."""
            rarity = torch.where(share > 0, -share.clamp(1e-12, 1.0).log(), 0.0) ** 3
            norm = (top @ (rarity * share)).clamp_min(1e-6).rsqrt()
            norms = norm[:, None] * norm
            return (top * rarity) @ top.T * norms - (1 - self.own_share) * rarity[targets][:, None, None] * norms

        def surprise(top: Tensor, _: Tensor) -> Tensor:
            """The evidence ``surprise``, the same for every target. Shape: ``(1, F, F)``."""
            counts = n_top + top.detach().sum(dim=0)
            root = (top.sum(dim=1) * (top @ counts) / counts.sum()).clamp_min(1e-6).sqrt()
            shared, by_chance = top @ top.T - (1 - self.own_share), root[:, None] * root
            shared = torch.maximum(shared, by_chance)  # 0 there
            return (shared * (shared / by_chance).log() - shared + by_chance)[None]

        def weights(fillers: Tensor) -> Tensor:
            top = rated_targets + fillers * is_top
            share = (genuine + beside_fakes + fillers.detach().sum(dim=0)) / n_users
            count = torch.zeros_like(pushed)
            for kind, limits in told.items():
                evidence = {"idf": rarity_shared, "surprise": surprise}[kind](top, share)
                alike = ((evidence / limits.theta - self.low) / (self.high - self.low)).clamp_min(0.0)
                count = torch.maximum(count, (alike * pairs).sum(dim=2) - limits.usual * others[:, None])
            return torch.ones_like(top).index_copy(1, targets, (1 / (1 + count)).T)

        return weights


def top_probability(view: AttackerView) -> np.ndarray:
    """How likely a rating N(item mean, item sd) is rounded to the highest one. Shape: ``(n_items,)``."""
    least = view.rating_max - view.rating_step / 2
    return np.where(
        view.item_stds > 0,
        normal.sf(least, view.item_means, np.maximum(view.item_stds, 1e-9)),
        view.item_means >= least,
    ).astype(np.float64)
