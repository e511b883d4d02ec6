"""PurifyAug: the parts of PurifyAugMF around any general recommender, at the level of its nodes.

Reference:
    "Exploration & Exploitation: A Unified Framework for Data Purification & Augmentation in Recommendation Systems",
    2025, whose abstract calls the framework model-agnostic and whose equations are those of a matrix factorisation.
    Here what they do to a pair's embedding is done to the rows of the user and the item table.
"""

from __future__ import annotations

from typing import Any

import torch
from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from recbole_robust.arguments import chosen
from recbole_robust.model.denoiser import Denoiser, RunningMoments, denoising_loss
from recbole_robust.model.mutual_learning import softened_kl
from recbole_robust.model.score_opt import Noise, fresh_noise, options_of, score_opt
from recbole_robust.model.se_gate import SEGate
from recbole_robust.types import UserError


class NodePurifier(nn.Module):
    """What stands in a table's place: ``x_f = (x_p + x_aug) / 2`` of every row, ``x_p = x - S x`` and x_aug from it.

    x_aug is x_p moved by Algorithm 1, which runs once an epoch and not in every batch. Two moves are kept: with noise,
    for the training (:meth:`augment`), and without any, for predictions (:meth:`settle`), so that these do not depend
    on luck.

    Shape:
        - Input: the table ``(n, d)``
        - Output: x_f ``(n, d)``
    """

    move: Tensor
    still_move: Tensor

    def __init__(self, n_rows: int, dim: int, config: Any) -> None:
        super().__init__()
        heads = config["se_heads"]
        if heads and dim % heads:
            raise UserError(f"se_heads: expected a divisor of {dim}, got {heads}")
        options = config["se_reduction"], "head", float(config["se_bias_init"])
        self.gate = SEGate(dim, heads, *options) if heads else None
        self.moments = RunningMoments(dim, config["ema_momentum"])
        self.denoiser = Denoiser(dim, config["denoiser_hidden"])
        self.sigmas = config["sigma_min"], config["sigma_max"]
        self.noise, self.sigma = config["adv_eps"], float(config["purify_sigma"])
        self.score_opt = {**options_of(config), "gradient": chosen(config, "purify_grad", "exact", "skip")}
        self.register_buffer("move", torch.zeros(n_rows, dim))
        self.register_buffer("still_move", torch.zeros(n_rows, dim))

    def purify(self, x: Tensor) -> Tensor:
        """x_p (eq. 2 to 5). Shape: ``(n, d)`` -> ``(n, d)``."""
        return self.gate(x) if self.gate else x

    def forward(self, x: Tensor) -> Tensor:
        return self.purify(x) + (self.move if self.training else self.still_move) / 2

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """The moments of x_p, all rows: the units that the denoiser works in, through the warm-up too."""
        self.moments.update(self.purify(x))

    @torch.no_grad()
    def augment(self, x: Tensor) -> None:
        """x_a (eq. 6, the direction drawn at random: a table has no label) and Algorithm 1, for all rows."""
        x_p = self.purify(x)
        radius = self.noise * x_p.pow(2).sum(dim=1).mean().sqrt()
        x_a = x_p + radius * F.normalize(torch.randn_like(x_p), dim=1)
        self.move.copy_(self._optimised(x_a, fresh_noise(x_a, self.score_opt["steps"])) - x_p)

    @torch.no_grad()
    def settle(self, x: Tensor) -> None:
        """The move of predictions: eta = 0, and Algorithm 1 without noise."""
        x_p = self.purify(x)
        self.still_move.copy_(self._optimised(x_p, None) - x_p)

    def _optimised(self, x_a: Tensor, noise: Noise | None) -> Tensor:
        """x_M of Algorithm 1 in standardised space. Shape: ``(n, d)`` -> ``(n, d)``."""
        z, denoiser = self.moments.standardise(x_a), self.denoiser.at(self.sigma)
        return self.moments.restore(score_opt(denoiser, z, noise=noise, **self.score_opt))

    def losses(self, x: Tensor, rows: Tensor, kl_T: float) -> tuple[Tensor, Tensor]:
        """T^2 KL (eq. 11) and L_D (eq. 10) of some rows of the table. Shape: ``(n, d)``, ``(B,)`` -> ``(B,)`` each."""
        x_p, move = self.purify(x[rows]), self.move[rows]
        x_f, x_aug = x_p + move / 2, x_p + move
        kl = softened_kl(x_p, x_f, kl_T) + softened_kl(x_aug, x_f, kl_T)
        standard = self.moments.standardise(x_p.detach())
        return kl, denoising_loss(self.denoiser, standard, *self.sigmas)


def purify_aug(base: Any) -> type:
    """PurifyAug around a general recommender: a subclass whose user and item tables are purified.

    Its predictions are the base model's on the purified tables: a full ranking costs what the base model's does. The
    ratings are purified by group evidence (``group_weights``), as those of PurifyAugMF.

    Raises:
        UserError: on the model's construction, where it has no table of users or of items.
    """

    class PurifyAug(base):  # type: ignore[misc, valid-type]
        wraps_base_model = True
        base_class = base
        loss_terms = (*getattr(base, "loss_terms", ("base model's loss",)), "mutual KL", "denoising loss")

        def __init__(self, config: Any, dataset: Any) -> None:
            super().__init__(config, dataset)
            self.kl_T, self.kl_weight = config["kl_T"], config["kl_weight"]
            self.purify_warmup, self.purify_rows = config["purify_warmup"], config["purify_rows"]
            self.augments = config["purify_steps"] > 0
            wanted = {self.n_users, self.n_items}
            self.tables: dict[str, Any] = {
                name: layer
                for name, layer in self.named_modules()
                if isinstance(layer, nn.Embedding) and layer.num_embeddings in wanted
            }
            if {table.num_embeddings for table in self.tables.values()} != wanted:
                raise UserError(
                    f"base_model: expected a model with a table of users and one of items, got {base.__name__}"
                )
            for table in self.tables.values():
                purifier = NodePurifier(table.num_embeddings, table.embedding_dim, config)
                parametrize.register_parametrization(table, "weight", purifier)

        def on_epoch_start(self, epoch: int) -> None:
            hook = getattr(super(), "on_epoch_start", None)
            if hook is not None:
                hook(epoch)
            for x, purifier in self._parts() if self.augments else ():
                purifier.measure(x)
                if epoch >= self.purify_warmup:
                    purifier.augment(x)

        def on_epoch_end(self, epoch: int) -> None:
            hook = getattr(super(), "on_epoch_end", None)
            if hook is not None:
                hook(epoch)
            if self.augments and epoch >= self.purify_warmup:
                for x, purifier in self._parts():
                    purifier.settle(x)

        def tracked(self) -> dict[str, Tensor]:
            """S of all rows and how far Algorithm 1 moves them, table by table, for TensorBoard."""
            found = {}
            for name, (x, purifier) in zip(self.tables, self._parts(), strict=True):
                found[f"Move/{name}"] = purifier.move.norm(dim=1)
                if purifier.gate:
                    found[f"Gate/{name}"] = purifier.gate.share(x)
            return found

        def _parts(self) -> list[tuple[Tensor, NodePurifier]]:
            """Each table as it is, and what purifies it."""
            return [(t.parametrizations.weight.original, t.parametrizations.weight[0]) for t in self.tables.values()]

        def calculate_loss(self, interaction: Any) -> tuple[Tensor, ...]:
            """The base model's losses on the purified tables, T^2 KL (eq. 11) and the denoiser's L_D (eq. 10)."""
            with parametrize.cached():
                own = super().calculate_loss(interaction)
            own = own if isinstance(own, tuple) else (own,)
            if not self.augments:
                return own
            kl = loss_d = torch.zeros_like(own[0])
            for x, purifier in self._parts():
                rows = torch.randint(1, len(x), (self.purify_rows,), device=x.device)
                of_rows = purifier.losses(x, rows, self.kl_T)
                kl, loss_d = kl + of_rows[0].mean(), loss_d + of_rows[1].mean()
            return (*own, self.kl_weight * kl, loss_d)

        def predict(self, interaction: Any) -> Tensor:
            with parametrize.cached():
                return super().predict(interaction)

        if base.full_sort_predict is not AbstractRecommender.full_sort_predict:  # else the trainer predicts pairs

            def full_sort_predict(self, interaction: Any) -> Tensor:
                with parametrize.cached():
                    return super().full_sort_predict(interaction)

    PurifyAug.__qualname__ = "PurifyAug"
    return PurifyAug
