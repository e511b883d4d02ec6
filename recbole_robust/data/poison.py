"""Poison: what to inject into a training split, planned from an attack or replayed from a stored card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from recbole_robust.data.budget import make_budget
from recbole_robust.data.targets import choose_targets
from recbole_robust.data.views import attacker_view, genuine_item_counts
from recbole_robust.randomness import stage_rng
from recbole_robust.types import Attack, AttackerView, FakeProfiles, Knowledge, TargetMode, UserError

SCHEMA_VERSION = 1
CHOICE_KEYS = ("target_items", "n_targets", "target_choice", "target_seed", "target_sets")  # of targets
LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class PoisonCard:
    """Fake profiles that can be stored and replayed on any model: items by token, the settings beside them.

    Attributes:
        item_tokens: the tokens that ``profiles.item_ids`` index. Shape: ``(n_tokens,)``.
        settings: attack, its hyper-parameters, budget and seed, as JSON values.
    """

    dataset: str
    target_items: list[str]
    item_tokens: list[str]
    profiles: FakeProfiles
    settings: dict[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for the contents: profiles, items and targets."""
        parts = "\x1f".join([self.dataset, *self.target_items, "", *self.item_tokens, self.profiles.digest()])
        return hashlib.sha256(parts.encode()).hexdigest()[:12]

    def fingerprint(self) -> str:
        """What a cache of poisoned data is compared by."""
        return self.digest()

    def plan(self, train) -> PoisonCard:
        """Itself: a card is replayed, whatever the split."""
        return self

    def to_ids(self, train) -> FakeProfiles:
        """The profiles with the 0-based item ids of ``train``.

        Raises:
            UserError: the card is of another data set, or names an item that this one does not have.
        """
        if self.dataset != train.dataset_name:
            raise UserError(f"poison: expected a card for {train.dataset_name}, got one for {self.dataset}")
        token2id = train.field2token_id[train.iid_field]
        missing = [token for token in (*self.item_tokens, *self.target_items) if token not in token2id]
        if missing:
            raise UserError(f"poison: expected items of {train.dataset_name}, got unknown {', '.join(missing[:5])}")
        ids = np.array([token2id[token] for token in self.item_tokens], dtype=np.int64) - 1
        return dataclasses.replace(self.profiles, item_ids=ids[self.profiles.item_ids])

    def save(self, path: str | Path) -> None:
        """Write the card as JSON: to a temporary name first, then renamed."""
        profiles = self.profiles
        content = {
            "schema_version": SCHEMA_VERSION,
            "hash": self.digest(),
            "dataset": self.dataset,
            "settings": self.settings,
            "target_items": self.target_items,
            "item_tokens": self.item_tokens,
            "user_ptr": profiles.user_ptr.tolist(),
            "item_index": profiles.item_ids.tolist(),
            "ratings": profiles.ratings.tolist(),
            "timestamps": None if profiles.timestamps is None else profiles.timestamps.tolist(),
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> PoisonCard:
        """Read a card.

        Raises:
            UserError: not there, not a card, or changed since it was written.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            profiles = FakeProfiles(
                np.array(content["user_ptr"], dtype=np.int64),
                np.array(content["item_index"], dtype=np.int64),
                np.array(content["ratings"], dtype=np.float64),
                None if content["timestamps"] is None else np.array(content["timestamps"], dtype=np.float64),
            )
            tokens = [str(token) for token in content["item_tokens"]]
            profiles.check(AttackerView(csr_matrix((1, len(tokens))), -LARGEST, LARGEST, 0.0))  # ids, no NaN
            targets = [str(token) for token in content["target_items"]]
            card = cls(str(content["dataset"]), targets, tokens, profiles, dict(content["settings"]))
            recorded = str(content["hash"])
        except OSError as error:
            raise UserError(f"poison: {path}: {error.strerror or error}") from None
        except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
            raise UserError(f"poison: {path}: expected a poison card, got {type(error).__name__}: {error}") from None
        if recorded != card.digest():
            raise UserError(f"poison: {path}: expected contents of hash {recorded}, got {card.digest()}")
        return card


@dataclass(frozen=True)
class Poison:
    """A plan: which attack, on which targets, with which budget. The keys are those of properties/overall.yaml."""

    attack: Attack
    target_items: str | Sequence[Any] | None = None
    attack_size: float | None = 0.03
    n_fake_users: int | None = None
    filler_size: float | None = None
    n_fillers: int | None = None
    target_mode: TargetMode = "all"
    knowledge: Knowledge = "white-box"
    n_targets: int = 5
    target_choice: str = "random"
    target_seed: int | None = None
    target_sets: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    seed: int = 0

    @classmethod
    def from_config(cls, config, attack: Attack) -> Poison:
        names = {f.name for f in dataclasses.fields(cls)} - {"attack"}
        return cls(attack, **{name: config[name] for name in names})

    def fingerprint(self) -> str:
        """What a cache of poisoned data is compared by: everything that the plan depends on."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]

    def plan(self, train) -> PoisonCard:
        """Run the attack on the genuine rows of a training split."""
        view = attacker_view(train, self.knowledge)
        tokens = train.field2id_token[train.iid_field][1:]
        targets = targets_of(self, train)
        ids = np.array([train.field2token_id[train.iid_field][token] for token in targets], dtype=np.int64) - 1
        budget = make_budget(
            view,
            len(ids),
            attack_size=self.attack_size,
            n_fake_users=self.n_fake_users,
            filler_size=self.filler_size,
            n_fillers=self.n_fillers,
            target_mode=self.target_mode,
        )
        attack = with_item_ids(self.attack, train)
        profiles = attack(view, ids, budget, rng=stage_rng(self.seed, "attack")).check(view)
        used, index = np.unique(profiles.item_ids, return_inverse=True)
        settings = {
            "attack": type(self.attack).__name__,
            "attack_args": json.loads(json.dumps(dataclasses.asdict(self.attack), default=str)),  # type: ignore[call-overload]
            "seed": self.seed,
            "knowledge": self.knowledge,
            **dataclasses.asdict(budget),
        }
        return PoisonCard(
            dataset=train.dataset_name,
            target_items=targets,
            item_tokens=[str(tokens[i]) for i in used],
            profiles=dataclasses.replace(profiles, item_ids=index.astype(np.int64)),
            settings=settings,
        )


def with_item_ids(attack: Attack, train) -> Attack:
    """The attack with ids in place of the item tokens of its fields named ``*_items`` (Segment has one).

    Raises:
        UserError: a token that is no item of the data set.
    """
    ids = {}
    for item_field in dataclasses.fields(attack):  # type: ignore[arg-type]
        tokens = getattr(attack, item_field.name)
        if item_field.name.endswith("_items") and tokens is not None and not isinstance(tokens, int):
            token2id = train.field2token_id[train.iid_field]
            missing = [str(token) for token in tokens if str(token) not in token2id]
            if missing:
                name = f"attack_args.{item_field.name}"
                raise UserError(f"{name}: expected items of {train.dataset_name}, got unknown {', '.join(missing[:5])}")
            ids[item_field.name] = tuple(int(token2id[str(token)]) - 1 for token in tokens)
    return dataclasses.replace(attack, **ids) if ids else attack  # type: ignore[type-var]


def targets_of(settings, train) -> list[str]:
    """The target tokens that ``settings`` (a :class:`PoisonCard`, a :class:`Poison` or a Config) ask for on a split."""
    if isinstance(settings, PoisonCard):
        return settings.target_items
    seed = settings.target_seed if settings.target_seed is not None else settings.seed
    return choose_targets(
        settings.target_items,
        genuine_item_counts(train)[1:],
        [str(token) for token in train.field2id_token[train.iid_field][1:]],
        n_targets=settings.n_targets,
        choice=settings.target_choice,
        named_sets=(settings.target_sets or {}).get(train.dataset_name, {}),
        rng=stage_rng(seed, "targets"),
    )
