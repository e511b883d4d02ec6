"""Not an attack: genuine users, held out of the data, join it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from recbole_robust.types import AttackerView, Budget, FakeProfiles, Knowledge, UserError


@dataclass(frozen=True)
class Organic:
    """The control of every defense: as many real new fans of the targets as an attack has fakes, with all their rows.

    Reference: none; the control is this project's own.

    The key ``new_fans`` holds that many users who like a target out of the data, in the clean run too. Here they join.
    Their lift is what a recommender should give; a defense is measured by how much of it is left.
    """

    knowledge: ClassVar[Knowledge] = "black-box"
    is_control: ClassVar[bool] = True

    def __call__(
        self, view: AttackerView, target_items: ArrayLike, budget: Budget, *, rng: np.random.Generator
    ) -> FakeProfiles:
        if view.newcomers is None:
            raise UserError("new_fans: expected at least 1 for attack Organic, got 0")
        if budget.n_fake_users != view.newcomers.n_users:
            raise UserError(
                f"n_fake_users: expected the {view.newcomers.n_users} of new_fans, got {budget.n_fake_users}"
            )
        ratings = view.newcomers.ratings
        if not np.all((ratings >= view.rating_min) & (ratings <= view.rating_max)):
            scale = f"{view.rating_min:g} to {view.rating_max:g}"
            raise UserError(f"new_fans: expected ratings from {scale}, the scale of those who stay, got others")
        return view.newcomers.check(view)
