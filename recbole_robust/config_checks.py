"""Which values a key may have: one table, one clear line for a value that is out of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from recbole_robust.types import TARGET_MODES, UserError

Check = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(low: int) -> Check:
    return f"a whole number >= {low}", lambda v: _is_int(v) and v >= low


def number(low: float, high: float = math.inf, open_low: bool = False) -> Check:
    bracket = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if high == math.inf else ']'}"
    return f"a number in {bracket}", lambda v: _is_number(v) and (low < v if open_low else low <= v) and v <= high


def one_of(*choices: Any) -> Check:
    return f"one of {', '.join(map(str, choices))}", lambda v: v in choices


FLAG: Check = ("true or false", lambda v: isinstance(v, bool))

# Keys that may also be empty (~): their default is worked out later.
OPTIONAL = {"attack_size", "n_fake_users", "filler_size", "n_fillers", "n_targets", "net_learning_rate", "target_seed"}

CHECKS: dict[str, Check] = {
    "epochs": whole(0),
    "train_batch_size": whole(1),
    "eval_batch_size": whole(1),
    "eval_step": whole(0),
    "stopping_step": whole(0),
    "seed": whole(0),
    "learning_rate": number(0, open_low=True),
    "net_learning_rate": number(0, open_low=True),
    "weight_decay": number(0),
    "initial_accumulator_value": number(0),
    "embedding_size": whole(1),
    "attack_size": number(0, 1, open_low=True),
    "n_fake_users": whole(1),
    "filler_size": number(0, 1),
    "n_fillers": whole(0),
    "n_targets": whole(1),
    "target_seed": whole(0),
    "target_choice": one_of("random", "unpopular", "popular"),
    "target_mode": one_of(*TARGET_MODES),
    "target_hr_denominator": one_of("eligible", "all"),
    "knowledge": one_of("black-box", "gray-box", "white-box"),
    "dataloader": one_of("fast", "recbole"),
    "compare_clean": FLAG,
    "force": FLAG,
    "tune": FLAG,
    "show_progress": FLAG,
    "damping": number(0),
}


def check_values(config: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for the first value that its key cannot have."""
    for key, (expected, allows) in CHECKS.items():
        value = config.get(key)
        if key not in config or (value is None and key in OPTIONAL):
            continue
        if not allows(value):
            raise UserError(f"{key}: expected {expected}, got {value!r}")
