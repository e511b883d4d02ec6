"""MF: matrix factorisation, the victim of the published tables.

Reference:
    Koren et al. "Matrix Factorization Techniques for Recommender Systems." Computer 2009; eq. (1) of "Exploration &
    Exploitation: A Unified Framework for Data Purification & Augmentation in Recommendation Systems", 2025;
    the recipe of Wu et al. "Fight Fire with Fire: Towards Robust Recommender Systems via Adversarial Poisoning
    Training." SIGIR 2021 (properties/protocol/apt.yaml).
"""

from __future__ import annotations

from recbole.model.init import xavier_normal_initialization
from recbole.model.loss import BPRLoss
from torch import Tensor, nn

from recbole_robust.model.explicit import ExplicitRecommender, rows_l2


class MF(ExplicitRecommender):
    """Rating prediction by the inner product of a user and an item vector, by default on the observed ratings only.

    ``min sum (p_u . q_i - r_ui)^2 + reg_weight (|p_u|^2 + |q_i|^2)`` (eq. 1), both terms as means over the batch;
    ``loss_type: BPR`` gives the pairwise model. ``weight_decay`` (the optimiser's) shrinks the whole tables.

    Shape:
        user_embedding.weight ``(n_users, d)``, item_embedding.weight ``(n_items, d)``.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.embedding_size = config["embedding_size"]
        self.reg_weight = config["reg_weight"] or 0.0
        self.user_embedding = nn.Embedding(self.n_users, self.embedding_size)
        self.item_embedding = nn.Embedding(self.n_items, self.embedding_size)
        self.bpr = BPRLoss()
        self.apply(xavier_normal_initialization)

    def get_user_embedding(self, user: Tensor) -> Tensor:
        return self.user_embedding(user)

    def get_item_embedding(self, item: Tensor) -> Tensor:
        return self.item_embedding(item)

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        return self.user_embedding(user), self.item_embedding(item)

    def calculate_loss(self, interaction) -> Tensor:
        p, q = self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID])
        rows: tuple[Tensor, ...] = (p, q)
        if self.loss_type == "BPR":
            q_neg = self.item_embedding(interaction[self.NEG_ITEM_ID])
            loss = self.bpr((p * q).sum(dim=1), (p * q_neg).sum(dim=1))
            rows = (p, q, q_neg)
        else:
            loss = self.weigh(((p * q).sum(dim=1) - self.rating_target(interaction)).pow(2), interaction).mean()
        return loss + self.reg_weight * rows_l2(*rows) if self.reg_weight else loss

    def predict(self, interaction) -> Tensor:
        p, q = self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID])
        return (p * q).sum(dim=1) * self.rating_scale

    def full_sort_predict(self, interaction) -> Tensor:
        p = self.user_embedding(interaction[self.USER_ID]) * self.rating_scale
        return (p @ self.item_embedding.weight.T).view(-1)
