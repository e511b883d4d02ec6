"""Fake users as the authors of VAT and PamaCF ship them (``data/<data set>/<attack>_1.json``), made into a card.

Format: a JSON object of ``target_items``, a list of item ids, and ``fake_users``, an object of lists of item ids, one a
fake user. Ids are text and those of the item column of the ``data.txt`` beside the file, so they are the item tokens of
an ``.inter`` file that was made from it with its ids unchanged. There are no ratings (a click is one) and no times.

Reference: K. Zhang et al. Improving the Shortest Plank: Vulnerability-Aware Adversarial Training for Robust Recommender
System. RecSys 2024. K. Zhang et al. Understanding and Improving Adversarial Collaborative Filtering for Robust
Recommendation. NeurIPS 2024. LoRec's and PLD's files look the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recbole_robust.data.card import PoisonCard
from recbole_robust.data.poison import facts_of
from recbole_robust.types import FakeProfiles, UserError


class FakeUsers(NamedTuple):
    """What such a file says; an item that a user has several times (most users of the files do) counts once."""

    target_items: list[str]
    profiles: list[list[str]]
    n_repeats: int
    sha256: str


def read_fake_users(path: str | Path) -> FakeUsers:
    """Read such a file.

    Raises:
        UserError: no such file, or another format.
    """
    try:
        raw = Path(path).read_bytes()
        content = json.loads(raw)
        targets = _ids(content["target_items"])
        given = [_ids(items) for items in content["fake_users"].values()]
    except OSError as error:
        raise UserError(f"from_json: {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"from_json: {path}: expected {{target_items: [item ids], fake_users: {{name: [item ids], ...}}}}, got "
            f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        ) from None
    if not given or not all(given) or not targets or len(set(targets)) < len(targets):
        raise UserError(f"from_json: {path}: expected distinct target items, and fake users with items, got others")
    profiles = [list(dict.fromkeys(items)) for items in given]
    n_repeats = sum(map(len, given)) - sum(map(len, profiles))
    return FakeUsers(targets, profiles, n_repeats, hashlib.sha256(raw).hexdigest())


def _ids(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(v, str | int) and not isinstance(v, bool) for v in values):
        raise TypeError(f"expected a list of item ids, got {values!r}")
    return [str(value) for value in values]


def card_of_fake_users(path: str | Path, train) -> PoisonCard:
    """The fake users of such a file as a card for the data set of a training split.

    Item ids are taken as item tokens, every click is rated highest, and the injection draws the times. All clicks are
    trained on. (The authors' code splits each fake's list as it splits the genuine ones, so that the last 30 % of a
    fake's clicks are never trained on, and leaves out fakes with fewer than 10.)

    Raises:
        UserError: as :func:`read_fake_users`; or an item that the data set does not have.
    """
    fakes = read_fake_users(path)
    token2id = train.field2token_id[train.iid_field]
    named = dict.fromkeys([*fakes.target_items, *(item for profile in fakes.profiles for item in profile)])
    missing = [item for item in named if item not in token2id]
    if missing:
        raise UserError(
            f"from_json: {path}: expected item tokens of {train.dataset_name}, got {len(missing)} unknown ones of "
            f"{len(named)} ({', '.join(missing[:5])})"
        )
    index = {item: k for k, item in enumerate(named)}
    items = np.array([index[item] for profile in fakes.profiles for item in profile], dtype=np.int64)
    user_ptr = np.concatenate([[0], np.cumsum([len(profile) for profile in fakes.profiles])]).astype(np.int64)
    (low, high), has_ratings = train.rating_range, train.raw_log.ratings is not None
    settings = {
        "attack": re.sub(r"[^A-Za-z0-9.]+", "_", Path(path).stem).strip("_.") or "file",
        "attack_args": {"from_json": Path(path).name, "sha256": fakes.sha256, "n_repeats_dropped": fakes.n_repeats},
        "seed": None,
        "n_fake_users": len(fakes.profiles),
        "n_fillers": None,
        "target_mode": None,
        "knowledge": None,
        "known_users": None,
        **facts_of(train, fakes.target_items),
        "rating_range": [low, high] if has_ratings else None,
        "rating_step": train.rating_step if has_ratings else None,
    }
    profiles = FakeProfiles(user_ptr, items, np.full(len(items), high))
    return PoisonCard(train.dataset_name, fakes.target_items, list(named), profiles, settings)
