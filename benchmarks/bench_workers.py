"""Two Ray workers beside one: seconds on the clock of a grid of equal cells, and what Ray adds to a cell.

    python benchmarks/bench_workers.py [cells]

The cells are MF and AT on ml-100k (RecBole's own copy), clean, one seed each; eight if not said. Asked: two workers
take at most 0.65 of one's time, Ray's start included; Ray adds less than a second to a cell.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from recbole_robust.benchmark import run_grid


def seconds_of(n_workers: int, n_cells: int) -> tuple[float, float]:
    """Seconds of the whole grid, and those between two cells that are not the cells' own."""
    grid = {
        "name": "workers",
        "datasets": ["ml-100k"],
        "methods": [{"model": "MF", "defense": "AT"}],
        "seeds": {"start": 0, "count": n_cells},
        "config": {"protocol": "apt"},
    }
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = run_grid(grid, output_dir=folder, workers=n_workers, progress=False)
        whole = time.perf_counter() - started
        assert not done.n_failed and done.n_run == n_cells
        files = sorted(done.folder.glob("*seed*.json"), key=lambda path: path.stat().st_mtime)
        between = (files[-1].stat().st_mtime - files[0].stat().st_mtime) / (n_cells - 1)
        own = statistics.mean(json.loads(Path(path).read_text())["seconds"]["total"] for path in files[1:])
    return whole, between - own / max(1, n_workers)


def main() -> None:
    n_cells = int(sys.argv[1]) if sys.argv[1:] else 8
    rows = [[name, *seconds_of(n, n_cells)] for n, name in ((0, "in this process"), (1, "1 worker"), (2, "2 workers"))]
    one = rows[1][1]
    rows = [[*row, row[1] / one] for row in rows]
    print(tabulate(rows, headers=["", "seconds", "between two cells, s", "times 1 worker"], floatfmt=".2f"))


if __name__ == "__main__":
    main()
