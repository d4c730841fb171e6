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
from primelens.export.linear_functions import add_functions
from primelens.kernels import layout, reference

FLOAT = ir.DataType.FLOAT
needs_library = pytest.mark.skipif(
    kernels.library().path is None, reason=f"no kernels: {kernels.library().reason}"
)


def graph_file(folder: Path, inner: int, width: int, bits: int, seed: int) -> tuple[Path, Any]:
    """A graph ``y = Linear(x)``, and its integer weights, scales and bias."""
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
    g = GraphBuilder("linear")
    x = g.input("x", FLOAT, ["A", "B", inner])
    inputs = [x, *(g.weight(name, array) for name, array in packed)]
    name = "Linear" if bits == 8 else "Linear4"
    y = g.op(name, inputs, "y", domain=kernels.DOMAIN)
    model = g.finish([(y, FLOAT, ["A", "B", width])])
    add_functions(model)
    path = folder / f"{bits}-{inner}-{width}.onnx"
    ir.save(model, path)
    return path, (weight, scale, bias)


SHAPES = [(1, 1, 32, 16), (2, 3, 96, 37), (1, 16, 64, 200), (1, 5, 32, 1), (3, 40, 160, 65)]


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
    path, (weight, scale, bias) = graph_file(tmp_path, inner, width, bits, 1)
    x = np.random.default_rng(2).standard_normal((first, second, inner)).astype(np.float32)
    x[0, 0] *= 1e6  # a companion that is far larger
    wanted = reference.linear(x.reshape(-1, inner), weight, scale, bias).reshape(first, second, -1)
    for choice in ("", "portable", "avx2", "off"):
        monkeypatch.setenv(kernels.ENVIRONMENT, choice)
        found = OnnxEngine(threads=threads).open(path).run({"x": x})["y"]
        np.testing.assert_array_equal(found, wanted, err_msg=choice or "default")


@needs_library
def test_a_row_does_not_depend_on_its_companions(tmp_path: Path) -> None:
    path, _ = graph_file(tmp_path, 96, 80, 8, 3)
    graph = OnnxEngine(threads=2).open(path)
    x = np.random.default_rng(4).standard_normal((1, 33, 96)).astype(np.float32)
    together = graph.run({"x": x})["y"]
    for row in (0, 7, 32):
        alone = graph.run({"x": x[:, row : row + 1]})["y"]
        np.testing.assert_array_equal(alone[0, 0], together[0, row])


@needs_library
def test_no_rows_give_no_rows(tmp_path: Path) -> None:
    path, _ = graph_file(tmp_path, 32, 16, 8, 3)
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
    path, _ = graph_file(tmp_path, 32, 16, 8, 3)
    engine = OnnxEngine(threads=1)
    with caplog.at_level(logging.WARNING, logger="primelens.engine"):
        engine.open(path)
        engine.open(path)
    said = [r.getMessage() for r in caplog.records if "kernels" in r.getMessage()]
    assert len(said) == 1
    assert "switched off by PRIMELENS_KERNELS" in said[0]
    assert "without kernels" in engine.name
