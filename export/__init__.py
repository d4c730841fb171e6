"""From a tuned checkpoint to a proved bundle.

::

    from primelens.export import ExportOptions, export_checkpoint

    report = export_checkpoint("tuned-checkpoint", "bundle", ExportOptions(precision="int8"))

Needs the extra ``export`` (torch, transformers, onnx). Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from primelens.export.against import verify_against
    from primelens.export.options import ExportOptions, ExportReport, GateOptions
    from primelens.export.pipeline import export_checkpoint
    from primelens.export.registry import supported

__all__ = [
    "ExportOptions",
    "ExportReport",
    "GateOptions",
    "export_checkpoint",
    "supported",
    "verify_against",
]

_PLACES = {
    "ExportOptions": "options",
    "ExportReport": "options",
    "GateOptions": "options",
    "export_checkpoint": "pipeline",
    "supported": "registry",
    "verify_against": "against",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
