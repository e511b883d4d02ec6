"""Writes dataset/toy: 80 users, 60 items, ratings of a planted rank-2 model, times, user and item features.

Synthetic, so that it may be shipped: `python dataset/make_toy.py` writes the same bytes again.
"""

from pathlib import Path

import numpy as np

N_USERS, N_ITEMS, MEAN_LENGTH = 80, 60, 22


def main() -> None:
    rng = np.random.default_rng(20)
    folder = Path(__file__).parent / "toy"
    folder.mkdir(exist_ok=True)
    users, items = rng.normal(size=(N_USERS, 2)), rng.normal(size=(N_ITEMS, 2))
    taste = users @ items.T + 0.5 * rng.normal(size=(N_USERS, N_ITEMS))
    appeal = np.exp(-np.arange(N_ITEMS) / 15.0)[rng.permutation(N_ITEMS)]
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(N_USERS):
        length = int(np.clip(rng.poisson(MEAN_LENGTH), 8, 40))
        chosen = rng.choice(N_ITEMS, size=length, replace=False, p=appeal / appeal.sum())
        times = 1_000_000 + np.sort(rng.integers(0, 100_000, size=length))
        ratings = np.clip(np.round(3.5 + 0.8 * taste[user, chosen]), 1, 5).astype(int)
        lines += [f"u{user}\ti{i}\t{r}\t{t}" for i, r, t in zip(chosen, ratings, times, strict=True)]
    (folder / "toy.inter").write_text("\n".join(lines) + "\n")
    lines = ["user_id:token\tage:float\tgender:token"]
    lines += [f"u{user}\t{rng.integers(18, 70)}\t{rng.choice(['F', 'M'])}" for user in range(N_USERS)]
    (folder / "toy.user").write_text("\n".join(lines) + "\n")
    lines = ["item_id:token\tyear:float\tclass:token_seq"]
    kinds = np.array(["drama", "comedy", "action", "noir"])
    for item in range(N_ITEMS):
        some = " ".join(rng.choice(kinds, size=rng.integers(1, 3), replace=False))
        lines.append(f"i{item}\t{rng.integers(1950, 2000)}\t{some}")
    (folder / "toy.item").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
