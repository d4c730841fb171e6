"""primelens runs image-to-text models whose image tower is locked: small, fast and exact.

::

    import primelens

    model = primelens.load()             # the shipped model; or a bundle's folder, or a hub id
    print(model.caption("photo.jpg").text)

Importing primelens is cheap: the inference engine is imported when a graph is opened, and names
    below are
resolved when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from primelens.decoding.options import DecodingOptions
    from primelens.errors import (
        BundleError,
        BundleVersionError,
        CancelledError,
        CheckpointError,
        DependencyError,
        EngineError,
        GateError,
        ImageError,
        InputError,
        ModelNotFoundError,
        OptionError,
        PrimelensError,
        PromptError,
        StoreError,
        UnsupportedError,
    )
    from primelens.model import Model, load
    from primelens.options import CacheOptions, CaptionOptions, LoadOptions, RankOptions
    from primelens.results import (
        Caption,
        EncodedImage,
        Failure,
        Piece,
        RankedLabel,
        Ranking,
        Timings,
    )
    from primelens.video import Video

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "BundleVersionError",
    "CacheOptions",
    "CancelledError",
    "Caption",
    "CaptionOptions",
    "CheckpointError",
    "DecodingOptions",
    "DependencyError",
    "EncodedImage",
    "EngineError",
    "Failure",
    "GateError",
    "ImageError",
    "InputError",
    "LoadOptions",
    "Model",
    "ModelNotFoundError",
    "OptionError",
    "Piece",
    "PrimelensError",
    "PromptError",
    "RankOptions",
    "RankedLabel",
    "Ranking",
    "StoreError",
    "Timings",
    "UnsupportedError",
    "Video",
    "__version__",
    "load",
]

_HOMES = {
    "Model": "model",
    "load": "model",
    "CacheOptions": "options",
    "CaptionOptions": "options",
    "DecodingOptions": "decoding.options",
    "LoadOptions": "options",
    "RankOptions": "options",
    "Caption": "results",
    "EncodedImage": "results",
    "Failure": "results",
    "Piece": "results",
    "RankedLabel": "results",
    "Ranking": "results",
    "Timings": "results",
    "Video": "video",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'primelens' has no attribute {name!r}")
    module = importlib.import_module(f"primelens.{_HOMES.get(name, 'errors')}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
