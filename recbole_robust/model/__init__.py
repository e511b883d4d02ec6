"""Our RecBole models. One file a model; the name of the class is the name on the command line."""

from recbole_robust.model.atjt import atjt
from recbole_robust.model.damped_mean import DampedMean
from recbole_robust.model.mf import MF
from recbole_robust.model.pcmf import PCMF
from recbole_robust.model.pop import Pop
from recbole_robust.model.purify_aug import purify_aug
from recbole_robust.model.purifyaug_mf import PurifyAugMF
from recbole_robust.model.rgcf import RGCF
from recbole_robust.model.seq_context import as_sequential

__all__ = ["MF", "PCMF", "RGCF", "DampedMean", "Pop", "PurifyAugMF", "as_sequential", "atjt", "purify_aug"]
