"""Models without RecBole's Config and Dataset: the YAML's own values over a small synthetic set of ratings."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from recbole.data.interaction import Interaction
from torch import nn

from recbole_robust.config import property_file

FIELDS = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "RATING_FIELD": "rating", "NEG_PREFIX": "neg_"}


class PlainConfig(dict):
    """A dict that, like RecBole's Config, gives None for what it does not have; it notes what it was asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return self.get(key)


@pytest.fixture(scope="session")
def model_keys() -> Callable[[str], dict[str, Any]]:
    """``model_keys(name)``: what properties/model/<name>.yaml says."""
    return lambda name: yaml.safe_load(property_file("model", name).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def plain_config(model_keys) -> Callable[..., PlainConfig]:
    """``plain_config(name, key=value, ...)``: the model's YAML with the given keys over it."""
    return lambda name, **keys: PlainConfig({**model_keys(name), **FIELDS, "device": torch.device("cpu"), **keys})


@pytest.fixture(scope="session")
def ratings() -> SimpleNamespace:
    """2,000 ratings of rank 4 by 60 users of 80 items. Ids start at 1, as RecBole's."""
    generator = torch.Generator().manual_seed(7)
    user_factors, item_factors = (torch.randn(n, 4, generator=generator) for n in (61, 81))
    cells = torch.randperm(60 * 80, generator=generator)[:2000]
    user, item = cells // 80 + 1, cells % 80 + 1
    rating = (3 + (user_factors[user] * item_factors[item]).sum(1)).round().clamp(1, 5)
    inter_feat = Interaction({"user_id": user, "item_id": item, "rating": rating})
    sizes = {"user_id": 61, "item_id": 81}
    return SimpleNamespace(inter_feat=inter_feat, rating_range=(1.0, 5.0), num=sizes.get)


@pytest.fixture(scope="session")
def build(ratings, plain_config) -> Callable[..., nn.Module]:
    """``build(model_class, dataset, key=value, ...)``: a model under seed 0; the data set is ``ratings`` by default."""

    def make(model_class: type, dataset: Any = ratings, **keys: Any) -> nn.Module:
        torch.manual_seed(0)
        return model_class(plain_config(getattr(model_class, "defended_name", model_class.__name__), **keys), dataset)

    return make
