"""Exports an image tower: ``pixel_values [B, 3, H, W]`` → one float32 output per tap."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence

import onnx_ir as ir
import torch

from primelens.errors import CheckpointError
from primelens.export.graph import OPSET
from primelens.export.registry import TowerSplit

__all__ = ["build_tower"]


def build_tower(split: TowerSplit, size: tuple[int, int]) -> ir.Model:
    """The tower's graph.

    Args:
        split: the tower, cut at its taps.
        size: (H, W) of its input.

    Raises:
        CheckpointError: torch cannot export the module.
    """
    example = torch.linspace(-1.0, 1.0, 2 * 3 * size[0] * size[1]).reshape(2, 3, *size)
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        with _quietly():
            program = torch.onnx.export(
                split.module.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixel_values"],
                output_names=list(split.taps),
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    except Exception as error:
        raise CheckpointError(
            f"torch {torch.__version__} cannot export the image tower: {error}",
            remedy="Try another torch version; the message above comes from torch.onnx.",
        ) from error
    assert program is not None
    model: ir.Model = program.model
    _name_batch(model, list(split.taps))
    return model


def _name_batch(model: ir.Model, taps: Sequence[str]) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape(["B", *value.shape[1:]])
    for value, tap in zip(model.graph.outputs, taps, strict=True):
        value.name = tap


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """torch.onnx announces its progress and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
