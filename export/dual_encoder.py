"""Cutting dual encoders: what the families' files have in common.

The seam runs after the pooled vector, before it is projected: the projection is tuned, the pooling
is locked. Where the tower says states only and a tuned pooling is worn over it
(`primelens.towers.PooledTower`), the seam runs after the states, and the head pools.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from primelens.export.registry import Array, TowerSplit
from primelens.export.towers import tapped_at

__all__ = [
    "POOLED",
    "STATES",
    "DualEncoderReference",
    "ImageSide",
    "TextSide",
    "pooled_only",
    "projection_of",
    "right_of_the_seam",
    "scale_of",
    "with_pooled",
]

POOLED = "pooler_output"
STATES = "last_hidden_state"
_PIXELS_AT_ONCE = 8 * 384 * 384  # bounds the memory of a large tower


class ImageSide(torch.nn.Module):
    """A tap → image embeddings of length 1."""

    def __init__(
        self, projection: torch.nn.Module | None, pooling: torch.nn.Module | None = None
    ) -> None:
        super().__init__()
        self.pooling, self.projection = pooling, projection

    def forward(self, tap: torch.Tensor) -> torch.Tensor:
        """``[B, C]``, or ``[B, L, C]`` where there is a pooling → ``[B, W]``."""
        values = tap if self.pooling is None else self.pooling(tap)
        return _normalised(values if self.projection is None else self.projection(values))


class TextSide(torch.nn.Module):
    """Ids and their mask → text embeddings of length 1."""

    def __init__(self, model: torch.nn.Module, projection: torch.nn.Module | None) -> None:
        super().__init__()
        self.model, self.projection = model, projection

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """``[N, T]`` each → ``[N, W]``."""
        values = self.model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return _normalised(values if self.projection is None else self.projection(values))


def _normalised(values: torch.Tensor) -> torch.Tensor:
    lengths: torch.Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return values / lengths


class _Pooled(torch.nn.Module):
    """A tower reduced to its states and its pooled vector."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(pixel_values=pixel_values)
        return output.last_hidden_state, output.pooler_output


def with_pooled(split: TowerSplit, model: Any) -> TowerSplit:
    """A tower with one more tap: its own pooled vector; raises ValueError where it has none.

    The pooling's activation becomes part of its tensors' names, so that it is part of the tap's
    identity, and of no other tap's.
    """
    if POOLED in split.taps:
        return split
    pooler = getattr(model, "pooler", None)
    if pooler is None:
        raise ValueError(f"{type(model).__name__} has no pooled output")
    activation = getattr(model.config, "pooler_act", None) if hasattr(pooler, "dense") else None
    prefix = "pooler." if activation is None else f"pooler.{activation}."
    tensors = {prefix + name: tensor for name, tensor in pooler.state_dict().items()}
    taps = {**split.taps, POOLED: {**split.taps[STATES], **tensors}}
    return replace(split, module=_Pooled(model), taps=taps)


def pooled_only(split: TowerSplit, model: Any) -> TowerSplit:
    """A tower whose one tap is its own pooled vector."""
    return tapped_at(with_pooled(split, model), [POOLED])


def right_of_the_seam(model: Any, tower: str) -> dict[str, torch.Tensor]:
    """The model's floating-point tensors but those under the tower's prefix."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not name.startswith(tower)
    }


class _Given(torch.nn.Module):
    """Stands in for the image tower: says what it is given."""

    def __init__(self, output: BaseModelOutputWithPooling) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        return self.output


class DualEncoderReference:
    """The source model answering the gate's questions.

    Args:
        model: has ``vision_model``; its ``forward`` gives embeddings and ``logits_per_image``.
        tap: which tap of the tower the head reads.
        pooling: what the tap goes through before the projection, where the head pools.
        bias: added to the scores, where the model's class has no place for it.
    """

    def __init__(
        self,
        model: Any,
        tap: str,
        pooling: torch.nn.Module | None = None,
        bias: float = 0.0,
    ) -> None:
        self._model, self._tap, self._pooling, self._bias = model, tap, pooling, bias

    @torch.no_grad()
    def taps(self, pixels: Array) -> dict[str, Array]:
        """The tower's output."""
        rows = max(1, _PIXELS_AT_ONCE // (pixels.shape[2] * pixels.shape[3]))
        parts = torch.split(self._tensor(pixels), rows)
        values = [getattr(self._model.vision_model(pixel_values=p), self._tap) for p in parts]
        return {self._tap: torch.cat(values).numpy()}

    @torch.no_grad()
    def answer(self, tap: Array, ids: Array, mask: Array) -> tuple[Array, Array, Array]:
        """One pass of the model's ``forward``, with the tap in the tower's place."""
        states = self._tensor(tap)
        pooled = states if self._pooling is None else self._pooling(states)
        given = _Given(BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled))
        tower, self._model.vision_model = self._model.vision_model, given
        try:
            output = self._model(
                input_ids=torch.from_numpy(np.ascontiguousarray(ids, np.int64)),
                attention_mask=torch.from_numpy(np.ascontiguousarray(mask, np.int64)),
                pixel_values=states,
            )
        finally:
            self._model.vision_model = tower
        names = ("image_embeds", "text_embeds", "logits_per_image")
        image, text, scores = (getattr(output, name).numpy() for name in names)
        return image, text, scores + scores.dtype.type(self._bias)

    @contextlib.contextmanager
    def widen(self) -> Iterator[None]:
        """Compute in float64; widening and narrowing back loses nothing."""
        self._model.double()
        try:
            yield
        finally:
            self._model.float()

    def _tensor(self, values: Array) -> torch.Tensor:
        dtype = next(self._model.parameters()).dtype
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def projection_of(module: Any) -> torch.nn.Module | None:
    """A projection, or None where it is the identity and may be left out."""
    weight, bias = module.weight, module.bias
    square = weight.shape[0] == weight.shape[1]
    if bias is None and square and torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype)):
        return None
    linear: torch.nn.Module = module
    return linear


def scale_of(parameter: torch.Tensor) -> float:
    """The factor of the scores, from the learned logarithm."""
    return float(parameter.detach().double().exp().item())
