from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from primelens.bench.graph_work import graph_operations, weight_operations


def _save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def test_operations_by_hand(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], strides=[4, 4]),
        helper.make_node("Reshape", ["c", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    weights = {
        "kernel": np.zeros((16, 3, 4, 4), np.float32),
        "shape": np.array([0, 4, 16], np.int64),
        "w": np.zeros((16, 5), np.float32),
    }
    path = _save(tmp_path / "g.onnx", nodes, weights)
    conv = 2 * (16 * 2 * 2) * (3 * 4 * 4)  # every output: one product per kernel value
    product = 2 * 4 * 5 * 16
    assert graph_operations(path) == conv + product
    assert graph_operations(path, batch=3) == 3 * (conv + product)
    assert weight_operations(path) == 2 * 16 * 5


def test_products_with_the_zeros_around_a_map_do_not_count(tmp_path: Path) -> None:
    """3 x 3 over 8 x 8 with a border of one: 22 of 24 products per side lie inside."""
    node = helper.make_node("Conv", ["x", "kernel"], ["y"], pads=[1, 1, 1, 1])
    path = _save(tmp_path / "g.onnx", [node], {"kernel": np.zeros((5, 3, 3, 3), np.float32)})
    assert graph_operations(path) == 2 * 5 * 3 * 22 * 22
    node = helper.make_node("Conv", ["x", "k"], ["y"], pads=[2] * 4, dilations=[2, 2], group=3)
    path = _save(tmp_path / "d.onnx", [node], {"k": np.zeros((6, 1, 3, 3), np.float32)})
    assert graph_operations(path) == 2 * 6 * 1 * (6 + 8 + 6) ** 2


def test_a_real_bundles_towers_and_decoders_are_counted(tiny_bundle: Path) -> None:
    """ViT of width 48, 2 layers, MLP 96, 17 positions: products with weights, and attention."""
    linear = 2 * 17 * 2 * (4 * 48 * 48 + 2 * 48 * 96)
    patches = 2 * 16 * 48 * 3 * 8 * 8
    attention = 2 * 4 * 17 * 17 * 48
    counted = graph_operations(tiny_bundle / "tower.onnx")
    assert counted == linear + patches + attention
    # GPT-2 of width 64, 3 layers, cross-attention query and output, a vocabulary of 320.
    decoder = 2 * (3 * (4 * 64 * 64 + 2 * 64 * 64 + 2 * 64 * 256) + 64 * 320)
    assert weight_operations(tiny_bundle / "caption.decoder.onnx") == decoder


def test_packed_weights_count_without_their_filling(tmp_path: Path) -> None:
    """32 x 20 in 8 and in 4 bits, both stored as two panels of 16 columns."""
    linear = helper.make_node("Linear", ["x", "w8", "s", "b"], ["y"], domain="primelens.kernels")
    four = helper.make_node(
        "Linear4", ["x", "w4", "s", "b", "m"], ["z"], domain="primelens.kernels"
    )
    weights = {
        "w8": np.zeros((2, 8, 16, 4), np.uint8),
        "w4": np.zeros((2, 1, 4, 64), np.uint8),
        "m": np.zeros((2, 1, 16), np.uint8),
        "s": np.zeros(20, np.float32),
        "b": np.zeros(20, np.float32),
    }
    assert weight_operations(_save(tmp_path / "g.onnx", [linear], weights)) == 2 * 32 * 20
    assert weight_operations(_save(tmp_path / "h.onnx", [four], weights)) == 2 * 32 * 20
