"""PurifyAugMF: matrix factorisation with a purification gate, diffusion augmentation and mutual learning.

Reference:
    "Exploration & Exploitation: A Unified Framework for Data Purification & Augmentation in Recommendation Systems",
    2025. The paper leaves much open: properties/model/PurifyAugMF.yaml states the reading of every equation.
"""

from __future__ import annotations

import torch
from recbole.model.init import xavier_normal_initialization
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_robust.model.denoiser import Denoiser, RunningMoments, denoising_loss
from recbole_robust.model.explicit import ExplicitRecommender, rows_l2, weighted_mean
from recbole_robust.model.score_opt import (
    GRADIENTS,
    OBJECTIVES,
    OPTIMISERS,
    fresh_noise,
    kl_ratio_sigma,
    score_opt,
    shared_noise,
)
from recbole_robust.model.se_gate import SEGate
from recbole_robust.types import UserError

PAIR_OPS = {
    "hadamard": torch.mul,  # sum(x) is then the prediction of eq. (1)
    "sum": torch.add,
    "concat": lambda u, v: torch.cat((u, v), dim=-1),
}


class PurifyAugMF(ExplicitRecommender):
    """``x = u * v -> x_p = x - S x -> x_a = x_p + eta -> x_aug by Algorithm 1 -> x_f = fuse(x_p, x_aug) -> rating``.

    Its loss is ``L_fused + T^2 (KL(x_p || x_f) + KL(x_aug || x_f))`` (eq. 11), beside the denoiser's own, which sees
    x_p as a constant. The first ``purify_warmup`` epochs train with x_aug = x_p and without mutual learning. With no
    gate, M = 0, no noise and ``fuse: mean`` it is MF.

    Predictions are deterministic: there is no label, so eta = 0 and x_a = x_p. An evaluator that needs certain items
    exact under ``infer_mode: rerank`` puts their ids into ``pinned_items``.

    Shape:
        user_embedding.weight ``(n_users, d)``, item_embedding.weight ``(n_items, d)``; x and its kin ``(B, dim)``, where
        dim is d (2 d for ``pair_op: concat``).

    Errors:
        UserError: a value of a key that is none of its choices, heads that do not divide dim.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self._read(config)
        d, dim = self.embedding_size, self.embedding_size * (2 if self.pair_op == "concat" else 1)
        if self.loss_type != "MSE":
            raise UserError(f"loss_type: PurifyAugMF learns ratings (MSE), got {self.loss_type!r}")
        if self.se_heads and dim % self.se_heads:
            raise UserError(f"se_heads: expected a divisor of {dim}, got {self.se_heads}")
        self.user_embedding = nn.Embedding(self.n_users, d)
        self.item_embedding = nn.Embedding(self.n_items, d)
        self.apply(xavier_normal_initialization)  # before the networks are built: the tables are MF's of the same seed
        if self.se_heads:
            gate = (config["se_reduction"], self.se_excite, float(config["se_bias_init"]))
            self.gate = SEGate(dim, self.se_heads, *gate)
        self.moments = RunningMoments(dim, config["ema_momentum"])
        self.denoiser = Denoiser(dim, config["denoiser_hidden"])
        if self.fuse_type == "mlp":
            self.fuse_mlp = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
            if self.fuse_residual:  # starts as the mean of x_p and x_aug
                nn.init.zeros_(self.fuse_mlp[2].weight)
                nn.init.zeros_(self.fuse_mlp[2].bias)
        if self.head_type == "linear":  # starts as the sum
            self.head = nn.Linear(dim, 1)
            nn.init.ones_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        # Both decide what a checkpoint predicts, so both are in it. Without the trainer's hook there is no warm-up.
        self.register_buffer("purifying", torch.tensor(True))
        self.register_buffer("sigma", torch.tensor(float(config["purify_sigma"])))
        self.denoising, self.sigma_is_due, self.batch = True, self.t_star == "kl_ratio", 0
        self.pinned_items: Tensor | None = None

    def _read(self, config) -> None:
        def choice(key: str, *options: str) -> str:
            value = "off" if config[key] is False else config[key]  # YAML reads a bare off as false
            if value not in options:
                raise UserError(f"{key}: expected one of {', '.join(options)}, got {value!r}")
            return value

        self.embedding_size, self.reg_weight = config["embedding_size"], config["reg_weight"]
        self.pair_op, self.head_type = choice("pair_op", *PAIR_OPS), choice("head", "linear", "sum")
        self.se_heads, self.se_excite = config["se_heads"], choice("se_excite", "head", "dim")
        self.adv, self.adv_eps = choice("adv", "fgm", "fgsm", "gauss", "none"), config["adv_eps"]
        self.sigma_min, self.sigma_max = config["sigma_min"], config["sigma_max"]
        self.algorithm1 = {
            "steps": config["purify_steps"],
            "lr": config["purify_lr"],
            "objective": choice("purify_obj", *OBJECTIVES),
            "weight": config["purify_lambda"],
            "optimiser": choice("purify_opt", *OPTIMISERS),
        }
        self.gradient = choice("purify_grad", *GRADIENTS)
        self.eval_gradient = choice("eval_purify_grad", *GRADIENTS)
        self.backprop = choice("purify_backprop", "straight_through", "detach", "unroll")
        self.t_star, self.kl_ratio = choice("t_star", "fixed", "kl_ratio"), config["kl_ratio"]
        self.denoiser_warmup, self.purify_warmup = config["denoiser_warmup"], config["purify_warmup"]
        self.purify_every = config["purify_every"]
        self.fuse_type, self.fuse_residual = choice("fuse", "mlp", "mean"), config["fuse_residual"]
        self.kl_mode, self.kl_T = choice("kl_mode", "softmax", "mse", "off"), config["kl_T"]
        self.kl_weight = config["kl_weight"]
        self.eval_noise = choice("eval_noise", "zero", "shared")
        self.infer_mode = choice("infer_mode", "exact", "rerank", "se")
        self.rerank_topk = config["rerank_topk"]
        # On a CPU the activations of a chunk should fit the cache (twice as fast), on a GPU they should fill it.
        self.pair_chunk = config["pair_chunk"] or (2**18 if torch.device(self.device).type == "cuda" else 2**11)
        if self.infer_mode != "exact" and (self.pair_op, self.se_excite) != ("hadamard", "head"):
            raise UserError(f"infer_mode: {self.infer_mode} needs pair_op hadamard and se_excite head")
        if self.backprop == "unroll" and self.algorithm1["optimiser"] == "adam":
            raise UserError("purify_backprop: unroll needs purify_opt sgd")

    def on_epoch_start(self, epoch: int) -> None:
        """The schedule. ``epoch`` counts from 0."""
        self.denoising = epoch >= self.denoiser_warmup
        self.purifying.fill_(epoch >= self.purify_warmup)
        self.sigma_is_due = self.t_star == "kl_ratio" and epoch >= self.purify_warmup

    def pair(self, u: Tensor, v: Tensor) -> Tensor:
        return PAIR_OPS[self.pair_op](u, v)

    def purify(self, x: Tensor) -> Tensor:
        """``x_p = x - S x`` (eq. 2 to 5)."""
        return x - self.gate(x) * x if self.se_heads else x

    def attack(self, x_p: Tensor, target: Tensor) -> Tensor:
        """``x_a = x_p + eta`` (eq. 6), |eta| = adv_eps times the rms norm of x_p; eta is a constant.

        The gradient goes through fuse and head: of the bare sum it would be the same vector for every pair.
        """
        if self.adv == "none":
            return x_p
        constant = x_p.detach()
        if self.adv == "gauss":
            direction = torch.randn_like(constant)
        else:
            with torch.enable_grad():
                probe = constant.clone().requires_grad_()
                loss = (self.score(self.fuse(probe, probe)) - target).pow(2).sum()
                (direction,) = torch.autograd.grad(loss, probe)
            direction = direction.sign() if self.adv == "fgsm" else direction
        radius = self.adv_eps * constant.pow(2).sum(dim=1).mean().sqrt()
        return x_p + radius * F.normalize(direction, dim=1)

    def augment(self, x_p: Tensor, x_a: Tensor) -> Tensor:
        """x_aug: M steps of Algorithm 1 in standardised space, and how its gradient goes back to x_p."""
        noise = fresh_noise if self.training else shared_noise if self.eval_noise == "shared" else None
        with torch.set_grad_enabled(self.backprop == "unroll" and torch.is_grad_enabled()):
            x_m = score_opt(
                self.denoiser.at(float(self.sigma)),
                self.moments.standardise(x_a),
                gradient=self.gradient if self.training else self.eval_gradient,
                noise=noise and noise(x_a, self.algorithm1["steps"]),
                **self.algorithm1,
            )
            x_m = self.moments.restore(x_m)
        return x_p + (x_m - x_p).detach() if self.backprop == "straight_through" else x_m

    def fuse(self, x_p: Tensor, x_aug: Tensor) -> Tensor:
        """x_f, from both views of the pair."""
        if self.fuse_type == "mean":
            return (x_p + x_aug) / 2
        x_f = self.fuse_mlp(torch.cat((x_p, x_aug), dim=-1))
        return x_f + (x_p + x_aug) / 2 if self.fuse_residual else x_f

    def score(self, x_f: Tensor) -> Tensor:
        """f_down: the predicted rating on the model's scale. Shape: ``(..., dim)`` -> ``(...)``."""
        return self.head(x_f).squeeze(-1) if self.head_type == "linear" else x_f.sum(dim=-1)

    def mutual_loss(self, x_p: Tensor, x_aug: Tensor, x_f: Tensor) -> Tensor:
        """``kl_weight T^2 (KL(x_p || x_f) + KL(x_aug || x_f))`` a row; both sides learn. Shape: ``(B,)``."""
        if self.kl_mode == "off":
            return x_f.new_zeros(len(x_f))
        divergence = limit_kl if self.kl_mode == "mse" else softened_kl
        return self.kl_weight * (divergence(x_p, x_f, self.kl_T) + divergence(x_aug, x_f, self.kl_T))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self._score_pairs(self.user_embedding(user), self.item_embedding(item))

    def calculate_loss(self, interaction) -> tuple[Tensor, Tensor, Tensor]:
        """L_fused, T^2 KL (eq. 11) and the denoiser's loss L_D (eq. 10)."""
        u, v = self.user_embedding(interaction[self.USER_ID]), self.item_embedding(interaction[self.ITEM_ID])
        target = self.rating_target(interaction)
        with torch.autocast(u.device.type, enabled=False):  # gradients of gradients underflow in half precision
            x_p = self.purify(self.pair(u, v))
            self.moments.update(x_p.detach())
            kl = loss_d = u.new_zeros(len(u))
            if self.denoising:
                standard = self.moments.standardise(x_p.detach())
                loss_d = denoising_loss(self.denoiser, standard, self.sigma_min, self.sigma_max)
            x_aug = x_p
            if self.purifying:
                if self.batch % self.purify_every == 0:
                    x_a = self.attack(x_p, target)
                    self._choose_sigma(x_p.detach(), x_a.detach())
                    x_aug = self.augment(x_p, x_a)
                self.batch += 1
            x_f = self.fuse(x_p, x_aug)
            if self.purifying:
                kl = self.mutual_loss(x_p, x_aug, x_f)
            fused = weighted_mean((self.score(x_f) - target).pow(2), interaction)
            if self.reg_weight:
                fused = fused + self.reg_weight * rows_l2(u, v)
        return fused, weighted_mean(kl, interaction), weighted_mean(loss_d, interaction)

    def _choose_sigma(self, x_p: Tensor, x_a: Tensor) -> None:
        """The t* rule (eq. 8), once an epoch, on the first batch that has an attacked view."""
        if self.sigma_is_due:
            clean, attacked = self.moments.standardise(x_p), self.moments.standardise(x_a)
            self.sigma.fill_(kl_ratio_sigma(clean, attacked, self.kl_ratio, self.sigma_min, self.sigma_max))
            self.sigma_is_due = False

    def _score_pairs(self, u: Tensor, v: Tensor) -> Tensor:
        """The whole path without labels. Shape: ``(P, d)``, ``(P, d)`` -> ``(P,)``."""
        with torch.autocast(u.device.type, enabled=False):
            x_p = self.purify(self.pair(u, v))
            return self.score(self.fuse(x_p, self.augment(x_p, x_p) if self.purifying else x_p))

    def _score_candidates(self, user: Tensor, items: Tensor) -> Tensor:
        """The whole path, pair_chunk pairs at a time. Shape: ``(B,)`` and ``(B, C)`` or ``(C,)`` -> ``(B, C)``."""
        user, items = torch.broadcast_tensors(user.unsqueeze(1), items)
        chunks = zip(user.reshape(-1).split(self.pair_chunk), items.reshape(-1).split(self.pair_chunk), strict=True)
        return torch.cat([self.forward(*chunk) for chunk in chunks]).view(items.shape)

    def _score_gate(self, user: Tensor) -> Tensor:
        """head(x_p) of all items, x never made: z and the head are products of heads. Shape: ``(B,)`` -> ``(B, I)``."""
        u, v = self.user_embedding(user), self.item_embedding.weight
        weight = self.head.weight[0] if self.head_type == "linear" else torch.ones_like(u[0])
        bias = self.head.bias if self.head_type == "linear" else 0.0
        if not self.se_heads:
            return (weight * u) @ v.T + bias
        heads = (self.se_heads, self.gate.width)
        u, v, weight = u.unflatten(-1, heads), v.unflatten(-1, heads), weight.unflatten(-1, heads)
        keep = 1 - self.gate.excite(torch.einsum("bhk,ihk->bih", u, v) / self.gate.width)
        return (keep * torch.einsum("bhk,ihk->bih", weight * u, v)).sum(dim=-1) + bias

    def _rerank(self, user: Tensor) -> Tensor:
        """The whole path for each user's best ``rerank_topk`` items by the gate and all pinned ones; others below."""
        first = self._score_gate(user)
        items = first.topk(min(self.rerank_topk, self.n_items), dim=1).indices
        if self.pinned_items is not None:
            pinned = torch.as_tensor(self.pinned_items, device=items.device).expand(len(user), -1)
            items = torch.cat((items, pinned), dim=1)
        exact = self._score_candidates(user, items)
        ceiling = exact.min(dim=1, keepdim=True).values - 1.0
        return (first - first.max(dim=1, keepdim=True).values + ceiling).scatter(1, items, exact)

    def predict(self, interaction) -> Tensor:
        return self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID]) * self.rating_scale

    def full_sort_predict(self, interaction) -> Tensor:
        """Stars of all items; under ``rerank``, of the reranked ones. Shape: ``(B * n_items,)``."""
        user = interaction[self.USER_ID]
        if self.infer_mode == "se":
            scores = self._score_gate(user)
        elif self.infer_mode == "rerank":
            scores = self._rerank(user)
        else:
            scores = self._score_candidates(user, torch.arange(self.n_items, device=user.device))
        return (scores * self.rating_scale).view(-1)


def softened_kl(p: Tensor, f: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(p / T) || softmax(f / T))`` a row: T^2 makes up for the gradient's 1 / T^2 (distillation)."""
    p, f = F.log_softmax(p / temperature, dim=-1), F.log_softmax(f / temperature, dim=-1)
    return temperature**2 * (p.exp() * (p - f)).sum(dim=-1)


def limit_kl(p: Tensor, f: Tensor, temperature: float | None = None) -> Tensor:
    """The limit of :func:`softened_kl` as T grows: half the variance of ``p - f`` over the dimensions, a row."""
    return 0.5 * (p - f).var(dim=-1, unbiased=False)
