"""Which ONNX Runtime is installed, and a clear word where it is none or two.

The CPU build (``onnxruntime``) and the GPU build (``onnxruntime-gpu``) install the same files over
each other. Whichever was installed last wins, and removing either breaks both, so primelens depends
on neither and offers them as extras that exclude each other.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from primelens.errors import DependencyError

__all__ = ["BUILDS", "installed_builds", "onnxruntime_module"]

_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"

BUILDS: Mapping[str, str] = {"onnxruntime": "cpu", "onnxruntime-gpu": "gpu"}
"""Distribution name → the extra of primelens that brings it."""


def installed_builds() -> dict[str, str]:
    """The builds of ONNX Runtime whose metadata is found: distribution name → version."""
    found = {}
    for distribution in BUILDS:
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def onnxruntime_module() -> Any:
    """Import ONNX Runtime (once; Python keeps it) and return the module.

    Its official builds from 1.32 on report usage to their maker and keep an identifier in the
    user's cache folder, unless ``ORT_DISABLE_TELEMETRY=1`` stands in the environment before they
    are imported. primelens sets it, where the user has not set it otherwise.

    The module is typed ``Any``: it ships no annotations.

    Raises:
        DependencyError: neither build is installed, both are, or the one there is does not import.
    """
    builds = installed_builds()
    if len(builds) > 1:
        both = " and ".join(f"{name} {number}" for name, number in builds.items())
        raise DependencyError(
            f"Two builds of ONNX Runtime are installed over each other: {both}.",
            remedy="Run `pip uninstall onnxruntime onnxruntime-gpu`, then install the one you "
            "want: `pip install 'primelens[cpu]'` or `pip install 'primelens[gpu]'`.",
        )
    os.environ.setdefault(_NO_TELEMETRY, "1")
    try:
        module: ModuleType = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise _broken(builds, error) from error
        raise DependencyError(
            "No ONNX Runtime is installed, and primelens runs its graphs with it.",
            remedy="Run `pip install 'primelens[cpu]'`, or `pip install 'primelens[gpu]'` on a "
            "machine with an NVIDIA GPU.",
        ) from error
    except ImportError as error:
        raise _broken(builds, error) from error
    if not hasattr(module, "InferenceSession"):
        # Removing one of two builds leaves a folder without the files that both had shared.
        raise _broken(builds, "the package has no InferenceSession")
    return module


def _broken(builds: Mapping[str, str], cause: object) -> DependencyError:
    named = " ".join(next(iter(builds.items()), ("onnxruntime", "(no metadata)")))
    extra = BUILDS[next(iter(builds), "onnxruntime")]
    return DependencyError(
        f"{named} is installed but cannot be imported: {cause}.",
        remedy="Run `pip uninstall onnxruntime onnxruntime-gpu`, then "
        f"`pip install 'primelens[{extra}]'`.",
    )
