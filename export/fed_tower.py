"""A source model that is fed with what its tower said: the tower is not asked again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

__all__ = ["fed"]


@contextlib.contextmanager
def fed(owner: Any, name: str, states: torch.Tensor) -> Iterator[torch.Tensor]:
    """Let the tower ``owner.name`` say ``states``, while the context lasts.

    Args:
        owner: the module that has the tower.
        name: under which name.
        states: ``[B, L, C]``, or ``[B, F, L, C]`` of videos.

    Yields:
        The pixels to call the model with: ``[B, 1, 1, 1]``, or ``[B, F, 1, 1, 1]``.
    """
    tower = getattr(owner, name)
    shape = states.shape[:-2]
    numbers = torch.arange(int(torch.Size(shape).numel()), dtype=states.dtype)
    setattr(owner, name, _Fed(states.flatten(0, -3)))
    try:
        yield numbers.reshape(*shape, 1, 1, 1)
    finally:
        setattr(owner, name, tower)


class _Fed(torch.nn.Module):
    """A tower that has looked at all pictures already: a pixel is the number of its picture."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self._states = states

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """``[B, 1, 1, 1]`` → a copy of the states, which a model may add to in place."""
        states = self._states[pixel_values.flatten().long()]
        return BaseModelOutputWithPooling(last_hidden_state=states)
