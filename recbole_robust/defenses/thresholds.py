"""From scores to flags: how many of the most suspicious users a detector drops, without knowing how many fakes are."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from recbole_robust.arguments import share_of
from recbole_robust.defenses.checks import require_amount, require_number
from recbole_robust.types import FloatArray

Amount = Literal["auto"] | int | float


@dataclass(frozen=True)
class Threshold:
    """Flag the users whose scores are outliers on the suspicious side; every detector is one.

    Reference: B. Iglewicz, D. C. Hoaglin. How to Detect and Handle Outliers. ASQC Quality Press 1993 (:func:`robust_z`
    and its usual limit of 3.5).

    The median and the MAD are blind to fakes as long as these are few. They expect scores that are nearly symmetrical
    over the genuine users: a detector with skewed scores hands over their root or their logarithm. Where the genuine
    users fall into two groups, as in FilmTrust, the smaller one looks like an outlier: ``max_flagged`` limits the loss.

    Args:
        n_flag: ``auto``: those with ``robust_z`` above ``mad_threshold``; an integer: that many users; a number below
            1: that share of the judged users, rounded down. (Default: ``auto``)
        mad_threshold: in robust standard deviations, >= 0; for ``auto`` only. (Default: 3.5)
        max_flagged: the largest share of the judged users that ``auto`` may flag. (Default: 0.1)

    Raises:
        UserError: a hyper-parameter is out of its range.
    """

    n_flag: Amount = "auto"
    mad_threshold: float = 3.5
    max_flagged: float = 0.1

    kind: ClassVar[str] = "detector"

    def __post_init__(self) -> None:
        require_amount("n_flag", self.n_flag)
        require_number("mad_threshold", self.mad_threshold, 0)
        require_number("max_flagged", self.max_flagged, 0, 1)

    def flag(self, scores: FloatArray, judged: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
        """Who is flagged; nobody outside of ``judged`` is (users without ratings have done nothing).

        ``rng`` decides ties. The order of the rows must not: an attack's rows often come last.

        Shape: all ``(n_users,)``.
        """
        users = np.flatnonzero(judged)
        scores = scores[users]
        if self.n_flag == "auto":
            n_outliers = int((robust_z(scores) > self.mad_threshold).sum())
            n_flag = min(n_outliers, share_of(self.max_flagged, len(users)))
        elif isinstance(self.n_flag, Integral):
            n_flag = int(self.n_flag)
        else:
            n_flag = share_of(float(self.n_flag), len(users))
        flagged = np.zeros(len(judged), dtype=bool)
        flagged[users[np.lexsort((rng.random(len(users)), -scores))[:n_flag]]] = True
        return flagged


def robust_z(scores: FloatArray) -> FloatArray:
    """``(score - median) / (1.4826 MAD)``: standard deviations from the middle, if most scores are normal.

    Where more than half of the scores are equal the MAD is 0, and 1.2533 times the mean absolute deviation takes its
    place; equal scores are at 0.

    Shape: ``(n_scores,)`` to ``(n_scores,)``.
    """
    if len(scores) == 0:
        return np.zeros(0)
    deviations: FloatArray = scores - np.median(scores)
    scale = 1.4826 * np.median(np.abs(deviations)) or 1.2533 * np.abs(deviations).mean()
    return deviations / scale if scale > 0 else np.zeros(len(scores))
