"""What a name on the command line means: three plain dicts. A new attack, defense or model is one line here."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import recbole
from recbole.utils import get_model as recbole_get_model

from recbole_robust.attacks import Average, Bandwagon, CopyProfile, LoveHate, Random, Segment
from recbole_robust.model import MF, DampedMean, Pop, PurifyAugMF
from recbole_robust.types import Attack, UserError

ATTACKS: dict[str, type] = {
    "Random": Random,
    "Average": Average,
    "Bandwagon": Bandwagon,
    "Segment": Segment,
    "LoveHate": LoveHate,
    "CopyProfile": CopyProfile,
}

DEFENSES: dict[str, type] = {}

MODELS: dict[str, type] = {
    "MF": MF,
    "DampedMean": DampedMean,
    "Pop": Pop,
    "PurifyAugMF": PurifyAugMF,
}

# RecBole's libraries of trees are optional dependencies with an interface of their own: no embeddings, no loss.
UNSUPPORTED_MODELS = ("lightgbm", "xgboost")


def recbole_models() -> list[str]:
    """The names of RecBole's own models, from the YAML files that it ships."""
    folder = Path(recbole.__file__).parent / "properties" / "model"
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem not in UNSUPPORTED_MODELS)


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """The error for an unknown name: what it may have meant, or what there is."""
    known = sorted(known)
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = [by_lower[c] for c in difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known) or 'none yet'}"
    return UserError(f"unknown {what} {str(name)!r}: {hint}")


def get_model(name: str) -> type:
    """The class of a model of ours or of RecBole's.

    Raises:
        UserError: no such model. (RecBole itself says "No module named lightgbm" then.)
    """
    if name in MODELS:
        return MODELS[name]
    if name not in recbole_models():
        raise unknown("model", name, [*MODELS, *recbole_models()])
    return recbole_get_model(name)


def build(kind: str, registry: Mapping[str, type], name: str, arguments: Mapping[str, Any] | None) -> Any:
    """Build the frozen dataclass that ``name`` stands for from ``<kind>_args``; strict about the names of its fields."""
    if name not in registry:
        raise unknown(kind, name, registry)
    if arguments is not None and not isinstance(arguments, Mapping):
        raise UserError(f"{kind}_args: expected a mapping of hyper-parameters, got {arguments!r}")
    arguments = dict(arguments or {})
    fields = {field.name for field in dataclasses.fields(registry[name])}
    for key in arguments:
        if key not in fields:
            raise unknown(f"key of {name}", f"{kind}_args.{key}", [f"{kind}_args.{field}" for field in fields])
    return registry[name](**arguments)


def build_attack(name: str, arguments: Mapping[str, Any] | None = None) -> Attack:
    """The attack ``name`` with the hyper-parameters of ``attack_args``."""
    return build("attack", ATTACKS, name, arguments)
