"""Cutting image towers: for the families' files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from primelens.export.registry import TowerSplit

__all__ = ["LastHiddenState", "canonical", "pair", "tapped_at", "upstream", "with_every_tap"]


class LastHiddenState(torch.nn.Module):
    """A tower reduced to ``pixel_values`` → ``(last_hidden_state,)``."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor]:
        """``[B, 3, H, W]`` → ``[B, L, C]``."""
        return (self.model(pixel_values=pixel_values).last_hidden_state,)


class _Chosen(torch.nn.Module):
    """Some of the outputs of a tower; ``full`` is the tower with all of them."""

    def __init__(self, full: TowerSplit, places: Sequence[int]) -> None:
        super().__init__()
        self.module, self.full, self.places = full.module, full, tuple(places)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """``[B, 3, H, W]`` → one tensor per chosen tap."""
        outputs = self.module(pixel_values)
        return tuple(outputs[place] for place in self.places)


def tapped_at(tower: TowerSplit, taps: Sequence[str]) -> TowerSplit:
    """The same tower with some of its taps, in the given order."""
    order = list(tower.taps)
    if list(taps) == order:
        return tower
    module = _Chosen(tower, [order.index(tap) for tap in taps])
    return replace(tower, module=module, taps={tap: tower.taps[tap] for tap in taps})


def with_every_tap(tower: TowerSplit) -> TowerSplit:
    """The tower with all the taps that it had before `tapped_at` chose among them."""
    return with_every_tap(tower.module.full) if isinstance(tower.module, _Chosen) else tower


def pair(size: Any) -> tuple[int, int]:
    """A (height, width) from a configuration's number or pair."""
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(height), int(width)


def upstream(model: torch.nn.Module, unused: re.Pattern[str]) -> dict[str, torch.Tensor]:
    """The model's floating-point tensors, without the names that ``unused`` matches."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not unused.search(name)
    }


def canonical(
    tensors: Mapping[str, torch.Tensor], renames: Sequence[tuple[str, str]]
) -> dict[str, torch.Tensor]:
    """Tensors under names that do not depend on the library's version: every pattern in turn."""
    result: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        if name in result:
            raise ValueError(f"two tensors would both be called {name!r}")
        result[name] = tensor
    return result
