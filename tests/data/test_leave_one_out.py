"""The vectorised leave-one-out split is RecBole's, row for row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.dataset import Dataset

from recbole_robust.data.leave_one_out import HELD_OUT, leave_one_out_rows


@pytest.mark.parametrize("mode", HELD_OUT)
@given(users=st.lists(st.integers(1, 6), min_size=1, max_size=40))
def test_rows_are_those_of_recbole(mode, users):
    recbole = Dataset.__new__(Dataset)
    groups = recbole._grouped_index(np.array(users))
    parts = recbole._split_index_by_leave_one_out(groups, HELD_OUT[mode])
    expected = {
        "valid_and_test": parts,
        "valid_only": [*parts, []],
        "test_only": [parts[0], [], parts[-1]],
    }[mode]
    for ours, theirs in zip(leave_one_out_rows(np.array(users), mode), expected, strict=True):
        assert ours.tolist() == list(theirs)
