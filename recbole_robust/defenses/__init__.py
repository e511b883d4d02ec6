"""Defenses, one a file; none imports recbole.

Detectors, which drop users before the training: :class:`PCA` (too little of their own), :class:`CoRating` (too much
in common on rare items) and :class:`FAP` (near to suspicious users). :func:`detection_report` says what they are worth.
"""

from recbole_robust.defenses.co_rating import CoRating
from recbole_robust.defenses.detection_report import detection_report
from recbole_robust.defenses.fap import FAP
from recbole_robust.defenses.pca import PCA

__all__ = ["FAP", "PCA", "CoRating", "detection_report"]
