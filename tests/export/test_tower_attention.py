from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from primelens.engine_onnx import OnnxEngine
from primelens.export.graph import OPSET
from primelens.export.quantise import quantise_products
from primelens.export.registry import model_family
from primelens.export.storage import save_graph
from primelens.export.tower_attention import fuse_attention
from primelens.export.tower_graph import build_tower
from primelens.export.work import find_work

SHAPE = (3, 5, 8)  # B, L, C
HEADS = 2


def kinds(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


def run(model: ir.Model, folder: Path, feeds: dict[str, Any]) -> NDArray[np.float32]:
    save_graph(model, folder, "graph")
    found = OnnxEngine(threads=1).open(folder / "graph.onnx").run(feeds)
    return next(iter(found.values()))


@pytest.mark.parametrize("name", ["tiny-blip-captioning", "tiny-git", "tiny-vitgpt2"])
def test_a_towers_attention_is_fused_and_says_the_same(name: str, tmp_path: Path) -> None:
    model = find_work(name).model(3)
    tower = model_family(model.config.model_type).split(model).tower
    graph = build_tower(tower, (3, *find_work(name).picture))
    found = kinds(graph.graph)
    assert found.count("MultiHeadAttention") == 2
    assert not {"Softmax", "Attention", "Gather"} & set(found)
    random = np.random.default_rng(4)
    pixels = random.uniform(-1, 1, (3, 3, *find_work(name).picture)).astype(np.float32)
    with torch.no_grad():
        wanted = tower.module(torch.from_numpy(pixels))[0].numpy()
    together = run(graph, tmp_path, {"pixel_values": pixels})
    assert np.abs(together - wanted).max() < 2e-5 * np.abs(wanted).max()
    assert np.ptp(wanted, axis=0).max() > 0.1  # the pictures do differ
    for row in range(3):
        alone = run(graph, tmp_path, {"pixel_values": pixels[row : row + 1]})
        assert np.array_equal(alone[0], together[row])


def packed(mask: NDArray[Any] | None, *, constant: bool = True) -> ir.Model:
    """``[B, L, C]`` → attention of packed heads, by ONNX's operator, maybe with a mask."""
    _, length, width = SHAPE
    random = np.random.default_rng(1)
    tape = ir.tape.Tape()

    def initializer(name: str, array: NDArray[Any]) -> ir.Value:
        return tape.initializer(ir.tensor(array, name=name))

    def op(
        kind: str, inputs: list[Any], shape: list[Any], name: str, **attributes: Any
    ) -> ir.Value:
        value = tape.op(kind, inputs, attributes, name=name)
        value.name, value.shape, value.type = (
            name,
            ir.Shape(shape),
            ir.TensorType(ir.DataType.FLOAT),
        )
        return value

    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["B", length, width])
    extra = ir.val("w", dtype=ir.DataType.FLOAT, shape=[width, 3 * width])
    table = random.standard_normal((width, 3 * width)).astype(np.float32)
    weight = initializer("weight", table) if constant else extra
    bias = initializer("bias", random.standard_normal(3 * width).astype(np.float32))
    product = op("MatMul", [x, weight], ["B", length, 3 * width], "product")
    states = op("Add", [product, bias], ["B", length, 3 * width], "states")
    sizes = [3, HEADS, width // HEADS]
    shape = initializer("shape", np.array([0, 0, *sizes], np.int64))
    parts = op("Reshape", [states, shape], ["B", length, *sizes], "parts")
    turned = op("Transpose", [parts], [3, "B", HEADS, length, sizes[2]], "turned",
                perm=[2, 0, 3, 1, 4])  # fmt: skip
    heads = [
        op("Gather", [turned, initializer(f"n{n}", np.array(n, np.int64))],
           ["B", HEADS, length, sizes[2]], f"head.{n}", axis=0)
        for n in range(3)
    ]  # fmt: skip
    masks = [] if mask is None else [initializer("mask", mask)]
    context = op(
        "Attention", [*heads, *masks], ["B", HEADS, length, sizes[2]], "context", scale=0.4
    )
    joined = op("Transpose", [context], ["B", length, HEADS, sizes[2]], "joined", perm=[0, 2, 1, 3])
    flat = initializer("flat", np.array([0, 0, width], np.int64))
    y = op("Reshape", [joined, flat], ["B", length, width], "y")
    inputs = [x] if constant else [x, extra]
    graph = ir.Graph(
        inputs, [y], nodes=tape.nodes, initializers=tape.initializers,
        opset_imports={"": OPSET}, name="packed",
    )  # fmt: skip
    return ir.Model(graph, ir_version=11)


def masked() -> NDArray[np.float32]:
    mask = np.zeros((1, 1, SHAPE[1], SHAPE[1]), np.float32)
    mask[..., 0] = -1.0
    return mask


@pytest.mark.parametrize(
    "mask", [None, np.ones((1, 1, 5, 5), np.bool_), np.zeros((1, 1, 5, 5), np.float32)]
)
@pytest.mark.parametrize("constant", [True, False])
def test_packed_heads_and_masks_that_mask_nothing(
    mask: NDArray[Any] | None, constant: bool, tmp_path: Path
) -> None:
    random = np.random.default_rng(2)
    feeds = {"x": random.standard_normal(SHAPE).astype(np.float32)}
    if not constant:
        feeds["w"] = random.standard_normal((SHAPE[2], 3 * SHAPE[2])).astype(np.float32)
    wanted = run(packed(mask, constant=constant), tmp_path, feeds)
    model = packed(mask, constant=constant)
    assert fuse_attention(model) == 1
    assert "Attention" not in kinds(model.graph)
    found = run(model, tmp_path, feeds)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_attention_with_a_bias_stays_as_it_is(tmp_path: Path) -> None:
    model = packed(masked())
    assert fuse_attention(model) == 0
    assert "Attention" in kinds(model.graph)
    x = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    assert not np.allclose(
        run(model, tmp_path, {"x": x}), run(packed(None), tmp_path, {"x": x}), atol=1e-3
    )


def test_parts_of_a_packed_product_are_its_columns(tmp_path: Path) -> None:
    """In 8 bits, too: columns are rounded one by one."""
    x = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    whole, parts = packed(None), packed(None)
    fuse_attention(parts)
    assert kinds(parts.graph).count("MatMul") == 3
    for model in (whole, parts):
        quantise_products(model)
    a, b = run(whole, tmp_path, {"x": x}), run(parts, tmp_path, {"x": x})
    assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()
