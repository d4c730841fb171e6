"""The best logits and their log-sum-exp: compiled, as standard operators, and in NumPy."""

from __future__ import annotations

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

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
OUTPUTS = ("ids", "logits", "log_sum_exp")
needs_library = pytest.mark.skipif(
    kernels.library().path is None, reason=f"no kernels: {kernels.library().reason}"
)


def graph_file(folder: Path, width: int, count: int, bits: int) -> tuple[Path, Any]:
    """A graph of ``TopLogits`` over 64 values a row, and its integer weights, scales and bias.

    Neighbours among the columns are alike, so that there are ties.
    """
    rng = np.random.default_rng(width)
    scale = np.full(width, 0.01, np.float32)
    twin = np.arange(width) // 2
    bias = rng.standard_normal(width).astype(np.float32)[twin]
    if bits == 8:
        weight = rng.integers(-127, 128, (64, width))[:, twin]
        packed = [layout.pack8(weight), scale, bias]
    else:
        values = rng.integers(-7, 8, (64, width))[:, twin]
        multipliers = rng.integers(0, 19, (2, width))[:, twin]
        weight = values * np.repeat(multipliers, 32, axis=0)
        first, second = layout.pack4(values, multipliers)
        packed = [first, scale, bias, second]
    g = GraphBuilder("top")
    x = g.input("x", FLOAT, ["A", "B", 64])
    inputs = [x, *(g.weight(f"w{i}", array) for i, array in enumerate(packed))]
    name = "TopLogits" if bits == 8 else "TopLogits4"
    found = g.ops(name, inputs, OUTPUTS, domain=kernels.DOMAIN, k=count)
    shapes = (["A", "B", count], ["A", "B", count], ["A", "B"])
    model = g.finish(list(zip(found, (INT64, FLOAT, FLOAT), shapes, strict=True)))
    add_functions(model)
    path = folder / f"{bits}-{width}-{count}.onnx"
    ir.save(model, path)
    return path, (weight, scale, bias)


def rows(shape: tuple[int, int], seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((*shape, 64)).astype(np.float32)


@needs_library
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("shape", "width", "count"), [((1, 1), 5000, 1), ((2, 7), 1300, 10), ((1, 29), 37, 37)]
)
def test_three_ways_one_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
    threads: int,
    shape: tuple[int, int],
    width: int,
    count: int,
) -> None:
    path, (weight, scale, bias) = graph_file(tmp_path, width, count, bits)
    x = rows(shape, 3)
    logits = reference.linear(x.reshape(-1, 64), weight, scale, bias)
    assert (logits[:, 1::2] == logits[:, : width // 2 * 2 : 2]).all()
    ids, best, log_sum_exp = reference.top_logits(logits, count)
    for choice in ("", "portable", "avx2", "off"):
        monkeypatch.setenv(kernels.ENVIRONMENT, choice)
        found = OnnxEngine(threads=threads).open(path).run({"x": x})
        said = choice or "default"
        np.testing.assert_array_equal(found["ids"], ids.reshape(*shape, -1), err_msg=said)
        np.testing.assert_array_equal(found["logits"], best.reshape(*shape, -1), err_msg=said)
        wanted = log_sum_exp.reshape(shape)
        if choice == "off":  # the engine's own exponential and sum
            np.testing.assert_allclose(found["log_sum_exp"], wanted, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(found["log_sum_exp"], wanted, err_msg=said)


@needs_library
def test_a_row_does_not_depend_on_its_companions(tmp_path: Path) -> None:
    path, _ = graph_file(tmp_path, 1100, 3, 8)
    graph = OnnxEngine(threads=2).open(path)
    x = np.random.default_rng(4).standard_normal((1, 30, 64)).astype(np.float32)
    together = graph.run({"x": x})
    for row in (0, 11, 12, 29):
        alone = graph.run({"x": x[:, row : row + 1]})
        for name in OUTPUTS:
            np.testing.assert_array_equal(alone[name][0, 0], together[name][0, row])


@needs_library
def test_a_row_that_is_not_finite_shows_and_harms_no_other(tmp_path: Path) -> None:
    path, _ = graph_file(tmp_path, 600, 2, 8)
    x = rows((1, 3), 5)
    x[0, 1, 3] = np.nan
    found = OnnxEngine(threads=1).open(path).run({"x": x})
    assert np.isnan(found["log_sum_exp"][0]).tolist() == [False, True, False]
    assert found["ids"][0, 1].tolist() == [0, 1]
    assert np.isnan(found["logits"][0, 1]).all()
    assert np.isfinite(found["logits"][0, [0, 2]]).all()


@needs_library
def test_no_rows_give_no_rows(tmp_path: Path) -> None:
    path, _ = graph_file(tmp_path, 40, 2, 8)
    found = OnnxEngine(threads=1).open(path).run({"x": np.zeros((2, 0, 64), np.float32)})
    assert [found[name].shape for name in OUTPUTS] == [(2, 0, 2), (2, 0, 2), (2, 0)]


@needs_library
@pytest.mark.parametrize(
    ("count", "said"), [(0, "k must be"), (1025, "k must be"), (41, "exceeds")]
)
def test_a_count_that_does_not_fit_is_refused(tmp_path: Path, count: int, said: str) -> None:
    path, _ = graph_file(tmp_path, 40, count, 8)
    with pytest.raises(EngineError, match=said):
        OnnxEngine(threads=1).open(path).run({"x": rows((1, 1), 1)})
