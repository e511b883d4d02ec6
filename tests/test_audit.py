"""The audit passes on what is right, and says what is wrong of every bug that published toolkits have, rebuilt here."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import cat_interactions
from scipy.sparse.linalg import svds
from toy_splits import ATTACK, VICTIMS

from recbole_robust import cli
from recbole_robust.attacks import DADA, aush_networks
from recbole_robust.audit import audit_files, bench, many_results, one_result, record_audit, self_checks
from recbole_robust.audit.finding import Finding, run_check
from recbole_robust.audit.self_checks import CHECKS
from recbole_robust.benchmark import run_grid
from recbole_robust.data import attacked_dataset
from recbole_robust.data.attacked_dataset import AttackedMixin
from recbole_robust.data.card import PoisonCard
from recbole_robust.defenses import pca
from recbole_robust.evaluation import target_pass
from recbole_robust.evaluation.metrics import NEVER
from recbole_robust.report import write_report
from recbole_robust.types import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = str(REPOSITORY / "dataset")


def failures(findings) -> dict[str, tuple[str, ...]]:
    return {finding.check: finding.failures for finding in findings if finding.failures}


# --- self-checks: all pass, and each fails on its fault -----------------------------------------------------------


def test_all_self_checks_pass_one_line_each(capsys):
    assert cli.main(["audit", f"--data_path={DATA}"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [f"ok: {check}" for check in CHECKS]
    assert last == f"audit: all {len(CHECKS)} checks passed"


def fakes_are_split_like_everybody(patch):
    """VAT, PamaCF, PLD, LoRec: 70/10/20, so that 30 % of the fake clicks are in no training batch."""
    append = attacked_dataset.append_rows
    patch.setattr(attacked_dataset, "append_rows", lambda train, rows, seed: append(train, rows[:56], seed))


def held_out_rows_are_trained_on(patch):
    build = AttackedMixin.build

    def leaking(self):
        train, valid, test = build(self)
        train.inter_feat = cat_interactions([train.inter_feat, test.inter_feat])
        return [train, valid, test]

    patch.setattr(AttackedMixin, "build", leaking)


def poison_comes_before_the_split(patch):
    poison = AttackedMixin._poison

    def shuffled(self, splits):
        poison(self, splits)
        splits[0].inter_feat.sort(self.iid_field)

    patch.setattr(AttackedMixin, "_poison", shuffled)


def ids_are_made_anew_with_the_fakes(patch):
    add = attacked_dataset.add_fake_users

    def moved(dataset, splits, n_fake, seed):
        add(dataset, splits, n_fake, seed)
        tokens = dataset.field2id_token[dataset.iid_field]
        tokens[[1, 2]] = tokens[[2, 1]]

    patch.setattr(attacked_dataset, "add_fake_users", moved)


def only_the_last_target_is_counted(patch):
    """recad: each target overwrites the lists of those before it."""
    rank = target_pass.TargetPass._rank

    def overwritten(self, scores, rows):
        rank(self, scores, rows)
        self.ranks[rows, :-1] = NEVER

    patch.setattr(target_pass.TargetPass, "_rank", overwritten)


def ties_count_for_the_target(patch):
    patch.setattr(target_pass, "pessimistic_ranks", lambda scores, own: (scores > own.unsqueeze(1)).sum(dim=1) + 1)


def fakes_are_users_like_others(patch):
    poison = AttackedMixin._poison

    def forgotten(self, splits):
        poison(self, splits)
        for part in (self, *splits):
            part.n_fake_users = 0

    patch.setattr(AttackedMixin, "_poison", forgotten)


def generator_is_detached(patch):
    """recad: no gradient reaches the generator, so that its step changes nothing."""
    step = aush_networks.Network.step

    def without_gradient(self, loss):
        if self.weight_decay != aush_networks.GENERATOR_DECAY:
            step(self, loss)

    patch.setattr(aush_networks.Network, "step", without_gradient)


def five_is_added_to_the_selected_ratings(patch):
    """Leg-UP, recad: the columns of the selected items in place of the target's."""
    losses = aush_networks.generator_losses
    patch.setattr(aush_networks, "generator_losses", lambda fakes, *rest: losses(fakes + 1, *rest))


def dada_is_minimised(patch):
    """A pull request to recad: an optimiser's step down an objective that is to grow."""
    objective = DADA.objective
    patch.setattr(DADA, "objective", lambda *arguments: -objective(*arguments))


def eigenvectors_are_not_squared(patch):
    """SDLib, RecAD: the distances are sums of eigenvectors as the solver gives them."""

    def distances(ratings, n_components):
        start = np.random.default_rng(0).standard_normal(min(ratings.shape))
        components = svds(ratings.astype(float), k=n_components, v0=start)[2]
        return ratings.multiply(ratings) @ components.sum(axis=0)

    patch.setattr(pca, "_sdlib_distances", distances)


def hit_and_ndcg_are_all_the_accuracy(patch):
    patch.setattr(many_results, "ACCURACY", ("hit", "ndcg"))


def split_is_not_seeded(patch):
    patch.setattr(bench, "init_seed", lambda *arguments: None)


def cards_are_not_verified(patch):
    load, kept = PoisonCard.load, {}

    def remembered(path):
        return kept[path] if path in kept else kept.setdefault(path, load(path))

    patch.setattr(PoisonCard, "load", remembered)


FAULTS: dict[Callable[[Any], None], tuple[str, str]] = {
    held_out_rows_are_trained_on: (
        "test rows are in no training batch", "MF, clean: expected no held-out row in the training batches, got 80"),
    fakes_are_split_like_everybody: (
        "all injected rows are in the training batches",
        "MF: expected all 80 injected rows in the training batches, got 56"),
    poison_comes_before_the_split: (
        "genuine rows are those of the clean run",
        "MF: expected the train rows of the clean run under poison, got others"),
    ids_are_made_anew_with_the_fakes: (
        "ids are those of the clean run", "expected the item ids of the clean data under poison, got another for i"),
    only_the_last_target_is_counted: (
        "oracles score 1, anti-oracles 0", "MF: expected targethr_eligible@10 1 of a target oracle, got 0.5"),
    ties_count_for_the_target: (
        "oracles score 1, anti-oracles 0", "MF: expected targethr_eligible@10 0 of a constant ranking, got 1"),
    fakes_are_users_like_others: (
        "fake users are in no average", "MF: expected averages over 80 genuine users, got 90 (10 fakes)"),
    generator_is_detached: (
        "a generator's weights move", "AUSH: expected weights of the generator that move in training, got a largest"),
    five_is_added_to_the_selected_ratings: (
        "generated ratings are pushed up", "AUSH: expected selected ratings in the upper half of 1 to 5"),
    dada_is_minimised: (
        "objectives push the targets up",
        "DADA: expected an objective that rises with the targets' scores, got a slope of -"),
    eigenvectors_are_not_squared: (
        "detectors do not depend on signs",
        "PCA (sdlib): expected the same scores in any order of the items, got correlation -"),
    hit_and_ndcg_are_all_the_accuracy: (
        "no trivial ranking wins on all metrics",
        "toy: expected Pop to lose to some method on one of targethr@10 hit@10 ndcg@10, got Pop best on all"),
    split_is_not_seeded: ("the split is that of the seed", "expected one split of seed 1, got "),
    cards_are_not_verified: (
        "a changed poison card is refused", "expected a card without its last row to be refused, got it read"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found_and_told(fault, monkeypatch):
    check, expected = FAULTS[fault]
    fault(monkeypatch)
    (finding,) = self_checks(DATA, only=check)
    assert expected in finding.line and finding.line.startswith(f"FAILED: {check}: ")


def test_every_self_check_can_fail():
    """Each has its planted fault; that of the last one is a tampered file (below)."""
    assert {check for check, _ in FAULTS.values()} | {"a run passes its own audit"} == set(CHECKS)


def test_a_check_that_cannot_run_has_failed():
    def broken():
        raise IndexError("7 of 3")
        yield

    line = run_check("all is well", broken).line
    assert line == "FAILED: all is well: expected a check that runs through, got IndexError: 7 of 3"


def test_a_finding_is_one_line():
    assert Finding("a", ("b\nc", "d"), "2 files").line == "FAILED: a: b c (and 1 more) (2 files)"
    assert Finding("a", (), "2 files").line == "ok: a (2 files)"


# --- docs/seven_ways.md ----------------------------------------------------------------------------------------------

STORIES = re.split(r"^## ", (REPOSITORY / "docs" / "seven_ways.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


def test_there_are_seven_ways():
    assert [story[:3] for story in STORIES] == [f"{n}. " for n in range(1, 8)]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.partition("\n")[0])
def test_a_story_has_ten_lines_that_run_and_a_check_that_exists(story):
    (code,) = re.findall(r"^```python\n(.*?)^```$", story, re.DOTALL | re.MULTILINE)
    assert len([line for line in code.splitlines() if line]) <= 10 and "assert" in code
    torch.manual_seed(0)
    exec(code, {})
    told = {" ".join(check.split()) for check in re.findall(r"\*\*(.*?)\*\*", story.rpartition("```")[2], re.DOTALL)}
    assert told and told <= {*CHECKS, *one_result.CHECKS}


# --- one result ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """A run and a grid on the toy data, made once."""
    folder = tmp_path_factory.mktemp("audit")
    grid = {
        "name": "g", "datasets": ["toy"], "attacks": ["Average"], "methods": ["MF", "Pop"], "seeds": [0, 1],
        "target_sets": [{"label": "two", "target_items": ["i3", "i40"]}],
        "config": {
            "protocol": "apt", "data_path": DATA, "use_gpu": False, "n_fake_users": 8, "n_fillers": 6, "epochs": 2,
            "topk": [5, 10],
        },
        "report": {"metrics": ["targethr@10", "hit@10"]},
    }  # fmt: skip
    run_grid(grid, output_dir=folder, progress=False)
    return folder


@pytest.fixture
def grid(outputs, tmp_path) -> Path:
    return Path(shutil.copytree(outputs / "g", tmp_path / "g"))


@pytest.fixture
def result(outputs, tmp_path) -> Path:
    """The result of the MF run of seed 0 with its card, to be tampered with."""
    (path,) = outputs.glob("MF-toy-Average-none-0-*/result.json")
    shutil.copytree(outputs / "cards", tmp_path / "cards")
    return Path(shutil.copytree(path.parent, tmp_path / path.parent.name)) / "result.json"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_good_run_passes(result, capsys):
    found = audit_files(result)
    assert failures(found) == {}
    told = {finding.check: finding.note for finding in found}
    assert told["poison cards are those of the results"] == "1 cards"
    assert told["the split is the recorded one"] == "1 splits made again"
    assert cli.main(["audit", str(result.parent)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"audit: all {len(found)} checks passed"


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("BPR", {"attack": "Random", "attack_size": 0.05, "n_targets": 3}),
        ("SASRec", {**VICTIMS["SASRec"], **ATTACK}),
        ("DIN", {**VICTIMS["DIN"], **ATTACK}),
        ("MF", {**ATTACK, "noise_ratio": 0.3}),
        ("MF", {**ATTACK, "tune": True}),
        ("MF", {**ATTACK, "defense": "CoRating", "compare_clean": False}),
        ("MF", {"attack": "Organic", "new_fans": 3, "n_fake_users": 3, "target_items": ["i3", "i40"]}),
        ("MF", {}),
    ],
    ids=["BPR", "SASRec", "DIN", "noise", "tune", "detector", "Organic", "clean"],
)
def test_no_false_alarm(model, keys, run):
    found = audit_files(run(model, **{**keys, "epochs": 1})["path"])
    assert failures(found) == {} and found[-1].note == "1 splits made again"


def test_failures_are_told_in_the_order_of_the_file():
    """Not in that of a set, which another process has otherwise: equal grids have equal audits, byte for byte."""
    names = [f"{name}@{k}" for name in ("hit", "ndcg", "targethr_all", "targetndcg") for k in (5, 10, 50)]
    metrics, rows = dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.25)
    result = {"clean": metrics, "attacked": metrics, "lift": {}, "per_target": {"i3": {"attacked": rows}}}
    for check in (one_result.lift_is_the_difference, one_result.totals_are_means_over_targets):
        told = [failure.partition(":")[0].partition(".")[2] for failure in check(result)]
        assert told == names, check


def per_target(result: dict[str, Any], condition: str = "attacked") -> dict[str, float]:
    return result["per_target"]["i3"][condition]


RESULT_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str]] = {
    "range": (lambda r: r["attacked"].update({"hit@10": 1.25}), "metrics are in their range",
              "attacked.hit@10: expected a number in [0, 1], got 1.25"),
    "rank": (lambda r: r["clean"].update(targetrank=0.5), "metrics are in their range",
             "clean.targetrank: expected a number in [1, inf], got 0.5"),
    "lift": (lambda r: r["lift"].update({"recall@5": 0.9}), "the lift is attacked minus clean",
             r"lift.recall@5: expected \S+ \(attacked minus clean\), got 0.9"),
    "level": (lambda r: r["lift"].update(r["attacked"]), "the lift is attacked minus clean", "attacked minus clean"),
    "denominator": (lambda r: r["clean"].update({"targethr@10": r["clean"]["targethr_eligible@10"] + 0.01}),
                    "targethr follows its denominator", "clean.targethr@10: expected targethr_all@10, "),
    "deflated": (lambda r: r["attacked"].update({"targetrank": r["attacked"]["targetrank"] / 2}),
                 "target metrics are means over the targets",
                 r"expected the mean over targets, \S+, got \S+ of 2 targets"),
    "fakes in the average": (lambda r: per_target(r).update({"targethr_all@10": 5 / 88}),
                             "hits are whole genuine users",
                             r"i3.attacked.targethr_all@10: expected a share of 80 genuine users, got 0.0568"),
    "fakes": (lambda r: r["poison"].update(n_fake_users=9), "the poison is what was asked for",
              "poison.n_fake_users: expected 8, as configured, got 9"),
    "no card": (lambda r: r.update(poison=None), "the poison is what was asked for", "expected a card behind"),
    "targets": (lambda r: r.update(target_items=["i3", "i41"]), "the poison is what was asked for",
                "target_items: expected those of the poison, i3 i40, got i3 i41"),
    "hash": (lambda r: r["poison"].update(hash="0" * 12), "poison cards are those of the results",
             r"poison.hash: expected \w{12} of the card \S+, got 000000000000"),
    "users": (lambda r: r.update(n_genuine=88), "poison cards are those of the results",
              "n_genuine: expected at most the 80 genuine users of the card, got 88"),
    "split": (lambda r: r.update(split_hash="f" * 16), "the split is the recorded one",
              r"expected split \w{16}, made again, got ffffffffffffffff"),
    "seed": (lambda r: r.update(command=r["command"].replace("--seed=0", "--seed=1")), "the split is the recorded one",
             r"expected split \w{16}, made again, got"),
}  # fmt: skip


@pytest.mark.parametrize("fault", RESULT_FAULTS)
def test_a_result_that_was_tampered_with(result, fault):
    change, check, expected = RESULT_FAULTS[fault]
    edit(result, change)
    found = failures(audit_files(result))
    assert re.search(expected if "\\" in expected else re.escape(expected), found[check][0]), found


def test_a_card_that_was_tampered_with(result, capsys):
    recorded = Path(json.loads(result.read_text())["poison"]["card"]).name
    rows = result.parent.parent / "cards" / recorded / "toy.inter"
    edit(result, lambda r: r["poison"].update(card=str(rows.parent)))
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join([lines[0], *lines[2:], ""]))
    found = failures(audit_files(result))
    assert list(found) == ["poison cards are those of the results"]
    assert re.search(r"expected contents of hash \w+, got \w+", found["poison cards are those of the results"][0])
    assert cli.main(["audit", str(result)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert len([line for line in out if line.startswith("FAILED: ")]) == 1 and out[-1] == "audit: 1 of 8 checks failed"


def test_data_that_are_not_there_are_no_failure(result):
    edit(result, lambda r: r.update(command=r["command"].replace(DATA, "/nowhere")))
    (finding,) = [one for one in audit_files(result) if one.check == "the split is the recorded one"]
    assert finding.failures == () and finding.note.startswith(
        "0 splits made again, 1 not: no file /nowhere/toy/toy.inter"
    )
    assert failures(audit_files(result, data_path=DATA)) == {}


# --- a grid ----------------------------------------------------------------------------------------------------------


def cells(grid: Path, method: str = "MF") -> list[Path]:
    return sorted(grid.glob(f"toy-Average-{method}-two-seed*.json"))


def one_version_is_other(grid):
    edit(cells(grid)[0], lambda r: r["versions"].update(torch="1.0"))


def one_cell_has_other_code(grid):
    edit(cells(grid)[0], lambda r: r.update(code="c" * 12))


def one_cell_does_not_tell_its_code(grid):
    edit(cells(grid)[0], lambda r: r.pop("code"))


def one_cell_is_missing(grid):
    cells(grid)[1].unlink()


def one_cell_is_there_twice(grid):
    shutil.copy(cells(grid)[0], cells(grid)[1])


def one_cell_failed(grid):
    edit(cells(grid)[0], lambda r: r.update(error="ValueError: of course"))


def one_cell_has_another_split(grid):
    edit(cells(grid, "Pop")[0], lambda r: r.update(split_hash="e" * 16))


def one_cell_has_other_targets(grid):
    edit(cells(grid, "Pop")[0], lambda r: r.update(target_items=["i4", "i40"]))


def one_cell_has_other_fakes(grid):
    edit(cells(grid, "Pop")[0], lambda r: r["poison"].update(hash="d" * 12))


def one_cell_has_other_fakes_and_an_older_config(grid):
    def change(result):
        result["poison"].update(hash="d" * 12)
        del result["config"]["rm_dup_inter"]  # a key that is new since

    edit(cells(grid, "Pop")[0], change)


def one_cell_has_another_seed(grid):
    edit(cells(grid)[1], lambda r: r.update(seed=5))


def hit_and_ndcg_only(grid):
    for path in (*cells(grid), *cells(grid, "Pop")):
        keep = {"hit@10", "ndcg@10", "targethr@10"}
        edit(path, lambda r: r.update(attacked={name: r["attacked"][name] for name in keep}))  # noqa: B023


GRID_FAULTS: dict[Callable[[Path], None], tuple[str, str]] = {
    one_cell_is_missing: (
        "every cell is there once", r"expected the 4 cells of grid.json, got 3 \(missing: toy-Average-MF"),
    one_cell_is_there_twice: (
        "every cell is there once", r"expected one file a cell, got 2 of toy, Average, MF, two, 0"),
    one_cell_failed: ("every cell is there once", r"expected numbers in all cells, got an error in 1 \(toy-Average-MF"),
    one_cell_has_another_seed: ("every cell is there once", r"expected seed 1 of its cell, got 5"),
    one_cell_has_another_split: (
        "one split for all rows of a seed", r"expected one split for seed 0, \w{16} as in toy-\S+.json, got e{16}"),
    one_cell_has_other_targets: (
        "one list of targets for all rows of a seed",
        r'expected one list of targets for seed 0, .*, got \["i4", "i40"\]'),
    one_cell_has_other_fakes: (
        "one poison for all methods under an attack",
        r"expected one poison card for seed 0, \w{12} as in .*, got d{12}"),
    one_cell_has_other_fakes_and_an_older_config: (
        "one poison for all methods under an attack",
        r"expected one poison card for seed 0, \w{12} as in .*, got d{12}"),
    one_cell_has_other_code: (
        "one code of this package", r"expected one code, got (?=.*\bc{12} \(1 results\)).*\b\w{12} \(3 results\)"),
    one_cell_does_not_tell_its_code: (
        "one code of this package", r"expected one code, got \w{12} \(3 results\), not told \(1 results\)"),
    one_version_is_other: (
        "one version of every package", r"expected one version of torch, got 1.0 \(1 results\), \S+ \(3 results\)"),
    hit_and_ndcg_only: (
        "no trivial ranking wins on all metrics",
        r"toy, two, Average: expected Pop to lose to some method on one of targethr@10 hit@10 ndcg@10, got Pop best"),
}  # fmt: skip


def test_methods_on_another_split_may_face_other_fakes(grid):
    def change(result):
        result["poison"].update(hash="d" * 12)
        result.update(split_hash="e" * 16)
        result["config"].update(rm_dup_inter="first")

    for path in cells(grid, "Pop"):
        edit(path, change)
    assert "one poison for all methods under an attack" not in failures(audit_files(grid, splits=False))


def test_a_good_grid_passes_and_its_report_says_so(grid):
    found = audit_files(grid)
    assert failures(found) == {} and len(found) == 15
    line = "Audit: all 14 checks of these files passed."  # without the splits, which would read the data
    assert line in (grid / "report.md").read_text()
    for format in ("markdown", "latex", "html"):
        assert line in write_report(grid, format=format).read_text()


@pytest.mark.parametrize("fault", GRID_FAULTS, ids=lambda fault: fault.__name__)
def test_a_grid_with_a_fault(grid, fault):
    check, expected = GRID_FAULTS[fault]
    fault(grid)
    found = failures(audit_files(grid, splits=False))
    assert any(re.search(expected, failure) for failure in found[check]), found


def test_the_report_lists_what_failed_and_knows_an_old_audit(grid):
    one_version_is_other(grid)
    assert "Audit: of other files than these. Run: recbole-robust audit g" in write_report(grid).read_text()
    record_audit(grid)
    for format in ("markdown", "latex", "html"):
        page = write_report(grid, format=format).read_text()
        assert "Audit: 1 of 14 checks of these files failed." in page
        assert "FAILED: one version of every package: expected one version of torch, got 1.0" in page


def test_the_command_records_the_audit_of_a_grid(grid, capsys):
    one_version_is_other(grid)
    assert cli.main(["audit", str(grid), "--splits=false"]) == 1
    assert "Audit: 1 of 14 checks" in write_report(grid).read_text()
    assert capsys.readouterr().out.splitlines()[-1] == "audit: 1 of 14 checks failed"


def test_an_audit_file_that_is_none(grid):
    (grid / "audit.json").write_text("[]")
    with pytest.raises(UserError, match=r"audit.json: expected the file that an audit leaves"):
        write_report(grid)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "nowhere: expected a folder of result files"),
        (["a", "b"], "audit: expected at most one path"),
        (
            ["--model=MF"],
            "audit: expected at most one path, --data_path=<folder> and --splits=true|false, got --model=MF",
        ),
        (["--splits=perhaps"], "--splits=perhaps"),
        (["--data_path=nowhere"], "audit: expected the toy data of the project, nowhere/toy/toy.inter"),
        (["."], "audit: .: expected a result.json, or a folder with results, got none"),
    ],
)
def test_mistakes_are_one_line(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["audit", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and not list(tmp_path.iterdir())
