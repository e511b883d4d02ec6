"""What a detection is worth, told by somebody who knows the fakes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recbole_robust.scores import auc
from recbole_robust.types import Detection


def detection_report(detection: Detection, is_fake: NDArray[np.bool_]) -> dict[str, float | int | None]:
    """Compare a detection with the truth. For evaluation only: no defense may see ``is_fake``.

    Returns:
        ``precision``, ``recall``, ``f1`` of the flagged users and ``auc`` of the scores: fractions; ``n_flagged`` and
        ``n_genuine_lost``: counts; ``genuine_lost``: flagged genuine users as a fraction of the genuine ones. Without
        fakes there is nothing to find: the first four are None (null in JSON). So are ``precision`` where nobody is
        flagged, and ``auc`` and ``genuine_lost`` where nobody is genuine.

    Raises:
        ValueError: truth and detection are of different users (never the user's mistake).

    Shape: ``is_fake`` is ``(n_users,)``.
    """
    is_fake = np.asarray(is_fake, dtype=bool)
    if not is_fake.shape == detection.scores.shape == detection.flagged.shape:
        shapes = f"{detection.scores.shape}, {detection.flagged.shape} and {is_fake.shape}"
        raise ValueError(f"detection report: expected scores, flags and truth of the same users, got {shapes}")
    n_fake, n_flagged = int(is_fake.sum()), int(detection.flagged.sum())
    n_genuine, n_caught = len(is_fake) - n_fake, int((detection.flagged & is_fake).sum())
    n_lost = n_flagged - n_caught
    return {
        "precision": n_caught / n_flagged if n_fake and n_flagged else None,
        "recall": n_caught / n_fake if n_fake else None,
        "f1": 2 * n_caught / (n_fake + n_flagged) if n_fake else None,
        "auc": auc(detection.scores, is_fake) if n_fake and n_genuine else None,
        "n_flagged": n_flagged,
        "n_genuine_lost": n_lost,
        "genuine_lost": n_lost / n_genuine if n_genuine else None,
    }
