"""Errors of predicted ratings, beside the ranking metrics (RecBole allows only one kind a run)."""

from __future__ import annotations

import numpy as np
import torch

CHUNK_ROWS = 1 << 17


@torch.no_grad()
def rating_metrics(trainer, split, wanted: list[str] | None) -> dict[str, float]:
    """RMSE and MAE of the predicted ratings of a split's rows, in stars (the raw log's ratings).

    Returns:
        ``{"rmse": ..., "mae": ...}``, those that ``wanted`` names; empty where there are no rows or no ratings.
    """
    wanted_names = [name.lower() for name in wanted or []]
    rows, raw = split.inter_feat, split.raw_log
    if not wanted_names or not len(rows) or raw.ratings is None:
        return {}
    trainer.model.eval()
    parts = []
    for start in range(0, len(rows), CHUNK_ROWS):
        batch = split.join(rows[slice(start, start + CHUNK_ROWS)]).to(trainer.device)
        parts.append(trainer.model.predict(batch).reshape(-1).cpu())
    truth = raw.ratings[raw.find(rows[split.uid_field].numpy(), rows[split.iid_field].numpy())]
    errors = torch.cat(parts).double().numpy() - truth
    values = {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.mean(np.abs(errors)))}
    return {name: values[name] for name in wanted_names if name in values}
