"""The auxiliary task of ATJT: recognisers that learn from each other's users, and when they learn what.

Reference:
    Liu et al. "Enhancing Recommendation with Denoising Auxiliary Task." JCST 39(5), 2024 (Fig. 2 and 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_robust.model.recogniser import build_recogniser
from recbole_robust.model.sequence_noise import SequenceCorruptor
from recbole_robust.model.sequence_weights import (
    calibration,
    folds_of,
    group_means,
    most_noise,
    odds_of_noise,
    per_group,
    sequence_weights,
)
from recbole_robust.randomness import global_state_kept, stage_rng
from recbole_robust.types import UserError

CHUNK = 8192  # sequences that are weighed at once
LEAST_ITEM_MEAN = 0.02  # of the mean of all: where an item's sequences all seem noisy, no luck makes one count for many
PRETRAINING_ROWS = 512  # sequences in a step of the recognisers' pre-training


class Sequences(NamedTuple):
    """Histories and what came next.

    Shape: ``histories`` ``(B, L)``; ``users``, ``lengths`` and ``targets`` ``(B,)``.
    """

    users: Tensor
    histories: Tensor
    lengths: Tensor
    targets: Tensor

    def take(self, rows: Tensor) -> Sequences:
        return Sequences(*(part[rows] for part in self))

    def last(self, n: int) -> Sequences:
        """With the last ``n`` items of each history. Shape: ``histories`` ``(B, min(n, L))``."""
        if n >= self.histories.shape[1]:
            return self
        start = (self.lengths - n).clamp(min=0)
        histories = self.histories.gather(1, start[:, None] + torch.arange(n, device=start.device))
        return Sequences(self.users, histories, self.lengths.clamp(max=n), self.targets)

    def to(self, device: torch.device) -> Sequences:
        return Sequences(*(part.to(device) for part in self))


@dataclass
class Joint:
    """How L_R and L_D go together, and where in the training we are.

    Attributes:
        fields: the columns of :class:`Sequences` in a batch.
        history: items of a history that the recognisers see, the last ones; None: all.
        times: how many blocks of the same sequences a batch has; its negatives are in the later ones.
        label: the column that is 1 in the first block and 0 in the others, or None where negatives have no rows.
        negative_weight: of the negatives' rows; None: that of their positive.
        phase_epochs: epochs that the base model learns from one fold; None: from all folds in every epoch.
        is_first_stage: whether this is a pre-training of the base model's own, without a recommendation (S3Rec).
        epoch, batch: which epoch it is, and the next batch's number in it.
        epoch_weights: of the batches of this epoch so far.
    """

    seed: int
    fields: tuple[str, str, str, str]
    history: int | None
    times: int
    label: str | None
    negative_weight: float | None
    lambda_: float
    detach: bool
    warmup: int
    normalize: bool
    resamples: bool
    n_folds: int
    phase_epochs: int | None
    is_first_stage: bool
    epoch: int = 0
    batch: int = 0
    epoch_weights: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, config: Any) -> Joint:
        sampling, pointwise = config["train_neg_sample_args"], config["MODEL_INPUT_TYPE"] == InputType.POINTWISE
        sampled = bool(sampling) and sampling["distribution"] not in (None, "none")
        phased = config["atjt_phase_epochs"] or max(1, config["epochs"] // config["n_folds"])
        item = config["ITEM_ID_FIELD"]
        return cls(
            seed=config["seed"],
            fields=(config["USER_ID_FIELD"], item + config["LIST_SUFFIX"], config["ITEM_LIST_LENGTH_FIELD"], item),
            history=config["recogniser_history"],
            times=sampling["sample_num"] + pointwise if sampled else 1,
            label=config["LABEL_FIELD"] if sampled and pointwise else None,
            negative_weight=config["negative_weight"],
            lambda_=config["atjt_lambda"],
            detach=config["atjt_detach"],
            warmup=config["atjt_warmup"],
            normalize=config["weight_normalize"] != "none",
            resamples=config["atjt_per_sample"] == "resample",
            n_folds=config["n_folds"],
            is_first_stage=config["train_stage"] == "pretrain",
            phase_epochs=phased if config["atjt_schedule"] == "phased" else None,
        )

    @property
    def phase(self) -> int | None:
        """The fold that the base model learns from in this epoch; None: all."""
        return None if self.phase_epochs is None else self.epoch // self.phase_epochs % self.n_folds

    @property
    def fresh(self) -> bool:
        """Whether this epoch is the first of recognisers that have learned nothing yet."""
        if self.phase_epochs is None:
            return self.epoch == 0
        return self.epoch % self.phase_epochs == 0 and self.epoch // self.phase_epochs < self.n_folds

    def generator(self, what: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator of this seed and ``what``: after a break it is what it would have been."""
        return torch.Generator(device).manual_seed(_seed(self.seed, what))

    def sequences(self, rows: Any, n: int | None = None) -> Sequences:
        """The first ``n`` rows as sequences."""
        found = Sequences(*(rows[name][:n] for name in self.fields))
        return found if self.history is None else found.last(self.history)

    def positives(self, interaction: Any) -> Sequences:
        """The first block of a batch: the sequences with what really came next."""
        n, users = len(interaction) // self.times, interaction[self.fields[0]]
        if self.times > 1:
            assert torch.equal(users, users[:n].repeat(self.times)), "rows: expected blocks of the same users"
        if self.label is not None:
            positive = interaction[self.label] > 0
            assert positive[:n].all() and not positive[n:].any(), "labels: expected the positives first"
        return self.sequences(interaction, n)

    def for_rows(self, weights: Tensor) -> Tensor:
        """The weights of a batch's sequences for all its rows, block by block. Shape: ``(n,)`` -> ``(times * n,)``."""
        if self.label is None or self.negative_weight is None:
            return weights.repeat(self.times)
        return torch.cat([weights, weights.new_full(((self.times - 1) * len(weights),), self.negative_weight)])

    def rows_of(self, sequences: Tensor, n: int) -> Tensor:
        """The rows of some of the ``n`` sequences of a batch, block by block. Shape: ``(m,)`` -> ``(times * m,)``."""
        blocks = torch.arange(self.times, device=sequences.device) * n
        return (blocks[:, None] + sequences).flatten()


class AuxiliaryTask(nn.Module):
    """The recognisers, one a fold of the users, their loss L_D and the weights that they give.

    By L_D recogniser g learns from the users of all folds but g, and weighs those of fold g: it sees ``n_folds - 1``
    sequences for one that it weighs (Fig. 3). Only L_R, unless it is detached, moves it by those that it weighs.
    """

    item_means: Tensor
    noise_shares: Tensor
    calibrations: Tensor

    def __init__(self, config: Any, n_items: int, items: Tensor, categories: Tensor | None = None) -> None:
        super().__init__()
        self.learning = {"lr": config["recogniser_lr"], "weight_decay": config["recogniser_weight_decay"]}
        self.pretrain_steps = config["recogniser_pretrain_steps"]
        self.n_folds, self.seed = config["n_folds"], config["seed"]
        share, ratio = config["weight_noise_share"], config["noisy_seq_ratio"]
        self.calibrates, self.floor = config["weight_temperature"] == "estimated", config["weight_floor"]
        self.temperature = 1.0 if self.calibrates else config["weight_temperature"]
        self.register_buffer("calibrations", torch.tensor([[1.0, 0.0]] * self.n_folds), persistent=self.calibrates)
        self.corrects, self.estimates = share is not None, share == "estimated"
        shares = torch.full((self.n_folds,), 0.0 if self.estimates or share is None else share)
        self.register_buffer("noise_shares", shares, persistent=self.estimates)
        self.balance = config["weight_normalize"]
        self.register_buffer("item_means", torch.ones(n_items), persistent=False)
        popularity = torch.bincount(items, minlength=n_items) if config["replace_by"] == "popularity" else None
        self.corruptor = SequenceCorruptor(
            n_items,
            ratio,
            config["n_replaced"],
            config["replace_target_prob"],
            popularity,
        )
        names = ("recogniser_dim", "recogniser_dropout", "recogniser_mean_pool")
        options = (n_items, *(config[name] for name in names), categories)
        with global_state_kept():
            torch.manual_seed(_seed(self.seed, "recognisers"))
            self.recognisers = nn.ModuleList(
                [build_recogniser(config["recogniser"], *options) for _ in range(self.n_folds)]
            )

    def folds(self, users: Tensor) -> Tensor:
        """Shape: ``(B,)`` -> ``(B,)``."""
        return folds_of(users, self.n_folds, self.seed)

    def losses(self, batch: Sequences, generator: torch.Generator, only: int | None = None) -> Iterator[Tensor]:
        """L_D of each recogniser, or of one: the cross-entropy of clean and noisy on the folds that are not its own."""
        folds = self.folds(batch.users)
        for fold, recogniser in enumerate(self.recognisers):
            theirs = (folds != fold).nonzero().squeeze(1)
            if len(theirs) < 2 or only not in (None, fold):
                continue
            part = batch.take(theirs)
            noisy = self.corruptor(part.histories, part.lengths, part.targets, generator=generator)
            logits = recogniser(noisy.sequences, part.lengths, noisy.targets, generator)
            yield F.binary_cross_entropy_with_logits(logits.float(), noisy.is_clean)

    def loss(self, batch: Sequences, generator: torch.Generator, only: int | None = None) -> Tensor:
        """L_D, the mean over the recognisers."""
        found = list(self.losses(batch, generator, only))
        return torch.stack(found).mean() if found else torch.zeros((), device=batch.users.device)

    def weights(self, batch: Sequences) -> Tensor:
        """w of each sequence, by the recogniser of its user's fold, which drops nothing here. Shape: ``(B,)``."""
        folds = self.folds(batch.users)
        found = torch.zeros(len(folds), device=folds.device)
        for fold, recogniser in enumerate(self.recognisers):
            mine = (folds == fold).nonzero().squeeze(1)
            if len(mine):
                part = batch.take(mine)
                logits = recogniser(part.histories, part.lengths, part.targets)
                if self.calibrates:
                    scale, shift = self.calibrations[fold]
                    logits = scale * logits.float() + shift
                least = odds_of_noise(self.noise_shares[fold], self.corruptor.ratio) if self.corrects else None
                found = found.index_put((mine,), sequence_weights(logits, self.temperature, self.floor, least))
        return found

    def parameter_group(self) -> dict[str, Any]:
        """All recognisers' parameters, as torch's optimisers take them."""
        return {"params": list(self.parameters()), **self.learning}

    def pretrain(self, sequences: Sequences, joint: Joint) -> None:
        """Steps of L_D alone, on random training sequences: a recogniser that knows nothing weighs at random."""
        optimizer, device = torch.optim.Adam([self.parameter_group()]), next(self.parameters()).device
        drawing = joint.generator(f"pre-training, epoch {joint.epoch}")
        self.train()  # cuDNN's GRU goes backwards in no other mode
        for step in range(self.pretrain_steps):
            picked = torch.randint(len(sequences.users), (PRETRAINING_ROWS,), generator=drawing)
            generator = joint.generator(f"pre-training, epoch {joint.epoch}, step {step}", device)
            loss = self.loss(sequences.take(picked).to(device), generator, joint.phase)
            if loss.requires_grad:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        if not all(torch.isfinite(parameter).all() for parameter in self.parameters()):
            raise UserError(
                f"recogniser_lr: expected a rate that {self.pretrain_steps} steps of pre-training stand, got "
                f"{self.learning['lr']} (nan or inf in a recogniser)"
            )

    @torch.no_grad()
    def weights_of_all(self, sequences: Sequences) -> Tensor:
        """w of many sequences, as :meth:`weights`, on the CPU. Shape: ``(B,)``."""
        device = next(self.parameters()).device
        parts = torch.arange(len(sequences.users)).split(CHUNK)
        return torch.cat([self.weights(sequences.take(part).to(device)).cpu() for part in parts])

    @torch.no_grad()
    def look_around(self, sequences: Sequences, generator: torch.Generator) -> None:
        """Note what the options ask for of all training sequences, as the recognisers see them when an epoch begins.

        How much noise there can be, what the recognisers' logits are worth, and (``weight_normalize: item``) what the
        sequences of each target weigh on average.
        """
        if self.estimates or self.calibrates:
            self._look_for_noise(sequences, generator)
        if self.balance == "item":
            weights = self.weights_of_all(sequences)
            means = group_means(weights, sequences.targets.cpu(), len(self.item_means))
            self.item_means.copy_(means.clamp(min=LEAST_ITEM_MEAN * float(weights.mean())))

    def _look_for_noise(self, sequences: Sequences, generator: torch.Generator) -> None:
        """``weight_temperature: estimated`` and ``weight_noise_share: estimated``.

        By some sequences of each fold, which its recogniser does not learn from by L_D: as they are and made noisy.
        Logits that are calibrated are on one scale, so then all folds that can tell noise from the log tell how much of
        it there is together; where none can, all sequences weigh 1.
        """
        folds, found = self.folds(sequences.users), {}
        for fold in range(self.n_folds):
            mine = (folds == fold).nonzero().squeeze(1)
            picked = mine[torch.randperm(len(mine), generator=generator)[:CHUNK]]
            if not len(picked):
                continue
            logits = self._logits_of_log_and_noise(fold, sequences.take(picked), generator)
            if self.calibrates:
                scale, shift = calibration(logits[0], logits[1], self.corruptor.ratio)
                self.calibrations[fold] = torch.tensor([scale, shift])
                logits = scale * logits + shift
            found[fold] = logits
        if self.estimates and self.calibrates:
            can_tell = [logits for fold, logits in found.items() if self.calibrations[fold, 0] > 0]
            self.noise_shares.fill_(most_noise(*torch.cat(can_tell, dim=1)) if can_tell else 0.0)
        elif self.estimates:
            for fold, logits in found.items():
                self.noise_shares[fold] = most_noise(*logits)

    def _logits_of_log_and_noise(self, fold: int, part: Sequences, generator: torch.Generator) -> Tensor:
        """What the recogniser of a fold says of sequences as they are, and made noisy. Shape: ``(2, B)``."""
        device = self.item_means.device
        noisy = replace(self.corruptor, ratio=1.0)(part.histories, part.lengths, part.targets, generator=generator)
        both = ((part.histories, part.targets), (noisy.sequences, noisy.targets))
        logits = [
            self.recognisers[fold](histories.to(device), part.lengths.to(device), targets.to(device))
            for histories, targets in both
        ]
        return torch.stack(logits).float()

    def balanced(self, weights: Tensor, batch: Sequences) -> Tensor:
        """The weights as they enter a batch's loss. Shape: ``(B,)`` -> ``(B,)``."""
        if self.balance == "fold":
            folds = self.folds(batch.users)
            return per_group(weights, folds, group_means(weights, folds, self.n_folds))
        if self.balance == "item":
            return per_group(weights, batch.targets, self.item_means)
        return weights


def _seed(seed: int, what: str) -> int:
    return int(stage_rng(seed, f"atjt, {what}").integers(2**63 - 1))
