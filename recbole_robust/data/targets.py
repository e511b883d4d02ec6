"""The choice of the target items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recbole_robust.types import IntArray, UserError

TAIL, HEAD = 0.2, 0.2  # ARLib: "unpopular" is the least rated 20 % of the items


def choose_targets(
    wanted: str | Sequence[Any] | None,
    item_counts: IntArray,
    tokens: Sequence[str],
    *,
    n_targets: int = 5,
    choice: str = "random",
    named_sets: Mapping[str, Sequence[Any]] | None = None,
    rng: np.random.Generator,
) -> list[str]:
    """The tokens of the target items.

    Args:
        wanted: tokens, or the name of a set in ``named_sets``, or None: draw ``n_targets``.
        item_counts: training ratings of each item; items without one are never drawn. Shape: ``(n_items,)``.
        tokens: the item tokens in the same order.
        choice: ``random``, ``unpopular`` (the least rated 20 %) or ``popular`` (the most rated 20 %).

    Raises:
        UserError: an unknown set, an unknown or repeated token, or more targets than there are candidates.
    """
    if isinstance(wanted, str):
        if wanted not in (named_sets or {}):
            known = ", ".join(named_sets or {}) or "none for this data set"
            raise UserError(f"target_items: expected a list of item tokens or a named set ({known}), got {wanted!r}")
        wanted = (named_sets or {})[wanted]
    if wanted is not None:
        return _checked(wanted, tokens)
    rated = np.flatnonzero(item_counts)
    by_count = rated[np.argsort(item_counts[rated], kind="stable")]
    n_part = max(1, int(len(rated) * (TAIL if choice == "unpopular" else HEAD)))
    candidates = {"random": rated, "unpopular": by_count[:n_part], "popular": by_count[-n_part:]}[choice]
    if n_targets > len(candidates):
        raise UserError(f"n_targets: expected at most {len(candidates)} ({choice} items), got {n_targets}")
    return [tokens[i] for i in rng.choice(np.sort(candidates), size=n_targets, replace=False)]


def _checked(wanted: Sequence[Any], tokens: Sequence[str]) -> list[str]:
    if not isinstance(wanted, (list, tuple)) or not wanted:
        raise UserError(f"target_items: expected a list of item tokens or the name of a set, got {wanted!r}")
    targets, known = [str(token) for token in wanted], set(tokens)
    missing = [token for token in targets if token not in known]
    if missing:
        raise UserError(f"target_items: expected tokens of the data set's items, got unknown {', '.join(missing[:5])}")
    if len(set(targets)) != len(targets):
        raise UserError("target_items: expected distinct items, got one twice")
    return targets
