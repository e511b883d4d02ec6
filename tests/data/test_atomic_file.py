"""Atomic files: the line that is told is the line that is wrong, wherever in the file it stands."""

from __future__ import annotations

import pytest

from recbole_robust.data import atomic_file
from recbole_robust.data.atomic_file import bad_number, check_atomic_file
from recbole_robust.types import UserError

HEADER = b"user_id:token\titem_id:token\trating:float"
ROWS = [f"u{k}\ti{k}\t{k % 5}".encode() for k in range(40)]


@pytest.fixture(params=[7, 64, 1 << 20])
def block(request, monkeypatch) -> int:
    """However much of the file is looked at at a time."""
    monkeypatch.setattr(atomic_file, "BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_a_good_file(block, end, last, tmp_path):
    path = tmp_path / "x.inter"
    path.write_bytes(end.join([HEADER, *ROWS[:20], b"", b"", *ROWS[20:]]) + (end if last else b""))
    check_atomic_file(str(path), types={"rating": "float", "user_id": "token"})
    assert bad_number(str(path)) is None


@pytest.mark.parametrize("position", [0, 17, 40])
@pytest.mark.parametrize(("row", "n_columns"), [(b"u\ti", 2), (b"u", 1), (b"u\ti\t3\t4", 4), (b"u\ti\t3\t", 4)])
def test_the_line_of_other_length(block, position, row, n_columns, tmp_path):
    path = tmp_path / "x.inter"
    path.write_bytes(b"\n".join([HEADER, *ROWS[:position], row, *ROWS[position:]]))
    with pytest.raises(
        UserError, match=rf"expected 3 columns as in the header, got {n_columns} in line {position + 2}$"
    ):
        check_atomic_file(str(path))


def test_quotation_marks_may_hold_anything(block, tmp_path):
    path = tmp_path / "x.item"
    path.write_bytes(b'item_id:token\ttitle:token\ni1\t"a\tb\nc"\n')
    check_atomic_file(str(path))


def test_the_first_cell_that_is_no_number(tmp_path):
    path = tmp_path / "x.inter"
    path.write_bytes(b"\n".join([HEADER, ROWS[0], b"u\ti\t", b"u\ti\t3,5", b"u\ti\tbad"]))
    assert bad_number(str(path)) == "expected numbers in rating:float, got '3,5' in row 3 below the header"


def test_an_encoding_that_is_none(tmp_path):
    path = tmp_path / "x.inter"
    path.write_bytes(HEADER + b"\n" + ROWS[0] + b"\n")
    with pytest.raises(UserError, match=r"^encoding: expected the name of a text encoding, got 'utf-88'$"):
        check_atomic_file(str(path), encoding="utf-88")
