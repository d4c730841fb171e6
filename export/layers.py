"""From torch modules to the pieces of a `DecoderPlan`; for the families' files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.export.decoder_plan import Activation, Linear, Norm
from primelens.export.registry import as_array

__all__ = ["activation", "activation_gap", "linear", "norm", "same"]

# transformers' names (activations.ACT2FN); the first three tanh forms are one formula.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
}


def activation(name: str) -> Activation:
    """The plan's name for a transformers activation; raises KeyError for one without an
    operator.
    """
    return _ACTIVATIONS[name]


def activation_gap(field: str, name: Any) -> list[str]:
    """A gap, where the activation called ``name`` has no operator."""
    if name in _ACTIVATIONS:
        return []
    return [f"{field} is {name!r}; supported: {', '.join(_ACTIVATIONS)}"]


def linear(module: Any) -> Linear:
    """A ``torch.nn.Linear``, whose weight is ``[out, in]``."""
    return Linear(as_array(module.weight).T, None if module.bias is None else as_array(module.bias))


def norm(module: Any) -> Norm:
    """A ``torch.nn.LayerNorm``."""
    bias = None if module.bias is None else as_array(module.bias)
    return Norm(as_array(module.weight), bias, float(module.eps))


def same(weight: NDArray[np.float32], shared: NDArray[np.float32]) -> NDArray[np.float32]:
    """``shared`` itself where ``weight`` is equal to it, so that both are stored once."""
    if weight.shape != shared.shape:
        return weight
    if weight.__array_interface__["data"] == shared.__array_interface__["data"]:
        return shared
    return shared if np.array_equal(weight, shared) else weight
