"""transformers ``Siglip2Model``: the variant that keeps each picture's aspect ratio (NaFlex).

It is refused. Its processor makes another number of patches of every picture, and its tower
resizes its positions to each; a bundle's tower takes pixels of one size and says states of one
size. The fixed-resolution checkpoints of SigLIP 2 have the model type ``siglip`` and are exported
by that family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from primelens.errors import UnsupportedError
from primelens.export.registry import ModelSplit, register_model

__all__ = ["Siglip2"]

_GAP = (
    "model_type is 'siglip2': pictures of varying size (NaFlex) have no fixed tap; use a "
    "checkpoint of SigLIP 2 at a fixed resolution, whose model_type is 'siglip'"
)


@register_model
class Siglip2:
    """Known in order to be refused with a reason."""

    name = "siglip2"
    model_types = ("siglip2",)

    def gaps(self, config: Any) -> list[str]:  # noqa: ARG002 - whatever it says
        return [_GAP]

    def load(self, folder: str) -> tuple[Any, Mapping[str, Any]]:  # noqa: ARG002
        return self._refuse()

    def split(self, model: Any) -> ModelSplit:  # noqa: ARG002
        return self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(_GAP)
