"""Ordinary noise: some rows of genuine users' logs are wrong, without anybody's intent. Pure arrays, no RecBole.

:mod:`recbole_robust.data.noisy_split` puts the noisy rows into a training split.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from recbole_robust.arguments import share_of
from recbole_robust.randomness import stage_rng
from recbole_robust.types import FloatArray, IntArray

logger = logging.getLogger(__name__)

MAX_REDRAWS = 50  # of items that a user knows; then what is left to choose from is listed instead


@dataclass(frozen=True)
class NoisyRows:
    """A log with noise in it, each row told by rows of the clean log.

    Attributes:
        place: the clean row whose user and time a row has; never decreases within a user.
        source: the clean row that all other values come from, the item apart.
        items: the items.
        is_noise: which rows were replaced, inserted or moved (a dropped row leaves none behind).
        users: the users whose log was edited, ascending.
        n_edits: how many rows were replaced, inserted, dropped or moved.

    Shape: ``place``, ``source``, ``items`` and ``is_noise`` are ``(n_noisy_rows,)``.
    """

    place: IntArray
    source: IntArray
    items: IntArray
    is_noise: NDArray[np.bool_]
    users: IntArray
    n_edits: int


@dataclass(frozen=True)
class InteractionNoise:
    """Which rows are edited, and how. The keys are those of properties/overall.yaml, less their ``noise_``.

    ``kind`` replace, the noise of Liu et al. ("Enhancing Recommendation with Denoising Auxiliary Task", JCST 2024):
    a row gets an item that the user has nowhere, and keeps its time, rating and label. insert: such a row is added
    right after a row of the user, with that row's values. drop: a row is deleted. swap: rows of a user change places
    in time, each one's item, rating and label going along. Targets of an attack are neither edited nor drawn.

    Shares are rounded down. ``strength`` is of the rows of an edited user; unit interactions has no use for it. One
    seed is one noise on one split, whatever is attacked, as long as the targets are the same.
    """

    ratio: float
    unit: str = "users"
    kind: str = "replace"
    strength: float = 0.2
    by: str = "uniform"
    scope: str = "train"
    seed: int = 0

    @classmethod
    def from_config(cls, config) -> InteractionNoise | None:
        """The noise of a configuration, or None where ``noise_ratio`` is 0."""
        if not config["noise_ratio"]:
            return None
        return cls(**{key.removeprefix("noise_"): config[key] for key in NOISE_KEYS}, seed=config["seed"])

    def fingerprint(self) -> str:
        """What a cache of noisy data is compared by."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]

    def edit(
        self, users: IntArray, items: IntArray, known: IntArray, n_users: int, n_items: int, *,
        protected: IntArray, least_left: int = 1,
    ) -> NoisyRows:  # fmt: skip
        """The rows of a log with noise.

        Args:
            users, items: the clean rows in RecBole ids (0 is padding), each user's in order of time.
            known: ``user * n_items + item`` of all pairs that are no noise, held-out ones too, sorted.
            protected: items whose rows stay as they are, and which no noisy row gets.
            least_left: rows that a user keeps at least where rows are dropped.

        Shape: ``users``, ``items`` ``(n_rows,)``; ``known`` ``(n_pairs,)``; ``protected`` ``(n_protected,)``.
        """
        rng = stage_rng(self.seed, "noise")
        editable = ~np.isin(items, protected)
        counts, most = (np.bincount(part, minlength=n_users) for part in (users, users[editable]))
        if self.kind == "drop":
            most = np.minimum(most, counts - least_left)
        elif self.kind in ("replace", "insert"):  # one item stays unknown: it can be sampled as a negative
            n_known = np.bincount(known // n_items, minlength=n_users)
            most = np.minimum(most, n_items - 2 - n_known - len(protected))
        picked = self._pick(users, np.flatnonzero(editable), counts, most, rng)
        rows = np.arange(len(users))
        place, source, is_noise, noisy_items = rows, rows, np.zeros(len(rows), dtype=bool), items.copy()
        if self.kind == "drop":
            place = source = np.delete(rows, picked)
            noisy_items, is_noise = items[source], is_noise[source]
        elif self.kind == "swap":
            source = _rotated(users, picked, rng)
            noisy_items = items[source]
            is_noise[picked] = True
        else:
            where = picked
            if self.kind == "insert":
                place = source = np.insert(rows, picked + 1, picked)
                where = picked + 1 + np.arange(len(picked))
                noisy_items, is_noise = items[source], np.zeros(len(source), dtype=bool)
            weights = np.bincount(items, minlength=n_items) if self.by == "popularity" else np.ones(n_items)
            noisy_items[where] = draw_items(users[picked], known, weights.astype(np.float64), protected, rng)
            is_noise[where] = True
        return NoisyRows(place, source, noisy_items, is_noise, np.unique(users[picked]), len(picked))

    def _pick(
        self, users: IntArray, candidates: IntArray, counts: IntArray, most: IntArray, rng: np.random.Generator
    ) -> IntArray:
        """The rows to edit, ascending, at most ``most`` of a user's. Shape: ``counts``, ``most`` ``(n_users,)``."""
        least = 2 if self.kind == "swap" else 1
        most = np.where(most >= least, most, 0)
        keys = rng.random(len(candidates))
        rank = rank_in_group(users[candidates], keys)
        if self.unit == "users":
            able = np.flatnonzero(most)
            wanted = share_of(self.ratio, len(counts) - 1)
            if wanted > len(able):
                logger.warning("noise_ratio: only %d of %d users have rows to %s", len(able), wanted, self.kind)
            chosen = rng.choice(able, size=min(wanted, len(able)), replace=False)
            quota = np.zeros_like(counts)
            quota[chosen] = np.clip((self.strength * counts[chosen] + 1e-9).astype(np.int64), least, most[chosen])
            return candidates[rank < quota[users[candidates]]]
        allowed = np.flatnonzero(rank < most[users[candidates]])
        picked = candidates[np.sort(allowed[np.argsort(keys[allowed])[: share_of(self.ratio, len(users))]])]
        if self.kind == "swap":  # nothing to change places with
            picked = picked[np.bincount(users[picked], minlength=len(counts))[users[picked]] > 1]
        return picked


NOISE_KEYS = tuple(f"noise_{field.name}" for field in fields(InteractionNoise) if field.name != "seed")


def rank_in_group(groups: IntArray, keys: FloatArray) -> IntArray:
    """The rank of each entry among those of its group, by key, from 0. Shape: all ``(n,)``."""
    order = np.lexsort((keys, groups))
    sizes = np.bincount(groups)
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def _rotated(users: IntArray, picked: IntArray, rng: np.random.Generator) -> IntArray:
    """The rows, where the picked ones of each user take one another's places: by a random rotation, so that each moves.

    Shape: ``(n_rows,)``.
    """
    source = np.arange(len(users))
    by_user = picked[np.argsort(users[picked], kind="stable")]
    _, group, sizes = np.unique(users[by_user], return_inverse=True, return_counts=True)
    starts = (np.cumsum(sizes) - sizes)[group]
    shifts = rng.integers(1, np.maximum(sizes, 2))[group]
    source[by_user] = by_user[starts + (np.arange(len(by_user)) - starts + shifts) % sizes[group]]
    return source


def _among(pairs: IntArray, keys: IntArray) -> NDArray[np.bool_]:
    """Which keys are among the sorted pairs. Shape: as ``keys``."""
    if not len(pairs):
        return np.zeros(len(keys), dtype=bool)
    return pairs[np.searchsorted(pairs, keys).clip(max=len(pairs) - 1)] == keys


def draw_items(
    users: IntArray, known: IntArray, weights: FloatArray, protected: IntArray, rng: np.random.Generator
) -> IntArray:
    """An item for each entry that its user does not know, in proportion to the weights; no pair comes out twice.

    Args:
        known: ``user * n_items + item`` of the pairs that must not come out, sorted.
        weights: of the items; item 0 and the protected ones are never drawn. Shape: ``(n_items,)``.

    Shape: as ``users``.
    """
    n_items = len(weights)
    allowed = np.ones(n_items, dtype=bool)
    allowed[0], allowed[protected] = False, False
    if not (weights * allowed).any():
        weights = np.ones(n_items)
    sums = np.cumsum(weights * allowed)
    items, left, fresh = np.zeros(len(users), dtype=np.int64), np.arange(len(users)), known[:0]
    for _ in range(MAX_REDRAWS):
        if not len(left):
            return items
        drawn = np.searchsorted(sums, rng.random(len(left)) * sums[-1], side="right")
        keys = users[left] * n_items + drawn
        is_new = np.zeros(len(left), dtype=bool)
        is_new[np.unique(keys, return_index=True)[1]] = True
        is_new &= ~(_among(known, keys) | _among(fresh, keys))
        items[left[is_new]] = drawn[is_new]
        fresh = np.union1d(fresh, keys[is_new])
        left = left[~is_new]
    for user in np.unique(users[left]):  # the few who know nearly everything that is drawn at all
        free = allowed.copy()
        for pairs in (known, fresh):
            begin, end = np.searchsorted(pairs, [user * n_items, (user + 1) * n_items])
            free[pairs[begin:end] - user * n_items] = False
        choice = np.flatnonzero(free)
        mine = left[users[left] == user]
        arrivals = rng.exponential(size=len(choice)) / np.maximum(weights[choice], 1e-12)
        items[mine] = choice[np.argsort(arrivals)[: len(mine)]]
    return items
