"""RecBole 1.2.1 on today's numpy, pandas, scipy and torch: one small guarded fix a cause, each with its link.

:func:`apply` runs every fix and is called when the package is imported. A fix looks for the symptom, not for a version
number, does nothing where RecBole is right already, and may run twice. Lines are those of the 1.2.1 wheel.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import dataset as dataset_module
from recbole.data.dataset import kg_dataset as kg_dataset_module
from recbole.data.dataset import sequential_dataset as sequential_dataset_module
from recbole.data.dataset.dataset import Dataset
from recbole.evaluator.collector import Collector, DataStruct
from recbole.utils import FeatureType
from scipy.sparse import dok_matrix


def apply() -> None:
    """Run every fix of this module."""
    set_numpy_aliases()
    fix_read_csv()
    fix_fill_nan()
    fix_agg_len()
    fix_dok_update()
    fix_collector()
    fix_preload_weight()
    fix_download()
    quiet_pandas()
    quiet_grad_scaler()


# numpy ----------------------------------------------------------------------------------------------------------------


def set_numpy_aliases() -> None:
    """Give numpy the names that RecBole sets and uses, where it lacks them.

    Cause: numpy 1.24 removed ``np.float`` and its like, which RecBole sets itself (config/configurator.py:625-635) and
    uses (evaluator/metrics.py:90, model/layers.py:932, data/interaction.py:31); numpy 2 removed ``np.float_``,
    ``np.complex_`` and ``np.unicode_``, from which RecBole sets them, and ``np.bool8``, which ray 2.6.3 uses.
    Symptom: AttributeError in every Config. A process that unpickles a data set without a Config needs them too.
    https://github.com/RUCAIBox/RecBole/issues/2215, https://github.com/RUCAIBox/RecBole/issues/2162
    """
    aliases = {
        "float_": np.float64, "complex_": np.complex128, "unicode_": np.str_, "bool8": np.bool_,
        "bool": np.bool_, "int": np.int_, "float": np.float64, "complex": np.complex128, "object": np.object_,
        "str": np.str_, "long": np.int_, "unicode": np.str_,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asking numpy for a name that it deprecates or removed warns
        for name, value in aliases.items():
            if not hasattr(np, name):
                setattr(np, name, value)


# pandas ---------------------------------------------------------------------------------------------------------------


class _PandasForRecBole(ModuleType):
    """pandas as recbole.data.dataset.dataset shall see it: ``read_csv`` is ours, everything else is pandas."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    @staticmethod
    def read_csv(filepath: Any, *, engine: str, **options: Any) -> pd.DataFrame:
        """Read an atomic file with pandas' C engine, 3 to 6 times as fast as the engine that RecBole asks for.

        The result is the same, to the last bit of every float: both engines parse with pandas' default precision, and
        ``float_precision="round_trip"`` would differ in pandas 2. What the C engine refuses (a separator of several
        characters, a float such as 1_000, an open quote) goes to the engine asked for, errors included. The one
        difference left: a file whose first row is too long is cut like any other long row, where the other engine
        takes the first column for an index and shifts all others.
        """
        try:
            table = pd.read_csv(filepath, engine="c", **options)
        except ValueError:
            table = pd.read_csv(filepath, engine=engine, **options)
        for column in table:
            if column.endswith("_seq"):  # RecBole renames the columns later: here each still has its type
                table[column] = table[column].fillna("")
        return table


_pandas_for_recbole = _PandasForRecBole("pandas")


def fix_read_csv() -> None:
    """Fill blanks of sequence columns when a file is read, and read it with pandas' C engine.

    Cause: pandas 3 copies on write, so ``df[field].fillna(value="", inplace=True)`` (data/dataset/dataset.py:501)
    changes nothing. Symptom: ``'float' object has no attribute 'split'`` for a token_seq column with a blank. The
    engine: data/dataset/dataset.py:492.
    https://pandas.pydata.org/pandas-docs/stable/user_guide/copy_on_write.html (no RecBole issue known)
    """
    dataset_module.pd = _pandas_for_recbole


class PandasSafeDataset:
    """Put before any RecBole data set class: ``class X(PandasSafeDataset, Dataset)``.

    Fills missing values with and without pandas' copy on write, whatever :func:`fix_fill_nan` found at import.
    """

    feat_name_list: list[str]
    field2type: dict[str, Any]

    def _fill_nan(self) -> None:
        """Token: 0, the padding id. Float: the mean of its column. Sequences: an empty array."""
        for feat in (getattr(self, name) for name in self.feat_name_list):
            for field in feat:
                column, ftype = feat[field], self.field2type[field]
                if ftype == FeatureType.TOKEN:
                    feat[field] = column.fillna(0)
                elif ftype == FeatureType.FLOAT:
                    feat[field] = column.fillna(column.mean())
                else:
                    empty = np.array([], dtype=np.int64 if ftype == FeatureType.TOKEN_SEQ else np.float64)
                    feat[field] = [empty if isinstance(value, float) else value for value in column]


def fix_fill_nan() -> None:
    """Make ``Dataset._fill_nan`` fill where pandas copies on write.

    Cause: ``feat[field].fillna(value=0, inplace=True)`` (data/dataset/dataset.py:648,650) changes nothing in pandas 3.
    Symptom: the padding row and blanks stay NaN, which becomes -9223372036854775808 as an index: ``index out of range
    in self`` in DIN and DIEN, silently NaN features elsewhere.
    https://pandas.pydata.org/pandas-docs/stable/user_guide/copy_on_write.html (no RecBole issue known)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = pd.DataFrame({"x": [np.nan]})
        frame["x"].fillna(0.0, inplace=True)
    if frame["x"].isna().any():
        Dataset._fill_nan = PandasSafeDataset._fill_nan


def _len_or_lengths(values: Any) -> Any:
    """``len(values)``; of a Series, the length of each element, which is what RecBole means by ``agg(len)``."""
    return values.map(len) if isinstance(values, pd.Series) else len(values)


def fix_agg_len() -> None:
    """Let ``column.agg(len)`` give the length of each element again.

    Cause: ``Series.agg(f)`` is ``f(series)`` in pandas 3; before, f was tried on each element.
    Where: data/dataset/dataset.py:712,792,809,1217, sequential_dataset.py:165, kg_dataset.py:316. RecBole takes the
    length of a Series nowhere else, so the three modules get a ``len`` that knows what is meant: nothing is copied,
    and every data set class is served. Symptom: ``Length of values (1) does not match length of index`` in all models
    that load a token_seq column (22 of 82).
    https://github.com/pandas-dev/pandas/pull/53325 (no RecBole issue known)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        aggregates = np.ndim(pd.Series([[1, 2], [3]]).agg(len)) == 0
    if aggregates:
        for module in (dataset_module, sequential_dataset_module, kg_dataset_module):
            module.len = _len_or_lengths


def quiet_pandas() -> None:
    """Silence, in RecBole's data set modules only, pandas' warnings about what the fixes above take care of."""
    for category in (FutureWarning, pd.errors.ChainedAssignmentError):
        warnings.filterwarnings("ignore", category=category, module=r"recbole\.data\.dataset\.")


# scipy ----------------------------------------------------------------------------------------------------------------


def fix_dok_update() -> None:
    """Give ``dok_matrix`` back its ``_update``.

    Cause: scipy 1.13 removed the private method. Where: model/general_recommender/{lightgcn.py:111, ngcf.py:110,
    gcmc.py:174, spectralcf.py:123, ncl.py:131}, knowledge_aware_recommender/{kgin.py:356, mcclk.py:425}.
    Symptom: ``'dok_matrix' object has no attribute '_update'``.
    https://github.com/RUCAIBox/RecBole/issues/2034, 2090, 2185
    """
    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = lambda self, data: self._dict.update(data)


# torch ----------------------------------------------------------------------------------------------------------------


@contextmanager
def recbole_checkpoints_allowed() -> Iterator[None]:
    """Inside this block ``torch.load`` unpickles whole objects: only for checkpoint files that you trust.

    Cause: torch 2.6 made ``weights_only=True`` the default, and RecBole's trainer pickles its Config into every
    checkpoint (trainer/trainer.py:299,764). Where: models that start from a checkpoint of a pretraining: S3Rec (:120),
    RaCT (:75,84), NeuMF (:84), NAIS (:127), ConvNCF (:82), KD_DAGFM (:56). Symptom: UnpicklingError.
    All six read nothing but ``state_dict``, so the checkpoints of our trainer, plain values and tensors, load without
    this. It is for files that stock RecBole wrote; torch's list of allowed classes cannot help there, because they are
    pickled with protocol 4, which the restricted unpickler does not read.
    https://github.com/RUCAIBox/RecBole/issues/2212, https://github.com/RUCAIBox/RecBole/pull/2219
    """
    load = torch.load
    torch.load = lambda *args, **options: load(*args, **{"weights_only": False, **options})
    try:
        yield
    finally:
        torch.load = load


def quiet_grad_scaler() -> None:
    """Silence torch's warning, once a training, that RecBole's trainer (:235) calls GradScaler by its old name."""
    warnings.filterwarnings("ignore", category=FutureWarning, message=r".*torch\.cuda\.amp\.GradScaler")


# RecBole itself -------------------------------------------------------------------------------------------------------


class CpuSafeCollector:
    """Put before RecBole's Collector: moves tensors, and only tensors, to the CPU when it hands over its values."""

    data_struct: Any

    def get_data_struct(self) -> Any:
        """The collected values; those of one evaluation (``rec.*`` and ``data.label``) are then forgotten."""
        collected = self.data_struct._data_dict
        returned = DataStruct()
        for key in list(collected):
            of_one_evaluation = key.startswith("rec.") or key == "data.label"
            value = collected.pop(key) if of_one_evaluation else copy.deepcopy(collected[key])
            returned.set(key, value.cpu() if isinstance(value, torch.Tensor) else value)
        return returned


def fix_collector() -> None:
    """Let RecBole's Collector hold values that are no tensors.

    Cause: ``get_data_struct`` calls ``.cpu()`` on counts and Counters (evaluator/collector.py:227), and forgets a fixed
    list of keys, so that those of a custom metric grow with each evaluation (:229). Symptom, on every stack: ``'int'
    object has no attribute 'cpu'`` with ItemCoverage, GiniIndex, AveragePopularity and TailPercentage.
    https://github.com/RUCAIBox/RecBole/issues/2194
    """
    probe = Collector.__new__(Collector)
    probe.data_struct = DataStruct()
    probe.data_struct.set("data.num_items", 1)
    try:
        probe.get_data_struct()
    except AttributeError:
        Collector.get_data_struct = CpuSafeCollector.get_data_struct


def fix_preload_weight() -> None:
    """Let preloaded vectors have the type of a model's weights.

    Cause: the matrices of ``preload_weight`` are float64 (data/dataset/dataset.py:614,618), and KSR multiplies one with
    its weights (sequential_recommender/ksr.py:92). Symptom: ``expected m1 and m2 to have the same dtype``.
    """
    preload = Dataset._preload_weight_matrix
    if hasattr(preload, "__wrapped__"):
        return

    @functools.wraps(preload)
    def preload_float32(self: Any) -> None:
        preload(self)
        self._preloaded_weight = {field: matrix.astype(np.float32) for field, matrix in self._preloaded_weight.items()}

    Dataset._preload_weight_matrix = preload_float32


def fix_download() -> None:
    """Let the automatic download of a data set end well in a single process.

    Cause: ``Dataset._download`` ends in ``torch.distributed.barrier()`` (data/dataset/dataset.py:251,253) even where
    there is no process group. Symptom: ``Default process group has not been initialized`` after "Downloading done.".
    https://github.com/RUCAIBox/RecBole/issues/1989, https://github.com/RUCAIBox/RecBole/issues/2050
    """
    download = Dataset._download
    if hasattr(download, "__wrapped__"):
        return

    @functools.wraps(download)
    def download_alone(self: Any) -> None:
        distributed: Any = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return download(self)
        barrier = getattr(distributed, "barrier", None)
        distributed.barrier = lambda *args, **options: None
        try:
            download(self)
        finally:
            distributed.barrier = barrier

    Dataset._download = download_alone
