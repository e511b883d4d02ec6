"""What RecBole says of the user's keys: what it raises on purpose, and what it runs into where a key is of no use."""

from __future__ import annotations

import contextlib
import dis
import logging
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import recbole

from recbole_robust.types import UserError

_RAISE = dis.opmap["RAISE_VARARGS"]
_RECBOLE = str(Path(recbole.__file__).parent) + os.sep
_OURS = str(Path(__file__).parent) + os.sep
_LIBRARIES = ("<frozen ", "<__array_function__", *{
    sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")
})  # fmt: skip

logger = logging.getLogger(__name__)


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
def complaining_as(what: str) -> Iterator[None]:
    """What RecBole raises on purpose inside this block is the user's mistake: ``<what>: <RecBole's words>``."""
    try:
        yield
    except Exception as error:
        complaint = complaint_of_recbole(error)
        if complaint is None:
            raise
        raise UserError(f"{what}: {complaint}") from None


class SuspectedKeys(UserError):
    """An exception that the user's keys seem to have caused; it may be a bug after all, so its traceback is kept."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says that there is too little memory, on the CPU or a GPU."""
    return (
        isinstance(error, MemoryError)
        or "OutOfMemory" in type(error).__name__
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


@contextlib.contextmanager
def blaming(find_keys: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Inside this block an exception in RecBole's code, or in a library that it calls, is laid to the user's keys.

    These are keys of RecBole's that nothing has checked: it takes them as they are, so that ``--n_layers=2.5`` ends in
    a ``range()`` of its model. Without such keys, in our code or in somebody's own model, the exception goes on: it is
    a bug. So does what a machine lacks.

    Raises:
        SuspectedKeys: names the keys, the exception and where it came from; the traceback is logged.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        place = _place_in_recbole(error)
        if place is None or complaint_of_recbole(error) or lacks_memory(error) or "CUDA" in str(error):
            raise
        keys = find_keys()
        if not keys:
            raise
        logger.exception("laid to the keys %s", ", ".join(keys))
        given = ", ".join(repr(value) for value in keys.values())
        raise SuspectedKeys(f"{', '.join(keys)}: expected what RecBole can work with, got {given}, as it seems "
                            f"({type(error).__name__} in {place}: {error})") from error  # fmt: skip


def _place_in_recbole(error: BaseException) -> str | None:
    """File and line of RecBole's that were at work, itself or by a library (compiled ones have relative names).

    None where other code was at work: ours, or somebody's model.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(_OURS):
            return None
        if frame.filename.startswith(_RECBOLE):
            return f"{os.path.basename(frame.filename)}:{frame.lineno}"
        if os.path.isabs(frame.filename.replace("<", "/")) and not frame.filename.startswith(_LIBRARIES):
            return None  # in a notebook or at a prompt its name is in angle brackets
    return None
