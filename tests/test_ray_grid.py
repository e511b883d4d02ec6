"""Grids on Ray: what comes out is what comes out without it, whoever is killed and whenever."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fake_workers
import psutil
import pytest
import yaml

from recbole_robust import benchmark, cluster
from recbole_robust.benchmark import run_grid
from recbole_robust.cluster import threads_each
from recbole_robust.file_lock import locked
from recbole_robust.grid import expand
from recbole_robust.types import UserError

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray")]

VOLATILE = ("digest", "seconds", "peak_memory_mib")  # and of the poison: where the card is, and which cell made it
FAKE: dict[str, Any] = {
    "name": "fake",
    "datasets": ["toy"],
    "attacks": ["Random", "Average"],
    "methods": ["MF", "BPR", "Pop"],
    "seeds": [0, 1],
    "report": {"metrics": ["targethr@50", "hit@50"]},
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_Worker", fake_workers.FakeWorker)


def results(folder: Path) -> dict[str, Any]:
    """The cells of a grid's folder, less what differs from run to run."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        for key in VOLATILE:
            result.pop(key, None)
        for key in ("card", "reused"):
            (result.get("poison") or {}).pop(key, None)
        found[path.name] = result
    return found


def n_calls(output_dir: Path) -> dict[str, int]:
    return {path.stem: len(path.read_text().splitlines()) for path in (output_dir / "calls").iterdir()}


# --- the same as without ----------------------------------------------------------------------------------------------


def test_the_cells_are_those_of_one_process(ray, tmp_path, data_path):
    """Numbers, hashes, settings; and of each card and clean training there is one, made once."""
    grid = {
        "name": "real",
        "datasets": ["toy"],
        "attacks": ["Average"],
        "methods": ["MF", {"label": "MF, decay", "model": "MF", "weight_decay": 1e-4}, "Averag"],
        "seeds": [0, 1],
        "config": {"protocol": "apt", "topk": [5], "epochs": 2, "use_gpu": False, "data_path": str(data_path)},
    }
    run_grid(grid, output_dir=tmp_path / "one", progress=False)
    done = run_grid(grid, output_dir=tmp_path / "ray", workers=2, progress=False)
    assert (done.n_run, done.n_failed) == (6, 2)  # a misspelt model stops nobody
    one, other = results(tmp_path / "one" / "real"), results(done.folder)
    threads = {result.pop("threads") for found in (one, other) for result in found.values() if "threads" in result}
    assert one == other and (len(threads) == 1 or "OMP_NUM_THREADS" not in os.environ)
    for folder, n in (("cards", 2), ("clean", 4), ("saved", 0)):
        for place in ("one", "ray"):
            there = tmp_path / place / folder
            assert len(list(there.iterdir()) if there.exists() else []) == n, (place, folder)
    made = [json.loads(p.read_text()).get("poison", {}).get("reused") for p in done.folder.glob("toy*.json")]
    assert made.count(False) == 2


def test_workers_live_as_long_as_the_grid(ray, fake, tmp_path):
    done = run_grid(FAKE, output_dir=tmp_path, workers=2, progress=False)
    assert (done.n_run, done.n_failed) == (12, 0)
    processes = {path.read_text() for path in (tmp_path / "calls").iterdir()}
    assert len(processes) <= 2  # one, where it is done before the other has started
    assert run_grid(FAKE, output_dir=tmp_path, workers=2, progress=False).n_run == 0


def test_nothing_listens_but_on_loopback(ray):
    here = psutil.Process()
    addresses = set()
    for process in here.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            addresses |= {c.laddr.ip for c in process.connections("inet") if c.status == psutil.CONN_LISTEN}
    assert addresses and {address.removeprefix("::ffff:") for address in addresses} <= {"127.0.0.1", "::1"}


# --- who is killed ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cell_whose_worker_dies_runs_again_and_then_fails(ray, fake, tmp_path):
    grid = {**FAKE, "attacks": ["Random"], "seeds": [0], "methods": ["MF", "dies once", "dies", "BPR"]}
    done = run_grid(grid, output_dir=tmp_path, workers=2, progress=False)
    assert (done.n_run, done.n_failed) == (4, 1)
    calls = {cell.method: n_calls(tmp_path)[cell.id] for cell in expand(grid)}
    assert calls == {"MF": 1, "dies once": 2, "dies": benchmark.ATTEMPTS, "BPR": 1}
    (failed,) = [result for result in results(done.folder).values() if "error" in result]
    assert failed["cell"]["method"] == "dies" and "its worker died 3 times" in failed["error"]
    assert "traceback" not in failed and "dies" in done.report.read_text()


@pytest.mark.slow
def test_workers_that_cannot_start_are_one_clear_line(ray, monkeypatch, tmp_path):
    class Broken(fake_workers.FakeWorker):
        def ready(self) -> None:
            raise RuntimeError("no such package")

    monkeypatch.setattr(benchmark, "_Worker", Broken)
    with pytest.raises(UserError, match=r"workers: expected one to start, got: .*no such package"):
        run_grid(FAKE, output_dir=tmp_path, workers=1, progress=False)


def drive(grid: Path, output_dir: Path) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(Path(benchmark.__file__).parents[1]), str(Path(fake_workers.__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", fake_workers.__file__, str(grid), str(output_dir), "2"],
        env={**os.environ, "PYTHONPATH": paths, "FAKE_SECONDS": "0.3"},
        start_new_session=True,
    )


def kill_at_random(grid: Path, output_dir: Path, n_kills: int, seed: int) -> None:
    """Start the driver, kill it (sometimes a worker of it first) by signal 9, again and again; then let it end."""
    rng = random.Random(seed)
    left: list[psutil.Process] = []
    for _ in range(n_kills):
        driver = drive(grid, output_dir)
        calls = output_dir / "calls"
        before = sum(n_calls(output_dir).values()) if calls.is_dir() else 0
        until = time.monotonic() + 300
        wanted = before + rng.randint(0, 2)
        while time.monotonic() < until and (sum(n_calls(output_dir).values()) if calls.is_dir() else 0) < wanted:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        family = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
        workers = [p for p in family if p.is_running() and "ray::" in " ".join(_command(p))]
        if workers and rng.random() < 0.5:
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(workers).send_signal(signal.SIGKILL)
        driver.kill()
        driver.wait()
        left += family
    assert drive(grid, output_dir).wait(timeout=900) == 0  # a busy machine may take its time
    assert psutil.wait_procs(left, timeout=120)[1] == []  # Ray's processes have gone with their driver


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.cmdline()
    return []


@pytest.mark.slow
@pytest.mark.parametrize("n_kills", [1, 10])
def test_killed_at_random_moments_every_cell_is_there_once(ray, fake, tmp_path, n_kills):
    grid = {**FAKE, "seeds": [0] if n_kills == 1 else list(range(4))}
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid))
    whole = run_grid(path, output_dir=tmp_path / "whole", workers=2, progress=False)
    kill_at_random(path, tmp_path / "killed", n_kills, seed=n_kills)
    folder = tmp_path / "killed" / "fake"
    assert {path.name: path.read_text() for path in folder.iterdir() if path.suffix == ".json"} == {
        path.name: path.read_text() for path in whole.folder.iterdir() if path.suffix == ".json"
    }
    assert not list(folder.glob(".*.tmp"))
    assert all(n <= 1 + 2 * n_kills for n in n_calls(tmp_path / "killed").values())


@pytest.mark.slow
def test_trainings_killed_at_random_moments_end_as_in_one_process(tmp_path, data_path):
    """Real attacks and trainings: what a kill leaves of cards, clean trainings and results is whole, or made again."""
    grid = {
        "name": "real",
        "datasets": ["toy"],
        "attacks": ["Average", "AUSH"],
        "methods": ["MF", {"model": "PurifyAugMF"}],
        "seeds": [0, 1],
        "config": {"protocol": "apt", "topk": [5], "epochs": 6, "use_gpu": False, "data_path": str(data_path)},
    }
    path, folder = tmp_path / "grid.yaml", tmp_path / "killed"
    path.write_text(yaml.safe_dump(grid))
    code = "import sys; from recbole_robust.benchmark import run_grid; "
    code += "run_grid(sys.argv[1], output_dir=sys.argv[2], workers=2, progress=False)"
    rng = random.Random(0)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(path), str(folder)])

    def n_made() -> int:
        return sum(len(list((folder / name).glob("*"))) for name in ("cards", "clean", "real"))

    for _ in range(3):
        driver, wanted, until = start(), n_made() + rng.randint(1, 3), time.monotonic() + 300
        while time.monotonic() < until and driver.poll() is None and n_made() < wanted:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        driver.kill()
        driver.wait()
    assert start().wait(timeout=900) == 0
    alone = run_grid(path, output_dir=tmp_path / "alone", progress=False)
    killed, expected = results(folder / "real"), results(alone.folder)
    for found in (killed, expected):
        for result in found.values():
            result.pop("threads", None)
    assert killed == expected and len([name for name in killed if name.startswith("toy")]) == 8


def test_two_processes_make_a_thing_once(tmp_path):
    """Who holds the lock and is killed lets go of it; the lock file is gone in the end."""
    thing = tmp_path / "folder" / "thing"
    code = (
        "import sys, time; from recbole_robust.file_lock import locked\n"
        "with locked(sys.argv[1]): print('mine', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(thing)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"mine\n"
    got = threading.Event()

    def take() -> None:
        with locked(thing):
            got.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not got.wait(0.2)
    other.kill()
    assert got.wait(10)
    thread.join()
    assert list(thing.parent.iterdir()) == []


def test_of_many_threads_one_holds_the_lock(tmp_path):
    inside, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path / "x"):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.0005)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and not list(tmp_path.iterdir())


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [-1, 1.5, "two", True, None])
def test_workers_are_a_number(tmp_path, workers):
    with pytest.raises(UserError, match="workers: expected a whole number >= 0"):
        run_grid(FAKE, output_dir=tmp_path, workers=workers)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("nowhere", "expected auto or <host>:<port>"),
        ("host:port", "expected auto or <host>:<port>"),
        ("127.0.0.1:1", "expected a Ray cluster at 127.0.0.1:1, got: .*refused"),
        ("no.such.host.invalid:6379", "expected a Ray cluster at no.such.host.invalid:6379, got: "),
    ],
)
def test_an_address_has_a_cluster(address, told):
    with pytest.raises(UserError, match=f"address: {told}"):
        cluster.connect(address, {})


def test_threads_are_divided(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_each(n, 8) for n in (1, 2, 3, 8, 9)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [threads_each(n, 8) for n in (1, 2, 3)] == [3, 3, 2]


# --- two machines -----------------------------------------------------------------------------------------------------


def in_a_process(code: str, *arguments: str) -> None:
    """Runs it where Ray is not connected yet, with the fake workers to import."""
    start = f"import pathlib, sys\nsys.path.insert(0, {str(Path(fake_workers.__file__).parent)!r})\n"
    command = [sys.executable, "-W", "ignore", "-c", start + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_cluster_by_its_address(tmp_path):
    """One worker a CPU where their number is not given; the cluster stays when the grid has ended."""
    code = f"""
import ray
from ray.cluster_utils import Cluster
import fake_workers
from recbole_robust import benchmark
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 2}})
ray.cloudpickle.register_pickle_by_value(fake_workers)
benchmark._Worker = fake_workers.FakeWorker
for folder, workers in (("both", 0), ("one", 1)):
    output_dir = pathlib.Path(sys.argv[1]) / folder
    done = benchmark.run_grid(
        {FAKE!r}, output_dir=output_dir, workers=workers, address=cluster.address, progress=False
    )
    assert (done.n_run, done.n_failed) == (12, 0) and not ray.is_initialized(), done
    processes = {{line for path in (output_dir / "calls").iterdir() for line in path.read_text().split()}}
    assert len(processes) == (workers or 2), processes
"""
    in_a_process(code, str(tmp_path))
    for folder in ("both", "one"):
        assert len(list((tmp_path / folder / "fake").glob("toy*.json"))) == 12


@pytest.mark.slow
def test_a_machine_that_goes_away_loses_no_cell(tmp_path):
    """Two nodes on one machine; the second is removed half way. In a process of its own, as Ray is one a process."""
    code = f"""
import threading, time
import ray
from ray.cluster_utils import Cluster
import fake_workers
from recbole_robust import benchmark
from recbole_robust.benchmark import run_grid
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1}})
ray.init(cluster.address, log_to_driver=False)  # before the second one comes, so that this is no client of it
second = cluster.add_node(num_cpus=1)
ray.cloudpickle.register_pickle_by_value(fake_workers)
fake_workers.SECONDS = 0.5
benchmark._Worker = fake_workers.FakeWorker
calls = pathlib.Path(sys.argv[1]) / "calls"
def remove():
    while not calls.is_dir() or len(list(calls.iterdir())) < 5:
        time.sleep(0.1)
    cluster.remove_node(second)
threading.Thread(target=remove).start()
done = run_grid({FAKE!r}, output_dir=sys.argv[1], workers=2, progress=False)
assert (done.n_run, done.n_failed) == (12, 0), done
processes = {{line for path in calls.iterdir() for line in path.read_text().split()}}
assert len(processes) == 2, processes
assert sum(node["Alive"] for node in ray.nodes()) == 1
"""
    in_a_process(code, str(tmp_path))
    assert len(list((tmp_path / "fake").glob("toy*.json"))) == 12
