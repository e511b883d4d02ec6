"""Group evidence as weights: many who act like one user count as one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from recbole_robust.defenses.checks import require, require_choice, require_number
from recbole_robust.group_evidence import Evidence, coordinated_raters
from recbole_robust.types import DefenderView, FloatArray


@dataclass(frozen=True)
class GroupWeights:
    """A rating weighs ``1 / (1 + c_ui)`` in the loss, c_ui of :func:`recbole_robust.group_evidence.coordinated_raters`.

    Nobody is dropped, and no user is judged as a whole: of a user taken for one of a group only those top ratings
    weigh less that the group shares. It is the purification of PurifyAugMF, for any model whose samples can be weighed.

    Reference: none known; the project's own.

    Args:
        low: in units of the limit that hardly any genuine user exceeds; here two users begin to act like one ...
            (Default: 0.3)
        high: ... and are one from here on. (Default: 1)
        own_share: how far the rated item is evidence itself, 0 to 1. (Default: 0.5)
        usual: quantile, one vote a user, of what stands behind the top ratings of items with more than ten that counts
            as usual, 0 to 1. Fakes of more than 1 - usual of the users make themselves usual: then nothing weighs
            less. (Default: 0.95)
        evidence: of two users: ``idf``, the rarity of what they share; ``surprise``, how little chance explains it,
            which sees fakes in sparse data, too, and less of learned profiles where targets are few; or ``either``: the
            larger c_ui of both. (Default: ``idf``)
    """

    low: float = 0.3
    high: float = 1.0
    own_share: float = 0.5
    usual: float = 0.95
    evidence: Evidence = "idf"

    kind: ClassVar[str] = "weights"

    def __post_init__(self) -> None:
        require_number("low", self.low, 0)
        require_number("high", self.high, 0)
        require(self.low < self.high, "low", f"a number below high, {self.high:g}", self.low)
        require_number("own_share", self.own_share, 0, 1)
        require_number("usual", self.usual, 0, 1)
        require_choice("evidence", self.evidence, Evidence)

    def __call__(self, view: DefenderView, *, rng: np.random.Generator) -> FloatArray:
        """The weight of each rating, in the order of ``view.ratings.data``. Shape: ``(n_ratings,)``, in (0, 1]."""
        count = coordinated_raters(view.ratings, top_rating=view.rating_max, **asdict(self))
        return 1.0 / (1.0 + count)
