"""The two networks of AUSH and their training (Lin et al., CIKM 2020; constants from the authors' code).

Profiles are sparse: the first layer is a sum of one weight row a rating, and only the rows that a batch holds are
trained, so that the size of the catalogue costs nothing. Ratings are divided by the highest one. Weights, order and
masks come from a numpy generator: torch's own random state is not read. It all runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from recbole_robust.attacks.templates import choose_in_rows, expand_rows
from recbole_robust.types import AttackerView, FloatArray, IntArray

PAPER_RATING_MAX = 5.0  # squared errors are in stars of five, whatever the scale: the loss weights mean the same
GENERATOR_BATCH, DISCRIMINATOR_BATCH = 256, 128  # templates; the authors' second is 64: a third slower
GENERATOR_DECAY, DISCRIMINATOR_DECAY = 1e-4, 1e-5  # factor of half the squared weights in the loss
BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's


@dataclass(frozen=True)
class Fillers:
    """The fillers of a batch of profiles: a sparse matrix without the columns of items that none has.

    Shape: ``items`` (of the columns, ascending) is ``(n_distinct,)``; ``ratings`` (over the highest) is
    ``(B, n_distinct)``.
    """

    items: IntArray
    ratings: csr_matrix

    @classmethod
    def of(cls, items: IntArray, ratings: FloatArray, lengths: IntArray, n_items: int) -> Fillers:
        """From item ids and ratings profile by profile; ``lengths`` is the number of each profile's."""
        column = np.zeros(n_items, dtype=np.int32)
        column[items] = 1
        distinct = np.flatnonzero(column)
        column[distinct] = np.arange(len(distinct))
        ptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        shape = (len(lengths), len(distinct))
        return cls(distinct, csr_matrix((ratings.astype(np.float32), column[items], ptr), shape))


class Network:
    """A perceptron on sparse profiles with sigmoid hidden layers, and its optimiser (Adam).

    Args:
        n_selected: further inputs, dense: the ratings of the selected items; 0 for none.
        sizes: of the hidden layers and the output.
    """

    def __init__(
        self,
        n_items: int,
        n_selected: int,
        sizes: list[int],
        rng: np.random.Generator,
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        def uniform(bound: float, *shape: int) -> Tensor:
            return torch.from_numpy(rng.uniform(-bound, bound, shape).astype(np.float32))

        xavier = (6 / (n_items + n_selected + sizes[0])) ** 0.5
        self.table = uniform(xavier, n_items, sizes[0]).numpy()
        self.table_moments = np.zeros((2, *self.table.shape), dtype=np.float32)
        self.selected = uniform(xavier, n_selected, sizes[0])
        self.layers = [uniform((6 / (n + m)) ** 0.5, n, m) for n, m in pairwise(sizes)]
        self.biases = [uniform(0.01, size) for size in sizes]
        self.parameters = [*self.layers, *self.biases, *([self.selected] if n_selected else [])]
        self.dense = torch.cat([parameter.flatten() for parameter in self.parameters])
        self.dense_moments = torch.zeros_like(self.dense), torch.zeros_like(self.dense)
        places = self.dense.split([parameter.numel() for parameter in self.parameters])
        for parameter, place in zip(self.parameters, places, strict=True):  # views: one vector to optimise
            parameter.set_(place.view_as(parameter)).requires_grad_()
        self.learning_rate, self.weight_decay, self.n_steps = learning_rate, weight_decay, 0

    def read(self, fillers: Fillers) -> Tensor:
        """The first layer's sums over the fillers. Shape: ``(B, sizes[0])``."""
        self.fillers, self.rows = fillers, self.table.take(fillers.items, axis=0)
        self.sums = torch.from_numpy(fillers.ratings @ self.rows).requires_grad_()
        return self.sums

    def finish(self, sums: Tensor, selected: Tensor | None = None) -> Tensor:
        """All that follows :meth:`read`. Shape: ``(B, sizes[0])``, ``(B, n_selected)`` -> ``(B, sizes[-1])``."""
        hidden = sums + self.biases[0]
        if selected is not None:
            hidden = hidden + selected @ self.selected
        for weights, bias in zip(self.layers, self.biases[1:], strict=True):
            hidden = torch.addmm(bias, torch.sigmoid(hidden), weights)
        return hidden

    def step(self, loss: Tensor) -> None:
        """One step of Adam on the dense parameters and on the rows of the table that :meth:`read` used last."""
        sums_gradient, *gradients = torch.autograd.grad(loss, [self.sums, *self.parameters])
        self.n_steps += 1
        self._adam(self.dense, torch.cat([gradient.flatten() for gradient in gradients]), *self.dense_moments)
        row_gradient = self.fillers.ratings.T @ sums_gradient.numpy()
        moments = self.table_moments.take(self.fillers.items, axis=1)
        self._adam(*(torch.from_numpy(array) for array in (self.rows, row_gradient, *moments)))
        self.table[self.fillers.items] = self.rows
        self.table_moments[:, self.fillers.items] = moments

    def _adam(self, weights: Tensor, gradient: Tensor, mean: Tensor, square: Tensor) -> None:
        """Change weights and moments in place (Kingma & Ba, ICLR 2015, in the order of the end of its section 2)."""
        gradient.add_(weights, alpha=self.weight_decay)
        mean.lerp_(gradient, 1 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        correction = (1 - BETAS[1] ** self.n_steps) ** 0.5
        rate = self.learning_rate * correction / (1 - BETAS[0] ** self.n_steps)
        weights.addcdiv_(mean, square.sqrt().add_(EPS * correction), value=-rate)


def make_generator(
    n_items: int, n_selected: int, size: int, rng: np.random.Generator, learning_rate: float = 0.01
) -> Network:
    """The generator: ratings of a profile's fillers to logits of its selected ratings."""
    sizes = [size, n_selected]
    return Network(n_items, 0, sizes, rng, learning_rate=learning_rate, weight_decay=GENERATOR_DECAY)


def make_discriminator(
    n_items: int, n_selected: int, size: int, rng: np.random.Generator, learning_rate: float = 1e-4
) -> Network:
    """The discriminator: ratings of fillers and selected items to the logit of being real."""
    sizes = [size, size, size, 1]
    return Network(n_items, n_selected, sizes, rng, learning_rate=learning_rate, weight_decay=DISCRIMINATOR_DECAY)


def generate(generator: Network, fillers: Fillers) -> Tensor:
    """The selected ratings that go with the fillers, over the highest rating. Shape: ``(B, n_selected)``."""
    return torch.sigmoid(generator.finish(generator.read(fillers)))


@dataclass(frozen=True)
class Templates:
    """The real profiles that the networks learn from; all ratings are over the highest one.

    Shape: ``ptr`` is ``(n_templates + 1,)``, ``items``, ``ratings`` and ``weights`` are ``(n_ratings,)``: the rows of a
    CSR matrix without selected items and targets. ``weights`` (None: all alike) is how likely a rating is a filler.
    ``selected`` is ``(n_templates, n_selected)``, 0 where the template has no rating; ``is_rated`` says where it has.
    """

    n_items: int
    n_fillers: int
    ptr: IntArray
    items: IntArray
    ratings: FloatArray
    weights: FloatArray | None
    selected: Tensor
    is_rated: Tensor

    @classmethod
    def of(
        cls,
        view: AttackerView,
        users: IntArray,
        selected: IntArray,
        targets: IntArray,
        n_fillers: int,
        weights: FloatArray | None = None,
    ) -> Templates:
        """The profiles of some users; ``weights`` are those of the items. Shape: ``(n_items,)``."""
        profiles = view.ratings[users]
        is_filler = ~np.isin(profiles.indices, np.concatenate([selected, targets]))
        items, ratings = profiles.indices[is_filler].astype(np.int64), profiles.data[is_filler]
        is_rated = csr_matrix((np.ones(profiles.nnz, dtype=bool), profiles.indices, profiles.indptr), profiles.shape)
        return cls(
            n_items=view.n_items,
            n_fillers=n_fillers,
            ptr=np.concatenate([[0], np.cumsum(is_filler)])[profiles.indptr],
            items=items,
            ratings=ratings / view.rating_max,
            weights=None if weights is None else weights[items],
            selected=torch.from_numpy(profiles[:, selected].toarray().astype(np.float32) / np.float32(view.rating_max)),
            is_rated=torch.from_numpy(is_rated[:, selected].toarray()),
        )

    def draw(self, rng: np.random.Generator) -> Draw:
        """All templates in random order, each with ``n_fillers`` of its ratings (or what it has) as fillers."""
        order = rng.permutation(len(self.selected))
        rows, positions = expand_rows(self.ptr, order)
        weights = None if self.weights is None else self.weights[positions]
        chosen = choose_in_rows(rng, rows, np.full(len(order), self.n_fillers), weights)
        positions, lengths = positions[chosen], np.bincount(rows[chosen], minlength=len(order))
        return Draw(self.n_items, order, lengths, self.items[positions], self.ratings[positions])


@dataclass(frozen=True)
class Draw:
    """The fillers of one epoch. Shape: ``order``, ``lengths`` are ``(n_templates,)``; the others hold all fillers."""

    n_items: int
    order: IntArray
    lengths: IntArray
    items: IntArray
    ratings: FloatArray

    def batches(self, size: int) -> Iterator[tuple[IntArray, Fillers]]:
        """Templates and their fillers, ``size`` templates at a time."""
        ends = np.cumsum(self.lengths)
        for start in range(0, len(self.order), size):
            batch = slice(start, start + size)
            span = slice(ends[start] - self.lengths[start], ends[batch][-1])
            fillers = Fillers.of(self.items[span], self.ratings[span], self.lengths[batch], self.n_items)
            yield self.order[batch], fillers


def generator_losses(fakes: Tensor, real: Tensor, is_wanted: Tensor, logits: Tensor) -> Tensor:
    """Adversarial, shilling and reconstruction loss of a batch, in this order.

    Adversarial: the cross-entropy of passing for real. Shilling: the squared distance of the selected ratings from the
    highest one, a mean. Reconstruction: that from the template's own ratings, a sum over the selected items.

    Args:
        fakes: generated ratings over the highest one; ``real`` are the template's own. Shape: ``(B, n_selected)``.
        is_wanted: which of the real ratings are reconstructed.
        logits: what the discriminator says of the fakes. Shape: ``(B, 1)``.
    """
    adversarial = F.softplus(-logits).mean()
    shilling = PAPER_RATING_MAX**2 * ((fakes - 1) ** 2).mean()
    reconstruction = PAPER_RATING_MAX**2 * ((fakes - real) ** 2 * is_wanted).sum(dim=1).mean()
    return torch.stack([adversarial, shilling, reconstruction])


def train(
    generator: Network,
    discriminator: Network,
    templates: Templates,
    rng: np.random.Generator,
    *,
    epochs: int,
    loss_weights: tuple[float, float, float],
    zr_ratio: float,
) -> FloatArray:
    """Train both networks, one pass of each over the templates an epoch, the discriminator first.

    Args:
        loss_weights: of the generator's losses: adversarial, shilling, reconstruction.
        zr_ratio: zero reconstruction: the share of the selected items without a rating whose 0 is reconstructed.

    Returns:
        Mean losses of each epoch: the generator's three, then the discriminator's. Shape: ``(epochs, 4)``.
    """
    weights = torch.tensor(loss_weights, dtype=torch.float32, device="cpu")
    history = np.zeros((epochs, 4))
    for epoch in range(epochs):
        draw = templates.draw(rng)
        for batch, fillers in draw.batches(DISCRIMINATOR_BATCH):
            with torch.no_grad():
                fakes = generate(generator, fillers)
            sums = discriminator.read(fillers)  # a profile and its fake have the same fillers
            logits = discriminator.finish(sums.repeat(2, 1), torch.cat([templates.selected[batch], fakes]))
            labels = torch.cat([torch.ones_like(fakes[:, :1]), torch.zeros_like(fakes[:, :1])])
            loss = 2 * F.binary_cross_entropy_with_logits(logits, labels)  # the mean of the real and that of the fakes
            discriminator.step(loss)
            history[epoch, 3] += loss.item() * len(batch)
        for batch, fillers in draw.batches(GENERATOR_BATCH):
            with torch.no_grad():
                sums = discriminator.read(fillers)
            fakes = generate(generator, fillers)
            is_wanted = templates.is_rated[batch]
            is_wanted = is_wanted | torch.from_numpy(rng.random(is_wanted.shape) < zr_ratio)
            logits = discriminator.finish(sums, fakes)
            losses = generator_losses(fakes, templates.selected[batch], is_wanted, logits)
            generator.step((weights * losses).sum())
            history[epoch, :3] += losses.detach().numpy() * len(batch)
    return history / len(templates.selected)
