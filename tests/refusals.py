"""What the tests of bad and hostile input share: data to be broken, and the one line that has to come of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from recbole_robust.cli import main


@pytest.fixture
def toy(tmp_path, data_path) -> Path:
    """A copy of the toy data, to be broken."""
    return Path(shutil.copytree(data_path / "toy", tmp_path / "data" / "toy"))


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch) -> Callable[..., None]:
    """Run the command line: exit code 2, one line on stderr that tells all of ``told``, no new file."""

    def check(words: list[str], *told: str) -> None:
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        code = main(words)
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), (code, out, err)
        assert re.fullmatch(r"error: [^\n]+\n", err), err
        for text in told:
            assert text in err, err
        assert sorted(tmp_path.rglob("*")) == before

    return check


def run_words(folder: Path, *words: str) -> list[str]:
    given = {word.split("=")[0] for word in words}
    base = ["--model=MF", "--epochs=1", "--topk=[5]", "--use_gpu=false", "--show_progress=false", "--dataset=toy"]
    places = [f"--data_path={folder}", "--output_dir=out", "--log_tensorboard=false"]
    return [*(word for word in (*base, *places) if word.split("=")[0] not in given), *words]
