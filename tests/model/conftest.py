"""Models without RecBole's Config and Dataset: the YAML's own values over a small synthetic set of ratings."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from recbole.data.interaction import Interaction

from recbole_robust.config import property_file

FIELDS = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "RATING_FIELD": "rating", "NEG_PREFIX": "neg_"}


class PlainConfig(dict):
    """A dict that, like RecBole's Config, gives None for what it does not have."""

    def __getitem__(self, key: str) -> Any:
        return self.get(key)


def model_keys(name: str) -> dict[str, Any]:
    return yaml.safe_load(property_file("model", name).read_text(encoding="utf-8"))


@pytest.fixture
def ratings() -> SimpleNamespace:
    """2,000 ratings of rank 4 by 60 users of 80 items. Ids start at 1, as RecBole's."""
    generator = torch.Generator().manual_seed(7)
    user_factors, item_factors = (torch.randn(n, 4, generator=generator) for n in (61, 81))
    cells = torch.randperm(60 * 80, generator=generator)[:2000]
    user, item = cells // 80 + 1, cells % 80 + 1
    rating = (3 + (user_factors[user] * item_factors[item]).sum(1)).round().clamp(1, 5)
    inter_feat = Interaction({"user_id": user, "item_id": item, "rating": rating})
    return SimpleNamespace(
        inter_feat=inter_feat,
        rating_range=(1.0, 5.0),
        n_users=61,
        n_items=81,
        num=lambda field: {"user_id": 61, "item_id": 81}[field],
    )


@pytest.fixture
def build(ratings) -> Callable[..., torch.nn.Module]:
    """``build(model_class, key=value, ...)``: a model under seed 0, by its YAML and the given keys."""

    def make(model_class: type, dataset=None, **keys: Any) -> torch.nn.Module:
        config = PlainConfig(model_keys(model_class.__name__), **FIELDS, device=torch.device("cpu"), **keys)
        torch.manual_seed(0)
        return model_class(config, dataset or ratings)

    return make
