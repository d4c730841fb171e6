"""The operator inside ONNX Runtime: compiled, as standard operators, and in NumPy, bit for bit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from primelens import EngineError, kernels
from primelens.engine_onnx import OnnxEngine
from primelens.export.graph import GraphBuilder
from primelens.export.linear_functions import add_functions, operator_name
from primelens.kernels import layout, reference
from primelens.kernels.activations import ACTIVATIONS

FLOAT = ir.DataType.FLOAT
needs_library = pytest.mark.skipif(
    kernels.library().path is None, reason=f"no kernels: {kernels.library().reason}"
)


def weights(
    g: GraphBuilder, shape: tuple[int, int], bits: int, seed: int
) -> tuple[list[ir.Value], Any]:
    """Random operands after x of an operator, and integer weights, scales and bias."""
    inner, width = shape
    rng = np.random.default_rng(seed)
    scale, bias = rng.random(width, np.float32), rng.standard_normal(width).astype(np.float32)
    if bits == 8:
        weight = rng.integers(-127, 128, (inner, width))
        packed = [("weight", layout.pack8(weight)), ("scale", scale), ("bias", bias)]
    else:
        values = rng.integers(-7, 8, (inner, width))
        multipliers = rng.integers(0, 19, (inner // 32, width))
        weight = values * np.repeat(multipliers, 32, axis=0)
        first, second = layout.pack4(values, multipliers)
        packed = [("weight", first), ("scale", scale), ("bias", bias), ("multiplier", second)]
    return [g.weight(name, array) for name, array in packed], (weight, scale, bias)


def graph_file(
    folder: Path, shape: tuple[int, int], bits: int, seed: int, activation: str = "none"
) -> tuple[Path, Any]:
    """A graph ``y = Linear(x)``, and its integer weights, scales and bias."""
    g = GraphBuilder("linear")
    x = g.input("x", FLOAT, ["A", "B", shape[0]])
    inputs, plain = weights(g, shape, bits, seed)
    y = g.op(operator_name(bits, activation), [x, *inputs], "y", domain=kernels.DOMAIN)
    model = g.finish([(y, FLOAT, ["A", "B", shape[1]])])
    add_functions(model)
    path = folder / f"{bits}-{shape[0]}-{shape[1]}-{activation}.onnx"
    ir.save(model, path)
    return path, plain


SHAPES = [(1, 1, 32, 16), (2, 3, 96, 37), (1, 16, 64, 200), (1, 5, 32, 1), (3, 40, 160, 65)]
SHAPES.append((1, 100, 4096, 70))  # several blocks of rows


@needs_library
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_three_ways_one_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
    threads: int,
    shape: tuple[int, int, int, int],
) -> None:
    first, second, inner, width = shape
    path, (weight, scale, bias) = graph_file(tmp_path, (inner, width), bits, 1)
    x = np.random.default_rng(2).standard_normal((first, second, inner)).astype(np.float32)
    x[0, 0] *= 1e6  # a companion that is far larger
    wanted = reference.linear(x.reshape(-1, inner), weight, scale, bias).reshape(first, second, -1)
    for choice in ("", "portable", "avx2", "off"):
        monkeypatch.setenv(kernels.ENVIRONMENT, choice)
        found = OnnxEngine(threads=threads).open(path).run({"x": x})["y"]
        np.testing.assert_array_equal(found, wanted, err_msg=choice or "default")


@needs_library
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
def test_activations_are_the_same_bits_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, activation: str
) -> None:
    path, (weight, scale, bias) = graph_file(tmp_path, (64, 85), bits, 5, activation)
    x = np.random.default_rng(6).standard_normal((1, 21, 64)).astype(np.float32)
    x *= 10.0 ** np.linspace(-4, 0, 21, dtype=np.float32)[:, None]
    wanted = reference.linear(x[0], weight, scale, bias, activation)
    assert (wanted == 0).any() or activation != "relu"
    for choice in ("", "portable", "avx2", "off"):
        monkeypatch.setenv(kernels.ENVIRONMENT, choice)
        found = OnnxEngine(threads=2).open(path).run({"x": x})["y"]
        np.testing.assert_array_equal(found[0], wanted, err_msg=choice or "default")


@needs_library
def test_a_row_does_not_depend_on_its_companions(tmp_path: Path) -> None:
    path, _ = graph_file(tmp_path, (96, 80), 8, 3)
    graph = OnnxEngine(threads=2).open(path)
    x = np.random.default_rng(4).standard_normal((1, 33, 96)).astype(np.float32)
    together = graph.run({"x": x})["y"]
    for row in (0, 7, 32):
        alone = graph.run({"x": x[:, row : row + 1]})["y"]
        np.testing.assert_array_equal(alone[0, 0], together[0, row])


@needs_library
def test_no_rows_give_no_rows(tmp_path: Path) -> None:
    path, _ = graph_file(tmp_path, (32, 16), 8, 3)
    found = OnnxEngine(threads=1).open(path).run({"x": np.zeros((2, 0, 32), np.float32)})
    assert found["y"].shape == (2, 0, 16)


@needs_library
@pytest.mark.parametrize(
    ("weight", "scale", "bias"),
    [
        ((1, 7, 16, 4), 16, 16),  # K of 28 instead of 32
        ((2, 8, 16, 4), 16, 16),
        ((1, 8, 16, 4), 17, 16),
        ((1, 8, 16, 4), 16, 15),
        ((1, 8, 64, 1), 16, 16),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    tmp_path: Path, weight: tuple[int, ...], scale: int, bias: int
) -> None:
    """A bundle is untrusted: no size in it may lead the kernel out of its arrays."""
    g = GraphBuilder("linear")
    arrays = [np.ones(weight, np.uint8), np.ones(scale, np.float32), np.ones(bias, np.float32)]
    names = ("weight", "scale", "bias")
    inputs = [g.weight(name, array) for name, array in zip(names, arrays, strict=True)]
    x = g.input("x", FLOAT, ["A", 32])
    y = g.op("Linear", [x, *inputs], "y", domain=kernels.DOMAIN)
    model = g.finish([(y, FLOAT, ["A", "N"])])
    add_functions(model)
    ir.save(model, tmp_path / "bad.onnx")
    with pytest.raises(EngineError, match="Linear: shape"):
        OnnxEngine(threads=1).open(tmp_path / "bad.onnx").run({"x": np.ones((2, 32), np.float32)})


def test_the_fallback_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(kernels.ENVIRONMENT, "off")
    path, _ = graph_file(tmp_path, (32, 16), 8, 3)
    engine = OnnxEngine(threads=1)
    with caplog.at_level(logging.WARNING, logger="primelens.engine"):
        engine.open(path)
        engine.open(path)
    said = [r.getMessage() for r in caplog.records if "kernels" in r.getMessage()]
    assert len(said) == 1
    assert "switched off by PRIMELENS_KERNELS" in said[0]
    assert "without kernels" in engine.name
