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
from primelens.export.checkpoint import open_checkpoint
from primelens.export.decoder_graph import build_decoder
from primelens.export.draft import draft_bundle
from primelens.export.graph import GraphBuilder
from primelens.export.options import ExportOptions
from primelens.export.products import add_initializer, find_products
from primelens.export.quantise import (
    INT8,
    quantise_channels,
    quantise_products,
    recipe,
    recipe_of_variant,
    store_in_int8,
    store_tables,
)
from primelens.export.reference_works import build
from primelens.export.rounding import Rounded, round8
from primelens.export.storage import save_graph
from primelens.kernels import ENVIRONMENT, reference

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


def copy_of(graph: ir.Model) -> ir.Model:
    return ir.from_proto(ir.to_proto(graph))


@settings(max_examples=30)
@given(
    st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([0.0, 1e-6, 1])
)
def test_a_column_is_off_by_half_a_step(inner: int, width: int, seed: int, scale: float) -> None:
    weight = scale * np.random.default_rng(seed).standard_normal((inner, width))
    rounded = round8(weight.astype(np.float32))
    assert (np.abs(rounded.values() - weight) <= 0.501 * rounded.scale).all()
    assert np.abs(rounded.integers.astype(int)).max() <= 127


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


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    decoders: tuple[Any, Any, Work], data: Any
) -> None:
    """One outlier picture must not move its neighbour's logits by a bit."""
    _, quantised, work = decoders
    rows = data.draw(st.integers(2, 9), "rows")
    width = data.draw(st.sampled_from([1, 4]), "width")
    seed = data.draw(st.integers(0, 99), "seed")
    fed = feeds(work, rows, width, seed)
    outlier, row = data.draw(st.permutations(range(rows)), "outlier, row")[:2]
    for layer in range(3):
        fed[f"cross_value.{layer}"][outlier] *= 1000
    batch = quantised.run(fed)["logits"].reshape(rows, width, -1)
    alone = quantised.run(feeds(work, 1, width, seed, first=row))["logits"]
    np.testing.assert_array_equal(alone, batch[row])


@pytest.mark.parametrize("name", ["tiny-vitgpt2", "tiny-git", "tiny-blip-vqa", "tiny-lit"])
def test_the_same_bits_without_the_compiled_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every graph of a bundle, so every pattern that the engine might fuse around a product."""
    checkpoint = open_checkpoint(build(name, tmp_path / "checkpoint", seed=0))
    split = checkpoint.family.split(checkpoint.model)
    draft = draft_bundle(checkpoint, split, ExportOptions(precision="int8"))
    assert not any(find_products(graph.graph) for graph in draft.graphs.values())
    for stem, graph in draft.graphs.items():
        save_graph(graph, tmp_path, stem)
        found = {}
        for choice in ("", "portable", "off"):
            monkeypatch.setenv(ENVIRONMENT, choice)
            opened = OnnxEngine(threads=1).open(tmp_path / f"{stem}.onnx")
            found[choice] = opened.run(any_feeds(opened.inputs))
        for output, values in found[""].items():
            for choice in ("portable", "off"):
                np.testing.assert_array_equal(found[choice][output], values, f"{stem}, {output}")


def test_decoders_in_fewer_bits_attend_to_pictures_in_the_kernel() -> None:
    """Cross-attention alone: self-attention stays the engine's, and float32 everything."""
    plan = random_plan(base_shape(layers=3), 1)
    for name, ragged, kinds in (
        ("fp32", False, {"MultiHeadAttention": 3}),
        ("int8", False, {"CrossAttention": 3}),
        ("int4", True, {"CrossAttentionRagged": 3}),
    ):
        model = build_decoder(plan, LENGTH, ragged_cross=ragged)
        recipe(name).apply({"caption.decoder": model})
        found = [node.op_type for node in model.graph if "Attention" in node.op_type]
        assert {kind: found.count(kind) for kind in set(found)} == {
            "GroupQueryAttention": 3,
            **kinds,
        }
        assert set(kinds) - {"MultiHeadAttention"} <= {f[1] for f in model.functions}


def any_feeds(inputs: Any) -> dict[str, Any]:
    """Something random for every input of a graph, of sizes that fit together."""
    rng, rows, width, free = np.random.default_rng(0), 4, 3, 6
    fixed = {
        "seqlens_k": np.full(rows, width - 1, np.int32),
        "query_seqlens": np.full(rows, width, np.int32),
        "total_sequence_length": np.array(width, np.int32),
        "logits_rows": np.arange(rows * width),
        "position_ids": np.tile(np.arange(width), (rows, 1)),
    }
    if "attention_bias" in inputs:  # over all slots of a cache row
        fixed["total_sequence_length"] = np.array(free, np.int32)
    fed = {}
    for name, spec in inputs.items():
        sizes = [rows if i == 0 else n or free for i, n in enumerate(spec.shape)]
        if name in fixed:
            fed[name] = fixed[name]
        elif name in ("input_ids", "attention_mask"):
            high = 2 if name == "attention_mask" else 50
            fed[name] = np.sort(rng.integers(0, high, (rows, width)))[:, ::-1].copy()
        elif spec.dtype == "int32":
            fed[name] = np.full(sizes, free, np.int32)
        elif name == "attention_bias":
            fed[name] = np.zeros([rows, 1, width, free], np.float32)
        else:
            values = rng.standard_normal(sizes).astype(np.float32)
            fed[name] = 0 * values if name.startswith("past") else values
    return fed


def test_a_table_is_stored_once_and_looked_up_as_it_is_multiplied_with(tmp_path: Path) -> None:
    """Rows of the packed table are the columns of the product."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((77, 64)).astype(np.float32)
    g = GraphBuilder("graph")
    weight = g.weight("table", table)
    ids = g.input("ids", ir.DataType.INT64, ["R", "T"])
    found = g.op("Gather", [weight, ids], "found", axis=0)
    x = g.input("x", FLOAT, ["N", 64])
    logits = g.op("Gemm", [x, weight], "logits", transB=1)
    model = g.finish([(found, FLOAT, ["R", "T", 64]), (logits, FLOAT, ["N", 77])])
    quantise_products(model)
    save_graph(model, tmp_path, "graph")
    assert (tmp_path / "graph.weights").stat().st_size < 1.1 * (80 * 64 + 4096)
    rows = {"ids": rng.integers(0, 77, (3, 5)), "x": rng.standard_normal((4, 64), np.float32)}
    said = OnnxEngine(threads=1).open(tmp_path / "graph.onnx").run(rows)
    rounded = round8(table.T)
    np.testing.assert_array_equal(said["found"], rounded.values().T[rows["ids"]])
    wanted = reference.linear(rows["x"], rounded.integers, rounded.scale, np.zeros(77, np.float32))
    np.testing.assert_array_equal(said["logits"], wanted)


def test_a_table_that_is_only_looked_up_in(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((77, 64)).astype(np.float32)
    g = GraphBuilder("graph")
    ids = g.input("ids", ir.DataType.INT64, ["R", "T"])
    found = g.op("Gather", [g.weight("tokens", table), ids], "found", axis=0)
    place = g.op("Gather", [g.weight("positions", -table), ids], "place", axis=0)
    shape = ["R", "T", 64]
    model = g.finish([(found, FLOAT, shape), (place, FLOAT, shape)])
    store_tables(model)
    save_graph(model, tmp_path, "graph")
    rows = {"ids": np.arange(77).reshape(7, 11)}
    said = OnnxEngine(threads=1).open(tmp_path / "graph.onnx").run(rows)
    np.testing.assert_array_equal(said["place"].reshape(77, 64), -table)
    off = np.abs(said["found"].reshape(77, 64) - table)
    assert 0 < off.max() <= 0.501 * np.abs(table).max() / 127


def test_what_cannot_be_a_kernels_product_is_left_alone() -> None:
    g = GraphBuilder("graph")
    x = g.input("x", FLOAT, ["N", 66])
    array = np.ones((66, 66), np.float32)
    outputs = [
        g.op("MatMul", [x, g.weight("odd", array)], "a"),  # K is no multiple of 4
        g.op("MatMul", [g.weight("left", array), x], "b"),
        g.op("Gemm", [x, g.weight("scaled", np.ones((66, 68), np.float32))], "c", alpha=0.5),
    ]
    model = g.finish([(output, FLOAT, ["N", "M"]) for output in outputs])
    assert find_products(model.graph) == []


@pytest.mark.parametrize("what", ["bias", "scale", "table"])
def test_a_mistake_in_the_packing_shows(
    works: Callable[[str], Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The comparison above with one thing wrong: it has to see each."""

    def wrong(weight: Any) -> Rounded:
        right = round8(weight)
        if what == "scale":
            return Rounded(right.integers, np.roll(right.scale, 1))
        if what == "table" and weight.shape[1] == 320:
            return Rounded(np.roll(right.integers, 1, axis=1), right.scale)
        return right

    plan = works("tiny-vitgpt2").split.heads["caption"].plan
    found = {}
    for name in ("fp32", "right", "wrong"):
        model = build_decoder(plan, 17)
        if name == "wrong":
            monkeypatch.setattr("primelens.export.quantise.round8", wrong)
            if what == "bias":
                monkeypatch.setattr("primelens.export.products.Product._bias", no_bias)
        if name != "fp32":
            quantise_products(model)
        save_graph(model, tmp_path, name)
        graph = OnnxEngine(threads=1).open(tmp_path / f"{name}.onnx")
        found[name] = graph.run(feeds(works("tiny-vitgpt2"), 3, 4, 1))["logits"]
    spread = found["fp32"].std()
    error = {
        name: np.sqrt(((found[name] - found["fp32"]) ** 2).mean()) / spread
        for name in ("right", "wrong")
    }
    assert error["right"] < 0.1 < error["wrong"]


def no_bias(product: Any, _: Any) -> Any:
    zeros = np.zeros(product.shape[1], np.float32)
    return add_initializer(product.graph, f"{product.name}.no_bias", zeros)


def test_the_token_table_is_stored_once(works: Callable[[str], Work]) -> None:
    plan = works("tiny-vitgpt2").split.heads["caption"].plan
    model = build_decoder(plan, 17)
    quantise_products(model)
    size = plan.vocab_size * plan.heads * plan.head_dim
    tables = [
        tensor
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None and tensor.size == size
    ]
    assert [tensor.dtype for tensor in tables] == [ir.DataType.UINT8]
    assert not {node.op_type for node in model.graph} & {"MatMul", "Gemm"}


def test_towers_of_earlier_bundles_keep_their_recipe(works: Callable[[str], Work]) -> None:
    tower = copy_of(works("tiny-vitgpt2").draft.graphs["tower"])
    recipe_of_variant("int8-weights").apply({"tower": tower})
    assert "Linear" not in {node.op_type for node in tower.graph}
    assert any(name.endswith(".scales") for name in tower.graph.initializers)


def test_no_operator_scales_over_the_batch(works: Callable[[str], Work]) -> None:
    draft = works("tiny-vitgpt2").draft
    graphs = {name: copy_of(graph) for name, graph in draft.graphs.items()}
    INT8.apply(graphs)
    kinds = {node.op_type for graph in graphs.values() for node in graph.graph}
    assert not {kind for kind in kinds if kind.startswith("Dynamic")}
