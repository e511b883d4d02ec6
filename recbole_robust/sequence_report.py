"""What ATJT thinks of its training sequences: how right it is, where the noise is known, and the weights as a file."""

from __future__ import annotations

import os
from typing import Any

import pandas as pd

from recbole_robust.data.instances import instances_of
from recbole_robust.evaluation.recognition import recognition_report
from recbole_robust.whole_files import written_whole


def recognition_of(model: Any, train: Any) -> dict[str, float | int] | None:
    """The report on the genuine sequences of a split, or None where nothing weighs or no noise was injected.

    Args:
        model: after its training; weighs each sequence by the recogniser that never saw the user.
        train: the training split before any defense.
    """
    if getattr(model, "auxiliary", None) is None or train.noise_flags is None:
        return None
    found, weights = instances_of(train), model.instance_weights(train.inter_feat).double().numpy()
    genuine = ~found.is_fake
    return recognition_report(weights[genuine], found.history_noise[genuine], found.target_noise[genuine])


def export_weights(model: Any, train: Any, path: str | os.PathLike[str]) -> None:
    """Write user, position, item and weight of each training sequence; beside them the noise, where it is known."""
    found = instances_of(train)
    weights = model.instance_weights(train.inter_feat).numpy()
    table = pd.DataFrame({"user": found.users, "position": found.positions, "item": found.items, "weight": weights})
    if train.noise_flags is not None:
        table["history_noise"], table["target_noise"] = found.history_noise, found.target_noise
    if train.n_fake_users:
        table["is_fake"] = found.is_fake
    with written_whole(path) as temporary:
        if str(path).endswith(".csv"):
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)
