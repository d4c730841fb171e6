"""Graphs traced by ``torch.onnx`` from a module: towers and both sides of a dual encoder."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir
import torch

from primelens.errors import CheckpointError
from primelens.export.graph import OPSET

__all__ = ["traced"]


def traced(
    module: torch.nn.Module,
    examples: Mapping[str, torch.Tensor],
    free: Mapping[str, int],
    outputs: Sequence[str],
    *,
    what: str,
) -> ir.Model:
    """The graph of a module whose inputs share their first free axes.

    Args:
        module: takes the examples in their order, returns a tensor or a tuple of them.
        examples: input name → an example, at least 2 along every free axis.
        free: names of the free axes, from the first on, and the most that each can be. Outputs
            have the first of them in front.
        outputs: their names.
        what: what this is, for the error.

    Raises:
        CheckpointError: torch cannot export the module.
    """
    dims = {
        axis: torch.export.Dim(name, min=1, max=most)
        for axis, (name, most) in enumerate(free.items())
    }
    try:
        with _quietly():
            program = torch.onnx.export(
                module.eval(),
                tuple(examples.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(examples),
                output_names=list(outputs),
                dynamic_shapes=tuple(dims for _ in examples),
                verbose=False,
            )
    except Exception as error:
        raise CheckpointError(
            f"torch {torch.__version__} cannot export {what}: {error}",
            remedy="Try another torch version; the message above comes from torch.onnx.",
        ) from error
    assert program is not None
    model: ir.Model = program.model
    names = list(free)
    for value in model.graph.inputs:
        assert value.shape is not None
        value.shape = ir.Shape([*names, *value.shape[len(names) :]])
    for value, output in zip(model.graph.outputs, outputs, strict=True):
        assert value.shape is not None
        value.shape = ir.Shape([names[0], *value.shape[1:]])
        value.name = output
    return model


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """torch.onnx and its optimiser announce their progress and their own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
