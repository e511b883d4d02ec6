"""Defenses against the undefended model, and budget curves: every number of the tables by hand from invented cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_cells import METRICS, cell

from recbole_robust.report import budget, compare
from recbole_robust.report.page import make_page
from recbole_robust.report.result_file import check_grid
from recbole_robust.report.tables import Measured, Table, interval_of, make_entries, values_of
from recbole_robust.statistics import budget_area, holm, paired_effect_size, paired_permutation_test
from recbole_robust.types import UserError

METRIC = "targethr@50"


def with_lift(one: dict, lift: float) -> dict:
    clean = one["clean"]
    return {**one, "attacked": {**clean, METRIC: clean[METRIC] + lift}, "lift": {**one["lift"], METRIC: lift}}


def lifts(method: str, attack: str, values: list[float]) -> list[dict]:
    return [with_lift(cell(method, attack, seed), value) for seed, value in enumerate(values)]


def comparison(cells: list[dict]) -> Table:
    return compare.comparison_table("t", make_entries(cells), METRIC, compare.Undefended(), order={})


def test_the_tests_are_those_of_the_files() -> None:
    plain = [0.30, 0.32, 0.31, 0.35, 0.33, 0.30, 0.36, 0.31]
    half = [0.10, 0.20, 0.11, 0.19, 0.12, 0.18, 0.13, 0.17]
    same = [0.31, 0.31, 0.32, 0.34, 0.34, 0.29, 0.37, 0.30]
    table = comparison(lifts("MF", "Average", plain) + lifts("Half", "Average", half) + lifts("Same", "Average", same))
    p = [paired_permutation_test(own, plain, rng=np.random.default_rng(0)) for own in (half, same)]
    assert p[0] == 2 / 2**8  # all eight below: the smallest that eight pairs can give
    adjusted = holm(p)
    for row, method, own, one, after in zip(table.rows, ("Half", "Same"), (half, same), p, adjusted, strict=True):
        difference = row[2]
        assert isinstance(difference, Measured) and difference.interval is not None
        assert difference.interval.mean == pytest.approx(np.mean(own) - np.mean(plain))
        effect = paired_effect_size(own, plain)
        assert row[:2] == [method, "Average"]
        assert row[3:] == [f"{one:.3f}", f"{after:.3f}", f"{effect:+.1f}", row[6], "8"]
    assert [row[6] for row in table.rows] == ["less lift", "not shown"]
    assert table.header[4] == "p (Holm)" and "over the 2 tests of this table" in table.notes[0]


def test_a_defense_is_judged_against_its_own_undefended_model() -> None:
    """And where nothing lifts that one, by nothing; a victim of its own is no defense."""
    plain, half = [0.30, 0.32, 0.31, 0.35, 0.33, 0.30, 0.36, 0.31], [0.1 + 0.01 * i for i in range(8)]
    none = [0.001 * (-1) ** i for i in range(8)]
    cells = [
        *lifts("MF", "A", plain),
        *lifts("AT", "A", half),
        *lifts("LightGCN", "A", half),
        *lifts("EASE", "A", half),
    ]
    cells += [*lifts("RGCF", "A", [value / 2 for value in half]), *lifts("MF", "B", plain), *lifts("AT", "B", half)]
    cells += [*lifts("LightGCN", "B", none), *lifts("RGCF", "B", none)]
    undefended = compare.Undefended("MF", {"RGCF": "LightGCN", "EASE": None})
    entries = make_entries(cells)
    rows = compare.comparison_table("t", entries, METRIC, undefended, order={}).rows
    assert [(row[0], row[1]) for row in rows] == [("AT", "A"), ("AT", "B"), ("RGCF", "A")]
    assert rows[2][2].interval.mean == pytest.approx(-np.mean(half) / 2)  # type: ignore[union-attr]
    table = compare.defense_table("t", entries, METRIC, [], undefended, order={})
    assert [row[0] for row in table.rows] == ["AT", "RGCF"]
    assert table.rows[1][1].numbers[0] == "50.0" and table.rows[1][2].interval is None  # type: ignore[union-attr]
    page = make_page(cells, title="t", undefended_of={"RGCF": "LightGCN", "EASE": None})
    (section,) = page.sections
    assert check_grid({"report": {"undefended_of": {"RGCF": "LightGCN", "EASE": None}}}, Path("g"))
    with pytest.raises(UserError, match="expected the file that a benchmark leaves"):
        check_grid({"report": {"undefended_of": {"RGCF": 3}}}, Path("g"))
    assert any("on LightGCN" in note and "B: lift" in note for table in section.tables for note in table.notes)
    assert any("the undefended model (MF; of RGCF: LightGCN)" in n for table in section.tables for n in table.notes)


def test_over_all_attacks_few_pairs_can_show_more() -> None:
    """One row a method: the mean over the attacks that judge, in units that have all of them."""
    plain, better = [0.30, 0.32, 0.31, 0.35, 0.33, 0.30], [0.2, 0.3, 0.2, 0.3, 0.2, 0.29]
    cells = [one for attack in "AB" for one in [*lifts("MF", attack, plain), *lifts("X", attack, better)]]
    cells += [*lifts("MF", "C", [0.0] * 6), *lifts("X", "C", [0.5] * 6), *lifts("X", "A", [0.9] * 7)[6:]]
    each = comparison(cells)
    (row,) = compare.comparison_table(
        "t", make_entries(cells), METRIC, compare.Undefended(), order={}, overall=True
    ).rows
    assert row[:2] == ["X", "mean of 2"] and row[2].interval.mean == pytest.approx(np.mean(better) - np.mean(plain))  # type: ignore[union-attr]
    assert [r[6] for r in each.rows] == ["not shown"] * 2 and row[3:5] == ["0.031", "0.031"] and row[6] == "less lift"
    only = [one for one in cells if one["cell"]["attack"] == "A"]
    assert not compare.comparison_table(
        "t", make_entries(only), METRIC, compare.Undefended(), order={}, overall=True
    ).rows


def test_a_defense_that_helps_the_attacker_is_told() -> None:
    plain = [0.30, 0.32, 0.31, 0.35, 0.33, 0.30, 0.36, 0.31]
    (row,) = comparison(lifts("MF", "A", plain) + lifts("X", "A", [2 * value for value in plain])).rows
    assert row[6] == "more lift" and row[2].numbers[0].startswith("+")  # type: ignore[union-attr]


def test_an_attack_that_does_nothing_or_saturates_judges_nobody() -> None:
    weak = [0.01, -0.01, 0.01, -0.01, 0.0, 0.0, 0.0, 0.0]
    strong = [0.3] * 8
    cells = lifts("MF", "weak", weak) + lifts("X", "weak", [-0.1] * 8)
    cells += lifts("MF", "strong", strong) + lifts("X", "strong", [0.1] * 8)
    cells += lifts("MF", "full", [0.9] * 8) + lifts("X", "full", [0.1] * 8)
    assert [row[:2] for row in comparison(cells).rows] == [["X", "strong"]]


def test_no_share_of_a_lift_that_the_seeds_do_not_agree_on() -> None:
    """The gate's test takes pairs of one seed to be independent; Student's interval does not."""
    seeds = {("apt_1", 0): 0.001, ("apt_1", 1): 0.001, ("random_0", 0): 0.2, ("random_0", 1): 0.001}
    seeds |= {("apt_1", 2): 0.001, ("random_0", 2): 0.001}
    cells = [
        with_lift(cell(method, attack, seed, target_set), share * (lift if attack == "B" else 0.2))
        for method, share in (("MF", 1.0), ("X", 0.5))
        for attack in "AB"
        for (target_set, seed), lift in seeds.items()
    ]
    entries = make_entries(cells)
    assert all(gate.works for _, gate, _ in compare.gates(entries, METRIC, "MF", {}))
    (one,) = compare.shares(entries, METRIC, ["hit@50"], compare.Undefended(), {})
    assert one.told == {"A": pytest.approx(0.5)} and list(one.removed) == ["A", "B"]
    table = compare.defense_table("t", entries, METRIC, ["hit@50"], compare.Undefended(), order={})
    assert "No share of a lift or an accuracy that could be 0" in table.notes[0]
    alone = [entry for entry in entries if entry.attack == "B"]  # what it keeps of the accuracy is told all the same
    (row,) = compare.defense_table("t", alone, METRIC, ["hit@50"], compare.Undefended(), order={}).rows
    assert row[1] == compare.NO_SHARE and row[2].numbers[0] == "100.0"  # type: ignore[union-attr]


def test_no_share_of_an_accuracy_that_is_hardly_there() -> None:
    entries = make_entries([*lifts("MF", "A", [0.3] * 5), *lifts("X", "A", [0.1] * 5)])
    hits = {("MF", 1): 0.001, ("X", 0): 0.01, ("X", 1): 0.02}
    entries = [replace(e, clean={**e.clean, "tailhit@50": hits.get((e.method, e.seed), 0.0)}) for e in entries]
    table = compare.defense_table("t", entries, METRIC, ["hit@50", "tailhit@50"], compare.Undefended(), order={})
    ((_, removed, hit, tail, _),) = table.rows
    assert removed.numbers[0] == "66.7" and hit.numbers[0] == "100.0"  # type: ignore[union-attr]
    assert tail == compare.NO_SHARE and "an accuracy that could be 0" in table.notes[0]


def test_target_sets_that_differ_hide_no_share() -> None:
    """They widen the interval of the lift, with three seeds to below 0, where each seed has much the same lift."""
    lift_of = {("apt_1", 0): 0.350, ("apt_1", 1): 0.318, ("apt_1", 2): 0.206}
    lift_of |= {("random_0", 0): 0.130, ("random_0", 1): 0.163, ("random_0", 2): 0.079}
    entries = make_entries(
        with_lift(cell(method, "A", seed, target_set), share * lift)
        for method, share in (("MF", 1.0), ("X", 0.5))
        for (target_set, seed), lift in lift_of.items()
    )
    lift = interval_of(values_of([e for e in entries if e.method == "MF"], "lift", METRIC))
    assert lift is not None and lift.low < 0
    (one,) = compare.shares(entries, METRIC, ["hit@50"], compare.Undefended(), {})
    assert one.told == {"A": pytest.approx(0.5)}


def test_a_weak_attack_hardly_counts_among_all_together() -> None:
    cells = [*lifts("MF", "weak", [0.01] * 5), *lifts("MF", "strong", [0.39] * 5)]
    cells += [*lifts("X", "weak", [0.05] * 5), *lifts("X", "strong", [0.05] * 5)]
    (one,) = compare.shares(make_entries(cells), METRIC, [], compare.Undefended(), {})
    assert one.told == {"weak": pytest.approx(-4.0), "strong": pytest.approx(34 / 39)}
    assert one.together == pytest.approx((0.40 - 0.10) / 0.40)


def test_what_was_not_measured_is_no_share_that_could_be_anything() -> None:
    plain, half = [0.30, 0.32, 0.31, 0.35, 0.33], [0.1, 0.2, 0.1, 0.2, 0.1]
    cells = [one for attack in "AB" for one in [*lifts("MF", attack, plain), *lifts("X", attack, half)]]
    table = compare.defense_table(
        "t", make_entries([*cells, *lifts("Y", "A", half)]), METRIC, ["hit@50"], compare.Undefended(), order={}
    )
    assert [row[0] for row in table.rows] == ["X", "Y"] and table.rows[1][2] == compare.NO_SHARE
    assert table.notes == []


def test_too_few_pairs_are_told() -> None:
    """Five pairs cannot give p below 2/32."""
    cells = lifts("MF", "A", [0.3] * 5) + lifts("X", "A", [0.0] * 5)
    table = comparison(cells)
    assert table.rows[0][3:7] == ["0.062", "0.062", "-∞", "not shown"]
    assert "nothing here can be significant" in table.notes[1] and "0.062" in table.notes[1]
    assert compare.attainable(5) == 2 / 32 and compare.attainable(14) == 2 / 2**14
    assert compare.attainable(15) == pytest.approx(1e-4, rel=1e-3)


def test_pairs_are_matched_by_seed_and_target_set() -> None:
    cells = lifts("MF", "A", [0.1 * k for k in range(1, 9)]) + lifts("X", "A", [0.1 * k - 0.05 for k in range(1, 9)])
    (row,) = comparison(cells[:12]).rows  # X has the seeds 0 to 3 only
    assert row[7] == "4" and row[2].numbers[0] == "-5.0"  # type: ignore[union-attr]


# -- gains of accuracy ---------------------------------------------------------------------------------------------


def accurate(method: str, values: list[float]) -> list[dict]:
    return [cell(method, None, seed, clean={"ndcg@5": value, "gauc": 0.8}) for seed, value in enumerate(values)]


def test_gains_are_paired_by_seed_and_measured_by_the_bound() -> None:
    base, own, best = [0.20, 0.22, 0.21, 0.25], [0.21, 0.24, 0.22, 0.27], [0.23, 0.25, 0.24, 0.28]
    cells = accurate("base", base) + accurate("own", own) + accurate("oracle", best)
    gains = [{"method": "own", "over": "base", "bound": "oracle"}, {"method": "none", "over": "base"}]
    page = make_page(cells, title="t", metrics=["gauc", "ndcg@5"], gains=gains)
    table = page.sections[-1].tables[-1]
    (_, flat), row = (table.rows[0][2:4], table.rows[1])  # nobody gains in gauc, and "none" was not run
    assert len(table.rows) == 2 and flat.numbers[0] == "+0.000"  # type: ignore[union-attr]
    assert row[:3] == ["own", "base", "ndcg@5"] and row[8] == "4"
    difference, change, share = row[3], row[4], row[7]
    assert isinstance(difference, Measured) and isinstance(change, Measured) and isinstance(share, Measured)
    assert difference.interval is not None and change.interval is not None and share.interval is not None
    gain = np.mean(own) - np.mean(base)
    assert difference.interval.mean == pytest.approx(gain)
    assert change.interval.mean == pytest.approx(gain / np.mean(base)) and change.numbers[0].startswith("+")
    assert share.interval.mean == pytest.approx(gain / (np.mean(best) - np.mean(base)))
    p = paired_permutation_test(own, base, rng=np.random.default_rng(0))
    assert p == 2 / 2**4 and row[5:7] == [f"{p:.3f}", f"{holm([1.0, p])[1]:.3f}"]
    assert table.rows[0][7].numbers == [], "a bound that gains nothing measures nothing"  # type: ignore[union-attr]


def test_a_bound_that_is_not_shown_to_gain_measures_nothing() -> None:
    """Its gain of .0025 on average could as well be none."""
    cells = accurate("base", [0.20, 0.22, 0.21, 0.25]) + accurate("own", [0.21, 0.24, 0.22, 0.27])
    cells += accurate("oracle", [0.25, 0.20, 0.26, 0.18])
    gains = [{"method": "own", "over": "base", "bound": "oracle"}]
    table = make_page(cells, title="t", metrics=["ndcg@5"], gains=gains).sections[-1].tables[-1]
    assert table.rows[0][7].numbers == []  # type: ignore[union-attr]
    assert "No share of a bound whose own gain is not shown." in table.notes[0]


def test_without_gains_asked_for_there_is_no_table_of_them() -> None:
    page = make_page(accurate("base", [0.2, 0.3]), title="t")
    assert not any("paired" in table.title for table in page.sections[-1].tables)


# -- budget curves -------------------------------------------------------------------------------------------------


def sized(method: str, n_fakes: int, lift: float, seed: int = 0, **config: object) -> dict:
    more = {"poison": {"n_fake_users": n_fakes}, "n_genuine": 1000, "config": {"attack_size": n_fakes / 1000, **config}}
    attack = ", ".join(["Average", f"{n_fakes}", *(f"{key} {value}" for key, value in config.items())])
    return {**with_lift(cell(method, attack, seed), lift), **more}


def test_areas_are_those_of_the_files() -> None:
    curve = {5: 0.05, 20: 0.3, 100: 0.4}
    cells = [sized("MF", n, lift + 0.01 * seed, seed) for n, lift in curve.items() for seed in range(5)]
    cells += [sized("X", n, 0.5 * lift) for n, lift in curve.items()]
    page = make_page(cells, title="t", metrics=METRICS)
    (table,) = [table for table in page.sections[-1].tables if table.title.startswith("Area")]
    name = "Average, up to 10 % fakes"
    assert table.header == ["method", f"{name}: area", f"{name}: removed, %", "seeds"]
    areas = [budget_area([5, 20, 100], [lift + 0.01 * seed for lift in curve.values()]) for seed in range(5)]
    first, second = (row[1] for row in table.rows)
    assert isinstance(first, Measured) and first.interval is not None and first.interval.n_groups == 5
    assert first.interval.mean == pytest.approx(np.mean(areas))
    assert isinstance(second, Measured) and second.numbers == [f"{50 * areas[0]:+.1f}"]
    removed = [row[2] for row in table.rows]
    assert all(isinstance(one, Measured) for one in removed)
    assert removed[0].numbers == [] and removed[1].numbers == ["50.0"]


@pytest.mark.parametrize(
    ("largest", "n_seeds", "removed"),
    [(0.3, 5, ["50.0"]), (0.3, 4, []), (-0.3, 5, []), (0.93, 5, [])],
    ids=["works", "too few seeds", "no lift", "saturated"],
)
def test_an_attack_that_judges_no_defense_has_no_share_of_an_area(largest, n_seeds, removed) -> None:
    lifts = [(5, 0.1), (10, largest)]
    cells = [
        sized(method, n, share * lift, seed)
        for method, share in (("MF", 1), ("X", 0.5))
        for n, lift in lifts
        for seed in range(n_seeds)
    ]
    table = budget.area_table(make_entries(cells), METRIC, compare.Undefended("MF"), order={})
    assert table.rows[0][2].numbers == []
    assert table.rows[1][2].numbers[:1] == removed


def test_no_share_of_an_area_that_the_seeds_do_not_agree_on() -> None:
    """The attack works at its largest size in each seed; over all sizes one seed says the contrary."""
    cells = [
        sized(method, n, share * lift, seed)
        for method, share in (("MF", 1), ("X", 0.5))
        for seed in range(5)
        for n, lift in ((5, 0.0 if seed else -0.9), (10, 0.3))
    ]
    entries = make_entries(cells)
    assert [gate.works for attack, gate, _ in compare.gates(entries, METRIC, "MF", {}) if "10" in attack] == [True]
    table = budget.area_table(entries, METRIC, compare.Undefended("MF"), order={})
    assert [row[2] for row in table.rows] == [compare.NO_SHARE] * 2


def test_a_method_without_one_of_the_sizes_has_no_area() -> None:
    cells = [sized("MF", 5, 0.1), sized("MF", 10, 0.2), sized("X", 5, 0.1)]
    table = budget.area_table(make_entries(cells), METRIC, compare.Undefended("MF"), order={})
    assert [row[0] for row in table.rows] == ["MF"]


def test_attacks_that_differ_in_more_than_size_are_on_different_curves() -> None:
    cells = [sized("MF", n, 0.1, n_fillers=fillers) for n in (5, 10) for fillers in (20, 50)]
    cells += [sized("MF", 30, 0.1, n_fillers=90)]
    found = budget.curves(make_entries(cells), {})
    assert [list(curve.sizes) for curve in found] == [[0.005, 0.01]] * 2
    assert budget.curves(make_entries([cell(seed=seed) for seed in range(2)]), {}) == []


@pytest.mark.parametrize("gains", ["ATJT", ["ATJT"], [{"method": 1, "over": "MF"}], {"method": "ATJT"}])
def test_gains_of_another_kind_are_no_grid(gains):
    with pytest.raises(UserError, match=r"^grid.json: expected the file that a benchmark leaves"):
        check_grid({"report": {"gains": gains}}, Path("grid.json"))
