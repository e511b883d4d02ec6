"""What a name on the command line means: three plain dicts. A new attack, defense or model is one line here."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import recbole
from recbole.config import Config as RecBoleConfig
from recbole.utils import get_model as recbole_get_model

from recbole_robust.attacks import (
    AUSH,
    DADA,
    DPA2DL,
    PGA,
    TNA,
    AdaptivePGA,
    Average,
    Bandwagon,
    CopyProfile,
    Diluted,
    LoveHate,
    Organic,
    Random,
    RevAdv,
    Segment,
)
from recbole_robust.defenses import APT, AT, FAP, GDA, PCA, RCE, TCE, VAT, CoRating, GroupWeights, LossDefense, PamaCF
from recbole_robust.model import MF, PCMF, RGCF, DampedMean, Pop, PurifyAugMF, as_sequential, atjt, purify_aug
from recbole_robust.model.seq_context import PREFIX
from recbole_robust.properties_path import properties_dir
from recbole_robust.types import Attack, Detector, TrainingDefense, UserError, Weigher
from recbole_robust.yaml_text import read_yaml

ATTACKS: dict[str, type] = {
    "Random": Random,
    "Average": Average,
    "Bandwagon": Bandwagon,
    "Segment": Segment,
    "LoveHate": LoveHate,
    "CopyProfile": CopyProfile,
    "Diluted": Diluted,
    "AUSH": AUSH,
    "TNA": TNA,
    "DADA": DADA,
    "PGA": PGA,
    "AdaptivePGA": AdaptivePGA,
    "RevAdv": RevAdv,
    "DPA2DL": DPA2DL,
    "Organic": Organic,
}

DEFENSES: dict[str, type] = {
    "AT": AT,
    "VAT": VAT,
    "PamaCF": PamaCF,
    "GDA": GDA,
    "APT": APT,
    "TCE": TCE,
    "RCE": RCE,
    "PCA": PCA,
    "FAP": FAP,
    "CoRating": CoRating,
    "GroupWeights": GroupWeights,
}

MODELS: dict[str, type] = {
    "MF": MF,
    "DampedMean": DampedMean,
    "Pop": Pop,
    "PurifyAugMF": PurifyAugMF,
    "PCMF": PCMF,
    "RGCF": RGCF,
}

# Around a model that base_model names: a function from its class to the class.
WRAPPERS: dict[str, Callable[[type], type]] = {
    "PurifyAug": purify_aug,
    "ATJT": atjt,
}

# RecBole's libraries of trees are optional dependencies with an interface of their own: no embeddings, no loss.
UNSUPPORTED_MODELS = ("lightgbm", "xgboost")
MOST_NAMES = 20  # that an error lists where nothing is close


# Keys that RecBole reads somewhere but that stand in none of its lists and YAML files.
RECBOLE_SILENT_KEYS = {
    "model", "dataset", "encoding", "tail_ratio", "additional_feat_suffix", "numerical_features", "discretization",
    "loss_type", "reg_weight", "wandb_project", "worker", "shuffle", "enable_amp", "enable_scaler", "require_pow",
    "transform", "entity_kg_num_interval", "relation_kg_num_interval", "kg_reverse_r", "MASK_INDEX", "mask_ratio",
    "nproc", "world_size", "ip", "port", "offset", "local_rank", "pretrain_path", "pre_model_path",
}  # fmt: skip


@lru_cache(maxsize=1)
def recbole_models() -> tuple[str, ...]:
    """The names of RecBole's own models, from the YAML files that it ships; Random has none."""
    folder = Path(recbole.__file__).parent / "properties" / "model"
    names = {path.stem for path in folder.glob("*.yaml")} - set(UNSUPPORTED_MODELS)
    return tuple(sorted(names | {"Random"}))


def property_file(kind: str, name: str) -> Path:
    return properties_dir() / kind / f"{name}.yaml"


def available(kind: str) -> list[str]:
    return sorted(path.stem for path in (properties_dir() / kind).glob("*.yaml"))


@lru_cache(maxsize=1)
def known_keys() -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """All keys there are, and of those that only models have: key to the models that have it."""
    general = RECBOLE_SILENT_KEYS | _listed_by_recbole()
    by_model: dict[str, set[str]] = {}
    for root in (Path(recbole.__file__).parent / "properties", properties_dir()):
        for path in root.rglob("*.yaml"):
            if path.parent.name in ("sweep", "benchmark") or "url" in path.stem:
                continue
            for key in read_yaml(path):
                if path.parent.name == "model":
                    by_model.setdefault(key, set()).add(path.stem.split("-")[0])
                else:
                    general.add(key)
    for path in (properties_dir() / "protocol").glob("*.yaml"):
        protocol = read_yaml(path)
        for section in (protocol.get("explicit_recipe", {}), *protocol.get("per_dataset", {}).values()):
            general |= set(section)
    return frozenset(general), {key: frozenset(models) for key, models in by_model.items() if key not in general}


def keys_of_recbole(models: Iterable[str]) -> set[str]:
    """The keys that RecBole lists for all models, and those of its files for these."""
    files = (Path(recbole.__file__).parent / "properties" / "model" / f"{model}.yaml" for model in models)
    return _listed_by_recbole() | {key for path in files if path.is_file() for key in read_yaml(path)}


def _listed_by_recbole() -> set[str]:
    lists = RecBoleConfig.__new__(RecBoleConfig)
    RecBoleConfig._init_parameters_category(lists)
    return {key for keys in lists.parameters.values() for key in keys}


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """The error for an unknown name: what it may have meant, or what there is."""
    known = sorted(known)
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = [by_lower[c] for c in difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.6)]
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    else:
        shown = ", ".join(known[:MOST_NAMES]) + (f" and {len(known) - MOST_NAMES} more" if known[MOST_NAMES:] else "")
        hint = f"known: {shown or 'none yet'}"
    return UserError(f"unknown {what} {str(name)!r}: {hint}")


def get_model(name: str, what: str = "model", base: str | None = None) -> type:
    """The class of a model of ours or of RecBole's; ``what`` names the key in the error.

    Args:
        base: the model that a wrapper wraps.

    Raises:
        UserError: no such model. (RecBole itself says "No module named lightgbm" then.)
    """
    wrappers = WRAPPERS if what == "model" else {}
    if isinstance(name, str) and name.startswith(PREFIX) and name[len(PREFIX) :] in recbole_models():
        return as_sequential(recbole_get_model(name[len(PREFIX) :]))
    if not isinstance(name, str) or name not in {*MODELS, *wrappers, *recbole_models()}:
        raise unknown(what, name, [*MODELS, *wrappers, *recbole_models()])
    if name in wrappers:
        if base is None:
            raise UserError(f"base_model: expected the name of a model, since {name} wraps one, got none")
        return wrappers[name](get_model(base, "base_model"))
    return MODELS[name] if name in MODELS else recbole_get_model(name)


def yaml_names(model_class: type) -> list[str]:
    """The models whose YAML a model has, the later over the earlier: what is wrapped, then what wraps it."""
    base = getattr(model_class, "base_class", None)
    return [*([] if base is None else yaml_names(base)), model_class.__name__]


def check_name(kind: str, name: object, registry: Mapping[str, type]) -> None:
    """Raise the error of :func:`unknown` unless ``name`` is one of the registry's."""
    if not isinstance(name, str) or name not in registry:
        raise unknown(kind, name, registry)


def build(
    kind: str, registry: Mapping[str, type], name: str, arguments: Mapping[str, Any] | None, key: str | None = None
) -> Any:
    """Build the frozen dataclass that ``name`` stands for from ``<kind>_args``; strict about its fields' names.

    Args:
        key: where the arguments stand, if not there.
    """
    key = key or f"{kind}_args"
    check_name(kind, name, registry)
    if arguments is not None and not isinstance(arguments, Mapping):
        raise UserError(f"{key}: expected a mapping of hyper-parameters, got {arguments!r}")
    arguments = dict(arguments or {})
    fields = {field.name for field in dataclasses.fields(registry[name])}
    for argument in arguments:
        if argument not in fields:
            raise unknown(f"key of {name}", f"{key}.{argument}", [f"{key}.{field}" for field in fields])
    return registry[name](**arguments)


def build_attack(name: str, arguments: Mapping[str, Any] | None = None) -> Attack:
    """The attack ``name`` with the hyper-parameters of ``attack_args``."""
    return build("attack", ATTACKS, name, arguments)


@dataclasses.dataclass(frozen=True)
class Defenses:
    """What ``defense`` names: detectors and weights, which work before the training, and one of the others."""

    detectors: tuple[Detector, ...] = ()
    weights: Weigher | None = None
    loss: LossDefense | None = None
    training: TrainingDefense | None = None


def defense_names(defense: object) -> list[str]:
    """The names in ``defense``: one, several with commas, or a list.

    Raises:
        UserError: no such defense, or one twice.
    """
    if isinstance(defense, str):
        names: list[Any] = [name.strip() for name in defense.split(",")]
    else:
        names = list(defense) if isinstance(defense, list | tuple) and defense else [defense]
    for name in names:
        check_name("defense", name, DEFENSES)
    if len(set(names)) < len(names):
        raise UserError(f"defense: expected each name once, got {', '.join(names)}")
    return names


def build_defenses(defense: object, arguments: Mapping[str, Any] | None = None) -> Defenses:
    """The defenses that ``defense`` names, with the hyper-parameters of ``defense_args``.

    Args:
        arguments: of one defense its hyper-parameters; of several a mapping of them for each name.

    Raises:
        UserError: an unknown name or hyper-parameter, or two defenses that both change the loss or the training.
    """
    if defense is None:
        return Defenses()
    names = defense_names(defense)
    if len(names) == 1:
        built = {names[0]: build("defense", DEFENSES, names[0], arguments)}
    else:
        arguments = arguments or {}
        for key in arguments:
            if key not in names:
                raise unknown("key of several defenses", f"defense_args.{key}", [f"defense_args.{n}" for n in names])
        built = {n: build("defense", DEFENSES, n, arguments.get(n), f"defense_args.{n}") for n in names}
    detectors = tuple(one for one in built.values() if one.kind == "detector")
    weights = {name: one for name, one in built.items() if one.kind == "weights"}
    others = {name: one for name, one in built.items() if one.kind not in ("detector", "weights")}
    if len(others) > 1:
        raise UserError(f"defense: expected at most one that changes the loss or the training, got {', '.join(others)}")
    for name, one in others.items():
        if weights and not getattr(one, "takes_weights", False):
            raise UserError(
                f"defense: expected an adversarial loss or a detector beside {', '.join(weights)}, got {name}"
            )
    return Defenses(detectors, next(iter(weights.values()), None), **{one.kind: one for one in others.values()})
