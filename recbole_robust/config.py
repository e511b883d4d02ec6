"""Config: RecBole's, with our YAML layers, strict keys and a command line that is parsed, never evaluated.

Later wins: RecBole's overall, model, data set < our overall < model < data set < attack < defense < protocol < preset
< config files < dict < command line. See docs/config.md.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import recbole
import yaml
from recbole.config import Config as RecBoleConfig
from recbole.evaluator.register import metric_types
from recbole.utils import EvaluatorType, InputType, ModelType

from recbole_robust import registry
from recbole_robust.compat import set_numpy_aliases
from recbole_robust.config_checks import check_values
from recbole_robust.properties_path import properties_dir
from recbole_robust.types import UserError

logger = logging.getLogger(__name__)

# Keys that RecBole reads somewhere but that stand in none of its lists and YAML files.
RECBOLE_SILENT_KEYS = {
    "model", "dataset", "encoding", "tail_ratio", "additional_feat_suffix", "numerical_features", "discretization",
    "loss_type", "reg_weight", "wandb_project", "worker", "shuffle", "enable_amp", "enable_scaler", "require_pow",
    "transform", "entity_kg_num_interval", "relation_kg_num_interval", "kg_reverse_r", "MASK_INDEX", "mask_ratio",
    "nproc", "world_size", "ip", "port", "offset", "local_rank", "pretrain_path", "pre_model_path",
}  # fmt: skip

# Keys whose value does not change a result: they are no part of a run's identity.
DISPLAY_KEYS = {
    "output_dir", "gpu_id", "use_gpu", "show_progress", "state", "force", "checkpoint_dir", "log_wandb", "wandb_project",
    "log_tensorboard", "save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path", "data_path",
    "device", "local_rank", "single_spec", "eval_type", "config_files", "worker", "poison_hash", "compare_clean",
    "valid_metric_bigger", "loss_decimal_place", "save_checkpoint", "cache_clean",
}  # fmt: skip

# Keys of an attack: what a clean training does not depend on.
POISON_KEYS = (
    "attack", "attack_args", "attack_size", "n_fake_users", "filler_size", "n_fillers", "target_mode", "knowledge",
    "poison",
)  # fmt: skip
TARGET_KEYS = ("target_items", "n_targets", "target_choice", "target_seed", "target_hr_denominator")
MERGED_KEYS = ("attack_args", "defense_args")  # mappings that are merged key by key instead of replaced


class _YamlLoader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number, as RecBole's does."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_YamlLoader)  # a SafeLoader
    except OSError as error:
        raise UserError(f"config file {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"config file {path}: expected a mapping of keys, got {type(content).__name__}")
    return content or {}


def parse_value(text: Any) -> Any:
    """The value of a command-line string: YAML (numbers, lists, mappings), with Python's ``None`` and ``True`` too."""
    if not isinstance(text, str):
        return text
    if text in ("None", ""):
        return None if text else ""
    try:
        return yaml.load(text, Loader=_YamlLoader)  # a SafeLoader
    except yaml.YAMLError:
        return text


def merge(into: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Update ``into`` by ``new``: the later wins, ``attack_args`` and ``defense_args`` are merged field by field."""
    for key, value in new.items():
        if key in MERGED_KEYS and isinstance(value, Mapping) and isinstance(into.get(key), Mapping):
            into[key] = {**into[key], **value}
        else:
            into[key] = value
    return into


def property_file(kind: str, name: str) -> Path:
    return properties_dir() / kind / f"{name}.yaml"


def available(kind: str) -> list[str]:
    return sorted(path.stem for path in (properties_dir() / kind).glob("*.yaml"))


@lru_cache(maxsize=1)
def known_keys() -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """All keys there are, and of those that only models have: key to the models that have it."""
    lists = RecBoleConfig.__new__(RecBoleConfig)
    RecBoleConfig._init_parameters_category(lists)
    general = RECBOLE_SILENT_KEYS | {key for keys in lists.parameters.values() for key in keys}
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


class Config(RecBoleConfig):
    """RecBole's Config for our models and for RecBole's own.

    Args:
        model: name, or model class.
        dataset: name of the data set.
        config_file_list: YAML files of the user.
        config_dict: keys of the user; win over the files.
        command_line: ``--key=value`` strings or a mapping; win over all. ``sys.argv`` is not read.

    Raises:
        UserError: an unknown name or key, or a value out of its range: one clear line.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | Path] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        command_line: Iterable[str] | Mapping[str, Any] = (),
    ) -> None:
        self._command_line = command_line
        self._source: dict[str, str] = {}
        self._dotted: dict[tuple[str, ...], Any] = {}
        super().__init__(model, dataset, config_file_list, config_dict)
        check_values(self.final_config_dict)

    # --- what the user gives -------------------------------------------------------------------------------------

    def compatibility_settings(self) -> None:
        set_numpy_aliases()

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return _YamlLoader

    def _load_config_files(self, file_list) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for path in file_list or []:
            merge(merged, self._expand_dots(read_yaml(path), str(path)))
        return merged

    def _load_variable_config_dict(self, config_dict) -> dict[str, Any]:
        return self._expand_dots({k: parse_value(v) for k, v in (config_dict or {}).items()}, "config_dict")

    def _load_cmd_line(self) -> dict[str, Any]:
        given = self._command_line
        if not isinstance(given, Mapping):
            pairs = [argument.removeprefix("--").partition("=") for argument in given]
            given = {key: value for key, _, value in pairs}
        return self._expand_dots({k: parse_value(v) for k, v in given.items()}, "command line")

    def _expand_dots(self, keys: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Turn ``attack_args.epochs`` into a nested mapping; remember where each key came from."""
        plain: dict[str, Any] = {}
        for key, value in keys.items():
            name, *path = str(key).split(".")
            self._source[name] = source
            if not path:
                merge(plain, {name: value})
            elif name in MERGED_KEYS and len(path) == 1:
                plain[name] = {**(plain.get(name) or {}), path[0]: value}
            else:
                self._dotted[(name, *path)] = value
        return plain

    def _merge_external_config_dict(self) -> None:
        self.external_config_dict = {}
        for layer in (self.file_config_dict, self.variable_config_dict, self.cmd_config_dict):
            merge(self.external_config_dict, layer)

    # --- what the names stand for ---------------------------------------------------------------------------------

    def _get_model_and_dataset(self, model, dataset):
        model = self.external_config_dict.get("model") if model is None else model
        dataset = self.external_config_dict.get("dataset") if dataset is None else dataset
        for key, value in (("model", model), ("dataset", dataset)):
            if value is None:
                raise UserError(f"{key}: expected a name, got none; say --{key}=<name>")
        if not isinstance(dataset, str) or dataset != os.path.basename(dataset) or dataset in ("", ".", ".."):
            raise UserError(f"dataset: expected the name of a folder in data_path, got {dataset!r}")
        model_class = registry.get_model(str(model)) if not isinstance(model, type) else model
        return super()._get_model_and_dataset(model_class, dataset)

    def _load_internal_config_dict(self, model, model_class, dataset) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        own = self.internal_config_dict
        for path in (
            properties_dir() / "overall.yaml",
            property_file("model", model),
            property_file("dataset", dataset),
        ):
            if path.is_file():
                merge(own, read_yaml(path))
        for kind, names in (("attack", registry.ATTACKS), ("defense", registry.DEFENSES)):
            name = self._external(kind)
            if name is not None:
                if name not in names:
                    raise registry.unknown(kind, name, names)
                merge(own, read_yaml(property_file(kind, name)))
        self._apply_protocol(model_class, dataset)
        if self._external("preset") is not None:
            self._apply_preset(model)
        self._check_keys(model)

    def _external(self, key: str) -> Any:
        return self.external_config_dict.get(key, self.internal_config_dict.get(key))

    def _apply_protocol(self, model_class, dataset: str) -> None:
        explicit = self._is_explicit(model_class)
        name = self._external("protocol")
        if name in (None, "auto"):
            name = "apt" if explicit else "recbole"
        if name not in available("protocol"):
            raise registry.unknown("protocol", name, [*available("protocol"), "auto"])
        protocol = read_yaml(property_file("protocol", name))
        recipe, per_dataset = protocol.pop("explicit_recipe", {}), protocol.pop("per_dataset", {})
        merge(self.internal_config_dict, protocol)
        merge(self.internal_config_dict, recipe if explicit else {})
        merge(self.internal_config_dict, per_dataset.get(dataset, {}))
        self.protocol_name = name

    def _is_explicit(self, model_class) -> bool:
        """Whether the model learns ratings (then the protocol's optimiser recipe applies to its embedding tables)."""
        return getattr(model_class, "feedback", "implicit") == "explicit" and self._external("loss_type") != "BPR"

    def _apply_preset(self, model: str) -> None:
        path = property_file("model", f"{model}-{self._external('preset')}")
        if not path.is_file():
            presets = [name.split("-", 1)[1] for name in available("model") if name.startswith(f"{model}-")]
            raise registry.unknown(f"preset of {model}", self._external("preset"), presets)
        merge(self.internal_config_dict, read_yaml(path))

    def _check_keys(self, model: str) -> None:
        general, by_model = known_keys()
        known = general | set(by_model) | set(self.internal_config_dict)
        for key in [*self.external_config_dict, *(path[0] for path in self._dotted)]:
            if key not in known:
                error = registry.unknown("key", key, known)
                raise UserError(f"{error} (in {self._source.get(key, 'the call')})" if "did you" in str(error) else
                                f"unknown key {key!r} (in {self._source.get(key, 'the call')})")  # fmt: skip
            if key not in general and key not in self.internal_config_dict:
                owners = ", ".join(sorted(by_model[key])[:3])
                logger.warning("key %s is not one of %s's (it is one of %s's): ignored", key, model, owners)

    # --- the final values -----------------------------------------------------------------------------------------

    def _get_final_config_dict(self) -> dict[str, Any]:
        final = merge(dict(self.internal_config_dict), self.external_config_dict)
        for path, value in self._dotted.items():
            node = final
            for step in path[:-1]:
                node[step] = dict(node.get(step) or {})
                node = node[step]
            node[path[-1]] = value
        for count, fraction in (("n_fake_users", "attack_size"), ("n_fillers", "filler_size")):
            if fraction in self.external_config_dict and count not in self.external_config_dict:
                final[count] = None  # the user's fraction wins over a count of ours
        if final.get("use_gpu") is False:
            final["gpu_id"] = ""
        final["protocol"] = self.protocol_name
        if getattr(self.model_class, "feedback", "implicit") == "explicit":
            if final.get("threshold"):
                raise UserError(f"threshold: expected none, since {self.model} learns ratings, got {final['threshold']}")
            final["normalize_all"] = False  # ratings stay in stars
        for key in ("output_dir", "data_path"):
            final[key] = str(final[key])
        final["checkpoint_dir"] = final.get("checkpoint_dir") or "saved"
        if not os.path.isabs(final["checkpoint_dir"]):
            final["checkpoint_dir"] = os.path.join(final["output_dir"], final["checkpoint_dir"])
        return final

    def _set_default_parameters(self) -> None:
        final = self.final_config_dict
        check_values(final)
        metrics = [final["metrics"]] if isinstance(final["metrics"], str) else list(final["metrics"] or [])
        for metric in metrics:
            if str(metric).lower() not in metric_types:
                raise registry.unknown("metric", metric, metric_types)
        if metrics and all(metric_types[m.lower()] == EvaluatorType.RANKING for m in metrics):
            have = {m.lower() for m in metrics}
            metrics += [m for m in final["always_metrics"] if m.lower() not in have]
        final["metrics"] = metrics
        user_data_path = final["data_path"]
        try:
            super()._set_default_parameters()
        except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError) as error:
            raise UserError(f"config: {error}") from None
        placed = os.path.join(user_data_path, self.dataset)
        if os.path.isfile(os.path.join(placed, f"{self.dataset}.inter")):
            final["data_path"] = placed  # RecBole takes its own copy of ml-100k even where the user has placed one
        if final["MODEL_TYPE"] != ModelType.SEQUENTIAL and final.get("loss_type") == "BPR" and self._own_model():
            final["MODEL_INPUT_TYPE"] = InputType.PAIRWISE
            final["train_neg_sample_args"] = final.get("train_neg_sample_args") or {
                "distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0,
            }  # fmt: skip

    def _own_model(self) -> bool:
        return registry.MODELS.get(self.model) is self.model_class

    def _set_eval_neg_sample_args(self, phase) -> None:
        try:
            super()._set_eval_neg_sample_args(phase)
        except ValueError as error:
            raise UserError(f"eval_args.mode: {error}") from None

    def _init_device(self) -> None:
        """RecBole overwrites CUDA_VISIBLE_DEVICES by ``gpu_id``; where it is set (by Ray, say) it stays and wins."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and self.final_config_dict["gpu_id"] != "":
            self.final_config_dict["gpu_id"] = visible
        super()._init_device()
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        elif self.final_config_dict["gpu_id"] == "":
            del os.environ["CUDA_VISIBLE_DEVICES"]

    # --- what others ask of it ------------------------------------------------------------------------------------

    @property
    def is_explicit(self) -> bool:
        """Whether the model learns ratings."""
        return getattr(self.model_class, "feedback", "implicit") == "explicit" and self["loss_type"] != "BPR"

    @property
    def is_ranking(self) -> bool:
        """Whether the configured metrics are ranking metrics (CTR models have AUC and LogLoss instead)."""
        return self["eval_type"] == EvaluatorType.RANKING

    def derive(self, **changes: Any) -> Config:
        """A copy with some final values changed."""
        other = copy.copy(self)
        other.final_config_dict = {**self.final_config_dict, **changes}
        return other

    def resolved(self) -> dict[str, Any]:
        """Every key that can change a result, as JSON values."""
        keys = sorted(k for k in self.final_config_dict if k not in DISPLAY_KEYS)
        return {key: _jsonable(self.final_config_dict[key]) for key in keys}

    def key(self, without: Iterable[str] = ()) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the resolved keys, less some."""
        kept = {k: v for k, v in self.resolved().items() if k not in set(without)}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _jsonable(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
