"""Checkpoints of ours: tensors and plain values, written whole or not at all, and read without running anything."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from recbole_robust.types import UserError
from recbole_robust.whole_files import written_whole

CHECKPOINT_VERSION = 2


def pack(value: Any, name: str) -> dict[str, Any]:
    """A value of ``other_parameter`` as tensors and plain values, which ``weights_only`` can load.

    Raises:
        TypeError: a kind of value that has no such form.
    """
    if isinstance(value, np.ndarray):
        return {"kind": "array", "data": torch.from_numpy(np.ascontiguousarray(value))}
    if sp.issparse(value):
        csr = value.tocsr()
        parts = (torch.from_numpy(np.asarray(part)) for part in (csr.data, csr.indices, csr.indptr))
        return {"kind": "csr", "parts": list(parts), "shape": list(csr.shape), "format": value.format}
    if value is None or isinstance(value, (Tensor, int, float, str, bool)):
        return {"kind": "plain", "data": value}
    if isinstance(value, np.generic):
        return {"kind": "plain", "data": value.item()}
    if isinstance(value, (list, tuple)):
        return {"kind": type(value).__name__, "parts": [pack(part, name) for part in value]}
    if isinstance(value, dict):
        return {"kind": "dict", "parts": [(pack(key, name), pack(part, name)) for key, part in value.items()]}
    raise TypeError(f"other_parameter {name}: no safe form for a {type(value).__name__}")


def pack_all(values: dict[str, Any]) -> dict[str, Any]:
    """All of ``other_parameter``; sub-modules (DIN lists one) are in the ``state_dict`` already."""
    return {name: pack(value, name) for name, value in values.items() if not isinstance(value, nn.Module)}


def unpack(packed: dict[str, Any], device) -> Any:
    """The inverse of :func:`pack`."""
    kind = packed["kind"]
    if kind == "array":
        return packed["data"].cpu().numpy()
    if kind == "csr":
        data, indices, indptr = (part.cpu().numpy() for part in packed["parts"])
        return sp.csr_matrix((data, indices, indptr), shape=tuple(packed["shape"])).asformat(packed["format"])
    if kind in ("list", "tuple"):
        parts = (unpack(part, device) for part in packed["parts"])
        return list(parts) if kind == "list" else tuple(parts)
    if kind == "dict":
        return {unpack(key, device): unpack(part, device) for key, part in packed["parts"]}
    value = packed["data"]
    return value.to(device) if isinstance(value, Tensor) else value


def save_atomically(state: dict[str, Any], path: str) -> None:
    """Write a checkpoint to a temporary name, then rename it: a killed run leaves no half file."""
    buffer = io.BytesIO()  # torch itself does not say why it cannot write
    torch.save(state, buffer)
    with written_whole(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: str, device="cpu") -> dict[str, Any]:
    """A checkpoint of ours; a file that would run code is refused.

    Raises:
        UserError: no such file, or not a checkpoint of ours.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path}: no such file") from None
    except Exception as error:  # torch raises many kinds for what is no checkpoint
        raise UserError(f"checkpoint {path}: not one of ours ({type(error).__name__})") from None
    if not isinstance(state, dict) or state.get("version") != CHECKPOINT_VERSION:
        raise UserError(f"checkpoint {path}: expected version {CHECKPOINT_VERSION} of recbole-robust's format")
    return state
