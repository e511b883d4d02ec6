"""The plain types that every layer shares: budgets, views, fake profiles, outcomes and errors.

This module imports numpy and scipy only. Item and user ids are 0-based and dense here (RecBole's id minus one): an
attack never meets RecBole's padding id 0. ``data/`` translates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
TargetMode = Literal["all", "split", "round_robin"]
Knowledge = Literal["black-box", "gray-box", "white-box"]

SAMPLE_WEIGHT = "sample_weight"  # the column of training rows that says how much each counts in the loss
TARGET_MODES: tuple[TargetMode, ...] = ("all", "split", "round_robin")


class UserError(Exception):
    """A mistake of the user: its message is one clear line; the command line prints it and exits with code 2."""


@dataclass(frozen=True)
class Budget:
    """What an attacker may spend, in counts (:func:`recbole_robust.data.budget.make_budget` makes them from fractions).

    Attributes:
        n_fake_users: number of fake profiles, > 0.
        n_fillers: filler items a profile, targets not counted, >= 0.
        target_mode: which targets a fake rates: ``all`` of them; ``split``, one a fake in contiguous blocks of fakes;
            ``round_robin``, one a fake in turn.
    """

    n_fake_users: int
    n_fillers: int
    target_mode: TargetMode = "all"

    def __post_init__(self) -> None:
        if self.n_fake_users < 1:
            raise UserError(f"n_fake_users: expected at least 1, got {self.n_fake_users}")
        if self.n_fillers < 0:
            raise UserError(f"n_fillers: expected at least 0, got {self.n_fillers}")
        if self.target_mode not in TARGET_MODES:
            raise UserError(f"target_mode: expected one of {', '.join(TARGET_MODES)}, got {self.target_mode!r}")


@dataclass(frozen=True)
class InteractionLog:
    """The genuine training log in order of time, for attacks on sequential victims.

    Shape: each array is ``(n_interactions,)``; ``timestamps`` has the unit of the data set and never decreases.
    """

    users: IntArray
    items: IntArray
    ratings: FloatArray
    timestamps: FloatArray


@dataclass(frozen=True)
class AttackerView:
    """What the attacker may know of the victim's training data.

    Under ``known_users`` below 1 it has the rows of some genuine users only: ``n_users`` counts those, and everything
    that is derived here (counts, means, the log) is of them. The items and the rating scale are public: always whole.

    Attributes:
        ratings: the genuine training ratings, from the raw log even where the victim is implicit; a stored value is a
            rating, an absent one is unrated. Data without ratings has 1.0 everywhere and ``rating_min == rating_max``.
            Shape: ``(n_users, n_items)``; row ``u`` is the ``u``-th known user, in the order of the data.
        rating_min: lowest rating, in the data set's unit (stars).
        rating_max: highest rating.
        rating_step: distance of neighbouring ratings (1 for MovieLens, 0.5 for half stars).
        knowledge: how much of this an attack may use; an attack that needs more than it is granted raises
            :class:`UserError`.
        log: the same data in order of time, or None where the data has no timestamps.
        newcomers: genuine users held out of the data (``new_fans``), whom only the control ``Organic`` reads; or None.
    """

    ratings: csr_matrix
    rating_min: float
    rating_max: float
    rating_step: float
    knowledge: Knowledge = "white-box"
    log: InteractionLog | None = None
    newcomers: FakeProfiles | None = None

    @property
    def n_users(self) -> int:
        return int(self.ratings.shape[0])

    @property
    def n_items(self) -> int:
        return int(self.ratings.shape[1])

    @cached_property
    def item_counts(self) -> IntArray:
        """Number of ratings of each item. Shape: ``(n_items,)``."""
        return np.bincount(self.ratings.indices, minlength=self.n_items).astype(np.int64)

    @cached_property
    def rating_mean(self) -> float:
        return float(self.ratings.data.mean())

    @cached_property
    def rating_std(self) -> float:
        return float(self.ratings.data.std())

    @cached_property
    def item_means(self) -> FloatArray:
        """Mean rating of each item; the global mean where nobody rated it. Shape: ``(n_items,)``."""
        sums = np.bincount(self.ratings.indices, weights=self.ratings.data, minlength=self.n_items)
        means = np.full(self.n_items, self.rating_mean)
        return np.divide(sums, self.item_counts, out=means, where=self.item_counts > 0)

    @cached_property
    def item_stds(self) -> FloatArray:
        """Standard deviation of each item's ratings; the global one below two ratings. Shape: ``(n_items,)``."""
        squares = (self.ratings.data - self.item_means[self.ratings.indices]) ** 2
        sums = np.bincount(self.ratings.indices, weights=squares, minlength=self.n_items)
        variances = np.full(self.n_items, self.rating_std**2)
        return np.sqrt(np.divide(sums, self.item_counts, out=variances, where=self.item_counts > 1))


@dataclass(frozen=True)
class DefenderView:
    """What a defense may see: the poisoned training data. There is no field that says who is fake."""

    ratings: csr_matrix
    rating_min: float
    rating_max: float
    rating_step: float
    log: InteractionLog | None = None


@dataclass(frozen=True)
class Detection:
    """What a detector says of the users of a :class:`DefenderView`.

    Attributes:
        scores: how suspicious each user is; higher is more. Shape: ``(n_users,)``.
        flagged: whose rows are dropped before the training. Shape: ``(n_users,)``.
    """

    scores: FloatArray
    flagged: NDArray[np.bool_]


@dataclass(frozen=True)
class FakeProfiles:
    """Fake profiles in compressed rows: profile ``k`` is the slice ``user_ptr[k]:user_ptr[k + 1]``.

    Shape: ``user_ptr`` is ``(n_users + 1,)``, the others are ``(n_ratings,)``. ``timestamps`` (the data set's unit) is
    None where the attack does not care: the injection then draws them from the genuine ones.
    """

    user_ptr: IntArray
    item_ids: IntArray
    ratings: FloatArray
    timestamps: FloatArray | None = None

    @property
    def n_users(self) -> int:
        return len(self.user_ptr) - 1

    @cached_property
    def user_ids(self) -> IntArray:
        """The fake user (0-based) of each rating. Shape: ``(n_ratings,)``."""
        return np.repeat(np.arange(self.n_users), np.diff(self.user_ptr))

    def to_csr(self, n_items: int) -> csr_matrix:
        """The profiles as a matrix. Shape: ``(n_users, n_items)``."""
        return csr_matrix((self.ratings, self.item_ids, self.user_ptr), shape=(self.n_users, n_items))

    def digest(self) -> str:
        """A SHA-256 of the contents: equal for equal profiles, on every machine."""
        sha = hashlib.sha256()
        for values, kind in ((self.user_ptr, "<i8"), (self.item_ids, "<i8"), (self.ratings, "<f8")):
            sha.update(np.ascontiguousarray(values, dtype=kind).tobytes())
        if self.timestamps is not None:
            sha.update(np.ascontiguousarray(self.timestamps, dtype="<f8").tobytes())
        return sha.hexdigest()

    def check(self, view: AttackerView) -> FakeProfiles:
        """Return self where the profiles are well formed for ``view``: ids in range, no item twice, ratings in range.

        Raises:
            ValueError: an attack has a bug (this is never the user's mistake).
        """
        if self.user_ptr[0] != 0 or self.user_ptr[-1] != len(self.item_ids) or np.any(np.diff(self.user_ptr) < 0):
            raise ValueError("fake profiles: user_ptr does not describe item_ids")
        if len(self.item_ids) != len(self.ratings):
            raise ValueError("fake profiles: item_ids and ratings differ in length")
        if len(self.item_ids) and (self.item_ids.min() < 0 or self.item_ids.max() >= view.n_items):
            raise ValueError("fake profiles: an item id is out of range")
        if len(np.unique(self.user_ids * view.n_items + self.item_ids)) != len(self.item_ids):
            raise ValueError("fake profiles: a profile rates an item twice")
        if not np.all((self.ratings >= view.rating_min) & (self.ratings <= view.rating_max)):
            raise ValueError("fake profiles: a rating is out of range")
        return self


class Attack(Protocol):
    """An attack: a frozen dataclass of hyper-parameters that is called with a view, targets and a budget."""

    def __call__(
        self, view: AttackerView, target_items: IntArray, budget: Budget, *, rng: np.random.Generator
    ) -> FakeProfiles: ...


class Detector(Protocol):
    """A defense before the training: a frozen dataclass of hyper-parameters, called with what a defender sees."""

    def __call__(self, view: DefenderView, *, rng: np.random.Generator) -> Detection: ...


class Weigher(Protocol):
    """A defense before the training: the weight of each rating in the loss, ``(n_ratings,)``."""

    def __call__(self, view: DefenderView, *, rng: np.random.Generator) -> FloatArray: ...


class TrainingDefense(Protocol):
    """A defense during the training: users of its own among the training rows, drawn anew at some epochs.

    A frozen dataclass of hyper-parameters. It keeps the users in force as the model's ``erm_users``, the fields of
    :class:`FakeProfiles` or None, so that a checkpoint has them.
    """

    n_erm_users: int

    def check(self, model: str, explicit: bool) -> None:
        """Raise a :class:`UserError` where this defense has no meaning for a model; called before any training."""

    def attach(self, model: Any) -> None:
        """Called once on the model that was built."""

    def is_due(self, epoch: int) -> bool:
        """Whether users are drawn before this epoch (from 0)."""

    def __call__(self, model: Any, view: DefenderView, *, rng: np.random.Generator) -> FakeProfiles: ...


@dataclass
class Outcome:
    """What one training gave (a clean one or an attacked one).

    Attributes:
        metrics: RecBole's lower-case metric names to fractions, e.g. ``{"hit@50": 0.23, "targethr@50": 0.04}``.
        per_target: target token to its own ``targethr@K``, ``targetrank``, ``popularity`` ...
        valid_metrics: metrics on the validation rows; empty where nothing was held out for selection.
        seconds: wall-clock seconds of the stages ``train`` and ``evaluate``.
        extra: what else belongs to the run (best epoch, peak memory ...), JSON values only.
    """

    metrics: dict[str, float]
    per_target: dict[str, dict[str, float]] = field(default_factory=dict)
    valid_metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
