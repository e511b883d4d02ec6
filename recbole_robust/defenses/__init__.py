"""Defenses of any model; a defense that is a model in itself (PCMF, RGCF, PurifyAugMF) stands in ``model/``.

Detectors, which drop users before the training: :class:`PCA` (too little of their own), :class:`CoRating` (too much
in common on rare items) and :class:`FAP` (near to suspicious users). :func:`detection_report` says what they are worth.

Losses: the adversarial ones (:class:`AT`, :class:`VAT`, :class:`PamaCF`, :class:`GDA`) add the loss of perturbed
vectors, the denoising ones (:class:`TCE`, :class:`RCE`) weigh the samples. :func:`defended` puts one around a model.

Weights: :class:`GroupWeights` lets a rating count for less the more others stand behind it as one voice.

Training: :class:`APT` puts users of its own among the training rows, anew from time to time.
"""

from recbole_robust.defenses.adversarial import AT, GDA, VAT, PamaCF
from recbole_robust.defenses.apt import APT
from recbole_robust.defenses.co_rating import CoRating
from recbole_robust.defenses.defended import LossDefense, defended
from recbole_robust.defenses.denoising import RCE, TCE
from recbole_robust.defenses.detection_report import detection_report
from recbole_robust.defenses.fap import FAP
from recbole_robust.defenses.group_weights import GroupWeights
from recbole_robust.defenses.pca import PCA

__all__ = [
    "APT",
    "AT",
    "FAP",
    "GDA",
    "PCA",
    "RCE",
    "TCE",
    "VAT",
    "CoRating",
    "GroupWeights",
    "LossDefense",
    "PamaCF",
    "defended",
    "detection_report",
]
