"""Attacked data sets: views, targets, budgets, poison cards and their injection into the training split; noise."""

from recbole_robust.data.attacked_dataset import AttackedDataset
from recbole_robust.data.card import PoisonCard
from recbole_robust.data.noise import InteractionNoise
from recbole_robust.data.poison import Poison
from recbole_robust.data.views import attacker_view, defender_view

__all__ = ["AttackedDataset", "InteractionNoise", "Poison", "PoisonCard", "attacker_view", "defender_view"]
