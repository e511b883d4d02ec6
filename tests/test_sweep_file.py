"""Sweep files: what they expand to, what is refused, and the laws of the objective."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_robust.properties_path import properties_dir
from recbole_robust.registry import DEFENSES, available
from recbole_robust.sweep import _check_by_configs
from recbole_robust.sweep.file import WORST, Objective, file_of, load_sweep, nested, read_sweep
from recbole_robust.types import UserError

SWEEP: dict[str, Any] = {
    "name": "s",
    "model": "MF",
    "dataset": "toy",
    "config": {"protocol": "apt", "topk": [5], "defense": "AT", "defense_args": {"weight": 2.0}},
    "attacks": ["Average", {"attack": "Random", "n_fillers": 3}],
    "target_sets": [{"target_seed": 7, "n_targets": 3}, "apt_1"],
    "conditions": {"noise_ratio": [0.0, 0.2]},
    "space": {"defense_args.eps": {"grid": [0.1, 0.2]}, "learning_rate": {"grid": [1.0, 10.0]}},
    "search": {"method": "grid"},
    "objective": {"maximise": "clean.ndcg@5", "at_most": {"worst_lift.targethr@5": 0.05}},
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SWEEP), **changes}


def test_a_grid_is_the_whole_product() -> None:
    sweep = read_sweep(SWEEP)
    assert sweep.points() == [
        {"defense_args.eps": eps, "learning_rate": rate} for eps in (0.1, 0.2) for rate in (1.0, 10.0)
    ]
    assert sweep.conditions == [{"noise_ratio": 0.0}, {"noise_ratio": 0.2}]
    assert sweep.attacks[0] == {"attack": "Average"} and sweep.target_sets[1] == {"target_items": "apt_1"}
    keys = sweep.keys({"noise_ratio": 0.2}, sweep.points()[1])
    assert keys["defense_args"] == {"weight": 2.0, "eps": 0.1} and keys["noise_ratio"] == 0.2
    assert sweep.config["defense_args"] == {"weight": 2.0}  # as it was
    assert sweep.corners() == [sweep.points()[0], sweep.points()[3]]


def test_a_random_search_draws_within_its_ranges_and_the_same_again() -> None:
    space = {
        "a": {"uniform": [0.1, 0.4]},
        "b": {"loguniform": [0.001, 10.0]},
        "c": {"int": [1, 3]},
        "d": {"logint": [1, 100]},
        "e": {"choice": ["x", None, 3]},
    }
    sweep = read_sweep(changed(space=space, search={"method": "random", "trials": 400, "seed": 1}))
    points = sweep.points()
    assert points == sweep.points() and len(points) == 400
    assert all(0.1 <= p["a"] < 0.4 and 0.001 <= p["b"] < 10.0 for p in points)
    assert {p["c"] for p in points} == {1, 2, 3} and {p["e"] for p in points} == {"x", None, 3}
    assert {p["d"] for p in points} <= set(range(1, 101)) and sum(p["d"] < 10 for p in points) / 400 == pytest.approx(
        0.5, abs=0.1
    )
    assert sum(p["b"] < 0.1 for p in points) / 400 == pytest.approx(0.5, abs=0.1)
    assert points != read_sweep(changed(space=space, search={"method": "random", "trials": 400, "seed": 2})).points()
    both = {"a": {"grid": [1, 2]}, "b": {"uniform": [0, 1]}}
    assert [p["a"] for p in read_sweep(changed(space=both, search={"trials": 2})).points()] == [1, 2, 1, 2]
    few = read_sweep(changed(space={"a": {"choice": [1, 2]}}, search={"trials": 50})).points()
    assert sorted(p["a"] for p in few) == [1, 2]  # no trial twice


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_who_keeps_the_bounds_beats_who_does_not(
    ndcg: float, other_ndcg: float, lift: float, other_lift: float
) -> None:
    goal = Objective("clean.ndcg@5", at_most={"lift.targethr@5": 0.1})
    score, other = (
        goal.score({"clean.ndcg@5": value, "lift.targethr@5": by})
        for value, by in ((ndcg, lift), (other_ndcg, other_lift))
    )
    if lift <= 0.1:
        assert score == ndcg >= 0
        assert other_lift <= 0.1 or other < 0
    elif other_lift > 0.1:
        assert (score > other) == (lift - 0.1 < other_lift - 0.1)


def test_a_weighted_sum() -> None:
    weights = {"clean.ndcg@5": 1.0, "lift.targethr@5": -0.5, "lift.ndcg@5": 1.0}
    goal = Objective(weights=weights, at_least={"clean.tailhit@5": 0.1})

    def score(ndcg: float, lift: float, tail: float = 0.1, change: float = 0.0) -> float:
        return goal.score({"clean.ndcg@5": ndcg, "lift.targethr@5": lift, "clean.tailhit@5": tail,
                           "lift.ndcg@5": change})  # fmt: skip

    assert score(0.3, 0.2) == pytest.approx(0.2) and score(0.3, 0.2, change=-0.1) == pytest.approx(0.1)
    assert score(0.3, -0.4) == score(0.3, 0.0) == pytest.approx(0.3)  # nothing is earned by pushing targets down
    assert WORST < score(0.9, 0.0, tail=0.05) < score(0.1, 0.0, tail=0.09) < score(0.0, 1.0)


@pytest.mark.parametrize("name", ["clean.ndcg@5", "lift.targethr@5"])
def test_what_is_no_number_is_the_worst(name: str) -> None:
    """Also where a bound is meant: a lift that nobody could measure is not below it."""
    found = {"clean.ndcg@5": 0.3, "lift.targethr@5": 0.2, name: float("nan")}
    assert Objective("clean.ndcg@5", at_most={"lift.targethr@5": 0.5}).score(found) == WORST
    assert Objective(weights={"clean.ndcg@5": 1.0, "lift.targethr@5": -0.5}).score(found) == WORST


def test_the_file_of_a_sweep_is_read_as_the_sweep() -> None:
    least = {"model": "MF", "dataset": "toy", "space": {"a": {"choice": [1, None]}}, "search": {"trials": 2},
             "objective": {"weights": {"clean.ndcg@5": 1.0}}, "name": "s"}  # fmt: skip
    for content in (SWEEP, least, changed(conditions={"noise_ratio": [0.0, 0.2], "kl_T": [1, 2, 4]})):
        sweep = read_sweep(content)
        assert read_sweep(file_of(json.loads(json.dumps(dataclasses.asdict(sweep))))) == sweep
    assert set(file_of(dataclasses.asdict(read_sweep(least)))) == {*least, "seed"}


def test_nested() -> None:
    base = {"a": {"x": 1}, "b": 2}
    assert nested(base, {"a.y": 3, "c.d": 4, "b": 5}) == {"a": {"x": 1, "y": 3}, "b": 5, "c": {"d": 4}}
    assert base == {"a": {"x": 1}, "b": 2}


TPE = {"method": "tpe", "trials": 3}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"spce": {}}, "sweep: expected the fields name, .*got 'spce'"),
        ({"name": "../x"}, "name: expected a folder name"),
        ({"name": None}, "name: expected"),
        ({"model": None}, "model: expected a name, got None"),
        ({"dataset": ["toy"]}, "dataset: expected a name"),
        ({"config": [1]}, "config: expected a mapping"),
        ({"config": {"seed": 3}}, "config: expected keys other than .*got 'seed'"),
        ({"config": {"tune": True}}, "config: expected keys other than .*got 'tune'"),
        ({"space": {}}, "space: expected at least one key"),
        ({"space": {"model": {"grid": ["MF"]}}}, "space: expected keys other than .*'model'"),
        ({"space": {"kl_T": [1, 2]}}, r"space.kl_T: expected one of grid, choice, uniform.*got \[1, 2\]"),
        ({"space": {"kl_T": {"normal": [1, 2]}}}, "space.kl_T: expected one of grid, .*got 'normal'"),
        ({"space": {"kl_T": {"grid": []}}}, "space.kl_T: expected a list of different values"),
        ({"space": {"kl_T": {"grid": [1, 1]}}}, "space.kl_T: expected a list of different values"),
        ({"space": {"kl_T": {"grid": [[1], [2]]}}}, "space.kl_T: expected a list of different values"),
        ({"space": {"kl_T": {"uniform": [2, 1]}}}, r"space.kl_T: expected uniform: \[lowest, highest\], got"),
        ({"space": {"kl_T": {"uniform": [1]}}}, "space.kl_T: expected uniform"),
        ({"space": {"kl_T": {"loguniform": [0, 1]}}}, "space.kl_T: expected loguniform.*above 0"),
        ({"space": {"kl_T": {"int": [0.5, 3]}}}, "space.kl_T: expected a whole number"),
        ({"space": {"kl_T": {"uniform": [0, 1]}}}, "space.kl_T: expected grid under search.method grid"),
        ({"search": {"method": "grid", "trials": 3}}, "search.trials: expected none under search.method grid"),
        ({"search": {"method": "bayes"}}, "search.method: expected one of grid, random, tpe, got 'bayes'"),
        ({"search": {"method": "random"}}, "search.trials: expected a whole number >= 1, got None"),
        ({"search": TPE}, "expected choice instead of grid under search.method tpe"),
        ({"search": {"samples": 3}}, "search: expected the fields method, trials, seed, got 'samples'"),
        ({"scheduler": {"method": "hyperband"}}, "scheduler.method: expected one of none, asha"),
        ({"scheduler": {"method": "asha", "reduction": 1}}, "scheduler.reduction: expected a whole number >= 2"),
        ({"conditions": {"noise_ratio": 0.2}}, "conditions.noise_ratio: expected a list"),
        ({"conditions": {"learning_rate": [1.0]}}, "conditions: expected keys that are not in space"),
        ({"attacks": "Average"}, "attacks: expected a list"),
        ({"target_sets": [3]}, "target_sets: expected a list"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
        ({"objective": {}}, "objective: expected either maximise or weights, got neither"),
        ({"objective": {"maximise": "clean.hit@5", "weights": {}}}, "expected either .*got both"),
        ({"objective": {"weights": {"clean.hit@5": "1"}}}, "objective.weights.clean.hit@5: expected a number"),
        ({"objective": {"weights": {}}}, "objective.weights: expected a weight of at least one metric"),
        (
            {"objective": {"maximise": "lift.hit@5"}},
            "objective.maximise: expected one of .*clean or attacked, got 'lift",
        ),
        ({"objective": {"weights": {"worst_lift.hit@5": 1}}}, "objective: expected worst_lift of one of targethr"),
        ({"objective": {"maximise": "hit@5"}}, "objective: expected clean | attacked .*got 'hit@5'"),
        ({"objective": {"maximise": "test.hit@5"}}, "objective: expected clean | .*got 'test.hit@5'"),
        ({"objective": {"maximise": "clean.hits@5"}}, "objective: expected .*got 'clean.hits@5'"),
        ({"objective": {"maximise": "clean.hit"}}, "objective: expected .*got 'clean.hit'"),
        ({"objective": {"maximise": "clean.targetrank"}}, "objective.maximise: expected one of hit, recall"),
        ({"objective": {"maximise": "clean.hit@5", "epoch": "first"}}, "objective.epoch: expected one of last, best"),
        ({"attacks": []}, r"got 'worst_lift.targethr@5' \(there are no attacks\)"),
    ],
)
def test_bad_sweeps_name_the_field(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        read_sweep(changed(**change))
    assert "\n" not in str(caught.value)


PHASED: dict[str, Any] = {
    "model": "ATJT",
    "config": {"base_model": "SASRec", "atjt_schedule": "phased", "protocol": "atjt", "eval_step": 0},
    "attacks": [],
    "target_sets": [{"n_targets": 1}],
    "space": {"atjt_lambda": {"grid": [0.1, 1.0]}},
    "objective": {"maximise": "clean.hit@5", "epoch": "best"},
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"space": {"learning_rat": {"grid": [1.0, 2.0]}}}, "unknown key 'learning_rat': did you mean learning_rate"),
        ({"space": {"learning_rate": {"grid": [1.0, -2.0]}}}, "learning_rate: expected a number"),
        ({"space": {"defense_args.epss": {"grid": [1.0]}}}, "unknown key of AT 'defense_args.epss'"),
        ({"space": {"epochs": {"grid": [1, 2]}}}, r"space: expected keys other than epochs \(objective.epoch: best"),
        ({"space": {"noise_strength": {"grid": [0.1]}}}, "space: expected keys other than noise_strength .data and"),
        (
            {"space": {"attack_args.x": {"grid": [1]}}},
            "space: expected keys other than attack_args.x .data and measures",
        ),
        ({"space": {"target_hr_denominator": {"grid": ["all"]}}}, "expected keys other than target_hr_denominator"),
        ({"conditions": {"epochs": [1, 2]}}, "conditions: expected keys other than epochs"),
        ({"attacks": [{"attack": "Average", "seed": 3}]}, "attacks: expected the keys attack, .*got 'seed'"),
        ({"attacks": [{"attack": "Average", "target_seed": 3}]}, "attacks: expected the keys .*got 'target_seed'"),
        ({"target_sets": [{"n_fillers": 3}]}, "target_sets: expected the keys target_items, .*got 'n_fillers'"),
        ({"model": "MFF"}, "unknown model 'MFF'"),
        ({"attacks": ["Averag"]}, "unknown attack 'Averag'"),
        ({"attacks": [{"n_fillers": 3}]}, "attacks: expected an attack"),
        ({"conditions": {"noise_ratio": [0.0, 2.0]}}, "noise_ratio: expected"),
        ({"objective": {"maximise": "clean.hit@50"}}, r"objective: expected a K of topk \[5\], got 'clean.hit@50'"),
        ({"scheduler": {"method": "asha", "grace": 99}}, "scheduler.grace: expected at most the 25 epochs, got 99"),
        (PHASED, "objective.epoch: expected last, since atjt_schedule phased has its number of epochs, got best"),
    ],
)
def test_what_a_config_refuses_is_told_before_the_first_trial(
    change: dict[str, Any], told: str, tmp_path: Path, data_path: Path
) -> None:
    content = changed(**change)
    content["config"] = {**content["config"], "data_path": str(data_path)}
    with pytest.raises(UserError, match=told):
        _check_by_configs(read_sweep(content), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


SHIPPED = available("sweep")


def test_every_defense_has_a_sweep() -> None:
    models = {"PurifyAugMF", "ATJT", "PCMF", "RGCF"}
    assert set(SHIPPED) == models | set(DEFENSES)
    for name in DEFENSES:
        assert load_sweep(name).config["defense"] == name


@pytest.mark.parametrize("name", SHIPPED)
def test_the_sweeps_that_we_ship(name: str, tmp_path: Path) -> None:
    """They are read, a Config takes all they try, their target sets are no grid's, and every key has a comment."""
    sweep = load_sweep(name)
    epochs = _check_by_configs(sweep, str(tmp_path))[0]
    assert sweep.name == name and epochs == {"ATJT": 16, "TCE": 40, "RCE": 40, "RGCF": 30}.get(name, 25)
    assert not sweep.attacks or all(targets["target_seed"] >= 200 for targets in sweep.target_sets)
    assert sweep.seed >= 100
    assert read_sweep(file_of(json.loads(json.dumps(dataclasses.asdict(sweep))))) == sweep
    assert json.dumps(sweep.points() if sweep.method != "tpe" else sweep.corners())
    lines = (properties_dir() / "sweep" / f"{name}.yaml").read_text().splitlines()
    named = ("name:", "model:", "dataset:", "space:", "search:", "scheduler:", "  - ")
    assert [line for line in lines if "#" not in line and not line.startswith(named)] == []
