"""What a check found, and how it is told in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

MOST = 1000  # failures of one check that are counted


@dataclass(frozen=True)
class Finding:
    """One check: nothing wrong (no ``failures``), or what was expected and what came, one text each.

    Attributes:
        check: what is claimed, e.g. ``the lift is attacked minus clean``.
        note: how much of it was looked at, and what could not be.
    """

    check: str
    failures: tuple[str, ...] = ()
    note: str = ""

    @property
    def line(self) -> str:
        """``ok: ...`` or ``FAILED: ...``, in one line."""
        note = f" ({self.note})" if self.note else ""
        if not self.failures:
            return f"ok: {self.check}{note}"
        more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
        return " ".join(f"FAILED: {self.check}: {self.failures[0]}{more}{note}".split())


def run_check(check: str, found: Callable[[], Iterator[str]], note: str = "") -> Finding:
    """Run one check. One that cannot even be run has failed: a fault that breaks it must not hide behind it."""
    try:
        return Finding(check, tuple(islice(found(), MOST)), note)
    except Exception as error:
        return Finding(check, (f"expected a check that runs through, got {type(error).__name__}: {error}",), note)
