"""Poison: what to inject into a training split, planned from an attack. What was planned is stored as a card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recbole_robust.data.budget import make_budget
from recbole_robust.data.card import PoisonCard
from recbole_robust.data.targets import choose_targets
from recbole_robust.data.views import attacker_view, draw_known_users, genuine_digest, genuine_item_counts
from recbole_robust.randomness import stage_rng
from recbole_robust.types import Attack, AttackerView, Budget, IntArray, Knowledge, TargetMode, UserError

CHOICE_KEYS = ("target_items", "n_targets", "target_choice", "target_seed", "target_sets")  # of targets


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
    known_users: float = 1.0
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
        return self.order(train).run()

    def order(self, train) -> Order:
        """The attack with everything that it depends on in a training split: view, targets, budget in counts."""
        n_users = train.user_num - train.n_fake_users - 1
        known = draw_known_users(n_users, self.known_users, stage_rng(self.seed, "known users"))
        view = attacker_view(train, self.knowledge, known)
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
            n_users=n_users,
        )
        has_ratings = train.raw_log.ratings is not None
        settings = {
            "attack": type(self.attack).__name__,
            "attack_args": plain(dataclasses.asdict(self.attack)),  # type: ignore[call-overload]
            "seed": self.seed,
            **dataclasses.asdict(budget),
            "knowledge": self.knowledge,
            "known_users": float(self.known_users),
            **facts_of(train, targets),
            "rating_range": [view.rating_min, view.rating_max] if has_ratings else None,
            "rating_step": view.rating_step if has_ratings else None,
        }
        tokens = [str(token) for token in train.field2id_token[train.iid_field][1:]]
        attack = with_item_ids(self.attack, train)
        return Order(attack, view, ids, budget, self.seed, train.dataset_name, targets, tokens, settings)


@dataclass(frozen=True)
class Order:
    """An attack that is ready to run on a training split.

    Attributes:
        attack: with 0-based item ids in place of tokens.
        tokens: the token of every item. Shape: ``(n_items,)``.
        settings: what the profiles depend on beside data set, targets and the attack's code, as JSON values.
    """

    attack: Attack
    view: AttackerView
    target_ids: IntArray
    budget: Budget
    seed: int
    dataset: str
    target_items: list[str]
    tokens: list[str]
    settings: dict[str, Any]

    def run(self) -> PoisonCard:
        """Run the attack."""
        rng = stage_rng(self.seed, "attack")
        profiles = self.attack(self.view, self.target_ids, self.budget, rng=rng).check(self.view)
        used, index = np.unique(profiles.item_ids, return_inverse=True)
        return PoisonCard(
            dataset=self.dataset,
            target_items=self.target_items,
            item_tokens=[self.tokens[i] for i in used],
            profiles=dataclasses.replace(profiles, item_ids=index.astype(np.int64)),
            settings=self.settings,
        )


def facts_of(train, targets: Sequence[str]) -> dict[str, Any]:
    """What a card tells of the training split that it was made on: its rows' hash, its users, the targets' ratings."""
    counts, token2id = genuine_item_counts(train), train.field2token_id[train.iid_field]
    return {
        "split_hash": genuine_digest(train),
        "n_genuine_users": train.user_num - train.n_fake_users - 1,
        "target_popularity": [int(counts[token2id[token]]) for token in targets],
    }


def plain(value: Any) -> Any:
    """JSON values of hyper-parameters; whole arrays, so that two that differ anywhere never look the same."""
    return json.loads(json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else repr(v)))


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
