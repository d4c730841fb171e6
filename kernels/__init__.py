"""Compiled kernels, faster than the engine's own: products with weights of 8 and 4 bits, and decode
attention to a picture.

They are ONNX Runtime custom operators in C (`src/`), in a plain shared library without Python's
ABI, compiled when the package is built. The library is optional: a graph that uses the operators
carries for each a function made of standard operators that computes the same integers, which the
engine takes where the library is absent. `library` says which it is.

``PRIMELENS_KERNELS`` chooses: ``off`` for none, or the name of a version (``portable``, ``avx2``,
``avx512-vnni``, ``neon``); by default the fastest that the processor can run.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["DOMAIN", "ENVIRONMENT", "FILE_NAME", "Library", "library"]

DOMAIN = "primelens.kernels"
ENVIRONMENT = "PRIMELENS_KERNELS"
REVISION = 3  # of the operators; a library compiled from older sources lacks some of them
FILE_NAME = {"win32": "kernels.dll", "darwin": "kernels.dylib"}.get(sys.platform, "kernels.so")


@dataclass(frozen=True)
class Library:
    """What was found.

    Attributes:
        path: the shared library, or None where graphs run without it.
        version: which instructions it uses here (``avx512-vnni``); empty without a library.
        reason: why there is none; empty with one.
    """

    path: Path | None
    version: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return self.version or f"none ({self.reason})"


def library() -> Library:
    """The compiled kernels, as this process may use them; asks the environment at every call."""
    wanted = os.environ.get(ENVIRONMENT, "")
    if wanted == "off":
        return Library(None, reason=f"switched off by {ENVIRONMENT}")
    return _open(Path(__file__).with_name(FILE_NAME), wanted)


@cache
def _open(path: Path, wanted: str) -> Library:  # noqa: ARG001 # tells answers apart
    """The library reads by itself which version is wanted."""
    if not path.is_file():
        return Library(
            None, reason="not compiled: run `python -m primelens.kernels.build` with a C compiler"
        )
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        return Library(None, reason=f"{path.name} cannot be loaded: {error}")
    if getattr(handle, "primelens_kernels_revision", lambda: 1)() != REVISION:
        return Library(
            None,
            reason=f"{path.name} was compiled from other sources: run "
            "`python -m primelens.kernels.build` again",
        )
    handle.primelens_kernels_version.restype = ctypes.c_char_p
    version = handle.primelens_kernels_version().decode("ascii")
    return Library(path, version)
