"""PCMF: matrix factorisation with an error matrix that takes up wrong ratings. Our reconstruction from one sentence.

Reference:
    The sentence, "addressing the error matrix from discrepancies between predicted and actual ratings in MF", is from
    "Exploration & Exploitation: A Unified Framework for Data Purification & Augmentation in Recommendation Systems",
    2025; what it cites is an attack. The penalties: Mehta et al. "Robust Collaborative Filtering." RecSys 2007 (cell);
    Yuan & Lin. "Model Selection and Estimation in Regression with Grouped Variables." JRSS B 2006 (user); Cheng &
    Hurley. "Robust Collaborative Recommendation by Least Trimmed Squares Matrix Factorization." ICTAI 2010 (trim); Liu
    et al. "Correntropy: Properties and Applications in Non-Gaussian Signal Processing." IEEE TSP 2007 (correntropy).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recbole_robust.model.explicit import rows_l2
from recbole_robust.model.mf import MF
from recbole_robust.types import UserError

MAD_TO_SIGMA = 1.4826  # the median absolute deviation of a normal distribution is sigma / 1.4826


def keep_by_cell(residual: Tensor, tau: Tensor, **_) -> Tensor:
    """``Psi(E) = |E|_1``: E is the soft threshold of the residuals, so what is kept is cut at tau (Huber's loss)."""
    return residual.clamp(-tau, tau)


def keep_by_user(residual: Tensor, tau: Tensor, rms: Tensor, **_) -> Tensor:
    """``Psi(E) = sum_u sqrt(n_u) |E_u|_2``: all cells of a user shrink alike, to a root mean square of tau.

    Shape: ``rms`` is ``(B,)``, that of all residuals of each row's user.
    """
    return residual * (tau / rms).clamp(max=1.0)


def keep_untrimmed(residual: Tensor, trim_rate: float, **_) -> Tensor:
    """E takes the largest residuals whole, a share of trim_rate (least trimmed squares), and nothing of the others."""
    largest = residual.abs().topk(int(trim_rate * len(residual))).indices
    return residual.index_fill(0, largest, 0.0)


def keep_by_correntropy(residual: Tensor, tau: Tensor, **_) -> Tensor:
    """Weights ``exp(-e^2 / 2 tau^2)`` (half-quadratic): small residuals stay, huge ones vanish."""
    return residual * torch.exp(-0.5 * (residual / tau).square())


PENALTIES: dict[str, Callable[..., Tensor]] = {
    "cell": keep_by_cell,
    "user": keep_by_user,
    "trim": keep_untrimmed,
    "correntropy": keep_by_correntropy,
}


def robust_loss(residual: Tensor, kept: Tensor) -> Tensor:
    """``min_E (e - E)^2 + 2 tau Psi(E)`` of each cell, from e and from what is kept of it, ``e - E`` (a constant).

    E is at its minimum, so the gradient is ``2 (e - E)``. For cell and user the value is that of the minimum too
    (Huber's loss, twice); for correntropy it is another function of that gradient. Where all is kept, it is ``e^2``.

    Shape: ``(B,)`` each -> ``(B,)``.
    """
    return kept * (2.0 * residual - kept)


def robust_scale(residual: Tensor) -> Tensor:
    """1.4826 MAD: the standard deviation of normal residuals, whatever a minority of them is. A scalar."""
    return MAD_TO_SIGMA * (residual - residual.median()).abs().median()


class PCMF(MF):
    """``min_{P,Q,E} sum over ratings (p_u . q_i - r_ui - E_ui)^2 + 2 tau Psi(E)``: MF with an error in every cell.

    E is never stored: each penalty has it in closed form. tau is pcmf_tau times the robust scale of the residuals. That
    scale, and the norms of the users' residuals, are those of the epoch before (the first epoch has no tau). The first
    pcmf_warmup epochs are MF's; without the epoch hooks of our trainer all of them are. It is MF, bit for bit, at
    pcmf_tau = inf (cell, user, correntropy) or pcmf_trim_rate = 0 (trim).

    Fakes whose ratings the vectors can fit have no residual, and no penalty finds them. cell and user keep gross errors
    out of the items' vectors, but not a shilling attack. trim does, after a short warm-up only: the largest residuals
    are then those of items that are not learnt yet, targets among them, and so they stay, with their genuine ratings.

    Shape:
        user_embedding.weight ``(n_users, d)``, item_embedding.weight ``(n_items, d)``; the buffers ``scale`` ``()`` and
        ``user_rms`` ``(n_users,)`` are on the model's scale of ratings.

    Errors:
        UserError: an unknown penalty, or a loss_type other than MSE.
    """

    loss_types = ("MSE",)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        penalty = config["pcmf_penalty"]
        if penalty not in PENALTIES:
            raise UserError(f"pcmf_penalty: expected one of {', '.join(PENALTIES)}, got {penalty!r}")
        if self.loss_type != "MSE":
            raise UserError(f"loss_type: expected MSE, since PCMF has residuals of ratings, got {self.loss_type!r}")
        self.penalty = PENALTIES[penalty]
        self.tau, self.trim_rate = float(config["pcmf_tau"]), float(config["pcmf_trim_rate"])
        self.warmup, self.is_warm = config["pcmf_warmup"], False
        self.register_buffer("scale", torch.tensor(float("inf")))
        self.register_buffer("user_rms", torch.zeros(self.n_users))
        # Sums over the epoch that runs; a checkpoint is written between epochs, when they are empty.
        self.register_buffer("n_rows", torch.zeros(self.n_users), persistent=False)
        self.register_buffer("squares", torch.zeros(self.n_users), persistent=False)
        self.register_buffer("scales", torch.zeros(()), persistent=False)

    def on_epoch_start(self, epoch: int) -> None:
        """The schedule. ``epoch`` counts from 0."""
        self.is_warm = epoch >= self.warmup
        for total in (self.n_rows, self.squares, self.scales):
            total.zero_()

    def on_epoch_end(self, epoch: int) -> None:
        """What the residuals of this epoch say is used in the next: the mean scale of its batches, and users' norms."""
        self.scale.copy_(self.scales / self.n_rows.sum())
        self.user_rms.copy_((self.squares / self.n_rows.clamp(min=1.0)).sqrt())

    def keep(self, user: Tensor, residual: Tensor) -> Tensor:
        """``e - E`` of a batch, a constant; all of it during the warm-up. Shape: ``(B,)`` each -> ``(B,)``."""
        residual = residual.detach()
        if not self.is_warm:
            return residual
        tau = self.tau * self.scale.clamp(min=torch.finfo(residual.dtype).tiny)  # no 0 / 0 where all is fitted
        return self.penalty(residual, tau=tau, rms=self.user_rms[user], trim_rate=self.trim_rate)

    def calculate_loss(self, interaction) -> Tensor:
        user = interaction[self.USER_ID]
        p, q = self.forward(user, interaction[self.ITEM_ID])
        residual = (p * q).sum(dim=1) - self.rating_target(interaction)
        self._note(user, residual.detach())
        loss = self.weigh(robust_loss(residual, self.keep(user, residual)), interaction).mean()
        return loss + self.reg_weight * rows_l2(p, q) if self.reg_weight else loss

    def _note(self, user: Tensor, residual: Tensor) -> None:
        self.n_rows.index_add_(0, user, torch.ones_like(residual))
        self.squares.index_add_(0, user, residual.square())
        self.scales.add_(len(residual) * robust_scale(residual))
