"""ATJT: a sequential or CTR model trained together with a recogniser of noisy sequences, which weighs its losses.

Reference:
    P. S. Liu, L. N. Zheng, J. L. Chen, G. F. Zhang, Y. Xu, J. Y. Fang. "Enhancing Recommendation with Denoising
    Auxiliary Task." JCST 39(5), 2024. properties/model/ATJT.yaml says what the paper leaves open and how it is read.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch
from recbole.model.abstract_recommender import ContextRecommender
from recbole.utils import ModelType
from torch import Tensor, nn

from recbole_robust.criterion_tap import SampleLosses, attach
from recbole_robust.model.auxiliary_task import AuxiliaryTask, Joint
from recbole_robust.model.seq_context import as_sequential
from recbole_robust.model.sequence_weights import effective_size, weighted_mean
from recbole_robust.types import SAMPLE_WEIGHT, UserError

logger = logging.getLogger(__name__)

LEAST_ESS = 0.3  # effective size of the weights below which few sequences decide on everything


def atjt(base: Any) -> type:
    """ATJT around a sequential or context-aware model: its loss, weighed sequence by sequence, and ``lambda L_D``.

    Negatives weigh what their positive does, or a constant. The base model's parameters keep their names and initial
    values, its random numbers stay its own, and nothing is added to a prediction. A column of sample weights in the
    training rows (those of a defense, or of the oracle) multiplies the weights.

    Raises:
        UserError: a model that sees no sequence; on construction, one whose loss cannot be weighed sample by sample.
    """
    if issubclass(base, ContextRecommender) and not getattr(base, "sees_history", False):
        with contextlib.suppress(UserError):  # told below
            base = as_sequential(base)
    if getattr(base, "type", None) != ModelType.SEQUENTIAL:
        raise UserError(f"base_model: expected a sequential or context-aware model (not DSSM), since ATJT weighs "
                        f"sequences, got {base.__name__}")  # fmt: skip

    class ATJT(base):  # type: ignore[misc, valid-type]
        wraps_base_model = True
        base_class = base
        weighs_samples = True

        def __init__(self, config: Any, dataset: Any) -> None:
            super().__init__(config, dataset)
            self.joint, self.auxiliary = Joint.of(config), None
            if self.joint.is_first_stage:
                return
            if not self.joint.resamples:
                self.__dict__["tap"] = _tapped(self, base)  # a child already, in the criterion's place
            if config["atjt_weights"] == "learned" and config["noisy_seq_ratio"] > 0:
                self.training_sequences = self.joint.sequences(dataset.inter_feat)
                items, categories = self.training_sequences.targets, _categories(dataset, config["recogniser_category"])
                self.auxiliary = AuxiliaryTask(config, dataset.item_num, items, categories)

        loss_terms = (*getattr(base, "loss_terms", ("recommendation loss",)), "recognisers' loss")

        # --- what the trainer asks -----------------------------------------------------------------------------------

        def parameter_groups(self) -> list[dict[str, Any]]:
            """The base model's parameters, and the recognisers' with a rate and a decay of their own."""
            if self.auxiliary is None:
                return [{"params": list(self.parameters())}]
            known = {id(parameter) for parameter in self.auxiliary.parameters()}
            own = [parameter for parameter in self.parameters() if id(parameter) not in known]
            return [{"params": own}, self.auxiliary.parameter_group()]

        def on_epoch_start(self, epoch: int) -> None:
            hook = getattr(super(), "on_epoch_start", None)
            if hook is not None:
                hook(epoch)
            self.joint.epoch, self.joint.batch = epoch, 0
            self.joint.epoch_weights.clear()
            if self.auxiliary is not None:
                if self.joint.fresh:
                    self.auxiliary.pretrain(self.training_sequences, self.joint)
                self.auxiliary.look_around(self.training_sequences, self.joint.generator(f"epoch {epoch}, shares"))

        def on_epoch_end(self, epoch: int) -> None:
            hook = getattr(super(), "on_epoch_end", None)
            if hook is not None:
                hook(epoch)
            if self.joint.epoch_weights:
                weights = torch.cat(self.joint.epoch_weights)
                size = effective_size(weights)
                tell = logger.warning if size < LEAST_ESS else logger.info
                tell("epoch %d: mean weight %.3f, effective share of the sequences %.3f", epoch, weights.mean(), size)

        def tracked(self) -> dict[str, Tensor]:
            """The weights of all training sequences, for TensorBoard."""
            return {} if self.auxiliary is None else {"Weight": self.instance_weights()}

        def instance_weights(self, rows: Any = None) -> Tensor:
            """w of training rows (all of them if None), each by the recogniser of its user's fold, not balanced.

            Shape: ``(n_rows,)``, on the CPU.
            """
            assert self.auxiliary is not None, "atjt_weights: expected learned"
            return self.auxiliary.weights_of_all(
                self.training_sequences if rows is None else self.joint.sequences(rows)
            )

        # --- the loss ------------------------------------------------------------------------------------------------

        def calculate_loss(self, interaction: Any) -> Any:
            """``(L_R, lambda L_D)``; where there is nothing to weigh by, the base model's own loss."""
            if self.joint.is_first_stage or (self.auxiliary is None and SAMPLE_WEIGHT not in interaction):
                return super().calculate_loss(interaction)
            joint, auxiliary = self.joint, self.auxiliary
            batch = joint.positives(interaction)
            generator = joint.generator(f"epoch {joint.epoch}, batch {joint.batch}", batch.users.device)
            joint.batch += 1
            if auxiliary is None:
                return self.weighted_loss(interaction, interaction[SAMPLE_WEIGHT][: len(batch.users)], generator)
            loss_d = joint.lambda_ * auxiliary.loss(batch, generator, joint.phase)
            if joint.phase is not None:  # the base model learns from one fold only
                mine = (auxiliary.folds(batch.users) == joint.phase).nonzero().squeeze(1)
                if not len(mine):
                    nothing = torch.zeros_like(loss_d)
                    if not loss_d.requires_grad:  # one row: a step needs some gradient, if only of zeros
                        loss_d = loss_d + 0.0 * sum(parameter.sum() for parameter in self.parameters())
                    return (*[nothing] * (len(self.loss_terms) - 1), loss_d)
                interaction, batch = interaction[joint.rows_of(mine, len(batch.users))], batch.take(mine)
            weights = None
            if joint.epoch >= joint.warmup:
                weights = auxiliary.weights(batch)
                weights = auxiliary.balanced(weights.detach() if joint.detach else weights, batch)
            if SAMPLE_WEIGHT in interaction:
                given = interaction[SAMPLE_WEIGHT][: len(batch.users)]
                weights = given if weights is None else weights * given
            if weights is not None:
                joint.epoch_weights.append(weights.detach())
            own = self.weighted_loss(interaction, weights, generator)
            return (*own, loss_d) if isinstance(own, tuple) else (own, loss_d)

        def weighted_loss(self, interaction: Any, weights: Tensor | None, generator: torch.Generator) -> Any:
            """L_R: the base model's loss, its criterion's mean over the batch as ``sum w l / sum w``."""
            if weights is None:
                return super().calculate_loss(interaction)
            if self.joint.resamples:
                rows = self.joint.rows_of(resampled(weights.detach(), generator), len(weights))
                return super().calculate_loss(interaction[rows])
            calls = []

            def reduce(samples: SampleLosses) -> Tensor | None:
                calls.append(samples.losses.numel())
                if calls != [len(interaction)]:
                    return None  # told below
                return weighted_mean(samples.losses, self.joint.for_rows(weights), self.joint.normalize)

            with self.tap.reducing(reduce):
                loss = super().calculate_loss(interaction)
            if calls != [len(interaction)]:
                raise _cannot_be_weighed(base, f"{len(calls)} calls for {len(interaction)} samples, losses: {calls}")
            return loss

    ATJT.__qualname__ = "ATJT"
    return ATJT


def _categories(dataset: Any, field: str | None) -> Tensor | None:
    """The category of each item, of several the first. Shape: ``(n_items,)``."""
    if field is None:
        return None
    features = dataset.item_feat
    if features is None or field not in features or features[field].is_floating_point():
        found = "none" if features is None else ", ".join(features.columns)
        raise UserError(f"recogniser_category: expected a token field of the items (load_col: {found}), got {field!r}")
    return features[field] if features[field].dim() == 1 else features[field][:, 0]


def resampled(weights: Tensor, generator: torch.Generator) -> Tensor:
    """As many sequences, drawn in proportion to their weights: the mean loss of them is L_R in expectation.

    Shape: ``(B,)`` -> ``(B,)``.
    """
    weights = weights if (weights > 0).any() else torch.ones_like(weights)
    return torch.multinomial(weights, len(weights), replacement=True, generator=generator)


def _cannot_be_weighed(base: type, got: str) -> UserError:
    return UserError(
        f"base_model: expected a model with one criterion that sees each sample once, got {base.__name__} ({got}); "
        "--atjt_per_sample=resample goes without"
    )


def _tapped(model: nn.Module, base: type) -> Any:
    try:
        return attach(model)
    except UserError as error:
        raise _cannot_be_weighed(base, str(error).rpartition("got ")[2]) from None
