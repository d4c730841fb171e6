"""The seam in a model: its tower is taken out and locked, and something that repeats states stands
in.

What the stand-in is fed in the place of pixels are the tower's own outputs, fresh or kept. So the
model's own code runs from the seam on, the tower is run by nobody but
`primelens.tune.textside.states`, and no optimiser can reach it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    GitForCausalLM,
    PreTrainedModel,
    VisionEncoderDecoderModel,
    VisionTextDualEncoderModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from primelens.errors import UnsupportedError
from primelens.towers import MatchingModel, PooledTower

__all__ = ["Seam", "StandIn", "find_seam"]

Tap = Literal["last_hidden_state", "pooler_output"]


class StandIn(nn.Module):
    """In the place of a tower: returns the states that it is fed as ``pixel_values``.

    Args:
        tower: whose attributes (configuration, input name) the model around it may look at.
        tap: which of the tower's outputs the states are.
    """

    def __init__(self, tower: PreTrainedModel, tap: Tap) -> None:
        super().__init__()
        self.config = tower.config
        self.main_input_name = "pixel_values"
        self._tap = tap

    def forward(
        self, pixel_values: torch.Tensor, *_: Any, return_dict: bool | None = None, **__: Any
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, ...]:
        """``[B, 1, L, C]``: four axes like a picture, for GIT counts them."""
        states = pixel_values[:, 0]
        pooled = states[:, 0] if self._tap == "pooler_output" else None
        if return_dict is False:
            return (states,) if pooled is None else (states, pooled)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


@dataclass
class Seam:
    """Where a model's tower is.

    Attributes:
        model: with the tower, or after `open` with the stand-in.
        path: names of the attributes that lead to the tower.
        tap: what the tuned side reads of it.
    """

    model: PreTrainedModel
    path: tuple[str, ...]
    tap: Tap
    tower: PreTrainedModel

    def open(self) -> nn.Module:
        """Put the stand-in in; returns the model, of which everything left is tuned."""
        setattr(self._parent(), self.path[-1], StandIn(self.tower, self.tap))
        model: nn.Module = self.model
        return model

    def close(self) -> PreTrainedModel:
        """Put the tower back; returns the whole model."""
        setattr(self._parent(), self.path[-1], self.tower)
        return self.model

    def fed(self, states: torch.Tensor) -> torch.Tensor:
        """States ``[B, L, C]`` or ``[B, C]`` as the open model takes them."""
        return states[:, None] if states.ndim == 3 else states[:, None, None]

    def _parent(self) -> nn.Module:
        parent: nn.Module = self.model
        for name in self.path[:-1]:
            parent = getattr(parent, name)
        return parent


def find_seam(model: PreTrainedModel) -> Seam:
    """The seam of a whole model.

    Raises:
        UnsupportedError: nothing is known of where it would be.
    """
    if isinstance(model, (VisionEncoderDecoderModel, MatchingModel)):
        return Seam(model, ("encoder",), "last_hidden_state", model.encoder)
    if isinstance(model, GitForCausalLM):
        path = ("git", "image_encoder")
        return Seam(model, path, "last_hidden_state", model.git.image_encoder)
    if isinstance(model, VisionTextDualEncoderModel):
        vision = model.vision_model
        if isinstance(vision, PooledTower):
            return Seam(model, ("vision_model", "tower"), "last_hidden_state", vision.tower)
        return Seam(model, ("vision_model",), "pooler_output", vision)
    raise UnsupportedError(
        f"{type(model).__name__} has no seam that is known.",
        remedy="Tune a VisionEncoderDecoderModel, GitForCausalLM or VisionTextDualEncoderModel.",
    )
