"""Sweeps on Ray Tune: what is selected and by what, early ends, interruptions, and what cannot be run."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from recbole_robust import sweep as sweeping
from recbole_robust.cli import main
from recbole_robust.quick_start import run_recbole_robust, watched_training
from recbole_robust.randomness import global_state
from recbole_robust.sweep import run_sweep
from recbole_robust.sweep.book import TrialBook, earlier_trials
from recbole_robust.sweep.file import WORST, load_sweep, read_sweep
from recbole_robust.sweep.search import _tpe
from recbole_robust.sweep.trial import Training, combined, run_trial, trial_config
from recbole_robust.types import UserError


@pytest.fixture
def content(data_path: Path) -> dict[str, Any]:
    config = {"protocol": "apt", "topk": [5], "epochs": 3, "use_gpu": False, "data_path": str(data_path)}
    return {
        "name": "s",
        "model": "MF",
        "dataset": "toy",
        "config": config,
        "attacks": ["Average"],
        "target_sets": [{"target_seed": 7, "n_targets": 3}],
        "space": {"learning_rate": {"grid": [1.0, 3.0, 10.0, 30.0]}},
        "search": {"method": "grid"},
        "objective": {"maximise": "clean.ndcg@5", "at_most": {"worst_lift.targethr@5": 0.5}},
    }


def trials_of(folder: Path) -> list[dict[str, Any]]:
    """The trials less what differs from run to run: their order and seconds."""
    trials = json.loads((folder / "trials.json").read_text())["trials"]
    for trial in trials:
        trial.pop("seconds")
    return sorted(trials, key=lambda trial: json.dumps([trial["condition"], trial["values"]]))


# --- a trial, without Ray ---------------------------------------------------------------------------------------------


def test_side_by_side_each_training_is_what_it_is_alone(content, tmp_path):
    """Epoch by epoch to the last bit, though both draw from the global generators."""
    content["attacks"] = []
    content["objective"] = {"maximise": "clean.ndcg@5"}
    sweep = read_sweep(content)
    configs = [trial_config(sweep, {}, {"learning_rate": rate}, str(tmp_path)) for rate in (3.0, 10.0)]
    alone: list[list[Any]] = [[], []]
    for config, found in zip(configs, alone, strict=True):
        watched_training(config, None, found.append)
    trainings = [Training(lambda pause, config=config: watched_training(config, None, pause)) for config in configs]
    together = [[training.step() for training in trainings] for _ in range(3)]
    for training in trainings:
        training.end()
    assert [list(steps) for steps in zip(*together, strict=True)] == alone
    assert alone[0] != alone[1] and not any(training.is_alive() for training in trainings)


def test_a_training_that_is_ended_early_is_gone(content, tmp_path):
    sweep = read_sweep(content)
    config = trial_config(sweep, {}, {"learning_rate": 3.0}, str(tmp_path))
    training = Training(lambda pause: watched_training(config, None, pause))
    training.step()
    training.end()
    assert not training.is_alive()
    never_started = Training(lambda pause: None)
    never_started.end()
    failing = Training(lambda pause: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.step()


def test_a_trial_tells_the_keys_that_recbole_cannot_work_with(content, tmp_path):
    content |= {"model": "LightGCN", "attacks": [], "space": {"n_layers": {"grid": [2.5, 1]}}}
    content["objective"] = {"maximise": "clean.ndcg@5"}
    config = trial_config(read_sweep(content), {}, {"n_layers": 2.5}, str(tmp_path))
    with pytest.raises(UserError, match=r"n_layers.*: expected what RecBole can work with, got .*2\.5"):
        watched_training(config, None, print)


def test_selection_sees_no_test_row(content, tmp_path, monkeypatch):
    """What is reported does not change when the test rows do; and RecBole's test evaluation never runs.

    The target is in six test rows: who has it there is not left out where targets are ranked to select.
    """
    import recbole_robust.quick_start as quick_start

    content["target_sets"] = [{"target_items": ["i56"]}]

    seen = []
    prepare = quick_start.prepare

    def spoiled(config, card):
        train, valid, test = prepare(config, card)
        rows = test._dataset.inter_feat
        items = rows["item_id"]
        items[:] = items.roll(1)
        seen.append(len(valid._dataset.inter_feat))
        return train, valid, test

    sweep = read_sweep(content)
    reports: list[list[Any]] = [[], []]
    run_trial(sweep, {}, {"learning_rate": 3.0}, str(tmp_path), lambda *told: reports[0].append(told))
    monkeypatch.setattr(quick_start, "prepare", spoiled)
    monkeypatch.setattr(quick_start, "_measure", None)
    run_trial(sweep, {}, {"learning_rate": 3.0}, str(tmp_path), lambda *told: reports[1].append(told))
    assert reports[0] == reports[1] and len(reports[0]) == 3 and len(seen) == 2 and min(seen) > 0


def test_the_sweep_of_atjt_runs(data_path, tmp_path):
    """Two tiny trials of the file that we ship: its keys reach the Config, and each epoch has what it selects by."""
    tiny = {"epochs": 2, "hidden_size": 8, "inner_size": 8, "recogniser_pretrain_steps": 2, "train_batch_size": 256}
    place = {"data_path": str(data_path), "use_gpu": False}
    shipped = load_sweep("ATJT")
    sweep = dataclasses.replace(shipped, dataset="toy", config={**shipped.config, **tiny, **place})
    noisy = sweep.conditions[1]
    scores = []
    for values in (sweep.points()[0], sweep.points()[-1]):
        told: list[Any] = []
        run_trial(sweep, noisy, values, str(tmp_path), lambda *report, told=told: told.append(report))
        assert [epoch for epoch, _ in told] == [0, 1]
        scores.append([sweep.objective.score(metrics) for _, metrics in told])
        config = trial_config(sweep, noisy, values, str(tmp_path))
        assert (config["model"], config["base_model"], config["noise_ratio"]) == ("ATJT", "SASRec", 0.2)
        assert {key: config[key] for key in values} == values
    assert scores[0] != scores[1] and all(0 <= score <= 1 for score in [*scores[0], *scores[1]])


def test_a_split_without_validation_rows_is_refused(content, tmp_path):
    content["config"]["eval_args"] = {"split": {"RS": [0.8, 0.0, 0.2]}, "order": "RO"}
    sweep = read_sweep(content)
    with pytest.raises(UserError, match="eval_args: expected validation rows"):
        run_trial(sweep, {}, {"learning_rate": 3.0}, str(tmp_path), lambda *told: None)


def test_the_lift_is_attacked_less_clean():
    one, other = {"hit@5": 0.5, "targethr@5": 0.1}, {"hit@5": 0.3, "targethr@5": 0.0}
    found = combined([(one, [{"hit@5": 0.4, "targethr@5": 0.5}]), (other, [{"hit@5": 0.3, "targethr@5": 0.1}])])
    assert found["clean.hit@5"] == pytest.approx(0.4) and found["attacked.hit@5"] == pytest.approx(0.35)
    assert found["lift.targethr@5"] == pytest.approx(0.25) and found["worst_lift.targethr@5"] == pytest.approx(0.4)
    assert combined([(one, [])]) == {f"clean.{name}": value for name, value in one.items()}


# --- sweeps -----------------------------------------------------------------------------------------------------------


def interrupting(n: int) -> Callable[..., Any]:
    """``TrialBook.add`` that gives Ctrl-C after n trials."""
    enter = TrialBook.add

    def stopped(self: TrialBook, *told: Any) -> Any:
        trial = enter(self, *told)
        if self._n_run == n:
            signal.raise_signal(signal.SIGINT)
        return trial

    return stopped


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_a_grid_interrupted_and_resumed_is_the_grid(ray, content, tmp_path, monkeypatch, capsys):
    """Every trial once, equal to an uninterrupted run's; and ``run`` takes best.yaml as it is."""
    whole = run_sweep(content, output_dir=tmp_path / "whole", workers=1, progress=False)
    assert (whole.n_run, whole.n_replayed, whole.n_failed) == (4, 0, 0)
    expected = trials_of(tmp_path / "whole" / "s")
    assert [trial["status"] for trial in expected] == ["finished"] * 4
    assert all(len(trial["scores"]) == 3 and trial["scores"][-1] == trial["score"] for trial in expected)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrialBook, "add", interrupting(2))
        run_sweep(content, output_dir=tmp_path / "cut", workers=1, progress=False)
    folder = tmp_path / "cut" / "s"
    assert len(trials_of(folder)) == 2
    with pytest.raises(UserError, match=r"expected --resume or --force, since .*trials\.json is there"):
        run_sweep(content, output_dir=tmp_path / "cut", workers=1, progress=False)
    resumed = run_sweep(content, output_dir=tmp_path / "cut", workers=1, resume=True, progress=False)
    assert (resumed.n_run, resumed.n_replayed) == (2, 2)
    assert trials_of(folder) == expected
    assert (folder / "best.yaml").read_text() == (tmp_path / "whole" / "s" / "best.yaml").read_text()

    best = max(expected, key=lambda trial: trial["score"])
    keys = yaml.safe_load((folder / "best.yaml").read_text())
    assert keys["learning_rate"] == best["values"]["learning_rate"] and keys["attack"] == "Average"
    result = run_recbole_robust(
        config_file_list=[str(folder / "best.yaml")], config_dict={"output_dir": str(tmp_path / "run")}
    )
    assert result["config"]["learning_rate"] == keys["learning_rate"] and result["lift"]
    assert resumed.report.read_text().count("| finished |") == 4


@pytest.fixture
def planted(content: dict[str, Any]) -> dict[str, Any]:
    """Four learning rates are too small to learn anything."""
    content["config"]["epochs"] = 6
    content["space"] = {"learning_rate": {"grid": [1e-6, 10.0, 12.0, 14.0, 2e-6, 3e-6, 4e-6]}}
    content["objective"] = {"weights": {"clean.ndcg@5": 1.0}}
    content["scheduler"] = {"method": "asha", "grace": 2, "reduction": 2}
    content["target_sets"], content["attacks"] = [], []
    return content


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_asha_stops_the_trials_that_are_worse(ray, planted, tmp_path):
    done = run_sweep(planted, output_dir=tmp_path, workers=1, progress=False)
    trials = json.loads(done.trials.read_text())["trials"]
    stopped = [trial for trial in trials if trial["status"] == "stopped"]
    assert len(trials) == 7 and all(2 <= trial["epochs"] < 6 for trial in stopped)
    assert {2e-6, 3e-6, 4e-6} <= {trial["values"]["learning_rate"] for trial in stopped}
    assert yaml.safe_load(done.best[0].read_text())["learning_rate"] >= 10.0


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_asha_interrupted_and_resumed_stops_the_same_trials(ray, planted, tmp_path, monkeypatch):
    """What had been reported before is told to ASHA again: without that it would not stop what it stops."""
    run_sweep(planted, output_dir=tmp_path / "whole", workers=1, progress=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrialBook, "add", interrupting(4))
        run_sweep(planted, output_dir=tmp_path / "cut", workers=1, progress=False)
    resumed = run_sweep(planted, output_dir=tmp_path / "cut", workers=1, resume=True, progress=False)
    assert (resumed.n_run, resumed.n_replayed) == (3, 4)
    assert trials_of(tmp_path / "cut" / "s") == trials_of(tmp_path / "whole" / "s")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_tpe_with_half_a_gpu_a_trial(ray, content, tmp_path):
    """Two trials share the GPU, which is not there but for Ray; the number of epochs is chosen too."""
    pytest.importorskip("optuna")
    content["space"] = {"learning_rate": {"loguniform": [1.0, 30.0]}, "embedding_size": {"choice": [8, 16]}}
    content["search"] = {"method": "tpe", "trials": 4}
    content["objective"]["epoch"] = "best"
    content["attacks"], content["objective"]["at_most"] = [], {}
    free, ended = [], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            free.append(ray.available_resources().get("GPU", 0.0))

    thread = threading.Thread(target=watch)
    thread.start()
    done = run_sweep(content, output_dir=tmp_path, workers=2, gpu_per_trial=0.5, progress=False)
    ended.set()
    thread.join()
    assert min(free) == 0.0  # both halves were taken at once
    assert (done.n_run, done.n_failed) == (4, 0)
    trials = json.loads(done.trials.read_text())["trials"]
    assert all(trial["score"] == max(trial["scores"]) for trial in trials)
    best = max(trials, key=lambda trial: trial["score"])
    keys = yaml.safe_load(done.best[0].read_text())
    assert {key: keys[key] for key in best["values"]} == best["values"] and keys["epochs"] == best["epoch"]
    with pytest.raises(UserError, match="gpu_per_trial: expected at most the 1 GPUs that there are, got 2"):
        run_sweep(content, output_dir=tmp_path, workers=2, resume=True, gpu_per_trial=2, progress=False)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_tpe_resumed_asks_for_nothing_twice(ray, content, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    content["space"] = {"learning_rate": {"loguniform": [1.0, 30.0]}}
    content["search"] = {"method": "tpe", "trials": 5}
    content["attacks"], content["objective"] = [], {"maximise": "clean.ndcg@5"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrialBook, "add", interrupting(2))
        run_sweep(content, output_dir=tmp_path, workers=1, progress=False)
    before = trials_of(tmp_path / "s")
    again = run_sweep(content, output_dir=tmp_path, workers=1, resume=True, progress=False)
    after = trials_of(tmp_path / "s")
    assert (len(before), again.n_run, again.n_replayed) == (2, 3, 2) and all(trial in after for trial in before)
    assert len({trial["values"]["learning_rate"] for trial in after}) == 5


def test_tpe_is_told_of_a_stopped_trial_that_it_was_pruned(content):
    """Its score at the stop is no match for the score of another at the end; a failed one is no trial at all."""
    optuna = pytest.importorskip("optuna")
    content["space"] = {"learning_rate": {"loguniform": [1.0, 30.0]}}
    content["search"] = {"method": "tpe", "trials": 5}
    searcher = _tpe(read_sweep(content), [], 3)
    for name, ends in (("whole", 3), ("stopped", 1), ("failed", 0)):
        searcher.suggest(name)
        for epoch in range(ends):
            result = {"training_iteration": epoch + 1, "epoch": epoch, "score": 0.5}
            searcher.on_trial_result(name, result)
        if not ends:
            result = {"training_iteration": 1, "epoch": -1, "score": WORST, "error": "it broke"}
        searcher.on_trial_complete(name, result)
    states = [trial.state.name for trial in searcher._ot_study.trials]
    assert states == ["COMPLETE", "PRUNED", "FAIL"] and optuna


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_a_failed_trial_is_recorded_and_runs_again_on_resume(ray, content, tmp_path, data_path):
    """Here the data are missing at first: what a Config cannot know. Each condition has a best of its own."""
    data = tmp_path / "data"
    content["config"]["data_path"] = str(data)
    content["space"] = {"learning_rate": {"grid": [3.0, 10.0]}}
    content["conditions"] = {"noise_ratio": [0.0, 0.5]}
    content["attacks"], content["objective"] = [], {"maximise": "clean.ndcg@5"}
    (data / "toy").mkdir(parents=True)
    (data / "toy" / "toy.inter").write_text("")
    done = run_sweep(content, output_dir=tmp_path / "out", workers=1, progress=False)
    assert (done.n_run, done.n_failed, done.best) == (4, 4, [])
    assert "toy.inter: expected a header" in done.report.read_text()
    (data / "toy" / "toy.inter").write_text((data_path / "toy" / "toy.inter").read_text())
    done = run_sweep(content, output_dir=tmp_path / "out", workers=1, resume=True, progress=False)
    assert (done.n_run, done.n_replayed, done.n_failed) == (4, 0, 0)
    assert [path.name for path in done.best] == ["best.yaml", "best-noise_ratio=0.5.yaml"]
    assert [yaml.safe_load(path.read_text())["noise_ratio"] for path in done.best] == [0.0, 0.5]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_a_trial_whose_worker_dies_runs_again(ray, content, tmp_path):
    content["config"]["epochs"] = 400
    content["space"] = {"learning_rate": {"grid": [3.0]}}
    killed = threading.Event()

    def kill() -> None:
        while not killed.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    told = " ".join(process.cmdline())
                    if "ray::" in told and "train" in told and (tmp_path / "cards").is_dir() and not killed.is_set():
                        time.sleep(1.0)
                        process.kill()
                        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    done = run_sweep(content, output_dir=tmp_path, workers=1, progress=False)
    died = killed.is_set()
    killed.set()
    thread.join()
    (trial,) = trials_of(tmp_path / "s")
    assert died and done.n_failed == 0 and trial["status"] == "finished" and len(trial["scores"]) == 400


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("n_kills", [1, 10])
def test_killed_at_random_moments_every_trial_is_there_once(content, tmp_path, n_kills):
    """The driver (half of the time a worker of it first) by signal 9, up to two new trials later; then it ends."""
    rng, n_points = random.Random(7), 10 if n_kills == 1 else 40
    content["search"] = {"method": "grid"}
    content["space"] = {"learning_rate": {"grid": [float(rate) for rate in range(1, n_points + 1)]}}
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(content))

    def start(output_dir: Path) -> subprocess.Popen[bytes]:
        words = ["sweep", str(path), f"--output_dir={output_dir}", "--workers=2", "--resume"]
        paths = {"PYTHONPATH": str(Path(sweeping.__file__).parents[2])}
        command = [sys.executable, "-W", "ignore", "-m", "recbole_robust.cli", *words]
        return subprocess.Popen(command, env={**os.environ, **paths}, start_new_session=True)

    def n_trials() -> int:
        file = tmp_path / "killed" / "s" / "trials.json"
        return len(json.loads(file.read_text())["trials"]) if file.exists() else 0

    left: list[psutil.Process] = []
    for _ in range(n_kills):
        before, driver, until = n_trials(), start(tmp_path / "killed"), time.monotonic() + 300
        more = rng.randint(0, 2) if n_kills > 1 else 2
        while n_trials() < before + more and driver.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.7) if more else rng.uniform(0, 12.0))  # before there is a Ray, while it starts ...
        family = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
        workers = [process for process in family if "ray::" in " ".join(_command(process))]
        if workers and rng.random() < 0.5:
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(workers).kill()
        driver.kill()
        driver.wait()
        left += family
    assert n_trials() < n_points  # or the last kills have hit nothing
    assert start(tmp_path / "killed").wait(timeout=900) == 0
    assert start(tmp_path / "whole").wait(timeout=900) == 0
    assert trials_of(tmp_path / "killed" / "s") == trials_of(tmp_path / "whole" / "s")
    assert psutil.wait_procs(left, timeout=120)[1] == []


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sweep"], "sweep: expected one sweep file, got 0"),
        (["sweep", "no.yaml"], "sweep: expected a sweep file or one of APT, AT, "),
        (["sweep", "AT", "--trials=3"], "sweep: unknown option --trials; known: address, force, "),
        (["sweep", "AT", "--workers=-1"], "workers: expected a whole number >= 0"),
        (["sweep", "AT", "--workers=0"], "workers: expected at least 1 trial at once, got 0"),
        (["sweep", "AT", "--gpu_per_trial=-1"], "gpu_per_trial: expected a number >= 0, got -1"),
        (["sweep", "AT", "--gpu_per_trial=all"], "gpu_per_trial: expected a number >= 0, got 'all'"),
        (["sweep", "CoRating", "--address=127.0.0.1:1"], "address: expected a Ray cluster at 127.0.0.1:1"),
        (["benchmark", "apt_ml-100k", "--address=127.0.0.1:1"], "address: expected a Ray cluster at 127.0.0.1:1"),
        (["benchmark", "apt_ml-100k", "--workers=-1"], "workers: expected a whole number >= 0"),
    ],
)
def test_bad_words(words, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(f"error: {told}") and out == ""
    assert list(tmp_path.rglob("*.json")) == [] and not (tmp_path / "output" / "benchmark").exists()


def test_tpe_without_optuna_is_one_clear_line(content, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    content["space"], content["search"] = {"learning_rate": {"uniform": [1, 2]}}, {"method": "tpe", "trials": 2}
    with pytest.raises(UserError, match=r"expected optuna to be installed for tpe \(pip install .*\[sweep\]"):
        run_sweep(content, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_trials_of_another_sweep_are_not_taken(content, tmp_path, monkeypatch):
    sweep = read_sweep(content)
    book = TrialBook(sweep, 3, lambda: "data", tmp_path, [])
    book.add({}, {"learning_rate": 1.0}, {0: {"score": 0.5}, 2: {"score": 0.25}}, None, 1.0)
    book.add({}, {"learning_rate": 3.0}, {}, "its worker died", 1.0)

    def kept(sweep, resume=True, force=False, epochs=3, data="data"):
        return earlier_trials(sweep, tmp_path, resume, force, epochs, lambda: data)

    assert [trial["values"] for trial in kept(sweep)] == [{"learning_rate": 1.0}]
    assert kept(sweep, resume=False, force=True) == []
    for what, changes in (("sweep", {"sweep": read_sweep({**content, "seed": 5})}),
                          ("number of epochs", {"epochs": 4}), ("data", {"data": "others"})):  # fmt: skip
        with pytest.raises(UserError, match=f"sweep: expected the {what} that .* got another; --force starts anew"):
            kept(**{"sweep": sweep, **changes})
    monkeypatch.setattr("recbole_robust.results.CODE", "0" * 12)
    with pytest.raises(UserError, match=r"expected the code of this package that .* got another"):
        kept(sweep)
    (tmp_path / "trials.json").write_text("[]")
    with pytest.raises(UserError, match="expected the trials of a sweep"):
        kept(sweep)


def test_the_best_of_trials_that_were_stopped(content, tmp_path):
    """Where the number of epochs is chosen, too, a stopped trial is a whole one; else it is none."""
    histories = {1.0: [0.1, 0.5], 3.0: [0.2, 0.1, 0.3]}
    for epoch, best in (("last", 3.0), ("best", 1.0)):
        content["objective"] = {"maximise": "clean.ndcg@5", "epoch": epoch}
        book = TrialBook(read_sweep(content), 3, lambda: "", tmp_path / epoch, [])
        for rate, scores in histories.items():
            book.add({}, {"learning_rate": rate}, dict(enumerate({"score": score} for score in scores)), None, 1.0)
        book.add({}, {"learning_rate": 9.0}, {0: {"score": WORST}, 1: {"score": WORST}, 2: {"score": WORST}}, None, 1.0)
        assert book.best({})["values"] == {"learning_rate": best}


def test_a_sweep_has_a_page_with_pictures(content, tmp_path, capsys):
    """Made from trials.json alone, by ``report`` too."""
    content["space"] = {"learning_rate": {"loguniform": [1.0, 100.0]}, "embedding_size": {"choice": [8, 16]}}
    content["search"] = {"method": "random", "trials": 4}
    book = TrialBook(read_sweep(content), 2, lambda: "", tmp_path, [])
    for i, (rate, size) in enumerate([(1.0, 8), (2.0, 16), (50.0, 8), (100.0, 16)]):
        metrics = {"clean.ndcg@5": 0.1 * i, "worst_lift.targethr@5": 0.3 * i, "clean.tailhit@5": 0.02}
        history = {epoch: {"score": 0.1 * i, **metrics} for epoch in range(1 + (i != 1))}
        book.add({}, {"learning_rate": rate, "embedding_size": size}, history, None, 1.0)
    book.add({}, {"learning_rate": 5.0, "embedding_size": 8}, {}, "<b>it broke</b>", 1.0)
    done = book.close()
    page = done.report.read_text()
    told = yaml.safe_load(re.findall(r"```yaml\n(.+)```", page, re.DOTALL)[0])
    assert read_sweep(told) == read_sweep(content) and "Made with python" in page and ", ray " in page
    assert "5 trials of 2 epochs: 3 finished, 1 stopped, 1 failed; 7 of 10 epochs trained." in page
    assert "clean.tailhit@5" in page and "clean.itemcoverage@5" not in page and "- <b>it broke</b>" in page
    shown = re.findall(r"!\[.+\]\((.+)\)", page)
    assert shown == ["report-keys.svg", "report-trade.svg", "report-epochs.svg"]
    keys, trade, epochs = ((tmp_path / name).read_text() for name in shown)
    assert all(f">{row}</text>" in keys for row in ("learning_rate 1 to 3.2", "learning_rate 32 to 1e+02",
                                                    "embedding_size 8", "embedding_size 16"))  # fmt: skip
    assert ">learning_rate 3.2 to 10</text>" not in keys  # only a failed trial is there
    assert len(re.findall('r="5"', trade)) == 2 and len(re.findall('r="2.6"', trade)) == 2 + 1  # marks and legend
    assert epochs.count('fill="none"') == 3 and "stopped early" in epochs
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["report", str(tmp_path)]) == 0 and "report.md" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    for wrong in ("--format=latex", f"--out={tmp_path / 'page.html'}"):
        assert main(["report", str(tmp_path), wrong]) == 2
        assert "format: expected markdown of the folder of a sweep" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
    (tmp_path / "trials.json").write_text('{"sweep": {"objective": {"maximise": 3, "at": 1}}}')
    assert main(["report", str(tmp_path)]) == 2
    assert "trials.json: expected the trials of a sweep, got TypeError" in capsys.readouterr().err


def test_global_state_is_what_trainings_swap(content):
    """Were a generator missing in it, side by side would not be as alone."""
    assert set(global_state()) == {"python", "numpy", "torch", "cuda"}
