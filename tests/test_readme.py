"""What the README and docs/ tell a newcomer is true: tables, code, settings, grids and commands are read and run."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from recbole_robust import cli
from recbole_robust.config import Config
from recbole_robust.grid import expand, load_grid
from recbole_robust.quick_start import run_recbole_robust

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
NEW_ATTACK = (REPOSITORY / "docs" / "adding_an_attack.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CHANGELOG.md", "dataset/README.md", *(f"docs/{p.name}" for p in REPOSITORY.glob("docs/*.md"))]
QUIET = {"use_gpu": False, "show_progress": False, "log_tensorboard": False, "save_checkpoint": False}


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def block(text: str, language: str, containing: str) -> str:
    """The one block that holds a piece of text."""
    (found,) = [code for code in blocks(text, language) if containing in code]
    return found


def run_commands(text: str) -> list[list[str]]:
    """The arguments of every ``python run_recbole_robust.py`` on a page."""
    lines = [line for code in blocks(text, "console") for line in code.splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("python run_recbole_robust.py ")]


def test_tables_are_what_the_registry_says():
    make_tables = runpy.run_path(str(REPOSITORY / "docs" / "make_tables.py"))
    assert make_tables["update"](README) == README, "run: python docs/make_tables.py"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (REPOSITORY / page).parent
    links = re.findall(r"\]\(([^)#\s]+)\)", (REPOSITORY / page).read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (folder / link).exists()] == []


def test_paths_in_the_text_exist():
    """Every path in backticks that starts with a folder of the project is there."""
    for page in PAGES:
        told = re.findall(
            r"`((?:properties|recbole_robust|docs|tests|dataset)/[\w/.-]+)`", (REPOSITORY / page).read_text()
        )
        new = {path for path in told if "reverse_bandwagon" in path.lower() or "ReverseBandwagon" in path}
        assert [path for path in told if path not in new and not (REPOSITORY / path).exists()] == [], page


def test_keys_of_the_config_page_are_known(toy_config):
    """The keys in its table, less the values in brackets, are keys that a Config has."""
    page = (REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8")
    table = page.partition("## Keys by topic")[2].partition("\n## ")[0]
    rows = [re.sub(r"\(.*?\)", "", line) for line in table.splitlines() if line.startswith("| ")]
    keys = {key for row in rows for key in re.findall(r"`(\w+)", row)}
    assert len(keys) > 40 and keys - set(toy_config("PurifyAugMF").final_config_dict) == set()


def test_the_two_commands_are_those_of_ci():
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    first, main_job, tests = blocks(README, "console")[0].splitlines()
    assert tests == "pytest"
    for command in (first, main_job):
        assert f" {command}; }}\n" in ci
    assert f"\n{tests} " in ci


@pytest.mark.parametrize("arguments", run_commands(README + NEW_ATTACK), ids=" ".join)
def test_commands_are_understood(arguments, tmp_path, monkeypatch):
    """Names, keys and values of every command: all that happens before data are read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rating.yaml").write_text(block(README, "yaml", "rating.yaml"))
    arguments = [a for a in arguments if "ReverseBandwagon" not in a and "pool_size" not in a]  # until it is added
    words, keys = cli.parse(arguments)
    files = keys.pop("config_files", "").split()
    config = Config(config_file_list=files, config_dict={"data_path": str(REPOSITORY / "dataset")}, command_line=keys)
    assert words == [] and config["model"] and config["dataset"]


def test_the_attack_command_gives_a_card_of_the_shape_that_is_replayed(tmp_path, monkeypatch, capsys):
    """The README's `recbole-robust attack`, and the path that its `--poison` names, but for the key."""
    monkeypatch.chdir(tmp_path)
    lines = block(README, "console", "recbole-robust attack").splitlines()
    assert cli.main([*shlex.split(lines[0])[1:], "--use_gpu=false"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    (poison,) = re.findall(r"--poison=(\S+)-[0-9a-f]{12}$", lines[1])
    assert re.fullmatch(rf"card: {poison}-[0-9a-f]{{12}}", last) and Path(last[6:]).is_dir()


def test_attacked_dataset_in_plain_recbole(tmp_path, monkeypatch):
    """The README's lines, executed: 28 fakes with 20 fillers and the target are in the training split, nowhere else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv[:1])  # stock RecBole's Config reads the command line
    code, names = block(README, "python", "AttackedDataset(Dataset)"), {}
    assert len([line for line in code.splitlines() if line]) - code.count("import") <= 6
    exec(code, names)
    train, valid, test = (names[f"{split}_data"]._dataset for split in ("train", "valid", "test"))
    assert train.n_fake_users == 28 and len(train.inter_feat) == train.n_genuine_rows + 28 * 21
    rows = train.inter_feat
    fake = rows[train.uid_field].numpy() >= train.user_num - 28
    assert fake.sum() == 28 * 21 and not fake[: train.n_genuine_rows].any()
    assert (rows[train.iid_field].numpy()[fake] == train.token2id(train.iid_field, "1019")).sum() == 28
    for split in (valid, test):
        assert len(split.inter_feat) and split.inter_feat[train.uid_field].max() < train.user_num - 28


def test_rating_yaml_gives_rankings_and_errors(tmp_path):
    path = tmp_path / "rating.yaml"
    path.write_text(block(README, "yaml", "rating.yaml"))
    keys = {**QUIET, "output_dir": str(tmp_path / "output"), "epochs": 1, "compare_clean": False}
    result = run_recbole_robust(config_file_list=[path], config_dict=keys)
    found = result["attacked"]
    assert {"rmse", "mae", "recall@10", "ndcg@50", "targethr@50", "tailhit@50", "itemcoverage@50"} <= set(found)
    assert np.isfinite([found["rmse"], found["mae"]]).all() and result["poison"]["n_fake_users"] == 28


def test_grid_expands(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(block(README, "yaml", "grid.yaml"))
    cells = expand(load_grid(path))
    assert len(cells) == 2 * 2 * 3 and {cell.method for cell in cells} == {"MF", "MF, decay 1e-4"}


def test_noise_grid_expands(tmp_path):
    path = tmp_path / "noise.yaml"
    path.write_text(block((REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8"), "yaml", "name: noise"))
    cells = expand(load_grid(path))
    assert len(cells) == 3 * 5
    assert {Config(config_dict=dict(cell.keys))["noise_ratio"] for cell in cells} == {0.0, 0.2, 0.5}


def test_an_attack_is_added_as_the_page_says(tmp_path):
    """A copy of the project, with the page's blocks written to the files that they name: its test passes, it runs."""
    for name in ("recbole_robust", "properties", "tests"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "dataset" / "toy", tmp_path / "dataset" / "toy")
    for name in ("run_recbole_robust.py", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    written = re.findall(r"^\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)^```$", NEW_ATTACK, re.DOTALL | re.MULTILINE)
    assert len(written) == 4
    for path, code in written:
        if path.endswith("registry.py"):
            old = (tmp_path / path).read_text()
            start = "ATTACKS: dict[str, type] = {\n"
            assert start in old
            new_import = "from recbole_robust.attacks.reverse_bandwagon import ReverseBandwagon\n\n"
            code = old.replace(start, new_import + start + code)
        (tmp_path / path).write_text(code)
    arguments = yaml.safe_load((tmp_path / "properties" / "attack" / "ReverseBandwagon.yaml").read_text())[
        "attack_args"
    ]
    assert set(arguments) == {"pool_size"}

    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""}
    (command,) = run_commands(NEW_ATTACK)
    quiet = ["--epochs=1", "--output_dir=out", *(f"--{key}={value}" for key, value in QUIET.items())]
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/attacks/test_reverse_bandwagon.py"]
    for rest in (tests, ["run_recbole_robust.py", *command, *quiet]):
        done = subprocess.run([sys.executable, *rest], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^result: out/MF-toy-ReverseBandwagon-", done.stdout, re.MULTILINE)
