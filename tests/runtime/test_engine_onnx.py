from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import primelens
from primelens.engine import TensorSpec
from primelens.engine_onnx import OnnxEngine

onnx = pytest.importorskip("onnx", reason="building a graph needs onnx (the dev extra)")


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """A graph ``y = x + x``, x float32 ``[N, 3]``."""
    shape = ["N", 3]
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        "doubling",
        [tensor("x", onnx.TensorProto.FLOAT, shape)],
        [tensor("y", onnx.TensorProto.FLOAT, shape)],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10
    )
    onnx.save(model, tmp_path / "doubling.onnx")
    return tmp_path / "doubling.onnx"


def test_a_graph_says_what_it_takes_and_gives(doubling: Path) -> None:
    graph = OnnxEngine(threads=1).open(doubling)
    assert graph.inputs == {"x": TensorSpec("x", "float32", (None, 3))}
    assert graph.outputs == {"y": TensorSpec("y", "float32", (None, 3))}
    values = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    assert np.array_equal(graph.run({"x": values})["y"], values * 2)


def test_a_bound_call_reads_and_writes_the_given_buffers(doubling: Path) -> None:
    graph = OnnxEngine(threads=1, spin=False).open(doubling)
    x, y = np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32)
    call = graph.bind({"x": x}, {"y": y})
    for _ in range(3):
        x[:] = np.random.default_rng().standard_normal((4, 3))
        call.run()
        assert np.array_equal(y, x * 2)


def test_one_buffer_may_be_input_and_output(doubling: Path) -> None:
    x = np.ones((2, 3), np.float32)
    call = OnnxEngine(threads=1).open(doubling).bind({"x": x}, {"y": x})
    call.run()
    call.run()
    assert np.array_equal(x, np.full((2, 3), 4, np.float32))


def test_misfits_are_engine_errors(doubling: Path) -> None:
    graph = OnnxEngine(threads=1).open(doubling)
    with pytest.raises(primelens.EngineError, match=r"doubling\.onnx"):
        graph.run({"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(primelens.EngineError, match=r"doubling\.onnx"):
        graph.run({})
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(primelens.EngineError, match="contiguous"):
        graph.bind({"x": np.zeros((3, 2), np.float32).T}, {"y": x})
    x.setflags(write=False)
    with pytest.raises(primelens.EngineError, match="writeable"):
        graph.bind({"x": x}, {"y": x})


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x08\x07" * 50])
def test_a_file_that_is_no_graph_is_an_engine_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(primelens.EngineError, match=r"bad\.onnx") as caught:
        OnnxEngine().open(tmp_path / "bad.onnx")
    assert "primelens verify" in str(caught.value)


@pytest.mark.parametrize(("spin", "wanted"), [(True, "1000"), (False, "")])
def test_threads_spin_no_longer_than_between_two_steps(
    doubling: Path, spin: bool, wanted: str
) -> None:
    graph = OnnxEngine(threads=2, spin=spin).open(doubling)
    options = graph._session.get_session_options()
    try:
        found = options.get_session_config_entry("session.intra_op.spin_duration_us")
    except RuntimeError:  # says so of an entry that was never made
        found = ""
    assert found == wanted
