"""Fake users are appended to the training split, and to nothing else."""

from __future__ import annotations

import copy

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_robust.data.views import rating_grid
from recbole_robust.randomness import stage_rng
from recbole_robust.types import FakeProfiles, FloatArray, IntArray, UserError

FAKE_PREFIX = "__fake_"


def add_fake_users(dataset, splits, n_fake: int, seed: int) -> None:
    """Make room for ``n_fake`` users in the id tables (which all splits share) and in the user features.

    Genuine ids do not move. Attribute rows of fakes are those of genuine users drawn at random.
    """
    uid = dataset.uid_field
    tokens = np.array([f"{FAKE_PREFIX}{k}" for k in range(n_fake)])
    clash = [token for token in tokens if token in dataset.field2token_id[uid]]
    if clash:
        raise UserError(f"{dataset.dataset_name}: expected no user named {FAKE_PREFIX}<k>, got {clash[0]}")
    first = len(dataset.field2id_token[uid])
    table = np.append(dataset.field2id_token[uid], tokens)
    for name in {uid, *dataset.alias["user_id"]} & set(dataset.field2id_token):
        dataset.field2id_token[name] = table
        dataset.field2token_id[name].update({token: first + k for k, token in enumerate(tokens)})
    features = dataset.user_feat
    if features is not None:
        rows = stage_rng(seed, "fake attributes").integers(1, first, size=n_fake)
        index = torch.from_numpy(np.concatenate([np.arange(first), rows]))
        grown = Interaction({name: column[index] for name, column in features.interaction.items()})
        grown[uid] = torch.arange(first + n_fake)
        for part in (dataset, *splits):
            part.user_feat = grown


def fake_interactions(train, profiles: FakeProfiles, seed: int) -> Interaction:
    """The fake ratings as rows of ``train``'s own columns (before any sequence augmentation).

    The victim's preprocessing is repeated on them: ratings are normalised as the genuine ones were, labels come from
    the same threshold, and what ``val_interval`` drops is dropped. Other columns are copied from genuine rows.
    """
    rng = stage_rng(seed, "fake interactions")
    users = torch.from_numpy(profiles.user_ids + train.user_num - profiles.n_users)
    values: dict[str, torch.Tensor | FloatArray | IntArray] = {
        train.uid_field: users,
        train.iid_field: torch.from_numpy(profiles.item_ids + 1),
    }
    if profiles.timestamps is not None:
        times = profiles.timestamps
    elif train.raw_log.timestamps is not None:
        times = rng.choice(train.raw_log.timestamps, size=len(profiles.item_ids))
    else:
        times = None
    raw = {train.config["RATING_FIELD"]: profiles.ratings, train.time_field: times}
    genuine = train.inter_feat
    like = torch.from_numpy(rng.integers(0, len(genuine), size=len(profiles.item_ids)))
    for name in train.raw_columns():
        if name in values:
            continue
        if raw.get(name) is not None:
            values[name] = train.as_normalised(name, raw[name])
        elif name == train.label_field and train.config["threshold"]:
            field, threshold = next(iter(train.config["threshold"].items()))
            if raw.get(field) is None:
                raise UserError(f"threshold: expected the rating or the time field under an attack, got {field!r}")
            values[name] = (np.asarray(raw[field]) >= threshold).astype(np.int64)
        else:
            values[name] = genuine[name][like]
    columns = {
        name: torch.as_tensor(values[name]).to(genuine[name].dtype) if name in genuine else torch.as_tensor(values[name])
        for name in train.raw_columns()
    }
    keep = train.survives_filters(raw)
    return Interaction({name: column[torch.from_numpy(keep)] for name, column in columns.items()})


def append_rows(train, rows: Interaction) -> None:
    """Append rows to a training split; a sequential one is augmented first (one row a prefix)."""
    if hasattr(train, "data_augmentation") and train.config["benchmark_filename"] is None:
        fakes = train.copy(rows)
        fakes.data_augmentation()
        rows = fakes.inter_feat
    genuine = train.inter_feat
    train.inter_feat = Interaction({name: torch.cat([genuine[name], rows[name]]) for name in genuine.columns})


def without_fakes(train):
    """The training split as it was before the injection: same genuine rows, ids and features, no fake user."""
    if not train.n_fake_users:
        return train
    clean = copy.copy(train)
    n_users = train.user_num - train.n_fake_users
    clean.field2id_token = dict(train.field2id_token)
    clean.field2token_id = dict(train.field2token_id)
    for name in {train.uid_field, *train.alias["user_id"]} & set(train.field2id_token):
        table = train.field2id_token[name][:n_users]
        clean.field2id_token[name] = table
        clean.field2token_id[name] = {token: i for i, token in enumerate(table)}
    if train.user_feat is not None:
        clean.user_feat = Interaction({k: v[:n_users] for k, v in train.user_feat.interaction.items()})
    rows = train.inter_feat.interaction
    clean.inter_feat = Interaction({name: column[: train.n_genuine_rows] for name, column in rows.items()})
    clean.n_fake_users, clean.profiles = 0, None
    return clean


__all__ = ["FAKE_PREFIX", "add_fake_users", "append_rows", "fake_interactions", "rating_grid", "without_fakes"]
