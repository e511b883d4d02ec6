"""Defenses: losses around any model here; detectors before the training beside them."""

from recbole_robust.defenses.adversarial import AT, GDA, VAT, PamaCF
from recbole_robust.defenses.defended import LossDefense, defended
from recbole_robust.defenses.denoising import RCE, TCE

__all__ = ["AT", "GDA", "RCE", "TCE", "VAT", "LossDefense", "PamaCF", "defended"]
