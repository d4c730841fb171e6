"""Reading and writing the file of golden inputs and outputs; `primelens.export.golden` fills it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from primelens.bundle import Bundle
from primelens.errors import BundleError

__all__ = ["GOLDEN", "owner_of", "read_golden", "write_golden"]

GOLDEN = "golden.safetensors"
_OF_NO_HEAD = ("image", "tap")  # arrays that belong to pictures


def read_golden(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The arrays of a bundle's golden file; none where it has no such file.

    Raises:
        BundleError: the file cannot be read.
    """
    if bundle.manifest.golden is None:
        return {}
    path = bundle.path(bundle.manifest.golden)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read: {error}.") from error


def write_golden(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the file; contiguous little-endian arrays.

    The bytes are written here, because the library's own writer leaves the file to its owner alone.
    """
    path.write_bytes(save(dict(arrays)))


def owner_of(key: str) -> str | None:
    """Name of the head that an array belongs to (``tokens.NAME.0``); None for a picture's."""
    kind, _, rest = key.partition(".")
    return None if kind in _OF_NO_HEAD else rest.split(".")[0]
