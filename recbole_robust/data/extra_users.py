"""Users of a defense's own in the training rows: they are in no other split, and in nothing that is measured."""

from __future__ import annotations

import copy

from recbole_robust.data.injection import add_users, append_rows, fake_interactions, user_tables
from recbole_robust.randomness import stage_rng
from recbole_robust.types import FakeProfiles

ERM_PREFIX = "__erm_"


def with_room(train, n_users: int, seed: int):
    """A copy of a training split with the same rows and ``n_users`` ids more, behind the genuine and the fake users.

    The split itself, whose id tables valid and test rows share, stays as it is.

    Raises:
        UserError: the data set has a user named ``__erm_<k>``.
    """
    room = copy.copy(train)
    room.field2id_token, room.field2token_id = dict(train.field2id_token), dict(train.field2token_id)
    room._preloaded_weight = dict(train._preloaded_weight)
    for name in user_tables(train):
        room.field2token_id[name] = dict(train.field2token_id[name])
    add_users(room, [], [f"{ERM_PREFIX}{k}" for k in range(n_users)], stage_rng(seed, "erm attributes"))
    room.n_fake_users = train.n_fake_users + n_users  # whoever counts genuine users counts neither
    return room


def with_users(loader, room, profiles: FakeProfiles, seed: int):
    """A training loader of the same kind as ``loader`` on the rows of ``room`` and those of its last users.

    The order of the rows comes from the generator of ``loader`` itself: where that is put back, this one is.

    Args:
        room: as :func:`with_room` made it for ``profiles.n_users``; left as it is.
    """
    rows = copy.copy(room)
    append_rows(rows, fake_interactions(room, profiles, seed), seed)
    other = type(loader)(loader.config, rows, loader._sampler, shuffle=loader.shuffle)
    other.generator = other.sampler.generator = loader.generator
    return other
