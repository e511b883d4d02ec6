"""What RecBole says of the user's keys: what it raises on purpose, and what it runs into where a key is of no use."""

from __future__ import annotations

import contextlib
import dis
import os
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import recbole

from recbole_robust.types import UserError

_RAISE = dis.opmap["RAISE_VARARGS"]
_RECBOLE = str(Path(recbole.__file__).parent) + os.sep
_OURS = str(Path(__file__).parent) + os.sep


def complaint_of_recbole(error: BaseException) -> str | None:
    """The message of an exception that RecBole raises on purpose (``raise ValueError("Some users ...")``).

    None for an exception that merely happens inside RecBole, or elsewhere: that is a bug, not the user's mistake.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, (ValueError, TypeError, NotImplementedError, RuntimeError, ImportError)):
        return None
    code = trace.tb_frame.f_code
    if not code.co_filename.startswith(_RECBOLE) or code.co_code[trace.tb_lasti] != _RAISE:
        return None
    return " ".join(str(error).split()) or None


@contextlib.contextmanager
def blaming(keys: Mapping[str, Any]) -> Iterator[None]:
    """Inside this block an exception in RecBole's code, or in what that calls, is laid to the user's ``keys``.

    These are keys that nothing has checked: RecBole takes them as they are, so that ``--n_layers=2.5`` ends in a
    ``range()`` of its model. Without such keys, or in our own code, the exception goes on: it is a bug.

    Raises:
        UserError: names the keys, the exception and where it came from.
    """
    try:
        yield
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:
        place = _place_in_recbole(error)
        if not keys or place is None or complaint_of_recbole(error) or "OutOfMemory" in type(error).__name__:
            raise
        given = ", ".join(repr(value) for value in keys.values())
        raise UserError(f"{', '.join(keys)}: expected what RecBole can work with, got {given}: "
                        f"{type(error).__name__}: {error} ({place})") from error  # fmt: skip


def _place_in_recbole(error: BaseException) -> str | None:
    """File and line of RecBole's that were at work; None where the code at work was ours, or neither's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(_RECBOLE):
            return f"{os.path.basename(frame.filename)}:{frame.lineno}"
        if frame.filename.startswith(_OURS):
            return None
    return None
