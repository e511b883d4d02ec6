"""recbole-robust: shilling attacks, robust recommenders and trustworthy measurement as a RecBole plugin."""

from recbole_robust import compat
from recbole_robust.attacks import (
    AUSH,
    DADA,
    DPA2DL,
    PGA,
    TNA,
    AdaptivePGA,
    Average,
    Bandwagon,
    CopyProfile,
    Diluted,
    LoveHate,
    Random,
    RevAdv,
    Segment,
)
from recbole_robust.data import AttackedDataset, InteractionNoise, Poison, PoisonCard
from recbole_robust.evaluation import register_metrics
from recbole_robust.types import AttackerView, Budget, DefenderView, FakeProfiles, Outcome, UserError

__version__ = "0.1.0"

compat.apply()
register_metrics()

__all__ = [
    "AUSH",
    "DADA",
    "DPA2DL",
    "PGA",
    "TNA",
    "AdaptivePGA",
    "AttackedDataset",
    "AttackerView",
    "Average",
    "Bandwagon",
    "Budget",
    "CopyProfile",
    "DefenderView",
    "Diluted",
    "FakeProfiles",
    "InteractionNoise",
    "LoveHate",
    "Outcome",
    "Poison",
    "PoisonCard",
    "Random",
    "RevAdv",
    "Segment",
    "UserError",
    "__version__",
]
