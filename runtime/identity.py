"""Digests that name a thing by its content.

A tower's identity is what a kept embedding is keyed by, so it must not change when the same weights
are saved again in another container, under another prefix or by a newer exporter, and must change
with any bit that changes the embedding. It is the SHA-256 of a canonical JSON document
(`primelens.schema.canonical_json`)::

    {"identity_version": 1,
     "family": "vit",                       the tower family's registered name
     "architecture": {...},                 the family's canonical fields that shape the computation
     "preprocessing": {...},                the complete specification, `Preprocessing.to_dict()`
     "tap": "last_hidden_state",
     "tensors": {name: {"shape": [...], "sha256": "..."}, ...}}

with one entry per tensor upstream of the tap, under the family's canonical name (no wrapper
prefixes), and ``sha256`` taken over the values widened losslessly to float32, little-endian, C
order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.schema import canonical_json

__all__ = ["IDENTITY_VERSION", "tensor_digest", "tower_identity", "weights_digest"]

IDENTITY_VERSION = 1


def tensor_digest(array: NDArray[Any]) -> str:
    """SHA-256 (hex) over the float32 little-endian C-order bytes of ``array``.

    Args:
        array: float16, float32 (or bfloat16 already widened to float32 by the caller), any shape.

    Raises:
        ValueError: for a dtype that float32 does not hold losslessly.
    """
    if array.dtype not in (np.dtype(np.float16), np.dtype(np.float32)):
        raise ValueError(f"a tensor of dtype {array.dtype} cannot be widened losslessly to float32")
    widened = np.ascontiguousarray(array, dtype="<f4")
    return hashlib.sha256(widened.data if widened.size else b"").hexdigest()


def weights_digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    """One digest (hex) for a set of named tensors, whatever file or order they came in."""
    return hashlib.sha256(canonical_json(_described(tensors))).hexdigest()


def tower_identity(
    *,
    family: str,
    architecture: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    tap: str,
    tensors: Mapping[str, NDArray[Any]],
) -> str:
    """The identity (hex SHA-256) of a tower at one tap, as the module's docstring defines it.

    Args:
        family: registered name of the tower family.
        architecture: canonical fields (JSON values) that shape the computation up to the tap.
        preprocessing: the complete preprocessing specification as JSON data.
        tap: name of the tap.
        tensors: canonical name → values, of exactly the weights and statistics upstream of the tap.
    """
    document = {
        "identity_version": IDENTITY_VERSION,
        "family": family,
        "architecture": dict(architecture),
        "preprocessing": dict(preprocessing),
        "tap": tap,
        "tensors": _described(tensors),
    }
    return hashlib.sha256(canonical_json(document)).hexdigest()


def _described(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return {
        name: {"shape": list(array.shape), "sha256": tensor_digest(array)}
        for name, array in tensors.items()
    }
