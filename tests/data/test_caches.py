"""What is kept from one run for the next never mixes two attacks, two splits or two data sets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data import data_preparation
from recbole.data.dataset import Dataset
from recbole.utils import init_seed
from toy_splits import average, make_run, split

from recbole_robust import AttackedDataset
from recbole_robust.data import load
from recbole_robust.data.load import data_digest, prepare

POISONS = {"clean": None, "10 fakes": average(), "3 fakes": average(n_fake_users=3)}
IN_TURN = ["clean", "10 fakes", "3 fakes", "3 fakes", "clean", "10 fakes"]
N_FAKE = {"clean": 0, "10 fakes": 10, "3 fakes": 3}
ROWS_OF_A_FAKE = 11


def forget() -> None:
    """Behave like a new process: nothing is in memory."""
    load._loaded.clear()


@pytest.fixture(autouse=True)
def _nothing_in_memory():
    forget()
    yield
    forget()


def columns_of(train) -> dict[str, torch.Tensor]:
    return {name: train.inter_feat[name].clone() for name in train.inter_feat.columns}


def assert_equal_columns(left, right) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("model", "new_process"),
    [
        ("BPR", False),
        ("BPR", True),
        ("SASRec", False),
    ],
)
def test_clean_and_two_attacks_in_turn(toy_config, model, new_process):
    keys = {"train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 5} if model == "SASRec" else {}
    fresh = {name: columns_of(split(toy_config(model, **keys), poison).train) for name, poison in POISONS.items()}
    for name in IN_TURN:
        if new_process:
            forget()
        train_data, valid_data, test_data = prepare(toy_config(model, **keys), POISONS[name])
        train = train_data._dataset
        assert train.n_fake_users == N_FAKE[name]
        assert train.user_num == 81 + N_FAKE[name]
        assert valid_data._dataset.user_num == test_data._dataset.user_num == train.user_num
        n_fake_rows = len(train.inter_feat) - train.n_genuine_rows
        assert n_fake_rows == N_FAKE[name] * (ROWS_OF_A_FAKE - (model == "SASRec"))
        assert_equal_columns(columns_of(train), fresh[name])


def test_plain_recbole_with_save_dataloaders(data_path, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["recbole"])
    options = {"data_path": str(data_path), "checkpoint_dir": str(tmp_path), "gpu_id": "", "save_dataloaders": True,
               "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]}}  # fmt: skip
    for name in IN_TURN:
        config = RecBoleConfig("BPR", "toy", config_dict=options)
        init_seed(config["seed"], True)
        train = data_preparation(config, AttackedDataset(Dataset)(config, POISONS[name]))[0]._dataset
        assert train.user_num == 81 + N_FAKE[name]


@pytest.fixture
def own_data(data_path, tmp_path) -> Path:
    """A copy of the toy data that a test may change."""
    shutil.copytree(data_path / "toy", tmp_path / "own" / "toy")
    return tmp_path / "own"


def drop_last_line(own_data: Path) -> None:
    path = own_data / "toy" / "toy.inter"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


@pytest.mark.parametrize("new_process", [True, False])
def test_changed_files_are_read_again(toy_config, own_data, new_process):
    def n_rows() -> int:
        if new_process:
            forget()
        parts = prepare(toy_config("BPR", data_path=str(own_data)))
        return sum(len(loader._dataset.inter_feat) for loader in parts)

    before = n_rows()
    drop_last_line(own_data)
    assert n_rows() == before - 1


def test_the_digest_is_of_contents(toy_config, own_data, data_path, tmp_path):
    same = data_digest(toy_config("BPR", data_path=str(own_data)))
    assert same == data_digest(toy_config("BPR", data_path=str(data_path)))
    drop_last_line(own_data)
    assert data_digest(toy_config("BPR", data_path=str(own_data))) != same
    heldout = tmp_path / "test.inter"
    digests = set()
    for content in ("user_id:token\titem_id:token\nu0\ti28\n", "user_id:token\titem_id:token\nu0\ti31\n"):
        heldout.write_text(content)
        digests.add(data_digest(toy_config("MF", heldout_file=str(heldout))))
    assert len(digests | {same}) == 3


def test_an_attacked_run_leaves_the_data_set_in_memory_alone(toy_config):
    before = columns_of(split(toy_config("MF")).train)
    kept = next(iter(load._loaded.values()))
    attacked = split(toy_config("MF"), POISONS["10 fakes"])
    attacked.train.inter_feat["rating"].zero_()
    attacked.train.item_counter
    after = split(toy_config("MF"))
    assert next(iter(load._loaded.values())) is kept, "the files were not read again"
    assert_equal_columns(columns_of(after.train), before)
    assert after.train.user_num == kept.user_num == 81
    assert after.train.poison is None
    assert after.train.card is None


def test_each_run_has_its_own_config(toy_config):
    first, second = toy_config("MF", topk=[5]), toy_config("MF", topk=[7])
    assert split(first).train.config is first
    assert split(second).train.config is second
    assert split(second).test.config["topk"] == [7]


def test_trainings_of_one_second_do_not_share_a_file(toy_config, monkeypatch):
    monkeypatch.setattr("recbole.utils.get_local_time", lambda: "now")
    files = set()
    for _ in range(3):
        run = make_run(toy_config("BPR", epochs=1))
        run.fit()
        files.add(run.trainer.saved_model_file)
    assert len(files) == 3
    assert all(Path(file).is_file() for file in files)
