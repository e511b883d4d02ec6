"""`nox` runs the checks of CI by themselves, each in its own environment; `nox -s lint` one of them."""

import tempfile

import nox

nox.options.sessions = ["lint", "types", "tests", "wheel"]
PYTHONS = ["3.10", "3.11"]  # those that RecBole's pin on ray has wheels for


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The README's test command. Arguments after `--` go to pytest: `nox -s tests-3.11 -- -m slow`."""
    session.install("-e", ".[test]")
    session.run("pip", "check")
    session.run("pytest", *session.posargs)


@nox.session(python=PYTHONS[-1])
def slow(session: nox.Session) -> None:
    """What the README's test command leaves out: kills of grids and sweeps, two machines, all pages and pictures."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session(python="3.12", venv_backend="uv")
def current(session: nox.Session) -> None:
    """Grids and sweeps on the Ray of today, the slow tests of them too; uv heeds the overrides in pyproject.toml."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "slow or not slow", "tests/test_ray_grid.py", "tests/test_sweep.py", *session.posargs)


@nox.session(python=PYTHONS[-1])
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    session.install("ruff>=0.5")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=PYTHONS[-1])
def types(session: nox.Session) -> None:
    """mypy, as setup.cfg sets it."""
    session.install("-e", ".[test]")
    session.run("mypy")


@nox.session(python=PYTHONS[-1])
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it with its dependencies, and run it from another folder."""
    session.install("build")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--wheel", "--outdir", folder)
        session.run("pip", "install", "--find-links", folder, "recbole-robust")
        session.chdir(folder)
        session.run("recbole-robust", "--version")
        session.run("recbole-robust", "--model=MF", "--dataset=ml-100k", "--attack=Random", "--epochs=1")
