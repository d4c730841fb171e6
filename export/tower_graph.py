"""Exports an image tower: ``pixel_values [B, 3, H, W]`` → one float32 output per tap."""

from __future__ import annotations

import onnx_ir as ir
import torch

from primelens.export.registry import TowerSplit
from primelens.export.traced import traced

__all__ = ["build_tower"]

_MOST_PICTURES = 4096


def build_tower(split: TowerSplit, size: tuple[int, int]) -> ir.Model:
    """The tower's graph.

    Args:
        split: the tower, cut at its taps.
        size: (H, W) of its input.

    Raises:
        CheckpointError: torch cannot export the module.
    """
    example = torch.linspace(-1.0, 1.0, 2 * 3 * size[0] * size[1]).reshape(2, 3, *size)
    return traced(
        split.module,
        {"pixel_values": example},
        {"B": _MOST_PICTURES},
        list(split.taps),
        what="the image tower",
    )
