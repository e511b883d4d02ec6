"""Fake users are appended to the training split, and to nothing else."""

from __future__ import annotations

import copy

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType

from recbole_robust.randomness import stage_rng
from recbole_robust.types import FakeProfiles, FloatArray, IntArray, UserError

FAKE_PREFIX = "__fake_"


def fake_tokens(n_fakes: int) -> list[str]:
    """The user tokens of ``n_fakes`` fake users."""
    return [f"{FAKE_PREFIX}{k}" for k in range(n_fakes)]


def add_fake_users(dataset, splits, n_fake: int, seed: int) -> None:
    """Make room for ``n_fake`` users in the id tables (which all splits share) and in the user features.

    Genuine ids do not move. Attribute rows of fakes are those of genuine users drawn at random.
    """
    add_users(dataset, splits, fake_tokens(n_fake), stage_rng(seed, "fake attributes"))


def add_users(dataset, splits, tokens: list[str], rng: np.random.Generator) -> None:
    """Users behind all others, named ``tokens``; see :func:`add_fake_users`.

    Raises:
        UserError: the data set has a user of such a name.
    """
    check_names_are_free(dataset, tokens)
    uid = dataset.uid_field
    first = len(dataset.field2id_token[uid])
    table = np.append(dataset.field2id_token[uid], np.array(tokens, dtype=str))
    index = np.concatenate([np.arange(first), rng.integers(1, first, size=len(tokens))])
    for name in user_tables(dataset):
        dataset.field2id_token[name] = table
        dataset.field2token_id[name].update({token: first + k for k, token in enumerate(tokens)})
        if name in dataset._preloaded_weight:
            dataset._preloaded_weight[name] = dataset._preloaded_weight[name][index]
    features = dataset.user_feat
    if features is not None:
        grown = Interaction({name: column[torch.from_numpy(index)] for name, column in features.interaction.items()})
        grown[uid] = torch.arange(len(table))
        for part in (dataset, *splits):
            part.user_feat = grown


def check_names_are_free(dataset, tokens: list[str]) -> None:
    """Raise a :class:`UserError` where the data set has a user of one of these names."""
    clash = [token for token in tokens if token in dataset.field2token_id[dataset.uid_field]]
    if clash:
        prefix = clash[0].rstrip("0123456789")
        raise UserError(f"{dataset.dataset_name}: expected no user named {prefix}<k>, got {clash[0]}")


def user_tables(dataset) -> set[str]:
    """The fields that share the ids of the users."""
    return {dataset.uid_field, *dataset.alias["user_id"]} & set(dataset.field2id_token)


def fake_interactions(train, profiles: FakeProfiles, seed: int) -> Interaction:
    """The fake ratings as rows of ``train``'s own columns (before any sequence augmentation).

    The victim's preprocessing is repeated on them: ratings are normalised as the genuine ones were, labels come from
    the same threshold (1 where the data came with labels: a fake's rows are clicks), and what ``val_interval`` drops
    is dropped. Times that the attack leaves open, and all other columns, are those of genuine rows.
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
            values[name] = train.as_processed(name, raw[name])
        elif name == train.label_field and train.config["threshold"]:
            field, threshold = next(iter(train.config["threshold"].items()))
            if raw.get(field) is None:
                raise UserError(f"threshold: expected the rating or the time field under an attack, got {field!r}")
            values[name] = (np.asarray(raw[field]) >= threshold).astype(np.int64)
        elif name == train.label_field:
            values[name] = np.ones(len(users))
        else:
            values[name] = genuine[name][like]
    columns = {name: torch.as_tensor(values[name]).to(genuine[name].dtype) for name in train.raw_columns()}
    keep = train.survives_filters(raw)
    return Interaction({name: column[torch.from_numpy(keep)] for name, column in columns.items()})


def append_rows(train, rows: Interaction, seed: int) -> None:
    """Append rows to a training split; a sequential one is augmented first (one row a prefix)."""
    if hasattr(train, "data_augmentation"):
        rows = augmented(train, rows, seed)
    genuine = train.inter_feat
    train.inter_feat = Interaction({name: torch.cat([genuine[name], rows[name]]) for name in genuine.columns})


def augmented(train, rows: Interaction, seed: int) -> Interaction:
    """The rows that RecBole's own augmentation makes of some users' histories, lists as long as those of ``train``.

    Data without times (ready-made sequences may have none) keep the order of the profile.
    """
    fakes = train.copy(rows)
    if train.time_field not in rows:
        rows[train.time_field] = torch.arange(len(rows), dtype=torch.float)
    if not len(rows):
        return train.inter_feat[:0]
    if hasattr(train, "neg_item_list"):  # DIEN: a negative for every item of a history
        np.random.seed(seed % (1 << 32))  # noqa: NPY002 - its sampler draws from there; build() puts the state back
        fakes.sort(by=[train.uid_field, train.time_field])
        fakes.neg_item_list = train.seq_sampler.sample_neg_sequence(rows[train.iid_field])
    list_field = train.iid_field + train.config["LIST_SUFFIX"]
    fakes.config = copy.copy(train.config)
    fakes.config.final_config_dict = {
        **train.config.final_config_dict,
        "MAX_ITEM_LIST_LENGTH": train.inter_feat[list_field].shape[1],
    }
    for name in ("field2type", "field2source", "field2seqlen"):  # augmentation notes the properties of its columns
        setattr(fakes, name, dict(getattr(train, name)))
    fakes.max_item_list_len = fakes.config["MAX_ITEM_LIST_LENGTH"]
    fakes.field2type.setdefault(train.time_field, FeatureType.FLOAT)
    fakes.data_augmentation()
    return fakes.inter_feat


def without_fakes(train):
    """The training split as it was before the injection: same genuine rows, ids and features, no fake user."""
    if not train.n_fake_users:
        return train
    clean = copy.copy(train)
    n_users = train.user_num - train.n_fake_users
    clean.field2id_token = dict(train.field2id_token)
    clean.field2token_id = dict(train.field2token_id)
    for name in user_tables(train):
        table = train.field2id_token[name][:n_users]
        clean.field2id_token[name] = table
        clean.field2token_id[name] = {token: i for i, token in enumerate(table)}
        if name in train._preloaded_weight:
            clean._preloaded_weight = {**clean._preloaded_weight, name: train._preloaded_weight[name][:n_users]}
    if train.user_feat is not None:
        clean.user_feat = Interaction({k: v[:n_users] for k, v in train.user_feat.interaction.items()})
    rows = train.inter_feat.interaction
    clean.inter_feat = Interaction({name: column[: train.n_genuine_rows] for name, column in rows.items()})
    clean.n_fake_users, clean.profiles = 0, None
    return clean
