"""The AUSH attack."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix

from recbole_robust.attacks.aush_networks import (
    Fillers,
    Templates,
    generate,
    make_discriminator,
    make_generator,
    train,
)
from recbole_robust.attacks.profiles import (
    Intent,
    build_profiles,
    check_request,
    count_rated,
    discretise,
    most_rated,
    named_items,
    require_choice,
    require_items,
    require_number,
)
from recbole_robust.attacks.templates import copy_ratings, template_users
from recbole_robust.randomness import one_thread
from recbole_robust.types import AttackerView, Budget, FakeProfiles, FloatArray, IntArray, Knowledge, UserError

FillerSampling = Literal["uniform", "mean", "popularity"]

N_POPULAR = 20  # selected items are chosen among the most rated ones
N_TARGET_USERS = 30  # who must like them


@dataclass(frozen=True)
class AUSH:
    """Fillers and ratings of a real user, and a few selected items whose ratings a GAN adds.

    Reference: C. Lin, S. Chen, H. Li, Y. Xiao, L. Li, Q. Yang. Attacking Recommender Systems with Augmented User
    Profiles. CIKM 2020.

    Knowledge: gray-box; the profiles of some users (all that are long enough serve as templates).

    A fake copies fillers of one real user, its template, with the ratings. The generator reads these and rates the
    selected items, popular ones that the users to be reached like; the targets get the highest rating. The generator
    learns to deceive a discriminator that compares its profile with the template's (adversarial), to rate high
    (shilling), and to rate as the template does (reconstruction, in which a share of the unrated counts as 0).

    Selected items count as fillers, as in Segment, so that the budget equals that of the other attacks. All targets
    share them. Where no user is long enough, fakes are topped up as in CopyProfile. Data with one rating train nothing:
    all is that rating. Generated ratings are put on the data set's grid; the authors' code writes fractions. Known
    slips of published codes: 5 added to the selected ratings in training, so that they end at 1 (Leg-UP, recad), a
    generator without a gradient (recad), one with a single unit before its output (the authors').

    Args:
        intent: ``push`` rates the targets highest, ``nuke`` lowest; the rest stays. (Default: ``push``)
        selected_items: item ids, 0-based (a configuration names tokens); None takes the authors' rule: at random among
            the sets of the 20 most rated items that at least 30 users like as a whole, else by more than half, else
            the most rated. (Default: None)
        n_selected: how many to choose; not read where ``selected_items`` is given. (Default: 3)
        filler_sampling: which of a template's ratings are copied: ``uniform``, or likelier by the item's ``mean``
            rating or ``popularity``. (Default: ``uniform``)
        epochs: passes of each network over the templates. (Default: 150)
        generator_size, discriminator_size: units of a hidden layer: one of the generator, three of the discriminator.
            (Default: 128, 150)
        generator_learning_rate, discriminator_learning_rate: Adam's. (Default: 0.01, 1e-4)
        adversarial_weight, shilling_weight, reconstruction_weight: of the generator's losses. (Default: 1)
        zr_ratio: share of the unrated selected items whose 0 is reconstructed, 0 to 1. (Default: 0.5)
    """

    intent: Intent = "push"
    selected_items: tuple[int, ...] | None = None
    n_selected: int = 3
    filler_sampling: FillerSampling = "uniform"
    epochs: int = 150
    generator_size: int = 128
    discriminator_size: int = 150
    generator_learning_rate: float = 0.01
    discriminator_learning_rate: float = 1e-4
    adversarial_weight: float = 1.0
    shilling_weight: float = 1.0
    reconstruction_weight: float = 1.0
    zr_ratio: float = 0.5

    knowledge: ClassVar[Knowledge] = "gray-box"

    def __post_init__(self) -> None:
        require_choice("intent", self.intent, Intent)
        object.__setattr__(self, "selected_items", require_items("selected_items", self.selected_items))
        require_number("n_selected", self.n_selected, 1, N_POPULAR, integer=True)
        require_choice("filler_sampling", self.filler_sampling, FillerSampling)
        for key in ("epochs", "generator_size", "discriminator_size"):
            require_number(key, getattr(self, key), 1, integer=True)
        for network in ("generator", "discriminator"):
            require_number(f"{network}_learning_rate", getattr(self, f"{network}_learning_rate"), 0)
        for loss in ("adversarial", "shilling", "reconstruction"):
            require_number(f"{loss}_weight", getattr(self, f"{loss}_weight"), 0)
        require_number("zr_ratio", self.zr_ratio, 0, 1)

    def __call__(
        self, view: AttackerView, target_items: ArrayLike, budget: Budget, *, rng: np.random.Generator
    ) -> FakeProfiles:
        targets = check_request(self, view, target_items, budget)
        n_selected = self.n_selected if self.selected_items is None else len(self.selected_items)
        if n_selected > budget.n_fillers:
            raise UserError(f"n_fillers: expected at least the {n_selected} selected items, got {budget.n_fillers}")
        if self.selected_items is None:
            selected = choose_selected_items(view, targets, self.n_selected, rng)
        else:
            selected = named_items("selected_items", self.selected_items, targets, view.n_items)
        excluded = np.concatenate([selected, targets])
        n_copied = budget.n_fillers - n_selected
        templates = template_users(view, excluded, n_copied)
        users = rng.choice(templates, budget.n_fake_users, replace=budget.n_fake_users > len(templates))
        copied = copy_ratings(
            view, users, excluded, n_copied, rng, weights=self._filler_weights(view), n_beside=n_selected
        )
        items, ratings = view.ratings.indices[copied].astype(np.int64), view.ratings.data[copied]
        generated = self._rate_selected(view, templates, selected, targets, items, ratings, rng)
        items = np.hstack([np.broadcast_to(selected, generated.shape), items])
        ratings = np.hstack([discretise(generated, view), ratings])
        return build_profiles(view, targets, budget, items, ratings, intent=self.intent).check(view)

    def _filler_weights(self, view: AttackerView) -> FloatArray | None:
        if self.filler_sampling == "uniform":
            return None
        weights = view.item_means if self.filler_sampling == "mean" else view.item_counts
        return np.maximum(weights, 1e-9)  # a mean of 0 comes last

    def _rate_selected(
        self,
        view: AttackerView,
        templates: IntArray,
        selected: IntArray,
        targets: IntArray,
        items: IntArray,
        ratings: FloatArray,
        rng: np.random.Generator,
    ) -> FloatArray:
        """Train the networks; the selected ratings for the fillers of each fake, before they are put on the grid.

        Shape: ``items`` and ``ratings`` are ``(n_fake_users, n_copied)``; returns ``(n_fake_users, n_selected)``.
        """
        n_items, n_selected, (n_fakes, n_copied) = view.n_items, len(selected), items.shape
        if view.rating_min == view.rating_max:
            return np.full((n_fakes, n_selected), view.rating_max)
        with one_thread():
            generator = make_generator(n_items, n_selected, self.generator_size, rng, self.generator_learning_rate)
            discriminator = make_discriminator(
                n_items, n_selected, self.discriminator_size, rng, self.discriminator_learning_rate
            )
            train(
                generator,
                discriminator,
                Templates.of(view, templates, selected, targets, n_copied, self._filler_weights(view)),
                rng,
                epochs=self.epochs,
                loss_weights=(self.adversarial_weight, self.shilling_weight, self.reconstruction_weight),
                zr_ratio=self.zr_ratio,
            )
            lengths = np.full(n_fakes, n_copied)
            fillers = Fillers.of(items.ravel(), ratings.ravel() / view.rating_max, lengths, n_items)
            return view.rating_max * generate(generator, fillers).detach().numpy().astype(np.float64)


def choose_selected_items(view: AttackerView, targets: IntArray, n_selected: int, rng: np.random.Generator) -> IntArray:
    """The rule of the authors' code: popular items that enough users to be reached like together.

    A user likes an item rated at least as high as the mean of all ratings, or as the middle of the scale if that is
    lower. A user is to be reached who has not rated all targets.

    Returns:
        Item ids, ascending: the first set in random order that ``N_TARGET_USERS`` such users like as a whole; if there
        is none, by more than half; if there is none (our addition), the most rated items. Shape: ``(n_selected,)``.
    """
    popular = most_rated(view, N_POPULAR, excluded=targets)
    threshold = min(view.rating_mean, (view.rating_min + view.rating_max) / 2)
    data = view.ratings
    is_liked = csr_matrix((data.data >= threshold, data.indices, data.indptr), data.shape)
    likes = is_liked[count_rated(view, targets) < len(targets)][:, popular].toarray()
    majority = n_selected // 2 + 1
    likes = likes[likes.sum(axis=1) >= majority]  # the others count for no set
    sets = rng.permutation(list(combinations(range(len(popular)), n_selected)))
    for n_least in (n_selected, majority):
        for chosen in sets:
            if np.count_nonzero(likes[:, chosen].sum(axis=1) >= n_least) >= N_TARGET_USERS:
                return np.sort(popular[chosen])
    return np.sort(popular[:n_selected])
