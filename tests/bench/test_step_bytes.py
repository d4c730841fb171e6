from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from primelens.bench.step_bytes import GraphWeights, graph_weights, step_bytes
from primelens.manifest import DecoderSpec


def _save(tmp_path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["R"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph), path)
    return path


def test_a_table_that_is_looked_up_counts_one_row(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "weight"], ["z"]),
        helper.make_node("Add", ["z", "bias"], ["y"]),
    ]
    weights = {
        "table": np.zeros((100, 8), np.float32),
        "weight": np.zeros((8, 16), np.float32),
        "bias": np.zeros(16, np.float32),
        "unused": np.zeros((50, 50), np.float32),
    }
    found = graph_weights(_save(tmp_path, nodes, weights))
    assert found == GraphWeights(whole=8 * 16 * 4 + 16 * 4, looked_up=8 * 4, tables=100 * 8 * 4)


def test_a_tied_head_reads_the_whole_table(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Gemm", ["x", "table"], ["y"], transB=1),
    ]
    found = graph_weights(_save(tmp_path, nodes, {"table": np.zeros((100, 8), np.float32)}))
    assert found == GraphWeights(whole=100 * 8 * 4, looked_up=0, tables=0)


def test_a_narrow_weight_counts_as_it_is_computed_with(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["narrow"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["ids"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    found = graph_weights(_save(tmp_path, nodes, {"narrow": np.zeros((8, 16), np.float16)}))
    assert found.whole == 8 * 16 * 4


def test_a_quantised_weight_counts_its_bytes_and_scales(tmp_path: Path) -> None:
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", "q", "scales"], ["y"], domain="com.microsoft", K=64, N=32, bits=8
        ),
        helper.make_node("Cast", ["ids"], ["x"], to=TensorProto.FLOAT),
    ]
    weights = {
        "q": np.zeros((32, 2, 32), np.uint8),
        "scales": np.zeros(64, np.float32),
    }
    assert graph_weights(_save(tmp_path, nodes, weights)).whole == 32 * 64 + 64 * 4


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["words"], ["y"])]
    path = _save(tmp_path, nodes, {})
    model = onnx.load(path)
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"a"]))
    onnx.save(model, path)
    with pytest.raises(ValueError, match="STRING"):
        graph_weights(path)


def test_the_bytes_of_a_step_by_hand() -> None:
    spec = DecoderSpec("g", layers=2, kv_heads=3, head_dim=4, vocab_size=10, max_positions=64)
    weights = GraphWeights(whole=1000, looked_up=32, tables=9999)
    found = step_bytes(weights, spec, [500, 500], past=9, rows=2)
    assert found.weights == 1000 + 2 * 32
    assert found.self_cache == 2 * 10 * (2 * 2 * 3 * 4 * 4)  # rows x positions x (k, v) of 2 layers
    assert found.cross_cache == 1000
    assert found.total == 1064 + 3840 + 1000


def test_a_real_decoder_is_read_almost_whole(tiny_bundle: Path) -> None:
    """All weights of the tied decoder, but for the position table: a row of it is read."""
    path = tiny_bundle / "caption.decoder.onnx"
    found = graph_weights(path)
    stored = path.with_suffix(".weights").stat().st_size + path.stat().st_size
    assert found.tables == 64 * 64 * 4  # positions: 64 of width 64
    assert found.looked_up == 64 * 4
    assert 0.8 * stored < found.whole + found.tables <= stored
