"""Files that somebody else may have made, read as numbers: nothing in them is run."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from recbole_robust.types import UserError

NO_FILE = os.path.join(os.devnull, "none")  # a path that no file can have


@contextlib.contextmanager
def read_as_data() -> Iterator[None]:
    """Inside this block ``torch.load`` and ``np.load`` take tensors, arrays and plain values only.

    For RecBole's models, which read files while they are built: S3Rec, RaCT, ConvNCF, NAIS, NeuMF and KD_DAGFM the
    checkpoint that a key names (before torch 2.6 ``torch.load`` runs what is in it), and LDiffRec ``item_emb.npy``
    beside the data, with ``allow_pickle=True``.

    Raises:
        UserError: no such file, another kind of file, or one that the model cannot take: names the file.
    """
    read: list[str] = []
    before = torch.load, np.load
    torch.load = _safe(torch.load, read, weights_only=True)
    np.load = _safe(np.load, read, allow_pickle=False)  # type: ignore[assignment]
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        if not read:
            raise
        raise UserError(f"{read[-1]}: expected what this model can start from, got {_told(error)}") from None
    finally:
        torch.load, np.load = before  # type: ignore[assignment]


def _safe(load: Callable[..., Any], read: list[str], **always: bool) -> Callable[..., Any]:
    @functools.wraps(load)
    def safe(file: Any, *args: Any, **options: Any) -> Any:
        try:
            found = load(file, *args, **{**options, **always})
        except OSError as error:
            raise UserError(f"{file}: expected a file to start from, got {error.strerror or error}") from None
        except Exception as error:  # whatever unpickling raises
            raise UserError(f"{file}: expected tensors and plain values, got others ({type(error).__name__})") from None
        read.append(str(file))
        return found

    return safe


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
