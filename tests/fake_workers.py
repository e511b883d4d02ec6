"""Workers of a grid that train nothing, for tests of what Ray does; run as a script, a driver that tests can kill.

``python fake_workers.py <grid.yaml> <output_dir> <workers> <seconds a cell>``
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from recbole_robust import benchmark
from recbole_robust.benchmark import run_grid

SECONDS = float(os.environ.get("FAKE_SECONDS", "0.1"))


class FakeWorker:
    """Stands for ``benchmark._Worker``. A method ``dies`` kills its process, ``dies once`` the first time only."""

    def __init__(self, folder: str, threads: int) -> None:
        os.chdir(folder)
        self.threads = threads

    def ready(self) -> None: ...

    def run(self, cell: Any, output_dir: str, force: bool) -> str:
        place = Path(output_dir) / "calls"
        place.mkdir(parents=True, exist_ok=True)
        with (place / f"{cell.id}.txt").open("a") as calls:
            calls.write(f"{os.getpid()}\n")
        n_calls = len((place / f"{cell.id}.txt").read_text().splitlines())
        if cell.method == "dies" or (cell.method == "dies once" and n_calls == 1):
            os._exit(9)
        time.sleep(SECONDS)
        attacked = {"targethr@50": round(0.2 + 0.01 * cell.seed, 4), "hit@50": 0.25}
        result = {"model": cell.method, "dataset": cell.dataset, "clean": {"targethr@50": 0.04, "hit@50": 0.25}}
        place_of_cell = {"schema_version": 1, "command": cell.command(), "cell": cell.labels()}
        return json.dumps({**result, "attacked": attacked, "seed": cell.seed, **place_of_cell}) + "\n"


if __name__ == "__main__":
    benchmark._Worker = FakeWorker  # type: ignore[misc, assignment]
    run_grid(sys.argv[1], output_dir=sys.argv[2], workers=int(sys.argv[3]), progress=False)
