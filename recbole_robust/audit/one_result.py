"""Checks of one result file that need nothing but its own numbers. Each yields what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recbole_robust.arguments import share_of

TOLERANCE = 1e-9  # sums of a few floats; the files keep all their digits
CONDITIONS = ("clean", "attacked")
_FRACTION = re.compile(
    r"(targethr(_\w+)?|targetndcg|hit|recall|precision|ndcg|map|mrr|tailhit|itemcoverage|g?auc)(@\d+)?"
)
_AT_LEAST = {"targetrank": 1.0, "rmse": 0.0, "mae": 0.0, "logloss": 0.0}

Result = Mapping[str, Any]


def _blocks(result: Result) -> Iterator[tuple[str, Mapping[str, float | None]]]:
    """Every block of metrics of a result, with its place; the lifts are none of them."""
    for condition in CONDITIONS:
        yield condition, result.get(condition) or {}
        yield f"baseline.{condition}", (result.get("baseline") or {}).get(condition) or {}
        for token, rows in (result.get("per_target") or {}).items():
            yield f"per_target.{token}.{condition}", rows.get(condition) or {}


def metrics_in_range(result: Result) -> Iterator[str]:
    for place, block in _blocks(result):
        for name, value in block.items():
            low = 0.0 if _FRACTION.fullmatch(name) else _AT_LEAST.get(name)
            high = 1.0 if _FRACTION.fullmatch(name) else float("inf")
            if value is not None and low is not None and not low <= value <= high:
                yield f"{place}.{name}: expected a number in [{low:g}, {high:g}], got {value:g}"


def lift_is_the_difference(result: Result) -> Iterator[str]:
    for place, part in (("", result), ("baseline.", result.get("baseline") or {})):
        clean, attacked, lift = (part.get(key) for key in (*CONDITIONS, "lift"))
        if clean is None or attacked is None:
            if lift is not None:
                yield f"{place}lift: expected none without a clean and an attacked training, got {len(lift)} numbers"
            continue
        for name in (name for name in clean if name in attacked):  # in the file's order, on every day
            got, pair = (lift or {}).get(name), (clean[name], attacked[name])
            wanted = None if None in pair else pair[1] - pair[0]
            if not _equal(got, wanted):
                yield f"{place}lift.{name}: expected {_told(wanted)} (attacked minus clean), got {_told(got)}"


def targethr_follows_its_denominator(result: Result) -> Iterator[str]:
    which = (result.get("config") or {}).get("target_hr_denominator")
    if which is None:
        return
    for place, block in _blocks(result):
        if place.startswith("baseline"):  # its configuration is not stored
            continue
        for name, value in block.items():
            own = name.replace("targethr@", f"targethr_{which}@")
            if name.startswith("targethr@") and not _equal(value, block.get(own)):
                yield f"{place}.{name}: expected {own}, {_told(block.get(own))}, got {_told(value)}"


def totals_are_means_over_targets(result: Result) -> Iterator[str]:
    """A code that overwrites the rows of all targets but the last reports a fraction of the truth."""
    for condition in CONDITIONS:
        rows = [row[condition] for row in (result.get("per_target") or {}).values() if row.get(condition)]
        total = result.get(condition) or {}
        of_targets = set().union(*rows)
        for name in (name for name in total if name in of_targets):
            values = [row[name] for row in rows if row.get(name) is not None]
            wanted = sum(values) / len(values) if values else None
            if not _equal(total[name], wanted):
                got = f"{_told(total[name])} of {len(rows)} targets"
                yield f"{condition}.{name}: expected the mean over targets, {_told(wanted)}, got {got}"


def hits_are_whole_users(result: Result) -> Iterator[str]:
    """A share of n users is a whole number of them: it is not where others (fakes) are in the average."""
    n_users = result.get("n_genuine")
    for token, rows in (result.get("per_target") or {}).items() if n_users else ():
        for condition in CONDITIONS:
            for name, value in (rows.get(condition) or {}).items():
                if name.startswith("targethr_all@") and value is not None:
                    hits = value * n_users
                    if abs(hits - round(hits)) > 1e-6:
                        place = f"per_target.{token}.{condition}.{name}"
                        yield f"{place}: expected a share of {n_users} genuine users, got {value:g}, {hits:g} users"


def poison_is_what_was_asked_for(result: Result) -> Iterator[str]:
    poison, config = result.get("poison"), result.get("config") or {}
    if not poison:
        if result.get("attacked") is not None:
            yield "poison: expected a card behind the attacked numbers, got none"
        return
    if set(poison["target_items"]) != set(result["target_items"]):
        ours, theirs = " ".join(result["target_items"]), " ".join(poison["target_items"])
        yield f"target_items: expected those of the poison, {theirs}, got {ours}"
    if set(result.get("per_target") or ()) != set(result["target_items"]):
        yield f"per_target: expected one entry a target, got {' '.join(result.get('per_target') or ['none'])}"
    if config.get("poison") or config.get("new_fans"):  # a card that was replayed, or users held out
        return
    for key in ("n_fake_users", "n_fillers"):
        if config.get(key) is not None and config[key] != poison[key]:
            yield f"poison.{key}: expected {config[key]}, as configured, got {poison[key]}"
    if config.get("n_fake_users") is None and config.get("attack_size") and config.get("MODEL_TYPE") != "SEQUENTIAL":
        wanted = max(1, share_of(config["attack_size"], result["n_genuine"]))
        if wanted != poison["n_fake_users"]:
            share = f"{config['attack_size']:g} of {result['n_genuine']} users"
            yield f"poison.n_fake_users: expected {wanted}, {share}, got {poison['n_fake_users']}"


CHECKS: dict[str, Callable[[Result], Iterator[str]]] = {
    "metrics are in their range": metrics_in_range,
    "the lift is attacked minus clean": lift_is_the_difference,
    "targethr follows its denominator": targethr_follows_its_denominator,
    "target metrics are means over the targets": totals_are_means_over_targets,
    "hits are whole genuine users": hits_are_whole_users,
    "the poison is what was asked for": poison_is_what_was_asked_for,
}


def _equal(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return left is right
    return abs(left - right) <= TOLERANCE * max(1.0, abs(left), abs(right))


def _told(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
