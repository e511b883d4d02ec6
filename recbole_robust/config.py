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
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import recbole
import torch
from recbole.config import Config as RecBoleConfig
from recbole.utils import EvaluatorType, InputType, ModelType

from recbole_robust import registry
from recbole_robust.compat import set_numpy_aliases
from recbole_robust.complaints import complaining_as
from recbole_robust.config_checks import CHECKS, PARTS, check_explicit, check_kinds, check_values
from recbole_robust.config_relations import check_together, complete_metrics
from recbole_robust.data.noise import NOISE_KEYS
from recbole_robust.properties_path import properties_dir
from recbole_robust.registry import available, known_keys, property_file
from recbole_robust.types import UserError
from recbole_robust.yaml_text import YamlLoader, parse_value, read_yaml

logger = logging.getLogger(__name__)

# Keys whose value does not change a result: they are no part of a run's identity.
DISPLAY_KEYS = {
    "output_dir", "gpu_id", "use_gpu", "show_progress", "state", "force", "checkpoint_dir", "log_wandb",
    "wandb_project", "log_tensorboard", "track_every", "save_dataset", "save_dataloaders", "dataset_save_path",
    "dataloaders_save_path", "data_path", "device", "local_rank", "single_spec", "eval_type", "config_files", "worker",
    "poison_hash", "nproc", "compare_clean", "valid_metric_bigger", "loss_decimal_place", "save_checkpoint",
    "cache_clean",
}  # fmt: skip

# Keys of an attack: what a clean training does not depend on.
POISON_KEYS = (
    "attack", "attack_args", "attack_size", "n_fake_users", "filler_size", "n_fillers", "target_mode", "knowledge",
    "known_users", "poison",
)  # fmt: skip
DRAW_KEYS = ("n_targets", "target_choice", "target_seed")
LONGEST_NAME = 200  # bytes of a data set's name: file systems allow 255, with a suffix
TARGET_KEYS = ("target_items", *DRAW_KEYS, "target_hr_denominator")
MERGED_KEYS = ("attack_args", "defense_args")  # mappings that are merged key by key instead of replaced
COUNT_OF = {"attack_size": "n_fake_users", "filler_size": "n_fillers"}  # a fraction, and the count that says the same
NAME_KEYS = ("model", "dataset", "attack", "defense", "preset", "protocol")  # looked up in the registry
NONE_KEYS = ("attack", "defense", "preset", "base_model", "poison", "heldout_file")  # "none" and "" mean no value here


def merge(into: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Update ``into`` by ``new``: the later wins, ``attack_args`` and ``defense_args`` are merged field by field."""
    for key, value in new.items():
        if key in MERGED_KEYS and isinstance(value, Mapping) and isinstance(into.get(key), Mapping):
            into[key] = _merged(into[key], value)
        else:
            into[key] = value
    return into


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings, level by level; the later wins."""
    both = {**old, **new}
    for key in old.keys() & new.keys():
        if isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            both[key] = _merged(old[key], new[key])
    return both


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
        self._layers: list[dict[str, Any]] = []
        self._dotted: dict[tuple[str, ...], Any] = {}
        self._ignored: list[str] = []
        super().__init__(model, dataset, config_file_list, config_dict)
        for told in self._ignored:  # here, so that a mistake in another key is the only line
            logger.warning(told)

    # --- what the user gives -------------------------------------------------------------------------------------

    def compatibility_settings(self) -> None:
        set_numpy_aliases()

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole appends to these lists, which are those of its module: every Config would find them longer.
        self.parameters: dict[str, list[str]] = {name: list(keys) for name, keys in vars(self)["parameters"].items()}

    def _build_yaml_loader(self) -> type[YamlLoader]:
        return YamlLoader

    def _load_config_files(self, file_list) -> dict[str, Any]:
        for path in [file_list] if isinstance(file_list, (str, Path)) else file_list or []:
            self._add_layer(read_yaml(path), str(path))
        return {}

    def _load_variable_config_dict(self, config_dict) -> dict[str, Any]:
        self._add_layer({k: parse_value(v, k) for k, v in (config_dict or {}).items()}, "config_dict")
        return {}

    def _load_cmd_line(self) -> dict[str, Any]:
        given = self._command_line
        if not isinstance(given, Mapping):
            pairs = [argument.removeprefix("--").partition("=") for argument in given]
            given = {key: value for key, _, value in pairs}
        self._add_layer({k: parse_value(v, k) for k, v in given.items()}, "command line")
        return {}

    def _add_layer(self, keys: Mapping[Any, Any], source: str) -> None:
        """Keep a layer of the user's keys, each with where it came from. The user's own objects stay as they are."""
        layer = {str(key): copy.deepcopy(value) for key, value in keys.items()}
        self._source.update({key.split(".")[0]: source for key in layer})
        self._layers.append(layer)

    def _merge_external_config_dict(self) -> None:
        """One mapping of all layers. ``attack_args.x`` is merged; ``eval_args.mode`` waits for the final values."""
        self.external_config_dict: dict[str, Any] = {}
        for layer in self._layers:
            plain = {key: value for key, value in layer.items() if "." not in key}
            for path in [path for path in self._dotted if path[0] in plain]:
                del self._dotted[path]  # an earlier layer's part of what is replaced whole
            for key in plain.keys() & set(NONE_KEYS):
                if plain[key] in ("", "none", "None"):
                    plain[key] = None
            for fraction, count in COUNT_OF.items():
                if plain.get(fraction) is not None:
                    plain.setdefault(count, None)  # a fraction wins over the count of an earlier layer
            merge(self.external_config_dict, plain)
            for key in [key for key in layer if "." in key]:
                path = tuple(key.split("."))
                if path[0] in MERGED_KEYS and len(path) == 2 and isinstance(plain.get(path[0], {}), Mapping):
                    merge(self.external_config_dict, {path[0]: {path[1]: layer[key]}})
                else:
                    self._dotted[path] = layer[key]

    # --- what the names stand for ---------------------------------------------------------------------------------

    def _get_model_and_dataset(self, model, dataset):
        model = self.external_config_dict.get("model") if model is None else model
        dataset = self.external_config_dict.get("dataset") if dataset is None else dataset
        for key, value in (("model", model), ("dataset", dataset)):
            if value is None:
                raise UserError(f"{key}: expected a name, got none; say --{key}=<name>")
        if not isinstance(dataset, str) or dataset != os.path.basename(dataset) or dataset in ("", ".", ".."):
            raise UserError(f"dataset: expected the name of a folder in data_path, got {dataset!r}")
        if "\0" in dataset or len(os.fsencode(dataset)) > LONGEST_NAME:
            raise UserError(f"dataset: expected the name of a folder in data_path, got {dataset[:40]!r} ... "
                            f"({len(dataset)} letters)")  # fmt: skip
        if not isinstance(model, type):
            model = registry.get_model(model, base=self.external_config_dict.get("base_model"))
        return super()._get_model_and_dataset(model, dataset)

    def _load_internal_config_dict(self, model, model_class, dataset) -> None:
        models = registry.yaml_names(model_class)
        super()._load_internal_config_dict(models[0], model_class, dataset)
        own = self.internal_config_dict
        if getattr(model_class, "sees_history", False):
            self._merge_settings_of_din(dataset)
        names = (*(("model", name) for name in models), ("dataset", dataset))
        files = (properties_dir() / "overall.yaml", *(property_file(*name) for name in names))
        for path in files:
            if path.is_file():
                merge(own, read_yaml(path))
        attack, defense = self._external("attack"), self._external("defense")
        if attack is not None:
            registry.check_name("attack", attack, registry.ATTACKS)
            merge(own, read_yaml(property_file("attack", attack)))
        if defense is not None:
            self._merge_defenses(registry.defense_names(defense))
        self._apply_protocol(model_class, dataset)
        if self._external("preset") is not None:
            self._apply_preset(model)
        self._check_keys(model)

    def _merge_settings_of_din(self, dataset: str) -> None:
        """RecBole's settings for DIN, its CTR model with a sequence: sampled negatives, AUC, features on ml-100k."""
        for name in ("sequential_DIN", f"sequential_DIN_on_{dataset}"):
            path = Path(recbole.__file__).parent / "properties" / "quick_start_config" / f"{name}.yaml"
            if path.is_file():
                merge(self.internal_config_dict, read_yaml(path))

    def _merge_defenses(self, names: list[str]) -> None:
        """The YAML of each defense; of several, ``defense_args`` has a part a name."""
        for name in names:
            content = read_yaml(property_file("defense", name))
            if len(names) > 1:
                content["defense_args"] = {name: content.get("defense_args", {})}
            merge(self.internal_config_dict, content)

    def is_given(self, key: str) -> bool:
        """Whether the user has given a key, or a part of it."""
        return key in self.external_config_dict or any(path[0] == key for path in self._dotted)

    def attack_keys_given(self, final: Mapping[str, Any] | None = None) -> list[str]:
        """The keys of an attack, other than ``poison``, that the user has given a value."""
        values = self.final_config_dict if final is None else final
        keys = [key for key in POISON_KEYS if key != "poison" and self.is_given(key)]
        return [key for key in keys if values[key] not in (None, {})]

    def unchecked_keys(self) -> dict[str, Any]:
        """The user's keys of RecBole, or of its model, that :mod:`config_checks` does not know one by one."""
        theirs = registry.keys_of_recbole(registry.yaml_names(self.model_class))
        checked = {*CHECKS, *PARTS, *NAME_KEYS, *MERGED_KEYS, *DISPLAY_KEYS, "loss_type"}
        given = {**self.external_config_dict, **{path[0]: self[path[0]] for path in self._dotted}}
        return {key: value for key, value in given.items() if key in theirs and key not in checked}

    def columns_given(self) -> dict[str, Any]:
        """The parts of ``load_col`` that the user has given: kinds of files to their columns."""
        given = dict(self.external_config_dict.get("load_col") or {})
        return {**given, **{path[1]: value for path, value in self._dotted.items() if path[0] == "load_col"}}

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
        if any(map(self.is_given, DRAW_KEYS)):  # whoever says how targets are drawn does not want the protocol's set
            self.internal_config_dict["target_items"] = None
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
        for key in dict.fromkeys([*self.external_config_dict, *(path[0] for path in self._dotted)]):
            if key not in known:
                error = str(registry.unknown("key", key, known))
                error = error if "did you mean" in error else f"unknown key {key!r}"
                raise UserError(f"{error} (in {self._source.get(key, 'the call')})")
            if key not in general and key not in self.internal_config_dict:
                owners = ", ".join(sorted(by_model[key])[:3])
                self._ignored.append(f"key {key} is not one of {model}'s (it is one of {owners}'s): ignored")

    # --- the final values -----------------------------------------------------------------------------------------

    def _get_final_config_dict(self) -> dict[str, Any]:
        check_kinds(self.internal_config_dict, self.external_config_dict)
        final = merge(dict(self.internal_config_dict), self.external_config_dict)
        for path, value in self._dotted.items():
            node = final
            for depth, step in enumerate(path[:-1], start=1):
                if not isinstance(node.get(step, {}), (Mapping, type(None))):
                    name = ".".join(path[:depth])
                    raise UserError(f"{'.'.join(path)}: expected {name} to have parts, but it is {node[step]!r}")
                node[step] = dict(node.get(step) or {})
                node = node[step]
            node[path[-1]] = value
        final["protocol"] = self.protocol_name
        check_values(final)
        check_together(self, final, self._is_explicit(self.model_class))
        if final.get("use_gpu") is False:
            final["gpu_id"] = ""
        if self._is_explicit(self.model_class):
            columns = (final.get("load_col") or {}).get("inter", "*")
            if columns != "*" and not self.is_given("load_col"):
                final["load_col"]["inter"] = list(dict.fromkeys([*columns, final["RATING_FIELD"]]))
            check_explicit(final, self.model)
            final["normalize_all"] = False  # ratings stay in stars
        final["checkpoint_dir"] = os.path.join(final["output_dir"], final.get("checkpoint_dir") or "saved")
        return final

    def _set_default_parameters(self) -> None:
        final = self.final_config_dict
        if self._own_model() and "loss_type" in final:
            choices = getattr(self.model_class, "loss_types", ("MSE", "BPR"))
            if final["loss_type"] not in choices:
                raise UserError(f"loss_type: expected one of {', '.join(choices)}, got {final['loss_type']!r}")
        sequential = final["MODEL_TYPE"] == ModelType.SEQUENTIAL
        if sequential and final.get("loss_type") == "CE" and not self.is_given("train_neg_sample_args"):
            final["train_neg_sample_args"] = None  # RecBole's default for all models, and an error for these
        complete_metrics(final, self.is_given("valid_metric"))
        user_data_path = final["data_path"]
        with complaining_as("config"):
            super()._set_default_parameters()
        placed = os.path.join(user_data_path, self.dataset)
        if any(Path(placed).glob(f"{self.dataset}*.inter")):
            final["data_path"] = placed  # RecBole takes its own copy of ml-100k even where the user has placed one
        if not sequential and final.get("loss_type") == "BPR" and self._own_model():
            final["MODEL_INPUT_TYPE"] = InputType.PAIRWISE
            final["train_neg_sample_args"] = final.get("train_neg_sample_args") or {
                "distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0,
            }  # fmt: skip

    def _own_model(self) -> bool:
        own: Any = getattr(self.model_class, "base_class", self.model_class)
        return registry.MODELS.get(own.__name__) is own

    def _init_device(self) -> None:
        """RecBole's choice of a device, by its number and without a change of ``CUDA_VISIBLE_DEVICES``.

        Where that variable is set (by Ray, say) it wins over ``gpu_id``.
        """
        final, visible = self.final_config_dict, os.environ.get("CUDA_VISIBLE_DEVICES")
        numbers = final["gpu_id"] if isinstance(final["gpu_id"], (list, tuple)) else [final["gpu_id"]]
        wanted = ",".join(str(number) for number in numbers if number is not None)
        final.update(single_spec=True, local_rank=0, gpu_id=wanted if visible is None or not wanted else visible)
        final["device"] = torch.device("cpu")
        if wanted and torch.cuda.is_available():
            number = int(wanted.split(",")[0]) if visible is None else 0
            if number >= torch.cuda.device_count():
                raise UserError(f"gpu_id: expected less than {torch.cuda.device_count()} (the GPUs), got {wanted}")
            if number or torch.cuda.is_initialized():
                torch.cuda.set_device(number)  # some models of RecBole's say "cuda" without a number
            final["device"] = torch.device("cuda", number)

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
        idle = DISPLAY_KEYS | (set() if self["noise_ratio"] else {*NOISE_KEYS})  # no noise, no part of the identity
        keys = sorted(k for k in self.final_config_dict if k not in idle)
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
