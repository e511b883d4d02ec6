"""What is built holds every file that a run needs, and runs from another folder: tree, editable, sdist, wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LEFT_OUT = ("*.egg-info", "__pycache__", ".*", "build", "dist", "output", "results", "saved", "log", "log_tensorboard")
IN_SDIST = (
    "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "setup.cfg", "noxfile.py",
    "run_recbole_robust.py", "dataset/README.md", "dataset/make_toy.py", "dataset/toy/toy.inter", "docs/config.md",
    "docs/make_tables.py", "tests/conftest.py", "tests/test_packaging.py", "tests/attacks/conftest.py",
    "recbole_robust/py.typed",
)  # fmt: skip
WHERE = """  # without running the package, which takes seconds: its file, and what its properties_dir() says
from importlib.util import find_spec, module_from_spec, spec_from_file_location
package = find_spec("recbole_robust").origin
spec = spec_from_file_location("properties_path", package.replace("__init__", "properties_path"))
spec.loader.exec_module(module := module_from_spec(spec))
print(package, module.properties_dir(), sep="\\n")
"""


class Built(NamedTuple):
    """A copy of the source tree, what was built from it, and the wheel installed into a folder."""

    source: Path
    sdist: Path
    wheel: Path
    target: Path


def run(*command: str | Path, cwd: Path, paths: tuple[Path, ...] = ()) -> str:
    """Standard output of a command; ``paths`` is the whole PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """The sdist of a copy of the tree, the wheel of that sdist, and that wheel unpacked by pip; no network is used."""
    folder = tmp_path_factory.mktemp("packaging")
    source, out, target = folder / "source", folder / "dist", folder / "target"
    shutil.copytree(REPOSITORY, source, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in ("LICENSE", "README.md", "dataset"):
        assert (source / name).exists(), f"expected {name} in the source tree"
    run(sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", out, source, cwd=folder)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    run(*_pip_install(target), wheel, cwd=folder)
    return Built(source, sdist, wheel, target)


def _pip_install(target: Path) -> list[str | Path]:
    return [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target]


def properties() -> set[str]:
    """The files of properties/, with their path in it."""
    folder = REPOSITORY / "properties"
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in (".yaml", ".csv")}


def test_every_file_of_properties_is_a_yaml_or_a_csv():
    """setup.cfg ships these two kinds: a file of a third kind would be missing from the wheel."""
    files = {p for p in (REPOSITORY / "properties").rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert {p.suffix for p in files} == {".yaml", ".csv"}
    assert "overall.yaml" in properties()


def test_wheel_holds_properties(built):
    names = set(zipfile.ZipFile(built.wheel).namelist())
    assert {f"recbole_robust/properties/{name}" for name in properties()} <= names
    modules = {p.relative_to(REPOSITORY).as_posix() for p in (REPOSITORY / "recbole_robust").rglob("*.py")}
    assert modules <= names
    assert {"recbole_robust/report/style.css", "recbole_robust/report/draw.js"} <= names
    assert not [name for name in names if name.split("/")[0] in ("tests", "dataset", "docs", "properties")]
    assert any(name.endswith("LICENSE") for name in names)


def test_sdist_holds_properties_and_tests(built):
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {*IN_SDIST, *(f"properties/{name}" for name in properties())}
    wanted |= {
        p.relative_to(REPOSITORY).as_posix() for f in ("tests", "benchmarks") for p in REPOSITORY.glob(f"{f}/**/*.py")
    }
    assert wanted - names == set()
    assert not [name for name in names if "__pycache__" in name or name.startswith("output")]


def test_wheel_runs_from_another_folder(built, tmp_path):
    package, found = run(sys.executable, "-c", WHERE, cwd=tmp_path, paths=(built.target,)).split()
    assert Path(package) == built.target / "recbole_robust" / "__init__.py"
    assert Path(found) == built.target / "recbole_robust" / "properties"

    command = [sys.executable, "-m", "recbole_robust.cli"]
    assert run(*command, "--version", cwd=tmp_path, paths=(built.target,)).startswith("recbole-robust 0.")
    keys = ["--model=MF", "--dataset=ml-100k", "--epochs=1", "--output_dir=out", "--use_gpu=false"]
    last = run(*command, *keys, cwd=tmp_path, paths=(built.target,)).strip().splitlines()[-1]
    result = json.loads((tmp_path / last.removeprefix("result: ")).read_text())
    assert result["model"] == "MF" and result["protocol"] == "apt" and 0 <= result["clean"]["hit@50"] <= 1
    assert {path.name for path in tmp_path.iterdir()} == {"out"}, "a run writes to output_dir only"


def test_editable_install_and_source_tree_find_properties(built, tmp_path):
    """``pip install -e`` into an empty folder, and the tree itself on the path: both have properties/ beside them."""
    run(*_pip_install(tmp_path), "--no-build-isolation", "--editable", built.source, cwd=tmp_path)
    start = f"import site; site.addsitedir({str(tmp_path)!r})\n"  # -S: without this environment's own editable install
    expected = [str(built.source / "recbole_robust" / "__init__.py"), str(built.source / "properties")]
    assert run(sys.executable, "-S", "-c", start + WHERE, cwd=tmp_path).split() == expected
    assert run(sys.executable, "-c", WHERE, cwd=tmp_path, paths=(built.source,)).split() == expected


def test_the_package_list_is_complete():
    """setup.cfg names the packages one by one: a new sub-package must be added there."""
    listed = (REPOSITORY / "setup.cfg").read_text().partition("\npackages =\n")[2].partition("\npackage_dir")[0].split()
    folders = {p.parent.relative_to(REPOSITORY) for p in (REPOSITORY / "recbole_robust").rglob("__init__.py")}
    assert set(listed) == {".".join(folder.parts) for folder in folders} | {"recbole_robust.properties"}
