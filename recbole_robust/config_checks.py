"""Which values a key may have. How text becomes one: ``yaml_text.py``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from recbole.evaluator.register import metric_types
from recbole.utils import EvaluatorType

from recbole_robust.arguments import LARGEST_SEED
from recbole_robust.group_evidence import Evidence
from recbole_robust.types import TARGET_MODES, UserError

# --- which values a key may have --------------------------------------------------------------------------------------

Check = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(low: int, high: float = math.inf) -> Check:
    expected = f"a whole number >= {low}" if high == math.inf else f"a whole number from {low} to {high}"
    return expected, lambda v: _is_int(v) and low <= v <= high


def number(low: float, high: float = math.inf, open_low: bool = False) -> Check:
    bracket = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if high == math.inf else ']'}"
    return f"a number in {bracket}", lambda v: _is_number(v) and (low < v if open_low else low <= v) and v <= high


def one_of(*choices: Any) -> Check:
    return f"one of {', '.join(map(str, choices))}", lambda v: any(
        v is c or (v == c and type(v) is type(c)) for c in choices
    )


def either(first: Check, second: Check) -> Check:
    return f"{first[0]} or {second[0]}", lambda v: first[1](v) or second[1](v)


def list_of(what: Check, at_least: int = 1) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, (list, tuple)) and len(v) >= at_least and all(what[1](entry) for entry in v)


def keyed(**entries: Check) -> Check:
    """A mapping with none but these keys."""
    expected = "; ".join(f"{key}: {check[0]}" for key, check in entries.items())

    def allows(value: Any) -> bool:
        return isinstance(value, Mapping) and all(k in entries and entries[k][1](v) for k, v in value.items())

    return f"a mapping of {expected}", allows


FLAG: Check = ("true or false", lambda v: isinstance(v, bool))
TEXT: Check = ("text", lambda v: isinstance(v, str) and bool(v.strip()))
MAPPING: Check = ("a mapping", lambda v: isinstance(v, Mapping))
CHARACTERS: Check = ("text", lambda v: isinstance(v, str) and bool(v))  # a blank is one
TOKEN: Check = ("a token", lambda v: isinstance(v, (str, int, float)) and not isinstance(v, bool) and v == v)
EMPTY: Check = ("none", lambda v: v in (None, "None", "none"))
NAMES: Check = ("a list of names", list_of(TEXT, 0))
COLUMNS: Check = (
    "a mapping of inter, user and so on to lists of columns",
    lambda v: isinstance(v, Mapping) and all(one is None or one == "*" or list_of(TEXT, 0)(one) for one in v.values()),
)
# RecBole's caches are pickles: who reads one runs what is in it. The data set read last is kept in memory anyway.
NEVER: Check = ("false (RecBole's caches could run code when they are read)", lambda v: v is False)
NO_CACHE: Check = ("none (RecBole's caches could run code when they are read)", EMPTY[1])
INTERVAL: Check = (
    "an interval such as '[5,inf)'",
    lambda v: isinstance(v, str) and bool(re.fullmatch(r"\s*[\[(]\s*[^,;]+,[^,;]+[\])]\s*(;.*)?", v)),
)
RATIOS: Check = (
    "three shares, not all 0",
    lambda v: isinstance(v, (list, tuple)) and len(v) == 3 and all(_is_number(x) and x >= 0 for x in v) and sum(v) > 0,
)
MODE: Check = (
    "full, labeled, uniN or popN",
    lambda v: isinstance(v, str) and bool(re.fullmatch(r"full|labeled|(uni|pop)[1-9][0-9]*", v)),
)
SPLIT = ("one of {'RS': [0.8, 0.1, 0.1]}, {'LS': valid_and_test | valid_only | test_only}, {'TS': [0.8, 0.1, 0.1]}",
         lambda v: isinstance(v, Mapping) and len(v) == 1 and keyed(
             RS=RATIOS, TS=RATIOS, LS=one_of("valid_and_test", "valid_only", "test_only"))[1](v))  # fmt: skip
RANGE: Check = (
    "[lowest, highest], both in [-1e6, 1e6]",
    lambda v: isinstance(v, (list, tuple)) and len(v) == 2 and all(map(number(-1e6, 1e6)[1], v)) and v[0] <= v[1],
)
GPU: Check = (
    "the numbers of GPUs, by commas",
    lambda v: bool(re.fullmatch(r"([0-9]+(\s*,\s*[0-9]+)*)?", str(v).strip("()[] "))),
)

# Keys that may also be empty (~): their default is worked out later.
OPTIONAL = {
    "attack_size", "n_fake_users", "filler_size", "n_fillers", "n_targets", "net_learning_rate", "target_seed",
    "target_items", "rating_range", "rating_step", "rating_scale", "rm_dup_inter", "load_col", "unload_col",
    "unused_col", "threshold", "val_interval", "clip_grad_norm", "benchmark_filename", "attack_args", "defense_args",
    "target_sets", "always_metrics", "rating_metrics", "user_inter_num_interval", "item_inter_num_interval",
    "train_neg_sample_args", "base_model", "heldout_file", "poison", "checkpoint_dir", "gpu_id",
    "baseline", "pair_chunk", "atjt_phase_epochs", "recogniser_history",
    "export_weights", "negative_weight", "user_folds", "weight_noise_share",
    "recogniser_category", "encoding", "discretization", "additional_feat_suffix", "normalize_field",
    "numerical_features", "alias_of_user_id", "alias_of_item_id", "alias_of_entity_id", "alias_of_relation_id",
    "preload_weight", "seq_len",
}  # fmt: skip

CHECKS: dict[str, Check] = {
    "epochs": whole(0),
    "train_batch_size": whole(1),
    "eval_batch_size": whole(1),
    "eval_step": whole(0),
    "stopping_step": whole(0),
    "seed": whole(0, LARGEST_SEED),
    "new_fans": whole(0),
    "track_every": whole(0),
    "learner": ("one of adam, adamw, sgd, adagrad, rmsprop",  # RecBole's sparse_adam: no model has sparse gradients
                lambda v: str(v).lower() in ("adam", "adamw", "sgd", "adagrad", "rmsprop")),
    "learning_rate": number(0, 1e6, open_low=True),  # torch cannot even take a step of 1e39
    "net_learning_rate": number(0, 1e6, open_low=True),
    "weight_decay": number(0),
    "net_weight_decay": number(0),
    "initial_accumulator_value": number(0),
    "clip_grad_norm": keyed(max_norm=number(0), norm_type=number(0), error_if_nonfinite=FLAG, foreach=FLAG),
    "embedding_size": whole(1),
    "damping": number(0),
    "rating_scale": either(one_of("max", "none"), number(0, open_low=True)),
    "kl_T": number(0, open_low=True),
    "kl_weight": number(0),
    "imputed_rating": number(-math.inf),
    "imputed_weight": number(0),
    "group_weights": FLAG,
    "group_low": number(0, open_low=True),
    "group_high": number(0, open_low=True),
    "group_own_share": number(0, 1),
    "group_usual": number(0, 1),
    "group_evidence": one_of(*get_args(Evidence)),
    "kl_ratio": number(0, 1, open_low=True),
    "adv_eps": number(0),
    "purify_steps": whole(0),
    "purify_every": whole(1),
    "purify_warmup": whole(0),
    "purify_rows": whole(1),
    "purify_lr": number(0, open_low=True),
    "purify_lambda": number(0),
    "purify_sigma": number(0, open_low=True),
    "sigma_min": number(0, open_low=True),
    "sigma_max": number(0, open_low=True),
    "ema_momentum": number(0, 1, open_low=True),
    "denoiser_warmup": whole(0),
    "denoiser_hidden": whole(1),
    "se_heads": whole(0),
    "se_bias_init": number(-math.inf),
    "se_reduction": whole(1),
    "rerank_topk": whole(1),
    "atjt_weights": one_of("learned", "uniform", "oracle"),
    "atjt_lambda": number(0),
    "atjt_detach": FLAG,
    "atjt_warmup": whole(0),
    "atjt_per_sample": one_of("tap", "resample"),
    "atjt_schedule": one_of("batch", "phased"),
    "atjt_phase_epochs": whole(1),
    "n_folds": whole(2),
    "noisy_seq_ratio": ("0, or a number in [0.01, 1)", lambda v: _is_number(v) and (v == 0 or 0.01 <= v < 1)),
    "n_replaced": either(whole(1), ("a number in (0, 1)", lambda v: _is_number(v) and 0 < v < 1)),
    "replace_by": one_of("uniform", "popularity"),
    "replace_target_prob": number(0, 1),
    "recogniser": one_of("paper", "gru"),
    "recogniser_dim": whole(1),
    "recogniser_history": whole(1),
    "recogniser_dropout": ("a number in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1),
    "recogniser_mean_pool": FLAG,
    "recogniser_category": TEXT,
    "recogniser_lr": number(0, open_low=True),
    "recogniser_weight_decay": number(0),
    "recogniser_pretrain_steps": whole(0),
    "weight_temperature": either(number(0, open_low=True), one_of("estimated")),
    "weight_floor": number(0, 1),
    "weight_noise_share": either(number(0, 1), one_of("estimated")),
    "negative_weight": number(0),
    "weight_normalize": one_of("sum", "fold", "item", "none"),
    "train_stage": one_of("pretrain", "finetune", "both", "actor_pretrain", "critic_pretrain"),  # the last two: RaCT's
    "export_weights": ("a file that ends in .csv or .parquet", lambda v: str(v).endswith((".csv", ".parquet"))),
    "pair_chunk": whole(1),
    "pcmf_tau": ("a number in (0, inf]", lambda v: v == math.inf or (_is_number(v) and v > 0)),
    "pcmf_trim_rate": number(0, 1),
    "pcmf_warmup": whole(0),
    "prune_threshold": number(-math.inf, 1),
    "MIM_weight": number(0),
    "tau": number(0, open_low=True),
    "aug_ratio": number(0),
    "rgcf_aug_every": either(whole(1), one_of("epoch")),
    "attack_size": number(0, 1, open_low=True),
    "n_fake_users": whole(1),
    "filler_size": number(0, 1),
    "n_fillers": whole(0),
    "attack_args": MAPPING,
    "defense_args": MAPPING,
    "poison": TEXT,
    "known_users": number(0, 1, open_low=True),
    "knowledge": one_of("black-box", "gray-box", "white-box"),
    "target_items": ("a list of item tokens, or the name of a set", lambda v: list_of(TOKEN)(v) or TEXT[1](v)),
    "n_targets": whole(0),
    "target_seed": whole(0),
    "user_folds": whole(3),
    "target_choice": one_of("random", "unpopular", "popular"),
    "target_mode": one_of(*TARGET_MODES),
    "target_hr_denominator": one_of("eligible", "all"),
    "target_sets": ("a mapping of data sets to names to lists of item tokens", lambda v: isinstance(v, Mapping) and all(
        isinstance(sets, Mapping) and all(list_of(TOKEN)(items) for items in sets.values()) for sets in v.values())),
    "noise_ratio": number(0, 1),
    "noise_unit": one_of("users", "interactions"),
    "noise_kind": one_of("replace", "insert", "drop", "swap"),
    "noise_strength": number(0, 1, open_low=True),
    "noise_by": one_of("uniform", "popularity"),
    "noise_scope": one_of("train", "histories"),
    "baseline": TEXT,
    "base_model": TEXT,
    "tune": FLAG,
    "compare_clean": FLAG,
    "force": FLAG,
    "save_dataset": NEVER,
    "save_dataloaders": NEVER,
    "dataset_save_path": NO_CACHE,
    "dataloaders_save_path": NO_CACHE,
    "teacher": one_of("CrossNet", "CIN", "DAGFM"),  # RecBole evaluates it
    "cache_clean": FLAG,
    "save_checkpoint": FLAG,
    "log_tensorboard": FLAG,
    "show_progress": FLAG,
    "use_gpu": FLAG,
    "gpu_id": GPU,
    "worker": whole(0, 256),
    "loss_decimal_place": whole(0),
    "encoding": TEXT,
    "discretization": MAPPING,
    "nproc": ("1 (training on several devices at once is not supported)", lambda v: v == 1),
    "local_rank": ("0 (training on several devices at once is not supported)", lambda v: v == 0),
    "state": ("one of debug, info, warning, error, critical",
              lambda v: str(v).lower() in ("debug", "info", "warning", "error", "critical")),
    "output_dir": ("the name of a folder", TEXT[1]),
    "checkpoint_dir": ("the name of a folder", TEXT[1]),
    "data_path": ("the name of a folder", TEXT[1]),
    "heldout_file": ("the name of a file", TEXT[1]),
    "dataloader": one_of("fast", "recbole"),
    "rating_range": RANGE,
    "rating_step": number(0),
    "rm_dup_inter": one_of("first", "last"),
    "load_col": COLUMNS,
    "unload_col": COLUMNS,
    "unused_col": MAPPING,
    "threshold": ("a mapping of columns to numbers",
                  lambda v: isinstance(v, Mapping) and all(map(_is_number, v.values()))),
    "field_separator": CHARACTERS,
    "seq_separator": CHARACTERS,
    "additional_feat_suffix": NAMES,
    "normalize_field": NAMES,
    "numerical_features": NAMES,
    "alias_of_user_id": NAMES,
    "alias_of_item_id": NAMES,
    "alias_of_entity_id": NAMES,
    "alias_of_relation_id": NAMES,
    "preload_weight": MAPPING,
    "seq_len": MAPPING,
    "MAX_ITEM_LIST_LENGTH": whole(1),
    "val_interval": ("a mapping of fields to intervals such as '[3,inf)'", lambda v: isinstance(v, Mapping) and all(
        INTERVAL[1](entry) for entry in v.values())),
    "user_inter_num_interval": INTERVAL,
    "item_inter_num_interval": INTERVAL,
    "benchmark_filename": ("three names: of train, valid and test", lambda v: list_of(TEXT)(v) and len(v) == 3),
    "topk": ("a whole number >= 1, or a list of them", lambda v: whole(1)[1](v) or list_of(whole(1))(v)),
    "metrics": ("the name of a metric, or a list of them", lambda v: TEXT[1](v) or list_of(TEXT)(v)),
    "always_metrics": ("a list of metrics", list_of(TEXT, at_least=0)),
    "rating_metrics": ("a list of RMSE and MAE", lambda v: list_of(TEXT, 0)(v) and all(
        m.lower() in ("rmse", "mae") for m in v)),
    "valid_metric": ("the name of a metric, such as NDCG@10", TEXT[1]),
    "metric_decimal_place": whole(0),
    "tail_share": number(0, 1),
}  # fmt: skip

PARTS: dict[str, dict[str, Check]] = {  # of the keys that are mappings
    "eval_args": {
        "split": SPLIT,
        "order": one_of("RO", "TO"),
        "group_by": ("user or none", lambda v: v == "user" or EMPTY[1](v)),
        "mode": (f"{MODE[0]}, or a mapping of valid and test to one of these",
                 lambda v: MODE[1](v) or keyed(valid=MODE, test=MODE)[1](v)),
    },
    "train_neg_sample_args": {
        "distribution": either(one_of("uniform", "popularity"), EMPTY),
        "sample_num": either(whole(1), EMPTY),
        "alpha": either(number(0), EMPTY),
        "dynamic": FLAG,
        "candidate_num": whole(0),
    },
}  # fmt: skip


def check_values(config: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for the first value that its key cannot have."""
    for key, (expected, allows) in CHECKS.items():
        value = config.get(key)
        if key in config and not (value is None and key in OPTIONAL) and not allows(value):
            raise UserError(f"{key}: expected {expected}, got {value!r}")
    for key, parts in PARTS.items():
        value = config.get(key)
        if key != "eval_args" and EMPTY[1](value):
            continue
        if not isinstance(value, Mapping):
            raise UserError(f"{key}: expected a mapping of {', '.join(parts)}, got {value!r}")
        for part, entry in value.items():
            if part not in parts:
                raise UserError(f"{key}: expected the parts {', '.join(parts)}, got {part!r}")
            if not parts[part][1](entry):
                raise UserError(f"{key}.{part}: expected {parts[part][0]}, got {entry!r}")
    _check_metrics(config)
    low, high = config.get("group_low"), config.get("group_high")
    if low is not None and high is not None and low >= high:
        raise UserError(f"group_low: expected a number below group_high, {high}, got {low}")
    for key in ("output_dir", "checkpoint_dir"):
        if config.get(key):
            _check_folder(key, config[key])


def _check_metrics(config: Mapping[str, Any]) -> None:
    """Ranking metrics and value metrics do not go together, and value metrics are not measured on all items."""
    names = [config["metrics"]] if isinstance(config["metrics"], str) else list(config["metrics"])
    values = [name for name in names if metric_types.get(name.lower()) == EvaluatorType.VALUE]
    if values and len(values) < len(names):
        raise UserError(f"metrics: expected ranking metrics only or value metrics only, got {', '.join(names)}")
    mode = config["eval_args"].get("mode", "full")
    if values and "full" in (mode.values() if isinstance(mode, Mapping) else [mode]):
        raise UserError(
            f"eval_args.mode: expected labeled, uniN or popN with the metrics {', '.join(values)}, got full "
            "(rating_metrics: [RMSE, MAE] are measured beside ranking metrics)"
        )


def _check_folder(key: str, folder: str) -> None:
    """The folder, or the nearest one above it that is there, is a folder and can be written to."""
    path = Path(folder).absolute()
    there = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written to" if there.is_dir() else "is a file"
        raise UserError(f"{key}: expected a folder to write to, got {folder!r} ({there} {what})")


def check_explicit(config: Mapping[str, Any], model: str) -> None:
    """A model of ratings cannot do with labels in their place, nor without the column."""
    rating, columns = config["RATING_FIELD"], (config.get("load_col") or {}).get("inter", "*")
    if config.get("threshold"):
        raise UserError(f"threshold: expected none, since {model} learns ratings, got {config['threshold']}")
    if columns != "*" and rating not in columns:
        raise UserError(f"load_col: expected {rating} for inter, since {model} learns ratings, got {columns}")


_KINDS: tuple[tuple[tuple[type, ...], str, Callable[[Any], bool]], ...] = (
    ((bool,), "true or false", lambda v: isinstance(v, bool)),
    ((int, float), "a number", lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and v == v),
    ((list, tuple), "a list", lambda v: v is None or isinstance(v, (list, tuple))),
    ((Mapping,), "a mapping", lambda v: v is None or isinstance(v, Mapping)),
)


def check_kinds(defaults: Mapping[str, Any], given: dict[str, Any]) -> None:
    """Raise :class:`UserError` for a user's value that is no number, flag, list or mapping where the default is one.

    So that ``--mlp_hidden_size=64`` is told here instead of inside RecBole's model. 0 and 1 become false and true
    where a flag is wanted, and the list ``[5,10]`` becomes the text where an interval is.
    """
    for key, value in given.items():
        default = defaults.get(key)
        if isinstance(default, bool) and _is_int(value) and value in (0, 1):
            given[key] = value = bool(value)
        if CHECKS.get(key) is INTERVAL and isinstance(value, list) and len(value) == 2:
            given[key] = value = f"[{value[0]},{value[1]}]"
        if key in CHECKS or key in PARTS:
            continue
        for types, expected, allows in _KINDS:
            if isinstance(default, types):
                if not allows(value):
                    raise UserError(f"{key}: expected {expected} (default: {default}), got {value!r}")
                break
