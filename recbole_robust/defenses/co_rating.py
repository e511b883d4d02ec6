"""Group evidence: fakes that push the same targets share them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recbole_robust.defenses.checks import is_number, require, require_choice, require_number
from recbole_robust.defenses.thresholds import Threshold
from recbole_robust.group_evidence import Kind, Length, co_rating
from recbole_robust.types import DefenderView, Detection


@dataclass(frozen=True)
class CoRating(Threshold):
    """Flag users who share many top ratings of rarely rated items with their closest users.

    Reference: none known. This is the project's own baseline: a defense that does not beat it is not worth its cost.

    The score is :func:`recbole_robust.group_evidence.co_rating`,

        score_u = mean_(v of the n_neighbours largest) G_uv / l_u^length_power,   G_uv = sum_i idf_i^idf_power,

    over the items that u and v both gave the top rating, l_u the length of u. The threshold looks at its square root,
    which is nearly symmetrical over genuine users (the logarithm is skewed to the left). ``length_power`` 1/2 asks too
    little of long profiles: over MovieLens users the mean grows like n_u^0.9, n_u top ratings. Where profiles are long
    themselves (164 fillers on MovieLens-1M) 3/4 asks too much: it misses half of
    the fakes and more.

    It is weak where each fake rates a target of its own (``target_mode: split``), where the fakes are so many that
    their targets are no longer rare, and on data without ratings; it is blind where targets are rated lowest
    (``intent: nuke``).

    ``evidence: surprise`` asks instead how little chance explains what two users share
    (:func:`recbole_robust.group_evidence.co_rating`). It needs none of the powers, and finds fakes in sparse data, too,
    where most users share nothing with anybody: the threshold looks at those who do.

    Args:
        evidence: ``idf`` or ``surprise``. (Default: ``idf``)
        n_neighbours: closest users that count. (Default: 20)
        idf_power: how much more a rare item counts, >= 0; like what follows of ``idf`` alone. (Default: 3)
        length: of a user: ``count``, top ratings, or ``chance``, what he shares with anybody by chance, which an
            attacker cannot raise by popular items. (Default: ``count``)
        length_power: of a user's length, >= 0. (Default: 0.75)
        top_rating: of both; ratings from here on are top ratings; None: the highest of the scale. (Default: None)
        mad_threshold: see :class:`Threshold`. (Default: 3)
    """

    mad_threshold: float = 3.0
    evidence: Kind = "idf"
    n_neighbours: int = 20
    idf_power: float = 3.0
    length: Length = "count"
    length_power: float = 0.75
    top_rating: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("evidence", self.evidence, Kind)
        require_number("n_neighbours", self.n_neighbours, 1, integer=True)
        require_number("idf_power", self.idf_power, 0)
        require_choice("length", self.length, Length)
        require_number("length_power", self.length_power, 0)
        require(self.top_rating is None or is_number(self.top_rating), "top_rating", "a number", self.top_rating)

    def __call__(self, view: DefenderView, *, rng: np.random.Generator) -> Detection:
        """Shape: ``view.ratings`` is ``(n_users, n_items)``; scores >= 0."""
        top_rating = view.rating_max if self.top_rating is None else self.top_rating
        require(top_rating <= view.rating_max, "top_rating", f"at most {view.rating_max:g}", top_rating)
        scores = co_rating(
            view.ratings,
            self.n_neighbours,
            top_rating,
            evidence=self.evidence,
            idf_power=self.idf_power,
            length=self.length,
            length_power=self.length_power,
        )
        judged = scores > 0 if self.evidence == "surprise" else np.diff(view.ratings.indptr) > 0
        return Detection(scores, self.flag(np.sqrt(scores), judged, rng))
