"""The poison of a configuration: a card that is replayed, found among those made before, or made now."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import recbole_robust
from recbole_robust import group_evidence, randomness, registry, results
from recbole_robust.complaints import blaming
from recbole_robust.config import DRAW_KEYS, Config
from recbole_robust.data import budget, poison, targets, views
from recbole_robust.data.atomic_file import column_names
from recbole_robust.data.card import SCHEMA_VERSION, PoisonCard, bytes_digest, card_folder
from recbole_robust.data.fake_users_json import card_of_fake_users
from recbole_robust.data.injection import check_names_are_free, fake_tokens
from recbole_robust.data.load import clean_train_split
from recbole_robust.data.poison import Poison, targets_of
from recbole_robust.data.views import attacker_view
from recbole_robust.file_lock import locked
from recbole_robust.scores import stealth
from recbole_robust.types import UserError
from recbole_robust.yaml_text import read_yaml

logger = logging.getLogger(__name__)

_DECIDING = (group_evidence, budget, poison, targets, views, randomness)  # on the profiles, beside the attack itself


@dataclass(frozen=True)
class StoredCard:
    """A card, the folder that it is in, and whether it was there already."""

    card: PoisonCard
    path: Path
    reused: bool


def stored_card(config: Config) -> StoredCard | None:
    """The poison of a configuration: the card to replay, or that of its attack; None where there is neither."""
    if config["poison"]:
        return _replayed(config)
    if not config["attack"]:
        return None
    attack = registry.build_attack(config["attack"], config["attack_args"])
    train = clean_train_split(config)
    order = Poison.from_config(config, attack).order(train)
    identity = {
        "dataset": order.dataset,
        "target_items": order.target_items,
        **order.settings,
        "code": _code_of(attack),
    }
    return _found_or_made(config, train, identity, order.run)


def make_card(config: Config) -> PoisonCard | None:
    """The card of :func:`stored_card`."""
    stored = stored_card(config)
    return None if stored is None else stored.card


def card_from_json(config: Config, path: str | Path) -> StoredCard:
    """A file of fake users (:mod:`recbole_robust.data.fake_users_json`) as a stored card for the data set."""
    train = clean_train_split(config)
    card = card_of_fake_users(path, train)
    identity = {"dataset": card.dataset, "target_items": card.target_items, **card.settings}
    return _found_or_made(config, train, identity, lambda: card)


def run_attack(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    command_line: Iterable[str] | Mapping[str, Any] = (),
    from_json: str | Path | None = None,
) -> StoredCard:
    """Make the poison card of an attack, and train no victim; an equal card that is there is taken (``force: true``).

    Args:
        model: decides on the protocol, and with it on the split that the attack sees. None: the one that the keys name,
            else MF, or BPR where the data set has no ratings.
        from_json: a file of fake users to read instead (:mod:`recbole_robust.data.fake_users_json`).

    Raises:
        UserError: neither an attack nor a file, or both.
    """
    command_line = command_line if isinstance(command_line, Mapping) else list(command_line)
    layers = (dataset, config_file_list, config_dict, command_line)
    if model is None and not _names_a_model(*layers[1:]):
        config = Config("MF", *layers)
        columns = column_names(Path(config["data_path"]) / f"{config['dataset']}.inter", config["field_separator"])
        if columns and config["RATING_FIELD"] not in columns:
            config = Config("BPR", *layers)
    else:
        config = Config(model, *layers)
    if from_json and (told := [*config.attack_keys_given(), *(["poison"] if config["poison"] else [])]):
        raise UserError(f"from_json: expected no other key of an attack beside it, got {', '.join(told)}")
    if not from_json and (config["poison"] or not config["attack"]):
        raise UserError("attack: expected --attack=<name> or --from_json=<file>, got neither")
    name = Path(from_json).stem if from_json else config["attack"]
    log = Path(config["output_dir"]) / "log" / f"attack-{config['dataset']}-{name}-{config.key()}.log"
    with results.log_to(log), blaming(config.unchecked_keys):
        stored = card_from_json(config, from_json) if from_json else stored_card(config)
    assert stored is not None
    return stored


def _names_a_model(files, config_dict, command_line) -> bool:
    """Whether one of the user's layers has the key ``model``."""
    if not isinstance(command_line, Mapping):
        command_line = [argument.removeprefix("--").partition("=")[0] for argument in command_line]
    layers = [*map(read_yaml, [files] if isinstance(files, (str, Path)) else files or []), config_dict, command_line]
    return any("model" in layer for layer in layers if layer)


def _replayed(config: Config) -> StoredCard:
    """The card that ``poison`` names; what does not fit the data set is told before anything is trained."""
    card = PoisonCard.load(config["poison"])
    train = clean_train_split(config)
    profiles, newcomers = card.to_ids(train), attacker_view(train).newcomers
    check_names_are_free(train, fake_tokens(card.profiles.n_users))
    if card.is_control and (newcomers is None or newcomers.digest() != profiles.digest()):
        raise UserError(f"poison: expected the new_fans ({card.profiles.n_users}), targets and seed of this card of "
                        f"Organic, so that its users are held out, got new_fans {config['new_fans']}")  # fmt: skip
    asked = [key for key in ("target_items", *DRAW_KEYS) if key in config.external_config_dict]
    if asked and set(targets := targets_of(config, train)) != set(card.target_items):
        raise UserError(f"{asked[0]}: expected the card's targets {' '.join(card.target_items)} (or no such key), "
                        f"got {' '.join(targets)}")  # fmt: skip
    return StoredCard(card, card_folder(config["poison"]), reused=True)


def _found_or_made(config: Config, train, identity: dict[str, Any], make: Callable[[], PoisonCard]) -> StoredCard:
    """The card of this identity in ``<output_dir>/cards``, or the one that ``make`` gives, stored there."""
    key = key_of(identity)
    folder = Path(config["output_dir"]) / "cards" / f"{identity['attack']}-{identity['dataset']}-{key}"

    def found(level: int) -> StoredCard | None:
        if not folder.exists() or config["force"]:
            return None
        try:
            card = PoisonCard.load(folder)
            if card.settings.get("key") != key:
                raise UserError(f"poison: {folder}: expected the card of key {key}, got {card.settings.get('key')}")
            card.to_ids(train)
            return StoredCard(card, folder, reused=True)
        except UserError as error:
            logger.log(level, "%s; made again", error)
            return None

    if stored := found(logging.DEBUG):
        return stored
    with locked(folder):  # of several processes one makes it, and the others find it then
        if stored := found(logging.WARNING):
            return stored
        card = make()
        check_names_are_free(train, fake_tokens(card.profiles.n_users))  # before the card is stored and a model trained
        told = {"protocol": config["protocol"], "stealth": stealth_of(train, card), "versions": _versions(), "key": key}
        card = replace(card, settings={**card.settings, **told})
        card.save(folder)
    return StoredCard(card, folder, reused=False)


def key_of(identity: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of all that an attack's profiles depend on, the version of this package included."""
    told = {**identity, "schema_version": SCHEMA_VERSION, "recbole_robust": recbole_robust.__version__}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def _code_of(attack: Any) -> str:
    """A hash of the source files beside the attack's and of what else decides on its profiles: who works on an attack
    never gets a card of its older self, and who works on a model need not wait for an attack again.
    """
    try:
        beside = sorted(Path(inspect.getfile(type(attack))).parent.glob("*.py"))
        files = [*beside, *(Path(str(module.__file__)) for module in _DECIDING)]
        return bytes_digest(files)[:12]
    except (TypeError, OSError):  # a class of a notebook or a console has no file
        return ""


def stealth_of(train, card: PoisonCard) -> dict[str, float | None]:
    """How well the fakes hide among all genuine users of the training split, whatever the attacker knew of them."""
    found = stealth(attacker_view(train), card.to_ids(train))
    return {name: None if value is None or not np.isfinite(value) else float(value) for name, value in found.items()}


def _versions() -> dict[str, str]:
    found = results.versions()
    return {name: found[name] for name in ("recbole_robust", "numpy", "torch")}
