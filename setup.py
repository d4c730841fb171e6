"""Compiles the kernels while the package is built; everything else stands in pyproject.toml.

They are a shared library without Python's ABI, so the wheel is for one platform and every Python.
Without a C compiler the package is built all the same, without them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

_ROOM = Path(__file__).resolve().parent / "kernels"
_SUFFIX = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")


def _builder() -> Any:
    spec = importlib.util.spec_from_file_location("primelens_kernels_build", _ROOM / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    """`build_py`, and the kernels beside the modules of their room."""

    def run(self) -> None:
        super().run()
        room = _ROOM if self.editable_mode else Path(self.build_lib) / "primelens" / "kernels"
        builder = _builder()
        try:
            builder.compile_library(room / f"kernels.{_SUFFIX}")
        except builder.BuildError as error:
            print(f"warning: primelens without its kernels (slower int8 and int4): {error}")


class PlatformDistribution(Distribution):
    """Holds compiled code, though no extension module: its files go where such code goes."""

    def has_ext_modules(self) -> bool:
        return True


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel},
)
