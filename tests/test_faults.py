"""What may go wrong on a machine: nothing is lost, nothing is silently wrong, one clear line, another exit code than 0.

Full disks, read-only folders, Ctrl-C, losses that are no numbers, two processes on one folder, cells out of memory.
Killed half way: cards in tests/data/test_card.py, grids and their workers in tests/test_ray_grid.py, sweeps in
tests/test_sweep.py.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import logging
import multiprocessing
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import run_words
from toy_splits import make_run, numbers

from recbole_robust import quick_start, results
from recbole_robust.benchmark import run_grid
from recbole_robust.checkpoint import save_atomically
from recbole_robust.cli import main
from recbole_robust.data.card import PoisonCard
from recbole_robust.grid import expand
from recbole_robust.model import MF
from recbole_robust.report import write_text
from recbole_robust.trainer import RobustTrainerMixin
from recbole_robust.types import FakeProfiles, UserError

ATTACK = ["--attack=Average", "--n_fake_users=4", "--n_fillers=4", "--target_items=[i3]"]


@contextlib.contextmanager
def full_after(n_bytes: int) -> Iterator[None]:
    """Inside this block no file can grow beyond ``n_bytes``: to write more is an OSError, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def card() -> PoisonCard:
    items = np.arange(400)
    tokens = [f"item {i}" for i in items]
    return PoisonCard("toy", tokens[:1], tokens, FakeProfiles(np.array([0, 400]), items, np.full(400, 5.0)))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": lambda path: save_atomically({"version": 2, "x": torch.zeros(5000)}, str(path)),
    "result": lambda path: results.write({"x": "y" * 9000}, path),
    "report": lambda path: write_text(path, "y" * 9000),
    "card": lambda path: card().save(path),
}


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.parametrize("there", [True, False])
def test_on_a_full_disk_the_old_file_stays_and_no_half_one_is_left(what, there, tmp_path):
    path = tmp_path / "folder" / "file"
    if there:
        WRITERS[what](path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    if what == "card" and there:
        card_file = path / "poison.json"
        card_file.write_text(card_file.read_text().replace('"n_rows": 400', '"n_rows": 401'))  # else it is kept
        before[card_file] = card_file.read_bytes()
    with full_after(4096), pytest.raises(OSError) as caught:
        WRITERS[what](path)
    assert caught.value.errno == errno.EFBIG
    assert str(path) in str(caught.value.filename)  # that is what the line on stderr names
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(data_path, tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a toy MF by the command line, in a folder of its own: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(run_words(data_path, *words))
        return code, *capsys.readouterr()

    return run


def result_of(out: str) -> dict[str, Any]:
    return json.loads(Path(out.strip().splitlines()[-1].removeprefix("result: ")).read_text())


def left_behind(folder: Path) -> list[str]:
    """Temporary files, locks, and results."""
    return [p.name for p in folder.rglob("*") if re.search(r"\.(tmp|old|lock)$|^result\.json$", p.name)]


def broken_open(what: str, number: int) -> Callable[..., Any]:
    """An ``open`` that cannot write files with ``what`` in their names."""
    real = io.open

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if set(mode) & set("wxa") and what in str(file):
            raise OSError(number, os.strerror(number), str(file))
        return real(file, mode, *args, **options)

    return opened


@pytest.mark.parametrize(
    ("what", "number"),
    [("result.json", errno.ENOSPC), (".pth", errno.ENOSPC), ("toy.inter", errno.EROFS), (".log", errno.EACCES)],
)
def test_a_fault_of_the_machine_is_one_line_and_the_next_run_is_whole(what, number, command, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        for module in (builtins, io):
            patch.setattr(module, "open", broken_open(what, number))
        code, out, err = command(*ATTACK)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: {os.strerror(number)}: [^\n]*{re.escape(what)}[^\n]*\n", err), err
    assert left_behind(tmp_path) == []
    code, out, err = command(*ATTACK)
    assert (code, err) == (0, "")
    assert result_of(out)["lift"]


def test_a_folder_that_nobody_can_make_is_one_line(command):
    code, out, err = command("--checkpoint_dir=/proc/here")
    assert (code, out) == (2, "") and err.startswith("error: checkpoint_dir: expected a folder"), err


def test_a_log_that_cannot_be_written_spoils_nothing(tmp_path, capsys):
    with full_after(64), results.log_to(tmp_path / "out" / "log" / "x.log"):
        for n in range(9):
            logging.getLogger("recbole_robust").info("line %d, and some more of it", n)
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_read(command, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code, out, err = command("--dataset=none-such")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: output_dir: expected a folder to write to, got [^\n]+cannot be written to\)\n", err)


def test_out_of_memory_is_one_line(command):
    code, out, err = command(f"--embedding_size={10**13}")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: out of memory: [^\n]+\n", err), err


def test_ctrl_c_ends_at_once_and_the_next_run_goes_on(command, tmp_path, monkeypatch):
    code, out, _ = command(*ATTACK, "--epochs=3", "--output_dir=whole")
    assert code == 0
    whole = result_of(out)
    trained = []
    fit = RobustTrainerMixin._train_epoch

    def stopped(self, train_data, epoch, *args, **options):
        trained.append((self.label, epoch))
        if trained[-1] == ("MF attacked", 1):
            raise KeyboardInterrupt
        return fit(self, train_data, epoch, *args, **options)

    def noted(self, *args, **options):
        trained.append(self.label)
        return fit(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RobustTrainerMixin, "_train_epoch", stopped)
        assert command(*ATTACK, "--epochs=3", "--output_dir=broken") == (130, "", "stopped\n")
        assert trained[-1] == ("MF attacked", 1)
        assert left_behind(tmp_path / "broken") == []
        trained.clear()
        patch.setattr(RobustTrainerMixin, "_train_epoch", noted)
        code, out, _ = command(*ATTACK, "--epochs=3", "--output_dir=broken")
    assert code == 0 and trained == ["MF attacked"] * 3, "the clean training and the card were there"
    assert numbers(result_of(out)) == numbers(whole)
    assert result_of(out)["poison"]["reused"] is True


# --- processes --------------------------------------------------------------------------------------------------------

FORK = multiprocessing.get_context("fork")  # the imports are there already


def _run(words: list[str], folder: str, epoch_reached: Any = None) -> None:
    """What a process of its own runs: the command line, its exit code, and nothing on the screen."""
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have turned it off
    if epoch_reached is not None:
        RobustTrainerMixin._check_weights = lambda self: epoch_reached.set()  # type: ignore[method-assign]
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        code = main(words)
    os._exit(code)


def test_a_signal_ends_a_training_at_once(data_path, tmp_path):
    reached = FORK.Event()
    words = run_words(data_path, "--model=MF", "--epochs=100000")
    process = FORK.Process(target=_run, args=(words, str(tmp_path), reached))
    process.start()
    try:
        assert reached.wait(60)
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == 130
    finally:
        process.kill()
    assert left_behind(tmp_path) == [] and not list((tmp_path / "out").rglob("*.pth"))


def test_the_folder_of_checkpoints_is_there_before_recbole_looks(toy_config, tmp_path, monkeypatch):
    """RecBole makes it where it is not there: between look and deed another process may have made it."""
    looked = []
    monkeypatch.setattr("recbole.trainer.trainer.ensure_dir", lambda path: looked.append(os.path.isdir(path)))
    make_run(toy_config("MF", output_dir=str(tmp_path / "new")))
    assert looked == [True]


def test_two_processes_on_one_folder_make_one_result(data_path, tmp_path):
    words = run_words(data_path, "--model=MF", "--epochs=3", *ATTACK)
    processes = [FORK.Process(target=_run, args=(words, str(tmp_path))) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    (file,) = (tmp_path / "out").rglob("result.json")
    assert left_behind(tmp_path) == ["result.json"]
    assert len(list((tmp_path / "out" / "cards").iterdir())) == len(list((tmp_path / "out" / "clean").iterdir())) == 1
    assert main([word.replace("--output_dir=out", f"--output_dir={tmp_path / 'alone'}") for word in words]) == 0
    (alone,) = (tmp_path / "alone").rglob("result.json")
    assert numbers(json.loads(file.read_text())) == numbers(json.loads(alone.read_text()))


# --- losses that are no numbers ---------------------------------------------------------------------------------------


class Breaking(MF):
    """MF whose second term is no number in epoch 1."""

    loss_terms = ("error", "extra")

    def on_epoch_start(self, epoch):
        self.epoch = epoch

    def calculate_loss(self, interaction):
        own = super().calculate_loss(interaction)
        return own, own * (float("nan") if self.epoch == 1 else 0.0)


@pytest.mark.parametrize(("names", "told"), [(("error", "extra"), "its extra"), ((), "its term 2 of 2")])
def test_a_loss_that_is_no_number_stops_with_epoch_and_term(toy_config, monkeypatch, names, told):
    monkeypatch.setattr(Breaking, "loss_terms", names)
    run = make_run(toy_config(Breaking, epochs=3, loss_type="MSE", embedding_size=4, train_neg_sample_args=None))
    with pytest.raises(UserError, match=f"epoch 1: expected a loss that is a number, got nan in {told}; a lower"):
        run.fit(saved=False)
    assert list(run.trainer.train_loss_dict) == [0]


def test_weights_that_are_no_numbers_end_the_training(toy_config):
    """The last step of an epoch breaks them: no loss has seen it."""
    run = make_run(toy_config("MF", epochs=3, train_batch_size=10**6))
    step = run.trainer.optimizer.step

    def broken(*args, **options):
        step(*args, **options)
        run.trainer.model.user_embedding.weight.data[3, 0] = float("inf")

    run.trainer.optimizer.step = broken
    told = "epoch 0: expected finite weights, got nan or inf in user_embedding.weight; a lower learning_rate may help"
    with pytest.raises(UserError, match=told):
        run.fit(saved=False)


def test_scores_that_are_no_numbers_have_no_rank(toy_config):
    run = make_run(toy_config("MF"))
    run.trainer.model.user_embedding.weight.data[3, 0] = float("nan")
    with pytest.raises(UserError, match="MF: expected scores that are numbers, got nan"):
        run.test(load_best_model=False)


def test_a_training_that_diverges_is_one_line_and_leaves_no_result(command, tmp_path):
    code, out, err = command("--learner=sgd", "--learning_rate=1e6", "--epochs=60")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: MF clean, epoch \d+: expected [^\n]+; a lower learning_rate may help\n", err), err
    assert left_behind(tmp_path) == [] and not list(tmp_path.rglob("*.pth"))


# --- cells of a grid --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory"), OSError(errno.ENOSPC, "full")])
def test_a_cell_that_fails_costs_no_other(error, tmp_path, monkeypatch):
    grid = {"name": "g", "datasets": ["toy"], "methods": ["MF", "BPR"], "seeds": [0, 1]}
    broken = [True]

    def run(model, dataset, config_dict):
        if model == "BPR" and config_dict["seed"] == 0 and broken[0]:
            raise error
        numbers = {"targethr@5": 0.5, "hit@5": 0.5}
        return {"model": model, "dataset": dataset, "seed": config_dict["seed"], "clean": numbers, "path": "x"}

    monkeypatch.setattr(quick_start, "run_recbole_robust", run)
    done = run_grid(grid, output_dir=tmp_path, progress=False)
    assert (done.n_run, done.n_failed) == (4, 1)
    assert type(error).__name__ in done.report.read_text()
    broken[0] = False
    again = run_grid(grid, output_dir=tmp_path, progress=False, retry_failed=True)
    assert (again.n_run, again.n_failed) == (1, 0)
    assert len(list(again.folder.glob("toy*.json"))) == len(expand(grid))
