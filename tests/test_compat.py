"""compat.py: a test or more for each cause. Where the installed library is right, the test makes it behave wrongly."""

import contextlib
import inspect
import io
import pickle
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset, KnowledgeBasedDataset, SequentialDataset, kg_dataset, sequential_dataset
from recbole.data.dataset import dataset as dataset_module
from recbole.evaluator.collector import Collector, DataStruct
from scipy.sparse import dok_matrix

from recbole_robust import compat

compat.apply()
EXAMPLE = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
NUMPY_NAMES = ("float_", "complex_", "unicode_", "bool8", "int", "float", "complex", "object", "str", "unicode")
ORIGINAL_FILL_NAN = inspect.unwrap(Dataset._fill_nan)


class SafeDataset(compat.PandasSafeDataset, Dataset):
    pass


class SafeSequentialDataset(compat.PandasSafeDataset, SequentialDataset):
    pass


@contextlib.contextmanager
def pandas_copies_on_write():
    """pandas 3's behaviour; pandas 2 has it as an option, pandas 3 always."""
    if int(pd.__version__.split(".")[0]) >= 3:
        yield
        return
    with pd.option_context("mode.copy_on_write", True):
        yield


@pytest.fixture
def undo(monkeypatch):
    """Put back, at the end, everything that a fix may have set."""
    for module in (dataset_module, sequential_dataset, kg_dataset):
        monkeypatch.setattr(module, "len", getattr(module, "len", len), raising=False)
    monkeypatch.setattr(dataset_module, "pd", dataset_module.pd)
    for name in ("_fill_nan", "_download", "_preload_weight_matrix"):
        monkeypatch.setattr(Dataset, name, getattr(Dataset, name))
    monkeypatch.setattr(Collector, "get_data_struct", Collector.get_data_struct)
    return monkeypatch


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A data set with a blank in every kind of column; returns what makes a Dataset of it."""
    monkeypatch.setattr("sys.argv", ["pytest"])
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "toy.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\tweights:float_seq\n"
        "a\tx\t5\t1\t1 2\na\ty\t3\t2\t4\nb\tx\t4\t3\t\nb\tz\t\t4\t0 2 4\nc\ty\t1\t5\t3\nc\tz\t2\t6\t1 1\n"
    )
    (folder / "toy.user").write_text("user_id:token\tage:float\tjob:token\na\t20\tp\nb\t\t\nc\t40\tq\n")
    (folder / "toy.item").write_text("item_id:token\tclass:token_seq\tscore:float\nx\tu v\t1\ny\t\t2\nz\tv\t6\n")

    def make(cls=SafeDataset, model="BPR", **options):
        load_col = {
            "inter": ["user_id", "item_id", "rating", "timestamp", "weights"],
            "user": ["user_id", "age", "job"],
            "item": ["item_id", "class", "score"],
        }
        options = {"data_path": str(tmp_path), "gpu_id": "", "load_col": load_col, "state": "ERROR", **options}
        return cls(Config(model=model, dataset="toy", config_dict=options))

    return make


def frame(dataset, name: str) -> dict[str, list]:
    """A feature table as plain lists."""
    table = getattr(dataset, name)
    return {c: [v.tolist() if isinstance(v, np.ndarray) else v for v in table[c]] for c in table}


# numpy


def test_numpy_aliases_return_where_numpy_removed_them(monkeypatch):
    for name in NUMPY_NAMES:
        if name in vars(np):
            monkeypatch.delattr(np, name)
    with pytest.raises(AttributeError):
        Config.compatibility_settings(None)
    compat.set_numpy_aliases()
    Config.compatibility_settings(None)  # RecBole's own
    names = vars(np)
    assert names["float"] is names["float_"] is np.float64
    assert names["unicode"] is names["unicode_"] is np.str_
    assert np.bool8 is np.bool_


# pandas


@pytest.mark.parametrize("kind", ["inter", "user", "item"])
def test_read_csv_equals_the_python_engine_on_ml_100k(kind):
    file = EXAMPLE / f"ml-100k.{kind}"
    columns = file.open(encoding="utf-8").readline().rstrip("\n").split("\t")
    options = {
        "delimiter": "\t",
        "usecols": columns,
        "dtype": {c: np.float64 if c.endswith(":float") else str for c in columns},
        "encoding": "utf-8",
    }
    ours = dataset_module.pd.read_csv(file, engine="python", **options)
    theirs = pd.read_csv(file, engine="python", **options)
    for column in columns:
        if column.endswith("_seq"):
            theirs[column] = theirs[column].fillna("")
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_read_csv_fills_blank_sequences_and_nothing_else():
    text = "a:token\tb:float\tc:token_seq\td:float_seq\nx\t1\tu v\t1 2\n\t\t\t\nNA\t3\tnull\tw\n"
    types = {"a:token": str, "b:float": np.float64, "c:token_seq": str, "d:float_seq": str}
    table = dataset_module.pd.read_csv(io.StringIO(text), delimiter="\t", dtype=types, engine="python")
    assert table["c:token_seq"].tolist() == ["u v", "", ""]
    assert table["d:float_seq"].tolist() == ["1 2", "", "w"]
    assert table["a:token"].isna().tolist() == [False, True, True]
    assert table["b:float"].isna().tolist() == [False, True, False]


def test_read_csv_parses_floats_to_the_same_bit(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_000) * 10.0 ** rng.integers(-30, 30, 20_000)
    file = tmp_path / "floats"
    file.write_text("x:float\n" + "\n".join(map(repr, values.tolist())))
    options = {"delimiter": "\t", "dtype": {"x:float": np.float64}, "engine": "python"}
    assert dataset_module.pd.read_csv(file, **options).equals(pd.read_csv(file, **options))


@pytest.mark.parametrize(
    ("delimiter", "row"),
    [("::", "x::1"), ("\t", "x\t1_000"), (",", '"x,y",2'), ("\t", '"x\t1'), ("\t", "x\tno number"), ("§", "ü§1")],
)
def test_read_csv_leaves_to_the_python_engine_what_c_refuses(tmp_path, delimiter, row):
    file = tmp_path / "table"
    file.write_text(f"a:token{delimiter}b:float\n{row}\n", encoding="utf-8")
    options = {
        "delimiter": delimiter,
        "dtype": {"a:token": str, "b:float": np.float64},
        "encoding": "utf-8",
        "engine": "python",
    }
    try:
        expected = pd.read_csv(file, **options)
    except ValueError as error:
        with pytest.raises(type(error)):
            dataset_module.pd.read_csv(file, **options)
    else:
        assert dataset_module.pd.read_csv(file, **options).equals(expected)


def test_the_module_sees_pandas_otherwise_unchanged():
    assert dataset_module.pd.DataFrame is pd.DataFrame
    assert dataset_module.pd.merge is pd.merge
    with pytest.raises(AttributeError):
        dataset_module.pd.no_such_name


FILLED_USERS = {"user_id": [0, 1, 2, 3], "age": [30.0, 20.0, 30.0, 40.0], "job": [0.0, 1.0, 0.0, 2.0]}
FILLED_ITEMS = {
    "item_id": [0, 1, 2, 3],
    "class": [[], [1, 2], [], [2]],
    "score": [3.0, 1.0, 2.0, 6.0],
}


@pytest.mark.parametrize("copies_on_write", [False, True])
def test_missing_values_are_filled(toy, copies_on_write):
    with pandas_copies_on_write() if copies_on_write else contextlib.nullcontext():
        dataset = toy()
    assert frame(dataset, "user_feat") == FILLED_USERS
    assert frame(dataset, "item_feat") == FILLED_ITEMS
    inter = frame(dataset, "inter_feat")
    assert inter["rating"] == [5, 3, 4, 3, 1, 2]
    assert inter["weights"] == [[1, 2], [4], [], [0, 2, 4], [3], [1, 1]]
    # the next step of RecBole's turns NaN into an id far below 0
    assert dataset._dataframe_to_interaction(dataset.user_feat)["job"].tolist() == [0, 1, 0, 2]


def test_filling_equals_recbole_where_pandas_writes_through(toy, undo):
    if int(pd.__version__.split(".")[0]) >= 3:
        pytest.skip("RecBole's own filling does nothing on pandas 3")
    ours = toy()
    undo.setattr(Dataset, "_fill_nan", ORIGINAL_FILL_NAN)
    theirs = toy(Dataset)
    for name in ("inter_feat", "user_feat", "item_feat"):
        assert getattr(ours, name).dtypes.equals(getattr(theirs, name).dtypes)
        assert frame(ours, name) == frame(theirs, name)


def test_plain_datasets_fill_too_where_pandas_copies_on_write(toy, undo):
    with pandas_copies_on_write():
        compat.fix_fill_nan()
        dataset = toy(Dataset)
    assert frame(dataset, "user_feat") == FILLED_USERS
    assert frame(dataset, "item_feat") == FILLED_ITEMS


def aggregate_as_pandas_3(self, func=None, *args, **options):
    return func(self)


@pytest.mark.parametrize("pandas_3", [False, True])
@pytest.mark.parametrize("cls", [Dataset, SafeDataset])
def test_sequence_columns_are_remapped_normalised_and_discretised(toy, undo, cls, pandas_3):
    if pandas_3:
        undo.setattr(pd.Series, "agg", aggregate_as_pandas_3)
    compat.fix_agg_len()
    dataset = toy(cls, normalize_field=["weights"])
    assert dataset.field2id_token["class"].tolist() == ["[PAD]", "u", "v"]
    assert frame(dataset, "item_feat")["class"] == FILLED_ITEMS["class"]
    assert frame(dataset, "inter_feat")["weights"] == [[0.25, 0.5], [1.0], [], [0, 0.5, 1.0], [0.75], [0.25, 0.25]]
    dataset = toy(cls, numerical_features=["weights"], discretization={"weights": {"method": "ED", "bucket": 4}})
    buckets = [buckets.tolist() for _, buckets in dataset.inter_feat["weights"]]
    assert buckets == [[1, 2], [4], [], [1, 2, 4], [3], [1, 1]]
    dataset = toy(cls, numerical_features=["weights"])
    assert [len(ones) for _, ones in dataset.inter_feat["weights"]] == [2, 1, 0, 3, 1, 2]


def test_without_the_fix_pandas_3_fails(toy, undo):
    undo.setattr(pd.Series, "agg", aggregate_as_pandas_3)
    undo.setattr(dataset_module, "len", len)
    with pytest.raises(ValueError, match="does not match length of index"):
        toy(Dataset)


@pytest.mark.parametrize("pandas_3", [False, True])
def test_lengths_of_benchmark_sequences(toy, tmp_path, undo, pandas_3):
    if pandas_3:
        undo.setattr(pd.Series, "agg", aggregate_as_pandas_3)
    compat.fix_agg_len()
    for part in ("train", "valid", "test"):
        (tmp_path / "toy" / f"toy.{part}.inter").write_text(
            "user_id:token\titem_id:token\titem_id_list:token_seq\na\tx\ty z\nb\ty\tx\n"
        )
    dataset = toy(
        SafeSequentialDataset,
        "SASRec",
        load_col={"inter": ["user_id", "item_id", "item_id_list"]},
        benchmark_filename=["train", "valid", "test"],
        alias_of_item_id=["item_id_list"],
        train_neg_sample_args=None,
    )
    assert dataset.inter_feat["item_length"].tolist() == [2, 1] * 3


def test_lengths_when_knowledge_ids_are_merged(undo):
    undo.setattr(pd.Series, "agg", aggregate_as_pandas_3)
    compat.fix_agg_len()
    column = pd.DataFrame({"x": [np.array([1, 2]), np.array([], dtype=int), np.array([2])]})
    dataset = KnowledgeBasedDataset.__new__(KnowledgeBasedDataset)
    dataset.field2id_token, dataset.field2token_id = {}, {}
    dataset.field2type = {"x": compat.FeatureType.TOKEN_SEQ}
    dataset.field2feats = lambda field: [column]
    dataset._reset_ent_remapID("x", np.array([0, 10, 20]), None, None)
    assert [ids.tolist() for ids in column["x"]] == [[10, 20], [], [20]]


def test_no_warning_about_what_is_fixed(toy):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compat.quiet_pandas()
        toy(Dataset)
        toy(SafeDataset, normalize_field=["weights"])
    assert not [w for w in caught if w.category in (FutureWarning, pd.errors.ChainedAssignmentError)]


# scipy


def test_dok_matrix_has_its_update_back(monkeypatch):
    monkeypatch.setattr(dok_matrix, "_update", None, raising=False)  # what the fix sets is undone at the end
    for cls in dok_matrix.__mro__:
        if "_update" in vars(cls):
            monkeypatch.delattr(cls, "_update")  # as in scipy 1.13
    with pytest.raises(AttributeError):
        dok_matrix((2, 3))._update({(0, 2): 1})
    compat.fix_dok_update()
    matrix = dok_matrix((2, 3), dtype=np.float32)
    matrix._update({(0, 2): 1, (1, 0): 1})
    assert matrix.toarray().tolist() == [[0, 0, 1], [1, 0, 0]]
    assert (matrix > 0).sum(axis=1).tolist() == [[1], [1]]  # what LightGCN does next
    assert matrix.tocoo().nnz == 2


def test_dok_matrix_is_left_alone_where_it_has_its_update(monkeypatch):
    monkeypatch.setattr(dok_matrix, "_update", "scipy's own", raising=False)
    compat.fix_dok_update()
    assert dok_matrix._update == "scipy's own"


# torch


class NotPlain:
    """Stands for the Config that RecBole pickles into its checkpoints."""


def test_checkpoints_of_recbole_load_only_where_allowed(tmp_path):
    file, load = tmp_path / "model.pth", torch.load
    torch.save({"config": NotPlain(), "state_dict": {"w": torch.ones(2)}}, file, pickle_protocol=4)
    with compat.recbole_checkpoints_allowed():
        assert torch.load(file)["state_dict"]["w"].tolist() == [1, 1]
        with pytest.raises(pickle.UnpicklingError):
            torch.load(file, weights_only=True)  # an explicit wish is kept
    assert torch.load is load
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


def test_plain_checkpoints_need_no_leave(tmp_path):
    file = tmp_path / "model.pth"
    torch.save({"epoch": 3, "state_dict": {"w": torch.ones(2)}}, file)
    assert torch.load(file, weights_only=True)["epoch"] == 3


# RecBole itself


def filled_collector(cls=Collector):
    collector = cls.__new__(cls)
    collector.data_struct = DataStruct()
    collector.data_struct.set("data.num_items", 7)
    collector.data_struct.set("data.count_items", Counter({1: 2}))
    for key in ("rec.items", "rec.target", "data.label"):
        collector.data_struct.update_tensor(key, torch.ones(2))
    return collector


@pytest.mark.parametrize("base", [(Collector,), (compat.CpuSafeCollector, Collector)])
def test_collector_hands_over_counts_and_forgets_one_evaluation(base):
    collector = filled_collector(type("ACollector", base, {}))
    returned = collector.get_data_struct()
    assert returned.get("data.num_items") == 7
    assert returned.get("rec.target").tolist() == [1, 1]
    returned.get("data.count_items")[1] = 0
    assert set(collector.data_struct._data_dict) == {"data.num_items", "data.count_items"}
    assert collector.data_struct.get("data.count_items")[1] == 2  # what was handed over is a copy
    collector.data_struct.update_tensor("rec.target", torch.ones(3))
    assert len(collector.get_data_struct().get("rec.target")) == 3  # nothing is carried over


def test_collector_is_fixed_where_it_breaks(undo):
    def get_data_struct(self):
        return {key: value.cpu() for key, value in self.data_struct._data_dict.items()}

    undo.setattr(Collector, "get_data_struct", get_data_struct)
    with pytest.raises(AttributeError, match="cpu"):
        filled_collector().get_data_struct()
    compat.fix_collector()
    assert filled_collector().get_data_struct().get("data.num_items") == 7


def test_preloaded_vectors_are_of_the_weights_type(undo):
    """KSR, which multiplies them with its weights, is among tests/test_all_models.py's."""

    def preload(self):
        self._preloaded_weight = {"ent_id": np.full((2, 3), 0.5)}

    undo.setattr(Dataset, "_preload_weight_matrix", preload)
    for _ in range(2):
        compat.fix_preload_weight()
    dataset = Dataset.__new__(Dataset)
    dataset._preload_weight_matrix()
    found = dataset.get_preload_weight("ent_id")
    assert found.dtype == np.float32 and (found == 0.5).all() and found.shape == (2, 3)


def test_automatic_download_ends_well_in_one_process(toy, undo, tmp_path):
    def extract(path, folder):
        (Path(folder) / "file.inter").write_text("user_id:token\titem_id:token\na\tx\n")

    undo.setattr(dataset_module, "decide_download", lambda url: True)
    undo.setattr(dataset_module, "download_url", lambda url, folder: str(Path(folder) / "file.zip"))
    undo.setattr(dataset_module, "extract_zip", extract)
    undo.setattr(dataset_module.os, "unlink", lambda path: None)
    undo.setattr(Dataset, "_get_download_url", lambda self, kind: "http://localhost/file.zip")
    dataset = toy()
    dataset.dataset_name, dataset.dataset_path = "new", str(tmp_path / "new")
    barrier = torch.distributed.barrier
    with pytest.raises(ValueError, match="process group"):
        inspect.unwrap(Dataset._download)(dataset)
    dataset._download()
    assert (tmp_path / "new" / "new.inter").is_file()
    assert torch.distributed.barrier is barrier


def test_apply_twice_is_apply_once():
    def patched():
        objects = [dataset_module.pd, Dataset._fill_nan, Dataset._download, Collector.get_data_struct]
        objects += [dok_matrix._update, torch.load, pd.read_csv, pd.Series.agg]
        objects += [getattr(m, "len", None) for m in (dataset_module, sequential_dataset, kg_dataset)]
        objects += [getattr(np, name) for name in NUMPY_NAMES]
        return objects, len(warnings.filters)

    compat.apply()
    objects, n_filters = patched()
    compat.apply()
    again, n_filters_again = patched()
    assert all(a is b for a, b in zip(objects, again, strict=True))
    assert n_filters == n_filters_again
