"""RobustTrainer: RecBole's trainers with safe checkpoints, parameter groups, epoch hooks and sample weights."""

from __future__ import annotations

import contextlib
import functools
import os
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import recbole.trainer.trainer as recbole_trainer
import torch
from recbole.model.abstract_recommender import AbstractRecommender, SequentialRecommender
from recbole.utils import get_trainer as recbole_get_trainer
from torch import Tensor, nn, optim
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recbole_robust.checkpoint import CHECKPOINT_VERSION, load_checkpoint, pack_all, save_atomically, unpack
from recbole_robust.randomness import global_state, set_global_state
from recbole_robust.types import SAMPLE_WEIGHT, UserError


class OptimizerPair:
    """Two optimisers that step together: one for the embedding tables, one for the networks."""

    def __init__(self, tables: optim.Optimizer, networks: optim.Optimizer) -> None:
        self.parts = {"tables": tables, "networks": networks}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts.values() for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def table_parameters(model: nn.Module) -> list[Tensor]:
    """The weights of all ``nn.Embedding`` layers: what a protocol's recipe for embedding tables applies to."""
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, nn.Embedding)]
    return [layer.parametrizations.weight.original if is_parametrized(layer) else layer.weight for layer in layers]


if TYPE_CHECKING:
    from recbole.trainer import Trainer as _Base  # what the mixin is mixed into
else:
    _Base = object


class RobustTrainerMixin(_Base):
    """Overrides of RecBole's ``Trainer``.

    Attributes:
        before_epoch: called with ``(trainer, train_data, epoch)`` before every epoch; return the loader to train on.
        after_epoch: called with ``(trainer, epoch)`` after every epoch.
        before_evaluate: called with ``(trainer, eval_data)`` before every evaluation.
        best_epoch: the epoch (from 0) whose weights are in the checkpoint.

    A model may define ``on_epoch_start(epoch)``, ``on_epoch_end(epoch)``, ``loss_terms`` (names of the parts of its
    loss) and ``parameter_groups()``, which returns its parameters as torch's optimisers take them, with a rate or a
    decay of their own where they have one.
    """

    item_tensor: Any

    def __init__(self, config, model) -> None:
        self.before_epoch: list[Callable[[Any, Any, int], Any]] = []
        self.after_epoch: list[Callable[[Any, int], None]] = []
        self.before_evaluate: list[Callable[[Any, Any], None]] = []
        self.best_epoch = -1
        self.label = config["model"]
        self._resumed: dict[str, Any] | None = None
        self._valid_result: dict[str, float] | None = None
        _make_folder("checkpoint_dir", config["checkpoint_dir"])  # RecBole's own way fails where two processes do it
        with _tensorboard_in(config["output_dir"], config["log_tensorboard"], self._run_name(config)):
            super().__init__(config, model)
        if self.clip_grad_norm and hasattr(model, "parameter_groups"):
            self._clip_each_group(self.clip_grad_norm)
        self.saved_model_file = os.path.join(self.checkpoint_dir, f"{self._run_name(config)}.pth")

    def _run_name(self, config) -> str:
        """A file name that no other training has: RecBole's has the time to the second, which two trainings share."""
        if not hasattr(self, "_name"):
            self._name = f"{config['model']}-{config['dataset']}-{uuid.uuid4().hex[:12]}"
        return self._name

    # --- optimiser ------------------------------------------------------------------------------------------------

    def _build_optimizer(self, **kwargs):
        """RecBole's optimiser; Adagrad takes ``initial_accumulator_value``; ``net_learning_rate`` splits the model."""
        rate = self.config["net_learning_rate"]
        groups = getattr(self.model, "parameter_groups", None)
        if groups is not None:
            kwargs.setdefault("params", groups())
        if rate is None or "params" in kwargs:
            return self._one_optimizer(**kwargs)
        tables = table_parameters(self.model)
        known = {id(parameter) for parameter in tables}
        networks = [parameter for parameter in self.model.parameters() if id(parameter) not in known]
        if not networks:
            return self._one_optimizer(params=tables)
        decay = self.config["net_weight_decay"] or 0.0
        return OptimizerPair(self._one_optimizer(params=tables), optim.Adam(networks, lr=rate, weight_decay=decay))

    def _one_optimizer(self, **kwargs):
        start = self.config["initial_accumulator_value"]
        if self.learner.lower() != "adagrad" or not start:
            return super()._build_optimizer(**kwargs)
        return optim.Adagrad(
            kwargs.get("params", self.model.parameters()),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            initial_accumulator_value=start,
        )

    def _clip_each_group(self, limits: dict[str, Any]) -> None:
        """``clip_grad_norm`` of each group of parameters alone: what one learns from must not slow another."""

        def clip(optimizer, args, kwargs):
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], **limits)

        self.clip_grad_norm = None  # RecBole's own, of all parameters
        self.optimizer.register_step_pre_hook(clip)

    # --- training -------------------------------------------------------------------------------------------------

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """RecBole's ``fit`` with one progress bar for the whole training (on stderr) instead of two an epoch."""
        if SAMPLE_WEIGHT in train_data._dataset.inter_feat and not getattr(self.model, "weighs_samples", False):
            raise UserError(f"sample weights: expected a model that takes them, got {self.config['model']}")
        self._has_validation = bool(valid_data) and self.eval_step > 0
        self._train_data = train_data
        if "pretrain" in (self.config["train_stage"] or ""):  # RecBole itself collects in the last stage only
            self.eval_collector.data_collect(train_data)
        if self._resumed is not None:
            set_global_state(self._resumed["random"])
            for generator, state in zip(_generators(train_data), self._resumed["loader"], strict=True):
                generator.set_state(state.cpu())
            self._resumed = None
        with tqdm(total=self.epochs, desc=self.label, unit="epoch", disable=not show_progress, leave=False) as bar:
            self._bar = bar
            # RecBole's sine.py, imported with any sequential model, turns this on for all: twice the time a batch.
            with torch.autograd.set_detect_anomaly(False):
                return super().fit(train_data, valid_data, verbose, saved, False, callback_fn)

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        for hook in self.before_epoch:
            train_data = hook(self, train_data, epoch_idx)
        self._hook("on_epoch_start", epoch_idx)
        self._epoch = epoch_idx
        watched = self._watched(loss_func or self.model.calculate_loss)
        losses = super()._train_epoch(train_data, epoch_idx, watched, show_progress)
        self._check_weights()
        self._hook("on_epoch_end", epoch_idx)
        for look in self.after_epoch:
            look(self, epoch_idx)
        bar = getattr(self, "_bar", None)
        if bar is not None:
            total = sum(losses) if isinstance(losses, tuple) else losses
            bar.set_postfix_str(f"loss {total / max(1, len(train_data)):.4f}", refresh=False)
            bar.update()
        return losses

    def _watched(self, loss_func):
        """The loss function, whose terms are looked at one by one; where a trainer has its own, only their sum is."""

        def watched(interaction):
            terms = loss_func(interaction)
            if isinstance(terms, tuple):
                for name, term in zip(self._names_of(terms), terms, strict=True):
                    self._check_nan(term, name)
            return terms

        return watched

    def _names_of(self, terms: tuple[Any, ...]) -> list[str]:
        names = getattr(self.model, "loss_terms", ())
        counted = [f"term {k} of {len(terms)}" for k in range(1, len(terms) + 1)]
        return list(names) if len(names) == len(terms) else counted

    def _add_train_loss_to_tensorboard(self, epoch_idx, losses, tag="Loss/Train"):
        """RecBole numbers the parts of a loss; here they have names."""
        if not isinstance(losses, tuple):
            super()._add_train_loss_to_tensorboard(epoch_idx, losses, tag)
            return
        for name, loss in zip(self._names_of(losses), losses, strict=True):
            self.tensorboard.add_scalar(f"{tag}/{name}", loss, epoch_idx)

    def _check_nan(self, loss, term: str | None = None):
        """In place of RecBole's: say which epoch it was, and which term of the loss."""
        if torch.isnan(loss).any():
            raise UserError(self._broken(f"a loss that is a number, got nan{f' in its {term}' if term else ''}"))

    def _check_weights(self) -> None:
        """The last step of an epoch may have broken what no loss has seen yet."""
        for name, weights in self.model.named_parameters():
            if not torch.isfinite(weights.detach().sum()) and not torch.isfinite(weights).all():
                raise UserError(self._broken(f"finite weights, got nan or inf in {name}"))

    def _broken(self, what: str) -> str:
        return f"{self.label}, epoch {self._epoch}: expected {what}; a lower learning_rate may help"

    def _valid_epoch(self, valid_data, show_progress=False):
        score, result = super()._valid_epoch(valid_data, show_progress)
        self._valid_result = {name: float(value) for name, value in result.items()}
        return score, result

    def _hook(self, name: str, epoch: int) -> None:
        hook = getattr(self.model, name, None)
        if hook is not None:
            hook(epoch)

    # --- evaluation -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """RecBole's ``evaluate``, after the hooks of ``before_evaluate``; the checkpoint holds plain tensors."""
        if not eval_data:
            return None
        if load_best_model:
            self.load_weights(model_file or self.saved_model_file)
        self.model.eval()
        for hook in self.before_evaluate:
            hook(self, eval_data)
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)

    def _full_sort_batch_eval(self, batched_data):
        """RecBole's; what is masked is -inf, and what is no number has no rank."""
        found = super()._full_sort_batch_eval(batched_data)
        if torch.isnan(found[1].sum()):
            raise UserError(f"{self.label}: expected scores that are numbers, got nan; a lower learning_rate may help")
        return found

    def _neg_sample_batch_eval(self, batched_data):
        """RecBole's; but where many candidates have one sequence, it is encoded once, not beside each of them.

        The scores are those of ``predict`` but for rounding; only CORE's are others, whose ``predict`` leaves out the
        normalisation that it is trained with.
        """
        interaction, row_idx, positive_u, positive_i = batched_data
        first = self._first_candidates(interaction, row_idx)
        if first is None:
            return super()._neg_sample_batch_eval(batched_data)
        found = self.model.full_sort_predict(interaction[first].to(self.device)).view(len(first), -1)
        candidates = interaction[self.config["ITEM_ID_FIELD"]]
        scores = found.new_full((len(first), self.tot_item_num), -torch.inf)
        scores[row_idx, candidates] = found[row_idx, candidates]
        return interaction, scores, positive_u, positive_i

    def _first_candidates(self, interaction, row_idx: Tensor | None) -> Tensor | None:
        """The first candidate of each row of scores, or None where a row has several sequences, or the model none."""
        if row_idx is None or not isinstance(self.model, SequentialRecommender) or self.scores_by_pairs:
            return None
        first = torch.searchsorted(row_idx, torch.arange(int(row_idx[-1]) + 1))  # the rows are in order
        sequences = interaction[self.model.ITEM_SEQ]
        return first if torch.equal(sequences, sequences[first[row_idx]]) else None

    @torch.no_grad()
    def full_sort_scores(self, queries) -> Tensor:
        """The scores of all items for some query rows, through RecBole's own path (``predict`` where it must).

        Shape: ``(len(queries), n_items)``; the padding item has -inf, nothing else is masked.
        """
        if self.item_tensor is None:
            self.item_tensor = self._item_features.to(self.device)
        self.tot_item_num = self.item_tensor.length
        return self._full_sort_batch_eval((queries, None, None, None))[1]

    @property
    def scores_by_pairs(self) -> bool:
        """Whether the model can only predict pairs, each with the whole query beside it (DIN, DCN)."""
        return type(self.model).full_sort_predict is AbstractRecommender.full_sort_predict

    def know_items(self, dataset) -> None:
        """Remember the item features, which models without ``full_sort_predict`` need to score all items."""
        self._item_features = dataset.get_item_feature()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _weights(self, epoch: int, **more: Any) -> dict[str, Any]:
        """What an evaluation needs, as tensors and plain values."""
        return {
            "version": CHECKPOINT_VERSION,
            "model": self.config["model"],
            "epoch": epoch,
            "state_dict": self.model.state_dict(),
            "other_parameter": pack_all(self.model.other_parameter()),
            **more,
        }

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        """Save all that :meth:`resume_checkpoint` needs. Without validation: the last epoch only."""
        if epoch < 0 < self.start_epoch:  # resumed after the last epoch: the file is what it should be
            return
        self.best_epoch = epoch
        if 0 <= epoch < self.epochs - 1 and not getattr(self, "_has_validation", True):
            return
        state = self._weights(
            epoch,
            cur_step=self.cur_step,
            best_valid_score=float(self.best_valid_score),
            best_valid_result=self._valid_result,
            optimizer=self.optimizer.state_dict(),
            random=global_state(),
            loader=[generator.get_state() for generator in _generators(getattr(self, "_train_data", None))],
        )
        save_atomically(state, kwargs.get("saved_model_file", self.saved_model_file))

    def save_pretrained_model(self, epoch, saved_model_file):
        """The checkpoint of a first stage (S3Rec, RaCT), under our name: RecBole's is the same for every attack."""
        self.best_epoch = epoch
        save_atomically(self._weights(epoch, optimizer=self.optimizer.state_dict()), self.saved_model_file)

    def save_weights(self, path: str, epoch: int, valid_metrics: dict[str, float]) -> None:
        """Save what an evaluation needs, and nothing to go on training with."""
        save_atomically(self._weights(epoch, valid_metrics=valid_metrics), path)

    def load_weights(self, path: str) -> dict[str, Any]:
        """Put a checkpoint's weights into the model; nothing in the file is run.

        Raises:
            UserError: not one of our checkpoints, or one of another model or shape.
        """
        state = load_checkpoint(path, self.device)
        if state.get("model") != self.config["model"]:
            raise UserError(f"checkpoint {path}: expected a {self.config['model']}, got a {state.get('model')}")
        with _complaints_about(path):
            self.model.load_state_dict(state["state_dict"])
            self.model.load_other_parameter({k: unpack(v, self.device) for k, v in state["other_parameter"].items()})
            int(state["epoch"])
        return state

    def resume_checkpoint(self, resume_file):
        """Go on from a checkpoint of ours; :meth:`fit` then gives what a training without a break gives."""
        self.saved_model_file = str(resume_file)
        state = self._resumed = self.load_weights(self.saved_model_file)
        if "optimizer" not in state or "random" not in state:
            raise UserError(f"checkpoint {resume_file}: expected one to go on training from, got weights only")
        with _complaints_about(self.saved_model_file):
            self.start_epoch = state["epoch"] + 1
            self.cur_step, self.best_epoch = state["cur_step"], state["epoch"]
            self.best_valid_score, self.best_valid_result = state["best_valid_score"], state["best_valid_result"]
            self.optimizer.load_state_dict(state["optimizer"])


@contextlib.contextmanager
def _complaints_about(path: str) -> Iterator[None]:
    """What does not fit while a checkpoint is taken in is told of its file."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"checkpoint {path}: {type(error).__name__}: {told}") from None


def _generators(loader: Any) -> list[torch.Generator]:
    """What shuffles the rows of a training loader; one of a knowledge graph has two parts."""
    parts = [loader, *(getattr(loader, name, None) for name in ("general_dataloader", "kg_dataloader"))]
    return [part.generator for part in parts if getattr(part, "generator", None) is not None]


@functools.cache
def robust(trainer_class: type) -> type:
    """The robust form of a RecBole trainer class."""
    return type(f"Robust{trainer_class.__name__}", (RobustTrainerMixin, trainer_class), {})


RobustTrainer = robust(recbole_trainer.Trainer)


def get_trainer(config) -> type:
    """The robust form of the trainer that RecBole has for this model, or for the one that it wraps."""
    return robust(recbole_get_trainer(config["MODEL_TYPE"], config["base_model"] or config["model"]))


def _make_folder(key: str, folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except FileNotFoundError as error:  # below /proc, say
        raise UserError(f"{key}: expected a folder that can be made, got {folder!r} ({error.strerror})") from None


@contextlib.contextmanager
def _tensorboard_in(output_dir: str | None, wanted: bool | None, name: str) -> Iterator[None]:
    """RecBole's trainer writes to ./log_tensorboard; inside this block to ``output_dir``, or nowhere."""
    original = recbole_trainer.get_tensorboard
    folder = os.path.join(output_dir or ".", "log_tensorboard", name)
    recbole_trainer.get_tensorboard = lambda logger: NoWriter() if wanted is False else SummaryWriter(folder)
    try:
        yield
    finally:
        recbole_trainer.get_tensorboard = original


class NoWriter:
    """A TensorBoard writer that writes nothing."""

    def add_scalar(self, *args: Any, **kwargs: Any) -> None: ...

    def add_hparams(self, *args: Any, **kwargs: Any) -> None: ...
