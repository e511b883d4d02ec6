"""The published splits and the effect of the attacks on real data."""

import lzma
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from recbole_robust import Budget, registry, scores
from recbole_robust.config import Config
from recbole_robust.data import attacker_view
from recbole_robust.data.budget import make_budget
from recbole_robust.data.heldout import read_heldout
from recbole_robust.data.load import clean_train_split, prepare
from recbole_robust.quick_start import make_card, run_recbole_robust

DATA = Path(os.environ.get("RECBOLE_ROBUST_DATA", ""))
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not (DATA / "ml-1m.inter.xz").is_file(), reason="RECBOLE_ROBUST_DATA names no data folder"),
]


def apt_config(dataset: str, folder: Path, **keys) -> Config:
    heldout = str(DATA / f"{dataset}-apt.test.inter.xz")
    fixed = {"data_path": str(folder), "output_dir": str(folder / "out"), "gpu_id": "", "show_progress": False}
    return Config("MF", dataset, config_dict={**fixed, "heldout_file": heldout, "log_tensorboard": False, **keys})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    for name in ("ml-1m", "ml-latest-small"):
        (folder / name).mkdir()
        with lzma.open(DATA / f"{name}.inter.xz") as packed, (folder / name / f"{name}.inter").open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    return folder


@pytest.mark.parametrize(
    ("dataset", "n_train", "n_users", "n_fakes", "n_fillers"),
    [("ml-100k", 99_057, 943, 28, 20), ("ml-1m", 994_169, 6040, 181, 164)],
)
def test_the_published_split_and_budget(dataset, n_train, n_users, n_fakes, n_fillers, folder):
    config = apt_config(dataset, folder, attack="Average")
    train, valid, test = (loader._dataset for loader in prepare(config))
    assert (len(train.inter_feat), len(valid.inter_feat), len(test.inter_feat)) == (n_train, 0, n_users)
    rows = test.inter_feat
    tokens = {
        (str(test.id2token("user_id", int(u))), str(test.id2token("item_id", int(i))))
        for u, i in zip(rows["user_id"], rows["item_id"], strict=True)
    }
    assert tokens == set(read_heldout(config["heldout_file"], "user_id", "item_id"))
    assert attacker_view(train).ratings.nnz == n_train
    card = make_card(config)
    assert (card.profiles.n_users, card.settings["n_fillers"]) == (n_fakes, n_fillers)
    assert card.target_items == config["target_sets"][dataset]["apt_1"]


@pytest.fixture(scope="module")
def half_stars(folder):
    """What an attacker sees of ml-latest-small: 610 users, ratings from 0.5 to 5 in steps of 0.5."""
    config = Config("MF", "ml-latest-small", config_dict={"data_path": str(folder), "output_dir": str(folder / "out"),
                                                          "gpu_id": "", "protocol": "apt"})  # fmt: skip
    return attacker_view(clean_train_split(config))


QUICK = {"AUSH": {"epochs": 3}, **{name: {"n_steps": 2, "n_sweeps": 2} for name in ("TNA", "DADA", "PGA", "RevAdv")},
         "DPA2DL": {"n_blocks": 2, "n_epochs": 2, "n_sweeps": 2}}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, cls in registry.ATTACKS.items() if not hasattr(cls, "is_control")])
def test_ratings_are_on_the_grid_of_half_stars(name, half_stars):
    assert (half_stars.rating_min, half_stars.rating_max, half_stars.rating_step) == (0.5, 5.0, 0.5)
    attack = registry.ATTACKS[name](**QUICK.get(name, {}))
    targets = np.argsort(half_stars.item_counts, kind="stable")[100:103]
    budget = make_budget(half_stars, 3, attack_size=0.01, n_fillers=30, target_mode="all", n_users=half_stars.n_users)
    fakes = attack(half_stars, targets, budget, rng=np.random.default_rng(0))
    assert set(np.unique(fakes.ratings)) <= set(np.arange(1, 11) / 2)
    np.testing.assert_array_equal(np.diff(fakes.user_ptr), np.full(6, 33))


def test_aush_hides_better_than_the_simple_attacks():
    """Its profiles are nearer to the genuine ratings, and stand out less by popularity and by PCA loading."""
    stealth = {}
    for name, args in (("Random", {}), ("Average", {}), ("AUSH", {"epochs": 20})):
        keys = {"attack": name, "attack_args": args, "seed": 0, "gpu_id": "", "protocol": "apt"}
        view = attacker_view(clean_train_split(Config("MF", "ml-100k", config_dict=keys)))
        targets = np.argsort(view.item_counts, kind="stable")[300:305]
        profiles = registry.ATTACKS[name](**args)(view, targets, Budget(28, 20), rng=np.random.default_rng(0))
        stealth[name] = scores.stealth(view, profiles)
    for simple in ("Random", "Average"):
        assert stealth["AUSH"]["tvd"] < stealth[simple]["tvd"] and stealth["AUSH"]["js"] < stealth[simple]["js"]
    for name in ("popularity_auc", "pca_auc"):
        assert stealth["AUSH"][name] < stealth["Random"][name]  # two-sided: .5 is hidden


def test_average_lifts_more_than_random_and_random_more_than_nothing(folder):
    hits = {}
    for attack in ("Random", "Average"):
        keys = {"attack": attack, "seed": 0, "output_dir": str(folder / "out"), "gpu_id": "", "show_progress": False}
        heldout = str(DATA / "ml-100k-apt.test.inter.xz")
        result = run_recbole_robust("MF", "ml-100k", config_dict={**keys, "heldout_file": heldout})
        hits["clean"], hits[attack] = result["clean"]["targethr@50"], result["attacked"]["targethr@50"]
        assert 0.18 < result["clean"]["hit@50"] < 0.26
    assert hits["clean"] < 0.1 < hits["Random"] < hits["Average"] < 0.6
