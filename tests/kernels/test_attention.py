"""Cross-attention: against float64; compiled, as standard operators and in NumPy, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens import EngineError, kernels
from primelens.engine_onnx import OnnxEngine, OnnxGraph
from primelens.export.graph import GraphBuilder
from primelens.export.linear_functions import add_functions
from primelens.kernels import reference
from primelens.kernels.activations import EXPONENTIAL

FLOAT, INT32 = ir.DataType.FLOAT, ir.DataType.INT32
needs_library = pytest.mark.skipif(
    kernels.library().path is None, reason=f"no kernels: {kernels.library().reason}"
)
# images, rows, heads, places, width
SHAPES = [(1, 1, 1, 1, 64), (2, 3, 3, 2, 32), (2, 5, 2, 65, 80), (3, 16, 2, 197, 64)]
SHAPES += [(1, 17, 2, 577, 64), (2, 4, 2, 33, 13), (1, 48, 2, 100, 64), (2, 1, 2, 40, 128)]


def draw(shape: tuple[int, ...], seed: int, spread: float = 3.0) -> dict[str, Any]:
    images, rows, heads, places, width = shape
    rng = np.random.default_rng(seed)
    sizes = [(images, rows, heads * width), *[(images, heads, places, width)] * 2]
    arrays = [rng.standard_normal(size).astype(np.float32) for size in sizes]
    arrays[0] *= np.float32(spread)
    return dict(zip(("query", "key", "value"), arrays, strict=True))


def opened(folder: Path, heads: int, width: int, threads: int, *, ragged: bool) -> OnnxGraph:
    """A session of one node whose scale is that of `scale_of`."""
    g = GraphBuilder("attention")
    inputs = [g.input("query", FLOAT, ["I", "R", "C"])]
    inputs += [g.input(name, FLOAT, ["I", "H", "L", "D"]) for name in ("key", "value")]
    inputs += [g.input("lengths", INT32, ["J"])] if ragged else []
    kind = "CrossAttentionRagged" if ragged else "CrossAttention"
    y = g.op(kind, inputs, "y", domain=kernels.DOMAIN, scale=scale_of(width))
    model = g.finish([(y, FLOAT, ["I", "R", heads * width])])
    add_functions(model)
    path = folder / f"{kind}-{heads}-{width}.onnx"
    ir.save(model, path)
    return OnnxEngine(threads=threads).open(path)


def scale_of(width: int) -> float:
    return float(np.float32(width**-0.5))


def exact(fed: dict[str, Any], scale: float) -> np.ndarray:
    """float64 throughout."""
    key = fed["key"].astype(np.float64)
    images, heads, _, width = key.shape
    query = fed["query"].astype(np.float64).reshape(images, -1, heads, width)
    scores = np.einsum("irhd,ihld->ihrl", query, key) * scale
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("ihrl,ihld->irhd", shares, fed["value"].astype(np.float64))
    mixed /= shares.sum(-1).transpose(0, 2, 1)[..., None]
    return np.asarray(mixed.reshape(fed["query"].shape))


@settings(max_examples=40, deadline=None)
@given(st.tuples(*map(st.integers, (1, 1, 1, 1, 1), (2, 5, 3, 90, 70))), st.integers(0, 99))
def test_the_reference_is_attention(shape: tuple[int, ...], seed: int) -> None:
    fed, scale = draw(shape, seed), scale_of(shape[-1])
    found = reference.cross_attention(fed["query"], fed["key"], fed["value"], scale)
    norms = np.linalg.norm(fed["query"]) * np.linalg.norm(fed["key"]) * scale
    limit = (1e-7 * min(norms, 100) + 1e-6) * np.abs(fed["value"]).max()
    assert np.abs(found - exact(fed, scale)).max() <= limit


def test_the_exponential_is_within_its_bound() -> None:
    d = np.linspace(-86, 0, 400001).astype(np.float32)
    wanted = np.exp(d.astype(np.float64))
    assert (np.abs(EXPONENTIAL(d) - wanted) / wanted).max() <= 3e-7


@needs_library
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ragged", [False, True])
def test_three_ways_one_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], ragged: bool
) -> None:
    fed, lengths = draw(shape, 1), None
    if ragged:
        lengths = np.random.default_rng(2).integers(-1, shape[3] + 3, shape[0]).astype(np.int32)
        lengths[0] = 0 if shape[0] > 2 else 1
        fed["lengths"] = lengths
    wanted = reference.cross_attention(
        fed["query"], fed["key"], fed["value"], scale_of(shape[-1]), lengths
    )
    for choice in ("", "portable", "avx2", "off"):
        monkeypatch.setenv(kernels.ENVIRONMENT, choice)
        for threads in (1, 2):
            graph = opened(tmp_path, shape[2], shape[-1], threads, ragged=ragged)
            np.testing.assert_array_equal(graph.run(fed)["y"], wanted, err_msg=choice or "default")


@needs_library
@pytest.mark.parametrize("choice", ["", "portable", "avx2", "off"])
def test_a_row_does_not_depend_on_its_companions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    """Neither on other rows of its picture nor on other pictures, one of which is far larger."""
    monkeypatch.setenv(kernels.ENVIRONMENT, choice)
    graph = opened(tmp_path, 2, 64, 2, ragged=False)
    fed = draw((3, 21, 2, 70, 64), 5)
    fed["key"][1] *= 1e6
    fed["query"][:, 3] *= 1e6
    together = graph.run(fed)["y"]
    for image, first, count in ((0, 0, 1), (0, 4, 3), (2, 20, 1), (1, 2, 16)):
        alone = {name: array[image : image + 1] for name, array in fed.items()}
        alone["query"] = alone["query"][:, first : first + count]
        found = graph.run(alone)["y"][0]
        np.testing.assert_array_equal(found, together[image, first : first + count])


@needs_library
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_what_is_not_finite_shows_and_stays_with_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float, where: str
) -> None:
    fed = draw((2, 2, 1, 20, 32), 6)
    fed[where][1].flat[3] = bad
    for choice in ("", "portable", "off"):
        monkeypatch.setenv(kernels.ENVIRONMENT, choice)
        found = opened(tmp_path, 1, 32, 1, ragged=False).run(fed)["y"]
        assert np.isfinite(found[0]).all()
        assert not np.isfinite(found[1, 0]).all()


@needs_library
def test_no_rows_give_no_rows(tmp_path: Path) -> None:
    graph = opened(tmp_path, 2, 32, 2, ragged=False)
    assert graph.run(draw((2, 0, 2, 5, 32), 1))["y"].shape == (2, 0, 64)
    assert graph.run(draw((0, 1, 2, 5, 32), 1))["y"].shape == (0, 1, 64)


@needs_library
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("query", (2, 3, 65)),
        ("query", (1, 3, 64)),
        ("value", (2, 2, 6, 32)),
        ("value", (2, 2, 5, 31)),
        ("key", (2, 1, 5, 32)),
        ("lengths", (3,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, size: tuple[int, ...]
) -> None:
    """A bundle is untrusted: no size in it may lead the kernel out of its arrays."""
    fed = draw((2, 3, 2, 5, 32), 1) | {"lengths": np.full(2, 5, np.int32)}
    fed[name] = np.ones(size, fed[name].dtype)
    graph = opened(tmp_path, 2, 32, 1, ragged=True)
    with pytest.raises(EngineError, match="CrossAttention: shape of"):
        graph.run(fed)


@needs_library
def test_a_picture_without_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there are no keys"):
        opened(tmp_path, 2, 32, 1, ragged=False).run(draw((2, 3, 2, 0, 32), 1))
