"""The published splits and the effect of the attacks on real data."""

import lzma
import os
import shutil
from pathlib import Path

import pytest

from recbole_robust.config import Config
from recbole_robust.data import attacker_view
from recbole_robust.data.heldout import read_heldout
from recbole_robust.data.load import prepare
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
    (folder / "ml-1m").mkdir()
    with lzma.open(DATA / "ml-1m.inter.xz") as packed, (folder / "ml-1m" / "ml-1m.inter").open("wb") as plain:
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


def test_average_lifts_more_than_random_and_random_more_than_nothing(folder):
    hits = {}
    for attack in ("Random", "Average"):
        keys = {"attack": attack, "seed": 0, "output_dir": str(folder / "out"), "gpu_id": "", "show_progress": False}
        heldout = str(DATA / "ml-100k-apt.test.inter.xz")
        result = run_recbole_robust("MF", "ml-100k", config_dict={**keys, "heldout_file": heldout})
        hits["clean"], hits[attack] = result["clean"]["targethr@50"], result["attacked"]["targethr@50"]
        assert 0.18 < result["clean"]["hit@50"] < 0.26
    assert hits["clean"] < 0.1 < hits["Random"] < hits["Average"] < 0.6
