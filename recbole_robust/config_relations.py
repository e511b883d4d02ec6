"""Keys beside one another: which of them go together, and the metrics that all of them ask for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from recbole.evaluator.register import metric_types
from recbole.utils import EvaluatorType, ModelType

from recbole_robust import registry
from recbole_robust.types import UserError

if TYPE_CHECKING:
    from recbole_robust.config import Config

logger = logging.getLogger(__name__)

METRICS_WITHOUT_K = ("gauc", "targetrank")  # ranking metrics that have one value, not one a K


def check_together(config: Config, final: dict[str, Any], explicit: bool) -> None:
    """Refuse keys that name what is not there, or that have no meaning beside one another.

    Args:
        final: the keys with their last values; the names of defenses are written as the registry has them.
        explicit: whether the model learns ratings.

    Raises:
        UserError: one line on the first of them.
    """
    most = max([final["topk"]] if isinstance(final["topk"], int) else final["topk"])
    if final.get("infer_mode") == "rerank" and final.get("rerank_topk", most) < most:
        raise UserError(f"rerank_topk: expected at least the largest K, {most}, got {final['rerank_topk']}")
    if str(final["baseline"]) not in ("auto", "none", "None"):
        registry.get_model(final["baseline"], "baseline")
    if final["base_model"] is not None:
        registry.get_model(final["base_model"], "base_model")
        if not getattr(config.model_class, "wraps_base_model", False):
            raise UserError(
                f"base_model: expected none, since {config.model} wraps no model, got {final['base_model']!r}"
            )
    if final["attack"] is not None:
        registry.build_attack(final["attack"], final["attack_args"])
    if final["defense"] is not None:
        names = registry.defense_names(final["defense"])
        final["defense"] = ",".join(names)
        built = registry.build_defenses(final["defense"], final["defense_args"])
        in_training = built.loss or built.training
        if in_training is not None:
            in_training.check(config.model, explicit)
        if built.weights and final.get("group_weights"):
            raise UserError(f"defense: expected --group_weights=false beside GroupWeights, since {config.model} weighs "
                            "its ratings so itself, got true")  # fmt: skip
        if built.detectors and final["MODEL_TYPE"] == ModelType.KNOWLEDGE:
            raise UserError(f"defense: expected a model without a knowledge graph under {names[0]}, got {config.model}")
    if "atjt_weights" in config.internal_config_dict:
        _check_atjt(config, final)
    if final.get("export_weights") and (final.get("atjt_weights") != "learned" or not final["noisy_seq_ratio"]):
        raise UserError(f"export_weights: expected ATJT with learned weights, got {config.model}")
    if final["attack"] is not None and final["n_targets"] == 0 and not final["target_items"]:
        raise UserError(f"n_targets: expected at least 1, since {final['attack']} attacks, got 0")
    if final["poison"] is not None and (told := config.attack_keys_given(final)):
        raise UserError(f"poison: expected no keys of an attack beside a card to replay, got {', '.join(told)}")
    for kind in ("attack", "defense"):
        if final[kind] is None and final[f"{kind}_args"]:
            logger.warning("%s_args without %s: ignored", kind, kind)
    sequential = final["MODEL_TYPE"] == ModelType.SEQUENTIAL
    if final["noise_ratio"] and final["noise_kind"] == "swap" and not sequential:
        raise UserError(f"noise_kind: expected replace, insert or drop, since {config.model} sees no order, got swap")
    split, order = final["eval_args"].get("split"), final["eval_args"].get("order")
    if final["tune"] and split != {"LS": "test_only"}:
        raise UserError(f"tune: expected eval_args.split {{'LS': 'test_only'}}, got {split}")
    if final["heldout_file"] and "LS" not in (split or {}):
        raise UserError(f"heldout_file: expected eval_args.split {{'LS': ...}}, got {split}")
    if final.get("user_folds"):
        if not sequential or not str((split or {}).get("LS")).endswith("test"):
            raise UserError(
                f"user_folds: expected a sequential model and eval_args.split {{'LS': valid_and_test}}, got "
                f"{config.model} and {split}"
            )
        for key in ("noise_ratio", "attack", "poison", "export_weights"):
            if final.get(key):
                raise UserError(f"{key}: expected none under user_folds, got {final[key]}")
    if sequential and order not in (None, "TO"):
        raise UserError(f"eval_args.order: expected TO for the sequential model {config.model}, got {order}")


def _check_atjt(config: Config, final: dict[str, Any]) -> None:
    """Keys of ATJT beside one another. Under the schedule phased the last epoch counts, since only then all folds have
    been learned from, and no validation chooses another."""
    if final["train_stage"] != "both" and final["base_model"] != "S3Rec":
        raise UserError(
            f"train_stage: expected both, since {final['base_model']} has no stages, got {final['train_stage']}"
        )
    if final["atjt_schedule"] == "phased":
        if final["tune"]:
            raise UserError("tune: expected false under atjt_schedule phased, which has its number of epochs, got True")
        if final["weight_normalize"] == "item":
            raise UserError("weight_normalize: expected sum, fold or none under atjt_schedule phased, got item")
        if config.is_given("eval_step") and final["eval_step"]:
            raise UserError(f"eval_step: expected 0 under atjt_schedule phased, got {final['eval_step']}")
        final["eval_step"] = 0
        least = final["n_folds"] * (final["atjt_phase_epochs"] or 1)
        if final["epochs"] < least:
            raise UserError(f"epochs: expected at least the {least} that the phases of {final['n_folds']} folds last, "
                            f"got {final['epochs']}")  # fmt: skip
    if final["atjt_per_sample"] == "resample":
        for key, usual in (("negative_weight", None), ("weight_normalize", "sum")):
            if final[key] != usual:
                raise UserError(f"{key}: expected {usual or 'none'} under atjt_per_sample resample, got {final[key]}")


def complete_metrics(final: dict[str, Any], selects_by_hand: bool) -> None:
    """Measure ``always_metrics`` beside ranking metrics, and the metric that selects.

    Where the user names K but no ``valid_metric`` (``selects_by_hand``), the default one takes the largest K.

    Raises:
        UserError: a ``valid_metric`` of the user's that no evaluation reports; RecBole would end in a KeyError.
    """
    metrics = [final["metrics"]] if isinstance(final["metrics"], str) else list(final["metrics"])
    ks = [final["topk"]] if isinstance(final["topk"], int) else list(final["topk"])
    selects, at, k = final["valid_metric"].partition("@")
    for metric in [*metrics, *(final["always_metrics"] or []), selects]:
        if metric.lower() not in metric_types:
            raise registry.unknown("metric", metric, metric_types)
    ranking = metric_types[metrics[0].lower()] == EvaluatorType.RANKING
    extra = (final["always_metrics"] or []) if ranking else []
    if (metric_types[selects.lower()] == EvaluatorType.RANKING) is ranking:
        extra = [*extra, selects]
    elif selects_by_hand:
        raise UserError(f"valid_metric: expected a metric of the kind of {metrics[0]}, got {final['valid_metric']}")
    else:
        final["valid_metric"] = selects = metrics[0]
    for metric in extra:
        if metric.lower() not in [m.lower() for m in metrics]:
            metrics.append(metric)
    final["metrics"] = metrics
    has_k = ranking and selects.lower() not in METRICS_WITHOUT_K
    if not selects_by_hand:
        if has_k and k not in map(str, ks):
            final["valid_metric"] = f"{selects}@{max(ks)}"
    elif has_k != bool(at) or (has_k and k not in map(str, ks)):
        known = ", ".join(f"{selects}@{k}" for k in ks) if has_k else selects
        raise UserError(f"valid_metric: expected {known} (K is one of topk), got {final['valid_metric']!r}")
