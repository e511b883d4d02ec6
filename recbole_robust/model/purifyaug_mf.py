"""PurifyAugMF: matrix factorisation with a purification gate, diffusion augmentation and mutual learning.

Reference:
    "Exploration & Exploitation: A Unified Framework for Data Purification & Augmentation in Recommendation Systems",
    2025. The paper leaves much open: properties/model/PurifyAugMF.yaml states how each equation is read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from recbole.model.init import xavier_normal_initialization
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_robust.arguments import chosen
from recbole_robust.model import score_opt as algorithm1
from recbole_robust.model.ddpm import ddpm, fixed_draws, fresh_draws
from recbole_robust.model.denoiser import Denoiser, RunningMoments, denoising_loss
from recbole_robust.model.explicit import ExplicitRecommender, rows_l2
from recbole_robust.model.mutual_learning import limit_kl, softened_kl
from recbole_robust.model.se_gate import SEGate
from recbole_robust.types import UserError

PAIR_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hadamard": torch.mul,
    "sum": torch.add,
    "concat": lambda u, v: torch.cat((u, v), dim=-1),
}


class PurifyAugMF(ExplicitRecommender):
    """``x = u * v -> x_p = x - S x -> x_a = x_p + eta -> x_aug by Algorithm 1 -> x_f = fuse(x_p, x_aug) -> rating``.

    Its loss is ``L_fused + T^2 (KL(x_p || x_f) + KL(x_aug || x_f))`` (eq. 11), beside the denoiser's own, which sees
    x_p as a constant. The first ``purify_warmup`` epochs train with x_aug = x_p and without mutual learning. With no
    gate, no noise, M = 0 and ``fuse: mean`` it is MF.

    Predictions are deterministic: there is no label, so eta = 0 and x_a = x_p. An evaluator that wants certain items
    exact under ``infer_mode: rerank`` (of the configuration: it has to know who rated what) puts their ids into
    ``pinned_items``.

    Shape:
        user_embedding.weight ``(n_users, d)``, item_embedding.weight ``(n_items, d)``; x and its kin ``(B, dim)`` with
        dim = d (2 d for ``pair_op: concat``).

    Errors:
        UserError: a value of a key that is none of its choices, heads that do not divide dim, choices at odds.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self._read(config)
        d, dim = config["embedding_size"], config["embedding_size"] * (2 if self.pair_op == "concat" else 1)
        if config["se_heads"] and dim % config["se_heads"]:
            raise UserError(f"se_heads: expected a divisor of {dim}, got {config['se_heads']}")
        self.user_embedding = nn.Embedding(self.n_users, d)
        self.item_embedding = nn.Embedding(self.n_items, d)
        self.apply(xavier_normal_initialization)  # before the networks are built: the tables are MF's of the same seed
        gate_options = config["se_reduction"], self.se_excite, float(config["se_bias_init"])
        self.gate = SEGate(dim, config["se_heads"], *gate_options) if config["se_heads"] else None
        self.moments = RunningMoments(dim, config["ema_momentum"])
        self.denoiser = Denoiser(dim, config["denoiser_hidden"])
        if self.fuse_type == "mlp":
            output = nn.Linear(dim, dim)
            if self.fuse_residual:  # starts as the mean of x_p and x_aug
                nn.init.zeros_(output.weight)
                nn.init.zeros_(output.bias)
            self.fuse_mlp = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), output)
        if self.head_type == "linear":  # starts as the sum
            self.head = nn.Linear(dim, 1)
            nn.init.ones_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        # Both decide what a checkpoint predicts, so both are in it. Without the trainer's hook there is no warm-up.
        self.register_buffer("purifying", torch.tensor(True))
        self.register_buffer("sigma", torch.tensor(float(config["purify_sigma"])))
        self.denoising, self.sigma_is_due, self.batch = True, self.t_star == "kl_ratio", 0
        self.pinned_items: Tensor | None = None
        if self.infer_mode == "rerank":
            self._remember_rated(dataset.inter_feat)
        self.other_parameter_name = ["batch"]  # goes to checkpoints: a resumed training purifies the same batches
        self.last_pairs: tuple[Tensor, Tensor] | None = None

    def _read(self, config) -> None:
        choice = partial(chosen, config)
        choice("loss_type", "MSE")
        self.pair_op, self.head_type = choice("pair_op", *PAIR_OPS), choice("head", "linear", "sum")
        self.se_excite, self.adv = choice("se_excite", "head", "dim"), choice("adv", "fgm", "fgsm", "gauss", "none")
        self.purifier, self.score_opt = choice("purifier", "score_opt", "ddpm"), algorithm1.options_of(config)
        self.purify_grad = choice("purify_grad", "exact", "skip")
        self.eval_purify_grad = choice("eval_purify_grad", "exact", "skip")
        self.backprop = choice("purify_backprop", "straight_through", "detach", "unroll")
        self.t_star, self.eval_noise = choice("t_star", "fixed", "kl_ratio"), choice("eval_noise", "zero", "shared")
        self.fuse_type, self.kl_mode = choice("fuse", "mlp", "mean"), choice("kl_mode", "softmax", "mse", "off")
        self.fuse_residual, self.kl_T, self.kl_weight = config["fuse_residual"], config["kl_T"], config["kl_weight"]
        self.infer_mode = choice("infer_mode", "exact", "rerank", "se")
        self.reg_weight, self.adv_eps = config["reg_weight"], config["adv_eps"]
        self.sigma_min, self.sigma_max, self.kl_ratio = config["sigma_min"], config["sigma_max"], config["kl_ratio"]
        self.denoiser_warmup, self.purify_warmup = config["denoiser_warmup"], config["purify_warmup"]
        self.purify_every, self.rerank_topk = config["purify_every"], config["rerank_topk"]
        # On a CPU the activations of a chunk should stay in the cache (twice as fast), on a GPU they should fill it.
        self.pair_chunk = config["pair_chunk"] or (2**18 if torch.device(self.device).type == "cuda" else 2**11)
        if self.infer_mode != "exact" and (self.pair_op, self.se_excite) != ("hadamard", "head"):
            raise UserError(f"infer_mode: {self.infer_mode} needs pair_op hadamard and se_excite head")
        if (self.backprop, self.purifier, self.score_opt["optimiser"]) == ("unroll", "score_opt", "adam"):
            raise UserError("purify_backprop: unroll needs purify_opt sgd")

    def on_epoch_start(self, epoch: int) -> None:
        """The schedule. ``epoch`` counts from 0."""
        self.denoising = epoch >= self.denoiser_warmup
        self.purifying.fill_(epoch >= self.purify_warmup)
        self.sigma_is_due = self.t_star == "kl_ratio" and epoch >= self.purify_warmup

    def purify(self, user: Tensor, item: Tensor) -> Tensor:
        """``x_p = x - S x`` (eq. 2 to 5), x the product of both embeddings. Shape: ``(B,)`` each -> ``(B, dim)``."""
        x = PAIR_OPS[self.pair_op](self.user_embedding(user), self.item_embedding(item))
        return self.gate(x) if self.gate else x

    def tracked(self) -> dict[str, Tensor]:
        """S of the pairs of the last batch, for TensorBoard."""
        if not self.gate or self.last_pairs is None:
            return {}
        user, item = self.last_pairs
        return {"Gate/S": self.gate.share(PAIR_OPS[self.pair_op](self.user_embedding(user), self.item_embedding(item)))}

    def attack(self, x_p: Tensor, target: Tensor) -> Tensor:
        """``x_a = x_p + eta`` (eq. 6), |eta| = adv_eps times the rms norm of x_p; eta is a constant.

        The gradient goes through fuse and head. Where these are a mean and a sum (the default) it is ``2 (y - r) 1``:
        every eta is one direction, up or down, by the sign of the error; the fuse MLP has one for each pair.
        """
        if self.adv == "none":
            return x_p
        with torch.enable_grad():
            probe = x_p.detach().requires_grad_()
            if self.adv == "gauss":
                direction = torch.randn_like(probe)
            else:
                error = self.score(self.fuse(probe, probe)) - target
                (direction,) = torch.autograd.grad(error.pow(2).sum(), probe)
        direction = direction.sign() if self.adv == "fgsm" else direction
        radius = self.adv_eps * x_p.detach().pow(2).sum(dim=1).mean().sqrt()
        return x_p + radius * F.normalize(direction, dim=1)

    def augment(self, x_a: Tensor, x_p: Tensor) -> Tensor:
        """x_aug: M steps of Algorithm 1, or of the chain of eq. (7), in standardised space; its gradient to x_p."""
        if not self.score_opt["steps"]:
            return self._back_to(x_p, x_a)
        steps, sigma = self.score_opt["steps"], float(self.sigma)
        silent = not self.training and self.eval_noise == "zero"
        with torch.set_grad_enabled(self.backprop == "unroll" and torch.is_grad_enabled()):
            z = self.moments.standardise(x_a)
            if self.purifier == "ddpm":
                draw = fresh_draws if self.training else fixed_draws
                draws = None if silent else draw(z, steps)
                x_m = ddpm(self.denoiser.at, z, sigma=sigma, sigma_min=self.sigma_min, steps=steps, noise=draws)
            else:
                noise = algorithm1.fresh_noise if self.training else algorithm1.shared_noise
                drawn = None if silent else noise(z, steps)
                gradient = self.purify_grad if self.training else self.eval_purify_grad
                x_m = algorithm1.score_opt(self.denoiser.at(sigma), z, gradient=gradient, noise=drawn, **self.score_opt)
            x_m = self.moments.restore(x_m)
        return self._back_to(x_p, x_m)

    def _back_to(self, x_p: Tensor, x_m: Tensor) -> Tensor:
        """x_aug, with the gradient to x_p that purify_backprop says."""
        if self.backprop == "straight_through":
            return x_p + (x_m - x_p).detach()
        return x_m if self.backprop == "unroll" else x_m.detach()

    def fuse(self, x_p: Tensor, x_aug: Tensor) -> Tensor:
        """x_f, from both views of a pair."""
        mean = x_p if x_aug is x_p else (x_p + x_aug) / 2
        if self.fuse_type == "mean":
            return mean
        x_f = self.fuse_mlp(torch.cat((x_p, x_aug), dim=-1))
        return x_f + mean if self.fuse_residual else x_f

    def score(self, x_f: Tensor) -> Tensor:
        """f_down: the rating on the model's scale. Shape: ``(B, dim)`` -> ``(B,)``."""
        return self.head(x_f).squeeze(-1) if self.head_type == "linear" else x_f.sum(dim=-1)

    def mutual_loss(self, x_p: Tensor, x_aug: Tensor, x_f: Tensor) -> Tensor:
        """``T^2 (KL(x_p || x_f) + KL(x_aug || x_f))`` times kl_weight; both sides learn. Shape: ``(B,)``."""
        divergence = limit_kl if self.kl_mode == "mse" else softened_kl
        return self.kl_weight * (divergence(x_p, x_f, self.kl_T) + divergence(x_aug, x_f, self.kl_T))

    loss_terms = ("squared error", "mutual KL", "denoising loss")

    def calculate_loss(self, interaction) -> tuple[Tensor, Tensor, Tensor]:
        """L_fused, T^2 KL (eq. 11) and the denoiser's L_D (eq. 10)."""
        user, item, target = interaction[self.USER_ID], interaction[self.ITEM_ID], self.rating_target(interaction)
        self.last_pairs = user, item
        kl = loss_d = torch.zeros_like(target)
        with torch.autocast(target.device.type, enabled=False):  # half precision loses gradients of gradients
            x_p = x_aug = self.purify(user, item)
            if self.batch % self.purify_every == 0:
                constant = x_p.detach()
                self.moments.update(constant)
                if self.denoising and self.score_opt["steps"]:
                    standard = self.moments.standardise(constant)
                    loss_d = denoising_loss(self.denoiser, standard, self.sigma_min, self.sigma_max)
                if self.purifying:
                    x_a = self.attack(x_p, target)
                    self._choose_sigma(constant, x_a.detach())
                    x_aug = self.augment(x_a, x_p)
            x_f = self.fuse(x_p, x_aug)
            if self.purifying and self.kl_mode != "off" and x_aug is not x_p:
                kl = self.mutual_loss(x_p, x_aug, x_f)
            self.batch += 1
            errors = (self.score(x_f) - target).pow(2)
            fused, kl, loss_d = (self.weigh(losses, interaction).mean() for losses in (errors, kl, loss_d))
            if self.reg_weight:
                fused = fused + self.reg_weight * rows_l2(self.user_embedding(user), self.item_embedding(item))
        return fused, kl, loss_d

    def _choose_sigma(self, x_p: Tensor, x_a: Tensor) -> None:
        """The t* rule (eq. 8), on the first batch of an epoch that has an attacked view."""
        if self.sigma_is_due:
            clean, attacked = self.moments.standardise(x_p), self.moments.standardise(x_a)
            self.sigma.fill_(algorithm1.t_star(clean, attacked, self.kl_ratio, self.sigma_min, self.sigma_max))
            self.sigma_is_due = False

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """The path without labels, on the model's scale; under ``se`` it ends at x_p. Shape: ``(P,)`` -> ``(P,)``."""
        with torch.autocast(user.device.type, enabled=False):
            x_p = self.purify(user, item)
            if self.infer_mode == "se":
                return self.score(x_p)
            return self.score(self.fuse(x_p, self.augment(x_p, x_p) if self.purifying else x_p))

    def _score_candidates(self, user: Tensor, items: Tensor) -> Tensor:
        """:meth:`forward`, pair_chunk pairs at a time. Shape: ``(B,)`` and ``(C,)`` or ``(B, C)`` -> ``(B, C)``."""
        user, items = torch.broadcast_tensors(user.unsqueeze(1), items)
        chunks = zip(user.reshape(-1).split(self.pair_chunk), items.reshape(-1).split(self.pair_chunk), strict=True)
        return torch.cat([self.forward(*chunk) for chunk in chunks]).view(items.shape)

    def _score_gate(self, user: Tensor) -> Tensor:
        """The head of x_p for all items, factorised. Shape: ``(B,)`` -> ``(B, n_items)``."""
        with torch.autocast(user.device.type, enabled=False):
            u, v = self.user_embedding(user), self.item_embedding.weight
            weight, bias = (
                (self.head.weight[0], self.head.bias) if self.head_type == "linear" else (torch.ones_like(u[0]), 0)
            )
            return (self.gate.rank(u, v, weight) if self.gate else (weight * u) @ v.T) + bias

    def _rerank(self, user: Tensor) -> Tensor:
        """The whole path for a user's best unrated items by the gate; the others stay below, in the gate's order.

        A pinned item is ranked by the whole path, too, where that puts it above the least of the best; else it is
        where the gate has it: above all others it would seem to be recommended next.
        """
        first = self._score_gate(user)
        unrated = first.index_put(self._rated_by(user), first.new_tensor(-torch.inf))
        best = unrated.topk(min(self.rerank_topk, self.n_items), dim=1).indices
        exact = self._score_candidates(user, best)
        least = exact.min(dim=1, keepdim=True).values
        scores = (first - first.max(dim=1, keepdim=True).values + least - 1.0).scatter(1, best, exact)
        if self.pinned_items is not None:
            pinned = torch.as_tensor(self.pinned_items, device=best.device).expand(len(user), -1)
            exact = self._score_candidates(user, pinned)
            scores = scores.scatter(1, pinned, torch.where(exact > least, exact, scores.gather(1, pinned)))
        return scores

    def _remember_rated(self, rows) -> None:
        """The training items of each user, one user after the other: they are in nobody's ranking."""
        order = rows[self.USER_ID].argsort()
        ends = torch.bincount(rows[self.USER_ID], minlength=self.n_users).cumsum(0)
        self.register_buffer("rated_from", F.pad(ends, (1, 0)), persistent=False)
        self.register_buffer("rated_items", rows[self.ITEM_ID][order].clone(), persistent=False)

    def _rated_by(self, user: Tensor) -> tuple[Tensor, Tensor]:
        """Row and item of what each of some users has rated. Shape: ``(B,)`` -> two of ``(n_ratings,)``."""
        begin, counts = self.rated_from[user], self.rated_from[user + 1] - self.rated_from[user]
        row = torch.arange(len(user), device=user.device).repeat_interleave(counts)
        place = torch.arange(len(row), device=user.device) + (begin - counts.cumsum(0) + counts)[row]
        return row, self.rated_items[place]

    def predict(self, interaction) -> Tensor:
        return self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID]) * self.rating_scale

    def full_sort_predict(self, interaction) -> Tensor:
        """Stars of all items (under ``rerank``, of the reranked ones). Shape: ``(B * n_items,)``."""
        user = interaction[self.USER_ID]
        if self.infer_mode == "se":
            scores = self._score_gate(user)
        elif self.infer_mode == "rerank":
            scores = self._rerank(user)
        else:
            scores = self._score_candidates(user, torch.arange(self.n_items, device=user.device))
        return (scores * self.rating_scale).view(-1)
