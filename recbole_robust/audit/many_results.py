"""Checks of results beside one another: a grid is complete, and what its rows share is the same in all of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Results = Sequence[Mapping[str, Any]]

TRIVIAL = ("Pop", "Random")  # rankings that know nothing of the user
ACCURACY = ("hit", "recall", "ndcg", "mrr", "map", "precision", "tailhit", "itemcoverage")
# What decides on the rows of a split, beside data set and seed; under noise or new fans the targets do, too.
_SPLIT_KEYS = (
    "protocol", "eval_args", "heldout_file", "threshold", "val_interval", "rm_dup_inter",
    "user_inter_num_interval", "item_inter_num_interval", "MAX_ITEM_LIST_LENGTH", "data_path", "new_fans",
    "noise_ratio", "noise_kind", "noise_unit",
)  # fmt: skip
_OWN_SPLIT = ("SEQUENTIAL", "CONTEXT", "KNOWLEDGE")  # kinds of models whose rows are others than user, item, rating
_LABELS = ("dataset", "attack", "method", "target_set", "seed")


def cells_are_there_once(results: Results, cells: Sequence[str]) -> Iterator[str]:
    """Args: cells: the ids that grid.json lists; a result's file is named by its own."""
    stems = {_stem(result) for result in results}
    missing = [cell for cell in cells if cell not in stems]
    if missing:
        yield f"expected the {len(cells)} cells of grid.json, got {len(cells) - len(missing)} (missing: {missing[0]})"
    failed = [result["path"] for result in results if "error" in result]
    if failed:
        yield f"expected numbers in all cells, got an error in {len(failed)} ({failed[0]})"
    ids = set(cells)
    own = [result for result in results if _stem(result) in ids]
    counts = Counter(tuple(result["cell"].get(axis) for axis in _LABELS) for result in own)
    for labels, n in counts.items():
        if n > 1:
            yield f"expected one file a cell, got {n} of {', '.join(str(label) for label in labels)}"
    for result in own:
        if result.get("seed", result["cell"]["seed"]) != result["cell"]["seed"]:
            yield f"{result['path']}: expected seed {result['cell']['seed']} of its cell, got {result['seed']}"


def _stem(result: Mapping[str, Any]) -> str:
    return str(result["path"]).rpartition("/")[2].removesuffix(".json")


def one_split_a_seed(results: Results) -> Iterator[str]:
    """Clean and attacked cells of one seed, whatever the method, are trained and measured on the same rows."""
    yield from _one_value(results, lambda result: (*_place(result), *_split_of(result)), "split_hash", "split")


def one_target_set_a_seed(results: Results) -> Iterator[str]:
    def key(result: Mapping[str, Any]) -> tuple[Any, ...]:
        asked = _text([(result.get("config") or {}).get(k) for k in ("target_items", "n_targets", "target_choice")])
        return (*_place(result), *_split_of(result), (result.get("cell") or {}).get("target_set"), asked)

    yield from _one_value(results, key, "target_items", "list of targets")


def one_poison_an_attack(results: Results) -> Iterator[str]:
    """All methods of a seed whose split is one face the same fake profiles."""

    def key(result: Mapping[str, Any]) -> tuple[Any, ...]:
        cell = result.get("cell") or {}
        split = (result.get("protocol"), result.get("split_hash"))
        return (*_place(result), *split, cell.get("attack"), cell.get("target_set"))

    some = [{**result, "hash": result["poison"]["hash"]} for result in results if result.get("poison")]
    yield from _one_value(some, key, "hash", "poison card")


def versions_are_one(results: Results) -> Iterator[str]:
    names = sorted({name for result in results for name in result.get("versions") or ()})
    for name in names:
        yield from _one_of_all((str((r.get("versions") or {}).get(name)) for r in results), f"version of {name}")


def code_is_one(results: Results) -> Iterator[str]:
    """All were made by the same sources of this package; those of results that do not tell are others."""
    yield from _one_of_all((str(result.get("code") or "not told") for result in results), "code")


def _one_of_all(values: Iterable[str], what: str) -> Iterator[str]:
    counts = Counter(values)
    if len(counts) > 1:
        told = ", ".join(f"{value} ({n} results)" for value, n in sorted(counts.items()))
        yield f"expected one {what}, got {told}"


def no_trivial_ranking_wins(results: Results) -> Iterator[str]:
    """A ranking that knows nothing of the user must lose on one metric at least, or the metrics say nothing.

    On the robustness metric alone it always wins, and on hit@K a popularity ranking often does.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for result in results:
        cell = result.get("cell") or {}
        if result.get("attacked"):
            where = (*_place(result)[:-1], cell.get("target_set"), cell.get("attack"), *_split_of(result))
            trivial = result["model"] if result["model"] in TRIVIAL and not result.get("defense") else ""
            label = trivial or cell.get("method") or result["model"]
            groups.setdefault(where, {}).setdefault(label, []).append(result)
    for where, methods in groups.items():
        for name in TRIVIAL:
            others = [label for label in methods if label not in TRIVIAL]
            if name in methods and others:
                beaten = [label for label in others if _wins(methods[name], methods[label])]
                if len(beaten) == len(others):
                    place = ", ".join(str(part) for part in where[:-1] if part)
                    metrics = " ".join(_shared(methods[name], methods[others[0]]))
                    yield f"{place}: expected {name} to lose to some method on one of {metrics}, got {name} best on all"


def _wins(trivial: Results, other: Results) -> bool:
    """Whether the trivial ranking is at least as good on every metric that both have, at their largest K."""
    return all(
        _mean(trivial, name) <= _mean(other, name) if name.startswith("target") else
        _mean(trivial, name) >= _mean(other, name)
        for name in _shared(trivial, other)
    )  # fmt: skip


def _shared(left: Results, right: Results) -> list[str]:
    """The robustness metric and the accuracy metrics that all these results have, at the largest K."""
    names = set.intersection(*(set(result["attacked"]) for result in (*left, *right)))
    k = max((int(name.partition("@")[2]) for name in names if "@" in name), default=0)
    return [f"{name}@{k}" for name in ("targethr", *ACCURACY) if f"{name}@{k}" in names]


def _mean(results: Results, name: str) -> float:
    values = [result["attacked"][name] for result in results if result["attacked"][name] is not None]
    return sum(values) / len(values) if values else 0.0


CHECKS: dict[str, Callable[[Results], Iterator[str]]] = {
    "one split for all rows of a seed": one_split_a_seed,
    "one list of targets for all rows of a seed": one_target_set_a_seed,
    "one poison for all methods under an attack": one_poison_an_attack,
    "one version of every package": versions_are_one,
    "one code of this package": code_is_one,
    "no trivial ranking wins on all metrics": no_trivial_ranking_wins,
}


def _one_value(
    results: Results, key: Callable[[Mapping[str, Any]], tuple[Any, ...]], name: str, what: str
) -> Iterator[str]:
    first: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for result in results:
        if result.get(name) is None:
            continue
        other = first.setdefault(key(result), result)
        if other[name] != result[name]:
            wanted = f"one {what} for seed {result['seed']}, {_text(other[name])} as in {other['path']}"
            yield f"{result['path']}: expected {wanted}, got {_text(result[name])}"


def _place(result: Mapping[str, Any]) -> tuple[Any, ...]:
    return result["dataset"], result["seed"]


def _split_of(result: Mapping[str, Any]) -> tuple[str, ...]:
    config = result.get("config") or {}
    told = [config.get(key) for key in _SPLIT_KEYS]
    told.append(config.get("MODEL_TYPE") if config.get("MODEL_TYPE") in _OWN_SPLIT else None)
    if config.get("noise_ratio") or config.get("new_fans"):
        told.append(result.get("target_items"))
    return (_text(told),)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
