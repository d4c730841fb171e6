"""How weights lie in a bundle: beside their graph, aligned, and as narrow as loses nothing.

A tensor whose every value is exactly a float16 (or bfloat16) number, as in a checkpoint that was
saved so, is stored in that type, followed by a Cast to float32. The engine folds the Cast when it
opens the graph: the same bits are computed with, at half the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Storage", "narrow_weights", "narrowest", "save_graph"]

Storage = Literal["auto", "fp32"]

_EMBEDDED = 4096  # bytes; up to this size a tensor lies inside the .onnx file
_ALIGNMENT = 4096  # bytes; a page, so that the engine can map a tensor instead of copying it
_BLOCK = 1 << 20  # values looked at in one go


def narrowest(array: NDArray[np.float32]) -> ir.DataType:
    """FLOAT16 or BFLOAT16 where that holds every value of ``array`` exactly, else FLOAT."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.ravel()
    fits = {ir.DataType.FLOAT16: _fits_half, ir.DataType.BFLOAT16: _fits_bfloat}
    for dtype, check in fits.items():
        if all(check(flat[i : i + _BLOCK]) for i in range(0, flat.size, _BLOCK)):
            return dtype
    return ir.DataType.FLOAT


def _fits_half(values: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))


def _fits_bfloat(values: NDArray[np.float32]) -> bool:
    return not np.any(values.view(np.uint32) & np.uint32(0xFFFF))


def narrow_weights(model: ir.Model) -> int:
    """Store what can be stored narrower; returns the number of bytes saved."""
    graph, saved = model.graph, 0
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes <= _EMBEDDED:
            continue
        array = tensor.numpy()
        dtype = narrowest(array)
        if dtype == ir.DataType.FLOAT:
            continue
        _replace_by_cast(graph, value, _narrowed(array, dtype, f"{value.name}.narrow"))
        saved += tensor.nbytes // 2
    return saved


def _narrowed(array: NDArray[np.float32], dtype: ir.DataType, name: str) -> ir.Tensor[Any]:
    if dtype == ir.DataType.FLOAT16:
        return ir.Tensor(array.astype(np.float16), name=name)
    upper = (np.ascontiguousarray(array).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return ir.Tensor(upper.view(dtype.numpy()), dtype=dtype, name=name)


def _replace_by_cast(graph: ir.Graph, value: ir.Value, tensor: ir.Tensor[Any]) -> None:
    narrow = ir.Value(
        name=tensor.name,
        shape=ir.Shape(tensor.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    name = str(value.name)
    cast = ir.node("Cast", [narrow], {"to": ir.DataType.FLOAT.value}, name=f"{name}.widen")
    del graph.initializers[name]
    cast.outputs[0].name = f"{name}.wide"
    value.replace_all_uses_with(cast.outputs[0])
    graph.register_initializer(narrow)
    graph.insert_before(graph[0], cast)


def save_graph(model: ir.Model, folder: Path, stem: str) -> list[str]:
    """Write ``<stem>.onnx`` and, where any tensor is larger than a page, ``<stem>.weights``.

    Returns:
        The names of the files written.
    """
    _forget_origins(model)
    graph_name, weights_name = f"{stem}.onnx", f"{stem}.weights"
    ir.save(
        model,
        folder / graph_name,
        external_data=weights_name,
        size_threshold_bytes=_EMBEDDED,
        alignment=_ALIGNMENT,
        align_threshold=0,
    )
    weights = folder / weights_name
    if weights.exists() and not weights.stat().st_size:
        weights.unlink()
    return [graph_name, weights_name] if weights.exists() else [graph_name]


def _forget_origins(model: ir.Model) -> None:
    """Exporters leave stack traces with this machine's paths in a graph's metadata."""
    model.producer_name, model.producer_version = "primelens", None
    model.doc_string = None
    model.metadata_props.clear()
    graph = model.graph
    graph.doc_string = None
    graph.metadata_props.clear()
    values: list[Any] = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        values += [node, *node.outputs]
    for item in values:
        item.doc_string = None
        item.metadata_props.clear()
