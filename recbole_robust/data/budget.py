"""A budget in fractions becomes one in counts here, and nowhere else."""

from __future__ import annotations

from recbole_robust.arguments import share_of
from recbole_robust.types import AttackerView, Budget, TargetMode, UserError

MOST_FAKES_A_USER = 10  # more is a slip of the keyboard, and hours of memory


def make_budget(
    view: AttackerView,
    n_targets: int,
    *,
    attack_size: float | None = 0.03,
    n_fake_users: int | None = None,
    filler_size: float | None = None,
    n_fillers: int | None = None,
    target_mode: TargetMode = "all",
    n_users: int | None = None,
) -> Budget:
    """The budget in counts. A count wins over its fraction; with neither, a profile has the data's mean length.

    An attacker who sees some users only (``known_users``) has the mean length of these, but fakes for all of them: how
    many users a service has is public, and an attack of 3 % stays one of 3 %.

    Args:
        attack_size: fake users as a fraction of the genuine ones, rounded down (APT: 3 % of 943 is 28), at least 1.
        n_users: how many genuine ones there are; None: as many as the view has.
        filler_size: filler items of a profile as a fraction of the items, rounded down.

    Raises:
        UserError: no size given, more than ten fakes a genuine user, or more fillers and targets than there
            are items.
    """
    if n_fake_users is None:
        if attack_size is None:
            raise UserError("attack_size: expected a fraction of the users (or n_fake_users, a count), got neither")
        n_fake_users = max(1, share_of(attack_size, view.n_users if n_users is None else n_users))
    most = MOST_FAKES_A_USER * (view.n_users if n_users is None else n_users)
    if n_fake_users > most:
        raise UserError(
            f"n_fake_users: expected at most {most} ({MOST_FAKES_A_USER} a genuine user), got {n_fake_users}"
        )
    source = "" if n_fillers is not None else " (filler_size)" if filler_size is not None else " (the mean profile)"
    if n_fillers is None:
        n_fillers = share_of(filler_size, view.n_items) if filler_size is not None else view.ratings.nnz // view.n_users
    longest = n_targets if target_mode == "all" else -(-n_targets // min(n_fake_users, n_targets))
    if n_fillers + longest > view.n_items:
        raise UserError(
            f"n_fillers: expected at most {view.n_items - longest} ({view.n_items} items less {longest} targets a "
            f"profile), got {n_fillers}{source}"
        )
    return Budget(n_fake_users=n_fake_users, n_fillers=n_fillers, target_mode=target_mode)
