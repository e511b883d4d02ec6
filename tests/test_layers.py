"""The layers of the house: imports point down only (docs/principles.md). Read from the sources, nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "recbole_robust"
SOURCE = Path(__file__).parents[1] / PACKAGE

LAYERS = (
    ("compat", "types", "randomness", "properties_path", "file_lock", "whole_files"),
    ("arguments", "foreign_files", "checkpoint", "yaml_text", "group_evidence", "json_kinds"),
    ("attacks", "trainer", "scores", "criterion_tap"),
    ("data", "evaluation", "defenses", "model", "initialisation"),
    ("config", "config_checks", "config_relations", "complaints", "registry"),
    ("quick_start", "defending", "poisoning", "results", "tracking", "sequence_report", "baselines"),
    ("statistics", "grid", "reuse", "schedule", "cluster", "benchmark", "sweep", "report", "audit"),
    ("cli",),
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
SIBLINGS_MAY_MEET = (4, 5, 6)  # the files of these layers may import one another
TOP_LEVEL_MAY_IMPORT = 3  # __init__.py offers what stands up to here
WITHOUT = {  # unit: packages that neither it nor what it imports from us may import
    "attacks": ("recbole",),
    "scores": ("torch", "recbole"),
    "group_evidence": ("torch", "recbole"),
    "statistics": ("torch", "recbole"),
    "report": ("torch", "recbole"),
}
RAY_ALLOWED = ("cluster", "benchmark", "sweep")  # and there inside functions only


class Import(NamedTuple):
    """One name that a module imports; ``inside`` a function, or run when the module is imported."""

    module: str
    name: str
    line: int
    inside: bool


def unit_of(module: str) -> str:
    """The file or sub-package of ``recbole_robust.a.b`` that has a layer: ``a``; the package itself: ``""``."""
    return (module + ".").split(".")[1]


def read_modules(source: Path) -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of every module under ``source``."""
    modules = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return modules


def imports_of(module: str, tree: ast.Module, modules: dict[str, ast.Module]) -> Iterator[Import]:
    """Everything a module imports, wherever in it the statement stands."""
    at_top = {id(node) for statement in tree.body for node in _outside_functions(statement)}
    for node in ast.walk(tree):
        inside = id(node) not in at_top
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, inside)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert node.level == 0, f"{module}:{node.lineno}: expected absolute imports, got a relative one"
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(module, full if full in modules else base, node.lineno, inside)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """A statement and what is in it (``if``, ``try`` ...), less the bodies of functions."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside_functions(child)


def violations(source: Path) -> list[str]:
    """One line a broken rule, each with its place."""
    modules = read_modules(source)
    imports = [found for module, tree in modules.items() for found in imports_of(module, tree, modules)]
    broken = [f"{m}: expected a layer in tests/test_layers.py, got none" for m in modules if not _has_layer(m)]
    for found in imports:
        if found.name.split(".")[0] == PACKAGE and _has_layer(found.module) and not _may_import(found):
            broken.append(f"{found.module}:{found.line} imports {found.name}")
        if found.name.split(".")[0] == "ray" and not (found.inside and unit_of(found.module) in RAY_ALLOWED):
            broken.append(f"{found.module}:{found.line} imports ray")
    for unit, forbidden in WITHOUT.items():
        for module in sorted(_reached_from(unit, imports)):
            for found in imports:
                if found.module == module and found.name.split(".")[0] in forbidden:
                    broken.append(f"{module}:{found.line} imports {found.name}, which {unit} must do without")
    return broken


def _has_layer(module: str) -> bool:
    return unit_of(module) in LEVEL or module == PACKAGE


def _may_import(found: Import) -> bool:
    importer, imported = unit_of(found.module), unit_of(found.name)
    if not importer:  # the package's __init__
        return LEVEL.get(imported, TOP_LEVEL_MAY_IMPORT + 1) <= TOP_LEVEL_MAY_IMPORT
    if not imported:  # ... is for users, and for the version in a result
        return LEVEL[importer] > TOP_LEVEL_MAY_IMPORT
    if importer == imported:
        return True
    if LEVEL[importer] == LEVEL.get(imported):
        return LEVEL[importer] in SIBLINGS_MAY_MEET
    return LEVEL[importer] > LEVEL.get(imported, len(LAYERS))


def _reached_from(unit: str, imports: list[Import]) -> set[str]:
    """The modules of a unit, and those of ours that they import, directly or not."""
    reached = {found.module for found in imports if unit_of(found.module) == unit}
    while True:
        more = {f.name for f in imports if f.module in reached and unit_of(f.name) in LEVEL and PACKAGE in f.name}
        if more <= reached:
            return reached
        reached |= more


def test_imports_point_down():
    assert violations(SOURCE) == []


def test_every_layer_is_read():
    """The test above would hold for an empty folder too."""
    units = {unit_of(module) for module in read_modules(SOURCE)}
    assert {"types", "attacks", "data", "evaluation", "model", "config", "quick_start", "report", "cli"} <= units


@pytest.mark.parametrize(
    ("path", "line", "expected"),
    [
        ("attacks/x.py", "import recbole", "which attacks must do without"),
        ("attacks/x.py", "from recbole.data import utils", "which attacks must do without"),
        ("attacks/x.py", "from recbole_robust.data import Poison", "imports recbole_robust.data"),
        ("data/x.py", "from recbole_robust.evaluation.metrics import NEVER", "imports recbole_robust.evaluation"),
        ("evaluation/x.py", "import recbole_robust.data.load", "imports recbole_robust.data.load"),
        ("types.py", "from recbole_robust import config", "imports recbole_robust.config"),
        ("trainer.py", "def f():\n    from recbole_robust import quick_start", "imports recbole_robust.quick_start"),
        ("report/__init__.py", "if True:\n    import torch", "which report must do without"),
        ("grid.py", "import ray", "imports ray"),
        ("benchmark.py", "import ray", "imports ray"),
        ("benchmark.py", "class A:\n    import ray", "imports ray"),
        ("newcomer.py", "", "expected a layer"),
        ("__init__.py", "from recbole_robust.config import Config", "imports recbole_robust.config"),
    ],
)
def test_each_rule_is_kept(tmp_path, path, line, expected):
    source = _tree(tmp_path, path, line)
    assert any(expected in found for found in violations(source)), violations(source)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("benchmark.py", "def f():\n    import ray"),
        ("report/tables.py", "from recbole_robust import statistics"),
        ("results.py", "import recbole_robust"),
        ("data/x.py", "import recbole\nimport torch\nfrom recbole_robust.types import Budget"),
        ("__init__.py", "from recbole_robust.attacks import Average"),
    ],
)
def test_what_is_allowed(tmp_path, path, line):
    assert violations(_tree(tmp_path, path, line)) == []


def test_what_is_forbidden_is_followed(tmp_path):
    """An attack that imports recbole by way of another module of ours imports it all the same."""
    source = _tree(tmp_path, "types.py", "import recbole")
    (source / "attacks" / "x.py").write_text("from recbole_robust.types import Budget\n")
    assert violations(source) == ["recbole_robust.types:1 imports recbole, which attacks must do without"]


def test_what_a_run_does_not_depend_on_is_what_stands_above_it() -> None:
    names = [
        ast.literal_eval(node.value)
        for node in read_modules(SOURCE)[f"{PACKAGE}.results"].body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NOT_OF_A_RUN"
    ]
    above = {unit for units in LAYERS[LEVEL["quick_start"] + 1 :] for unit in units}
    assert [{name.removesuffix(".py") for name in its} for its in names] == [above]
    assert all((SOURCE / name).exists() for name in names[0])


def _tree(tmp_path: Path, path: str, line: str) -> Path:
    """A package of empty modules, one a unit, with ``line`` as the content of one of them."""
    source = tmp_path / PACKAGE
    packages = ("attacks", "audit", "data", "defenses", "evaluation", "model", "report", "sweep")
    for name in ("__init__", *LEVEL):
        file = source / name / "__init__.py" if name in packages else source / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    (source / path).write_text(f"{line}\n")
    return source
