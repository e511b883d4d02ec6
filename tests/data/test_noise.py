"""Which rows noise edits, and what it writes there: on arrays, against counts and against a loop."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from recbole_robust.arguments import share_of
from recbole_robust.data.noise import InteractionNoise, draw_items, rank_in_group

N_USERS, N_ITEMS = 51, 41  # in RecBole ids: 50 users, 40 items
KINDS = ["replace", "insert", "drop", "swap"]
TARGETS = np.array([7, 8])


class Log(NamedTuple):
    users: np.ndarray
    items: np.ndarray
    known: np.ndarray


def make_log(seed: int = 0, fewest: int = 3, most: int = 20) -> Log:
    """Rows of each user in a row; each user knows two held-out items beside them; user 50 has no training row."""
    rng = np.random.default_rng(seed)
    owned = [rng.permutation(np.arange(1, N_ITEMS))[: rng.integers(fewest, most) + 2] for _ in range(N_USERS - 2)]
    users = np.concatenate([np.full(len(mine) - 2, u) for u, mine in enumerate(owned, start=1)])
    known = np.concatenate([u * N_ITEMS + mine for u, mine in enumerate(owned, start=1)])
    return Log(users, np.concatenate([mine[:-2] for mine in owned]), np.sort(known))


def edit(noise: InteractionNoise, log: Log, protected=TARGETS, least_left: int = 1):
    return noise.edit(*log, N_USERS, N_ITEMS, protected=protected, least_left=least_left)


def edits_of_users(log: Log, noisy, kind: str) -> np.ndarray:
    """How many rows of each user were edited, told from the result alone."""
    if kind == "drop":
        return np.bincount(log.users, minlength=N_USERS) - np.bincount(log.users[noisy.place], minlength=N_USERS)
    return np.bincount(log.users[noisy.place[noisy.is_noise]], minlength=N_USERS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ratio", "n_edited"), [(0.2, 10), (0.29, 14), (0.999, 49), (0.02, 1), (0.01, 0)])
def test_the_share_of_users_is_exact(kind, ratio, n_edited):
    log = make_log(fewest=6)
    noisy = edit(InteractionNoise(ratio, kind=kind, strength=0.25), log)
    assert len(noisy.users) == n_edited
    n_edits = edits_of_users(log, noisy, kind)
    assert np.array_equal(np.flatnonzero(n_edits), noisy.users)
    counts = np.bincount(log.users, minlength=N_USERS)
    for user in noisy.users:
        assert n_edits[user] == max(int(0.25 * counts[user]), 2 if kind == "swap" else 1)
    assert noisy.n_edits == n_edits.sum()


@pytest.mark.parametrize("kind", ["replace", "insert", "drop"])
@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_the_share_of_rows_is_exact(kind, ratio):
    log = make_log(fewest=8)
    noisy = edit(InteractionNoise(ratio, unit="interactions", kind=kind), log, protected=TARGETS[:0])
    assert noisy.n_edits == share_of(ratio, len(log.users)) == edits_of_users(log, noisy, kind).sum()
    assert len(noisy.items) == len(log.items) + noisy.n_edits * {"replace": 0, "insert": 1, "drop": -1}[kind]


def test_rows_that_are_alone_do_not_swap():
    log = make_log(fewest=8)
    noisy = edit(InteractionNoise(0.1, unit="interactions", kind="swap"), log)
    n_edits = edits_of_users(log, noisy, "swap")
    assert 0 < noisy.n_edits <= share_of(0.1, len(log.users))
    assert (n_edits != 1).all()


@pytest.mark.parametrize("unit", ["users", "interactions"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_noise_is_as_it_was(kind, unit):
    log = make_log()
    noisy = edit(InteractionNoise(0.4, unit, kind, strength=0.5), log)
    kept = ~noisy.is_noise
    assert np.array_equal(noisy.items[kept], log.items[noisy.source[kept]])
    assert (np.diff(log.users[noisy.place]) >= 0).all()
    assert np.array_equal(log.users[noisy.place], log.users[noisy.source]), "the values of a row are its user's own"
    for user in set(range(1, N_USERS)) - set(noisy.users):
        assert np.array_equal(noisy.items[log.users[noisy.place] == user], log.items[log.users == user])
    for target in TARGETS:
        rows = np.flatnonzero(noisy.items == target)
        assert np.array_equal(log.users[noisy.place[rows]], log.users[log.items == target]), "nothing added, none lost"
        assert not noisy.is_noise[rows].any()


@pytest.mark.parametrize("by", ["uniform", "popularity"])
@pytest.mark.parametrize("kind", ["replace", "insert"])
def test_wrong_items_are_new_to_their_users(kind, by):
    log = make_log()
    noisy = edit(InteractionNoise(0.9, kind=kind, strength=1.0, by=by), log)
    pairs = log.users[noisy.place] * N_ITEMS + noisy.items
    assert len(np.unique(pairs)) == len(pairs)
    wrong = noisy.items[noisy.is_noise]
    assert not np.isin(pairs[noisy.is_noise], log.known).any(), "held-out ones too"
    assert wrong.min() >= 1
    assert wrong.max() < N_ITEMS
    assert not np.isin(wrong, TARGETS).any()


def test_an_inserted_row_follows_the_row_that_it_repeats():
    log = make_log()
    noisy = edit(InteractionNoise(0.5, kind="insert"), log)
    new = np.flatnonzero(noisy.is_noise)
    assert np.array_equal(noisy.place[new], noisy.place[new - 1])
    assert np.array_equal(noisy.source, noisy.place)
    assert np.array_equal(np.delete(noisy.items, new), log.items)


@pytest.mark.parametrize("least_left", [1, 2])
@pytest.mark.parametrize("unit", ["users", "interactions"])
def test_dropping_leaves_everybody_something(unit, least_left):
    log = make_log(fewest=1)
    noisy = edit(InteractionNoise(1.0, unit, "drop", strength=1.0), log, protected=TARGETS[:0], least_left=least_left)
    before, after = (np.bincount(users, minlength=N_USERS) for users in (log.users, log.users[noisy.place]))
    assert np.array_equal(after, np.minimum(before, least_left))


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_a_swap_moves_each_picked_row_and_loses_none(strength):
    log = make_log(fewest=4)
    noisy = edit(InteractionNoise(0.5, kind="swap", strength=strength), log)
    assert np.array_equal(noisy.place, np.arange(len(log.users)))
    assert np.array_equal(np.sort(noisy.source), np.arange(len(log.users)))
    assert np.array_equal(noisy.source != noisy.place, noisy.is_noise)
    assert np.array_equal(noisy.items, log.items[noisy.source])


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_a_noise(kind):
    log = make_log()
    noise = InteractionNoise(0.5, kind=kind, seed=3)
    first, again, other = edit(noise, log), edit(noise, log), edit(replace(noise, seed=4), log)
    assert np.array_equal(first.items, again.items)
    assert np.array_equal(first.place, again.place)
    assert not np.array_equal(first.users, other.users)


def test_users_who_know_nearly_everything_end_the_draw(caplog):
    """One unknown item must stay, as a negative; who has no more than that is not edited."""
    users = np.repeat([1, 2, 3], [38, 39, 40])
    items = np.concatenate([np.arange(1, 39), np.arange(1, 40), np.arange(1, 41)])
    log = Log(users, items, np.sort(users * N_ITEMS + items))
    noisy = InteractionNoise(1.0, kind="insert", strength=1.0).edit(*log, 4, N_ITEMS, protected=TARGETS[:0])
    assert noisy.users.tolist() == [1]
    assert noisy.items[noisy.is_noise].tolist() in ([39], [40])
    assert "only 1 of 3 users have rows to insert" in caplog.text


@pytest.mark.parametrize("n_redraws", [50, 0])  # 0: the way of users who know nearly everything
@pytest.mark.parametrize("weights", [np.ones(N_ITEMS), np.r_[0, np.arange(1.0, N_ITEMS)]])
def test_items_are_drawn_by_their_weights(weights, n_redraws, monkeypatch):
    monkeypatch.setattr("recbole_robust.data.noise.MAX_REDRAWS", n_redraws)
    n = 20_000
    drawn = draw_items(np.arange(1, n + 1), np.zeros(0, np.int64), weights, TARGETS, np.random.default_rng(0))
    expected = weights.copy()
    expected[[0, *TARGETS]] = 0
    expected *= n / expected.sum()
    found = np.bincount(drawn, minlength=N_ITEMS)
    assert (found[expected == 0] == 0).all()
    live = expected > 0
    chi2 = ((found[live] - expected[live]) ** 2 / expected[live]).sum()
    assert chi2 < 70  # 37 degrees of freedom: p < .001 above 69


def test_items_without_weight_come_last():
    """A user who knows all popular items gets an unpopular one, rather than none."""
    weights = np.zeros(N_ITEMS)
    weights[1:4] = 5.0
    known = N_ITEMS + np.array([1, 2])
    drawn = draw_items(np.ones(3, np.int64), known, weights, TARGETS, np.random.default_rng(0))
    assert 3 in drawn
    assert len(set(drawn)) == 3
    assert not set(drawn) & {0, 1, 2, *TARGETS}


def test_rank_in_group():
    groups, keys = np.array([2, 0, 2, 0, 2]), np.array([0.5, 0.2, 0.1, 0.1, 0.9])
    assert rank_in_group(groups, keys).tolist() == [1, 1, 0, 0, 2]
    assert rank_in_group(groups[:0], keys[:0]).tolist() == []
