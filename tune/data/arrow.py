"""The one door to pyarrow, which is optional."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from primelens.errors import DependencyError, InputError

__all__ = ["open_parquet"]


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile``, closed when the block ends.

    Raises:
        DependencyError: pyarrow is not installed.
        InputError: the file cannot be read, then or within the block.
    """
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise DependencyError(
            "Parquet needs the package 'pyarrow', which is not installed.",
            remedy="Run `pip install 'primelens[parquet]'`.",
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
