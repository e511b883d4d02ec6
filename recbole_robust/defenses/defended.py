"""A RecBole model whose loss a defense adds to or replaces."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

Loss = Tensor | tuple[Tensor, ...]


class LossDefense(Protocol):
    """A defense that changes the loss of a batch: a frozen dataclass of hyper-parameters."""

    def check(self, model: str, explicit: bool) -> None:
        """Raise a :class:`UserError` where this defense has no meaning for a model; called before any training."""

    def attach(self, model: Any) -> None:
        """Called once on the model that was built."""

    def loss(self, model: Any, interaction: Any, own_loss: Loss) -> Loss:
        """The loss of a batch, given the model's own."""


def defended(model_class: type, defense: LossDefense) -> type:
    """``model_class`` under ``defense``: a subclass, so that whatever takes the one takes the other.

    The instances know ``defense_epoch`` (from 0, told by the trainer; None under a trainer that does not tell),
    ``defense_step`` (batches so far, for whoever counts them; kept in checkpoints), ``defended_name`` (of the model)
    and, inside the loss, ``forwarded``: what their ``forward`` returned for this batch, call by call.
    """

    class Defended(model_class):  # type: ignore[misc, valid-type]
        defended_name = model_class.__name__
        loss_terms = (*getattr(model_class, "loss_terms", ("own loss",)), f"loss under {type(defense).__name__}")

        def __init__(self, config: Any, dataset: Any) -> None:
            self.forwarded: list[Any] | None = None
            self.defense_epoch: int | None = None
            super().__init__(config, dataset)
            self.register_buffer("defense_step", torch.zeros((), dtype=torch.long))
            defense.attach(self)

        def on_epoch_start(self, epoch: int) -> None:
            self.defense_epoch = epoch
            hook = getattr(super(), "on_epoch_start", None)
            if hook is not None:
                hook(epoch)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            if self.forwarded is not None:
                self.forwarded.append(found)
            return found

        def calculate_loss(self, interaction: Any) -> Loss:
            self.forwarded = []
            try:
                loss = defense.loss(self, interaction, super().calculate_loss(interaction))
            finally:
                self.forwarded = None
            return loss

    Defended.__name__ = Defended.__qualname__ = f"{type(defense).__name__}{model_class.__name__}"
    return Defended


def is_on(model: Any, start_epoch: int) -> bool:
    """Whether a defense that waits for ``start_epoch`` is on by now."""
    return model.defense_epoch is None or model.defense_epoch >= start_epoch


def add(own_loss: Loss, term: Tensor) -> tuple[Tensor, ...]:
    """The model's own losses and one more; RecBole's trainer sums them, and logs each."""
    return (*own_loss, term) if isinstance(own_loss, tuple) else (own_loss, term)
