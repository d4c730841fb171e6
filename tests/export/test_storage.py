"""Narrow storage loses no bit, and nothing of the exporting machine leaks into a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from primelens.engine_onnx import OnnxEngine
from primelens.export.graph import GraphBuilder
from primelens.export.storage import narrow_weights, narrowest, save_graph

FLOAT = ir.DataType.FLOAT


def graph_of(weight: Any) -> ir.Model:
    g = GraphBuilder("graph")
    x = g.input("x", FLOAT, ["B", weight.shape[0]])
    y = g.op("MatMul", [x, g.weight("weight", weight)], "y")
    return g.finish([(y, FLOAT, ["B", weight.shape[1]])])


def half(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16).astype(np.float32)


def brain(shape: tuple[int, ...]) -> Any:
    """bfloat16 values, some of them too small for float16."""
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    values[:, ::3] *= np.float32(2.0**-40)
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(half, ir.DataType.FLOAT16), (brain, ir.DataType.BFLOAT16)],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_narrow_weights_compute_the_same_bits(
    tmp_path: Path, make: Any, dtype: ir.DataType, transposed: bool
) -> None:
    weight = make((64, 48)).T if transposed else make((48, 64))
    x = np.random.default_rng(2).standard_normal((5, len(weight))).astype(np.float32)
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    results, sizes = [], []
    for folder, narrowed in ((wide, False), (narrow, True)):
        folder.mkdir()
        model = graph_of(weight)
        if narrowed:
            assert narrowest(weight) == dtype
            assert narrow_weights(model) == weight.nbytes // 2
        save_graph(model, folder, "graph")
        results.append(OnnxEngine(threads=1).open(folder / "graph.onnx").run({"x": x})["y"])
        sizes.append((folder / "graph.weights").stat().st_size)
    np.testing.assert_array_equal(results[0], results[1])
    assert sizes[1] * 2 == sizes[0]


def test_one_value_that_does_not_fit_keeps_the_tensor_wide() -> None:
    weight = half((48, 64))
    weight[17, 3] = np.float32(1) + np.finfo(np.float32).eps
    assert narrowest(weight) == FLOAT
    assert narrow_weights(graph_of(weight)) == 0


@given(
    arrays(
        np.float32,
        st.integers(0, 40),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_the_narrowest_type_holds_every_bit(values: Any) -> None:
    dtype = narrowest(values)
    if dtype == ir.DataType.FLOAT16:
        back = values.astype(np.float16).astype(np.float32)
    elif dtype == ir.DataType.BFLOAT16:
        back = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    else:
        back = values
    np.testing.assert_array_equal(back.view(np.uint32), values.view(np.uint32))


def test_small_graphs_embed_their_weights(tmp_path: Path) -> None:
    assert save_graph(graph_of(half((8, 8))), tmp_path, "graph") == ["graph.onnx"]


def test_large_weights_start_on_a_page(tmp_path: Path) -> None:
    g = GraphBuilder("graph")
    x = g.input("x", FLOAT, ["B", 48])
    for i in range(3):
        x = g.op("MatMul", [x, g.weight(f"weight.{i}", half((48, 48), i))], f"y.{i}")
    save_graph(g.finish([(x, FLOAT, ["B", 48])]), tmp_path, "graph")
    loaded = ir.load(tmp_path / "graph.onnx")
    tensors = [value.const_value for value in loaded.graph.initializers.values()]
    assert len(tensors) == 3
    for tensor in tensors:
        assert isinstance(tensor, ir.ExternalTensor)
        assert (tensor.offset or 0) % 4096 == 0


def test_traces_of_the_exporting_machine_are_removed(tmp_path: Path) -> None:
    model = graph_of(half((48, 64)))
    secret = "somewhere/on/this/machine.py"
    for item in (model, model.graph, *model.graph, *model.graph.inputs):
        item.metadata_props["pkg.torch.onnx.stack_trace"] = secret
        item.doc_string = secret
    save_graph(model, tmp_path, "graph")
    assert secret.encode() not in (tmp_path / "graph.onnx").read_bytes()


def test_two_weights_of_one_name_are_refused() -> None:
    g = GraphBuilder("graph")
    array = half((4, 4))
    assert g.weight("a", array) is g.weight("b", array)
    with pytest.raises(ValueError, match="two different weights"):
        g.weight("a", half((4, 4), 1))
