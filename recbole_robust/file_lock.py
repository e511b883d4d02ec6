"""One process at a time: for what is made once and kept in a folder that several processes share."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock of a path inside this block; who comes later waits. The path itself is not touched.

    The kernel lets go where the process dies, by whatever signal. ``<path>.lock`` is gone afterwards.
    """
    lock = Path(f"{path}.lock")
    while (held := _acquired(lock)) is None:
        pass
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            lock.unlink()  # while it is held: nobody who opens it from now on can take it for this one
        os.close(held)


def _acquired(lock: Path) -> int | None:
    """The open lock file, or None where its last holder has removed it meanwhile."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(lock, os.O_CREAT | os.O_RDWR)
    except FileNotFoundError:  # somebody has just removed the empty folder
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(file), os.stat(lock)):
            return file
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None
