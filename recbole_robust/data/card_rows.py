"""The rows of a poison card as a RecBole atomic file, and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from recbole_robust.data.injection import fake_tokens
from recbole_robust.types import FakeProfiles, FloatArray
from recbole_robust.whole_files import naming

USER, ITEM, RATING, TIME = COLUMNS = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
HEADERS = ([USER, ITEM], [USER, ITEM, RATING], [USER, ITEM, TIME], [USER, ITEM, RATING, TIME])


def rows_to_text(item_tokens: Sequence[str], profiles: FakeProfiles, with_ratings: bool = True) -> str:
    """The profiles as an atomic file: one rating a line, in their order; numbers come back to the last bit.

    Raises:
        ValueError: an item token with a tabulator or a line end in it, which no line of such a file can hold.
    """
    odd = [token for token in item_tokens if set(token) & set("\t\n\r")]
    if odd:
        raise ValueError(f"item token {odd[0]!r} cannot stand in an atomic file")
    users = fake_tokens(profiles.n_users)
    columns = [
        [users[k] for k in profiles.user_ids.tolist()],
        [item_tokens[i] for i in profiles.item_ids.tolist()],
    ]
    header = [USER, ITEM]
    for name, values in ((RATING, profiles.ratings if with_ratings else None), (TIME, profiles.timestamps)):
        if values is not None:
            header.append(name)
            columns.append([repr(value).removesuffix(".0") for value in values.tolist()])
    return "\n".join(["\t".join(header), *map("\t".join, zip(*columns, strict=True)), ""])


def rows_from_text(text: str, n_fakes: int) -> tuple[list[str], FakeProfiles]:
    """The inverse of :func:`rows_to_text`: item tokens in order of appearance, and profiles that index them.

    Raises:
        ValueError: names the line, what was expected there and what came.
    """
    first, *lines = text.split("\n")
    header = first.split("\t")
    if header not in HEADERS:
        raise ValueError(f"expected the columns {', '.join(COLUMNS)} (the last two may lack), got {first[:80]!r}")
    if lines and not lines[-1]:
        lines.pop()
    cells = [line.split("\t") for line in lines]
    number_of = {token: k for k, token in enumerate(fake_tokens(n_fakes))}
    index: dict[str, int] = {}
    users: list[int] = []
    items: list[int] = []
    for n, row in enumerate(cells, start=2):
        if len(row) != len(header):
            raise ValueError(f"line {n}: expected {len(header)} columns as in the header, got {len(row)}")
        user = number_of.get(row[0], -1)
        if user < 0:
            raise ValueError(f"line {n}: expected one of the card's {n_fakes} fake users, got {row[0][:40]!r}")
        if users and user < users[-1]:
            raise ValueError(f"line {n}: expected the rows of a user together and in order, got {row[0]} again")
        users.append(user)
        items.append(index.setdefault(row[1], len(index)))
    numbers = {name: _numbers(cells, header.index(name)) for name in header[2:]}
    user_ptr = np.concatenate([[0], np.cumsum(np.bincount(np.array(users, dtype=np.int64), minlength=n_fakes))])
    ratings = numbers.get(RATING, np.ones(len(cells)))
    return list(index), FakeProfiles(user_ptr, np.array(items, dtype=np.int64), ratings, numbers.get(TIME))


def _numbers(cells: list[list[str]], column: int) -> FloatArray:
    values = np.empty(len(cells))
    for n, row in enumerate(cells):
        try:
            values[n] = float(row[column])
        except ValueError:
            values[n] = math.nan
        if not math.isfinite(values[n]):
            raise ValueError(f"line {n + 2}: expected a finite number, got {row[column][:40]!r}")
    return values


@contextlib.contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Write into the folder that this gives; it becomes ``folder`` at the end of the block, whole or not at all.

    What was there before is replaced. Of two processes that write the same folder at once, one wins.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        with naming(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
        if folder.exists():
            with contextlib.suppress(FileNotFoundError):  # another process was first
                os.rename(folder, old)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another process has put its own there meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
