"""The catalogue of attacks, one a file; none imports recbole.

Heuristic attacks, by where the fillers come from:

- uniform over the catalogue: :class:`Random` (rated around the global mean), :class:`Average` (around each item's mean)
  and :class:`LoveHate` (at the other end of the scale);
- suggested by the data: :class:`Bandwagon` (popular items), :class:`Segment` (what the users of one taste rate),
  :class:`CopyProfile` (what one real user rates) and :class:`Diluted` (that and popular items, to hide).

Attacks that learn:

- :class:`AUSH` (a real user's fillers and ratings, and popular items that a GAN rates);
- by gradient through a surrogate (``surrogate.py``, ``gradient.py``): :class:`TNA`, one fake after the other, and all
  fakes at once :class:`PGA`, :class:`AdaptivePGA` (through a defense, too), :class:`RevAdv` and :class:`DADA`;
- :class:`DPA2DL` (what a poisoned model recommends to the fakes).

And no attack, but the control of every defense: :class:`Organic` (genuine users join).
"""

from recbole_robust.attacks.adaptive_pga import AdaptivePGA
from recbole_robust.attacks.aush import AUSH
from recbole_robust.attacks.average import Average
from recbole_robust.attacks.bandwagon import Bandwagon
from recbole_robust.attacks.copy_profile import CopyProfile
from recbole_robust.attacks.dada import DADA
from recbole_robust.attacks.diluted import Diluted
from recbole_robust.attacks.dpa2dl import DPA2DL
from recbole_robust.attacks.love_hate import LoveHate
from recbole_robust.attacks.organic import Organic
from recbole_robust.attacks.pga import PGA
from recbole_robust.attacks.random import Random
from recbole_robust.attacks.rev_adv import RevAdv
from recbole_robust.attacks.segment import Segment
from recbole_robust.attacks.tna import TNA

__all__ = [
    "AUSH",
    "DADA",
    "DPA2DL",
    "PGA",
    "TNA",
    "AdaptivePGA",
    "Average",
    "Bandwagon",
    "CopyProfile",
    "Diluted",
    "LoveHate",
    "Organic",
    "Random",
    "RevAdv",
    "Segment",
]
