"""8-bit weights: how far off, what is shared, and that no row depends on its companions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.decoding.session import Step
from primelens.engine_onnx import OnnxEngine
from primelens.export.decoder_graph import build_decoder
from primelens.export.graph import GraphBuilder
from primelens.export.quantise import (
    BLOCK,
    INT8,
    quantise_blocks,
    quantise_channels,
    quantise_decoder,
    recipe,
    store_in_int8,
)
from primelens.export.storage import save_graph

from .conftest import Work
from .test_decoder_graph import (
    CHANNELS,
    LENGTH,
    VOCAB,
    base_shape,
    open_graphs,
    random_plan,
    session_for,
)

FLOAT = ir.DataType.FLOAT


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31), st.sampled_from([0.0, 1e-6, 1]))
def test_a_block_is_off_by_half_a_step(rows: int, blocks: int, seed: int, scale: float) -> None:
    weight = scale * np.random.default_rng(seed).standard_normal((rows, blocks * BLOCK))
    weight = weight.astype(np.float32)
    values, scales = quantise_blocks(weight)
    back = (values.astype(np.float64) - 128).reshape(rows, blocks, BLOCK) * scales[..., None]
    error = np.abs(back.reshape(weight.shape) - weight).reshape(rows, blocks, BLOCK)
    assert (error <= 0.501 * scales[..., None]).all()
    assert values.min() >= 1  # symmetric: -127..127 around 128


@pytest.mark.parametrize("axis", [0, 1])
def test_a_channel_is_off_by_half_a_step(axis: int) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 7, 2, 2)).astype(np.float32)
    values, scales = quantise_channels(weight, axis)
    assert scales.size == weight.shape[axis]
    assert (np.abs(values * scales - weight) <= 0.501 * scales).all()


def test_stored_channels_compute_as_their_float_values(tmp_path: Path) -> None:
    """The engine widens the stored weights: bit-equal to a float32 graph of the rounded weights."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((96, 80)).astype(np.float32)
    values, scales = quantise_channels(weight, 1)
    x = rng.standard_normal((3, 96)).astype(np.float32)
    results = []
    for name, array, rewrite in (("stored", weight, True), ("float", values * scales, False)):
        g = GraphBuilder("graph")
        product = g.op("MatMul", [g.input("x", FLOAT, ["B", 96]), g.weight("weight", array)], "y")
        model = g.finish([(product, FLOAT, ["B", 80])])
        if rewrite:
            store_in_int8(model)
        save_graph(model, tmp_path, name)
        results.append(OnnxEngine(threads=1).open(tmp_path / f"{name}.onnx").run({"x": x})["y"])
    np.testing.assert_array_equal(results[0], results[1])
    assert (tmp_path / "stored.weights").stat().st_size < 0.3 * weight.nbytes


@pytest.fixture(scope="module")
def decoders(
    works: Callable[[str], Work], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any, Work]:
    """The float32 and the 8-bit decoder of one checkpoint, opened."""
    work = works("tiny-vitbert")
    folder = tmp_path_factory.mktemp("decoders")
    opened = []
    for name in ("fp32", "int8"):
        model = build_decoder(work.split.heads["caption"].plan, 17)
        recipe(name).apply({"caption.decoder": model})
        save_graph(model, folder, name)
        opened.append(OnnxEngine(threads=1).open(folder / f"{name}.onnx"))
    return opened[0], opened[1], work


def feeds(work: Work, rows: int, width: int, seed: int, *, first: int = 0) -> dict[str, Any]:
    """Random rows; row r of a smaller batch equals row r of a larger one."""
    plan = work.split.heads["caption"].plan

    def values(tag: int, *shape: int) -> Any:
        parts = [np.random.default_rng([seed, tag, first + r]) for r in range(rows)]
        return np.stack([part.standard_normal(shape) for part in parts]).astype(np.float32)

    data: dict[str, Any] = {
        "input_ids": (np.abs(values(0, width)) * 50).astype(np.int64),
        "position_ids": np.tile(np.arange(width), (rows, 1)),
        "seqlens_k": np.full(rows, width - 1, np.int32),
        "total_sequence_length": np.array(width, np.int32),
        "logits_rows": np.arange(rows * width),
    }
    for layer in range(len(plan.layers)):
        for k, kind in enumerate(("key", "value")):
            shape = (plan.heads, 17, plan.head_dim)
            data[f"cross_{kind}.{layer}"] = values(1 + 2 * layer + k, *shape)
            empty = np.zeros((rows, plan.heads, 16, plan.head_dim), np.float32)
            data[f"past_{kind}.{layer}"] = empty
    return data


def test_eight_bits_are_close(tmp_path: Path) -> None:
    shape = base_shape(heads=4, head_dim=16, activation="gelu")
    plan = random_plan(shape, 5)
    states = np.random.default_rng(1).standard_normal((2, LENGTH, CHANNELS)).astype(np.float32)
    tokens = np.random.default_rng(2).integers(0, VOCAB, (2, 6)).astype(np.int64)
    logits = {}
    for name in ("fp32", "int8"):
        connector, _ = open_graphs(plan, tmp_path)
        model = build_decoder(plan, LENGTH)
        recipe(name).apply({"caption.decoder": model})
        save_graph(model, tmp_path, name)
        graph = OnnxEngine(threads=1).open(tmp_path / f"{name}.onnx")
        session = session_for(plan, (connector, graph), states, rows=2)
        logits[name] = session.run(Step(tokens, np.full(2, 6))).copy()
    error = np.sqrt(((logits["int8"] - logits["fp32"]) ** 2).mean()) / logits["fp32"].std()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("width", [1, 4])
def test_a_row_does_not_depend_on_its_companions(
    decoders: tuple[Any, Any, Work], width: int
) -> None:
    """One outlier picture must not move its neighbour's logits."""
    _, quantised, work = decoders
    data = feeds(work, 5, width, 1)
    for layer in range(3):
        data[f"cross_value.{layer}"][3] *= 1000
    batch = quantised.run(data)["logits"].reshape(5, width, -1)
    for row in (0, 2, 4):
        alone = quantised.run(feeds(work, 1, width, 1, first=row))["logits"]
        np.testing.assert_allclose(alone, batch[row], atol=2e-5 * np.abs(batch[row]).max())


def test_the_token_table_is_stored_once(works: Callable[[str], Work]) -> None:
    plan = works("tiny-vitgpt2").split.heads["caption"].plan
    model = build_decoder(plan, 17)
    quantise_decoder(model)
    shape = (plan.vocab_size, plan.heads * plan.head_dim)
    tables = [
        tensor
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None and tensor.size == shape[0] * shape[1]
    ]
    assert [tensor.dtype for tensor in tables] == [ir.DataType.UINT8]
    kinds = {node.op_type for node in model.graph}
    assert "GatherBlockQuantized" in kinds
    assert not kinds & {"MatMul", "Gemm"}


def test_no_operator_scales_over_the_batch(works: Callable[[str], Work]) -> None:
    draft = works("tiny-vitgpt2").draft
    graphs = {name: ir.from_proto(ir.to_proto(graph)) for name, graph in draft.graphs.items()}
    INT8.apply(graphs)
    kinds = {node.op_type for graph in graphs.values() for node in graph.graph}
    assert not {kind for kind in kinds if kind.startswith("Dynamic")}
