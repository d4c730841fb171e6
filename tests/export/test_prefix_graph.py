"""Prefix, tree and session against a float64 decoder written in NumPy, on random descriptions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primelens.decoding.session import Step
from primelens.decoding.tree_session import TreeSession, tree_capacity
from primelens.engine_onnx import OnnxEngine
from primelens.errors import PromptError, UnsupportedError
from primelens.export.decoder_plan import DecoderPlan, FeedForward
from primelens.export.prefix_graph import build_prefix_layers, build_tree_decoder
from primelens.export.storage import save_graph
from primelens.manifest import DecoderSpec

from .test_decoder_graph import (
    POSITIONS,
    VOCAB,
    affine,
    base_shape,
    fed_forward,
    logits_of,
    normed,
    random_plan,
    shapes,
    split,
)

Array = Any
PREFIX = 5


# The reference: one sequence behind its prefix, in one pass --------------------------------------


def reference(plan: DecoderPlan, states: Array, tokens: Array, *, causal: bool) -> Array:
    """``[T, V]`` logits after every token, in float64."""
    e, count = plan.embedding, len(tokens)
    text = e.scale * e.tokens[tokens].astype(np.float64) + e.positions[:count]
    x = np.concatenate([states.astype(np.float64), normed(text, e.norm)])
    visible = np.tril(np.ones((len(x), len(x)), bool))
    if not causal:
        visible[:PREFIX, :PREFIX] = True
    for layer in plan.layers:
        for block in (layer.self_attention, layer.feed_forward):
            if plan.norm_first:
                x = x + _branch(plan, block, normed(x, block.norm), visible)
            else:
                x = normed(x + _branch(plan, block, x, visible), block.norm)
    return logits_of(plan, normed(x[PREFIX:], plan.final_norm))


def _branch(plan: DecoderPlan, block: Any, x: Array, visible: Array) -> Array:
    if isinstance(block, FeedForward):
        return fed_forward(block, x)
    q, k, v = (split(part, plan.heads) for part in np.split(affine(x, block.qkv), 3, axis=1))
    scores = np.where(visible, q @ k.transpose(0, 2, 1) * block.scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return affine(out.transpose(1, 0, 2).reshape(len(x), -1), block.out)


# At work ----------------------------------------------------------------------------------------


def without_cross(plan: DecoderPlan) -> DecoderPlan:
    return replace(plan, layers=tuple(replace(x, cross_attention=None) for x in plan.layers))


class Bench:
    """A random decoder, opened; runs sessions over random pictures."""

    def __init__(self, plan: DecoderPlan, folder: Path, *, causal: bool) -> None:
        self.plan, self.causal = plan, causal
        save_graph(build_prefix_layers(plan, PREFIX, causal=causal), folder, "connector")
        save_graph(build_tree_decoder(plan), folder, "decoder")
        engine = OnnxEngine(threads=1)
        self.connector = engine.open(folder / "connector.onnx")
        self.decoder = engine.open(folder / "decoder.onnx")
        self.spec = DecoderSpec(
            "decoder.onnx",
            len(plan.layers),
            plan.heads,
            plan.head_dim,
            plan.vocab_size,
            plan.max_positions,
            PREFIX,
        )

    def states(self, rng: np.random.Generator, images: int) -> Array:
        width = self.plan.embedding.tokens.shape[1]
        return rng.standard_normal((images, PREFIX, width)).astype(np.float32)

    def session(self, states: Array, per: int, slots: int) -> TreeSession:
        prefix = self.connector.run({"prefix_states": states})
        capacity = tree_capacity(self.spec, slots)
        rows = len(states) * per
        return TreeSession(self.decoder, self.spec, rows=rows, capacity=capacity, prefix=prefix)


def random_steps(rng: np.random.Generator, images: int, per: int, count: int) -> list[Step]:
    """Prompts (some of a picture's alike), then single tokens with parents and parked rows."""
    rows = images * per
    lengths = rng.integers(1, 5, rows)
    tokens = rng.integers(0, VOCAB, (rows, 4))
    for row in range(rows):
        if row % per and rng.random() < 0.4:
            tokens[row], lengths[row] = tokens[row - 1], lengths[row - 1]
    steps = [Step(tokens[:, : lengths.max()], lengths)]
    for _ in range(count):
        parents = np.concatenate([per * i + rng.integers(0, per, per) for i in range(images)])
        fed = (rng.random(rows) < 0.8).astype(np.int64)
        ones = rng.integers(0, VOCAB, (rows, 1))
        steps.append(Step(ones, fed, parents if rng.random() < 0.7 else None))
    return steps


def texts_of(steps: list[Step]) -> list[list[list[int]]]:
    """After every step, what each row has been fed along its ancestors."""
    texts: list[list[list[int]]] = []
    before: list[list[int]] = [[] for _ in range(len(steps[0].lengths))]
    for step in steps:
        parents = range(len(before)) if step.parents is None else step.parents
        before = [
            before[parent] + step.tokens[row, : step.lengths[row]].tolist()
            for row, parent in enumerate(parents)
        ]
        texts.append(before)
    return texts


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=shapes,
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    per=st.integers(1, 4),
    causal=st.booleans(),
)
def test_rows_of_a_tree_equal_the_reference(
    tmp_path_factory: pytest.TempPathFactory,
    shape: Any,
    seed: int,
    images: int,
    per: int,
    causal: bool,
) -> None:
    """Ragged prompts, beams that change places, rows that end: each row as if it were alone."""
    plan = without_cross(random_plan(replace(shape, padding=False, relative=False), seed))
    bench = Bench(plan, tmp_path_factory.mktemp("graphs"), causal=causal)
    rng = np.random.default_rng(seed)
    states, steps = bench.states(rng, images), random_steps(rng, images, per, 6)
    session = bench.session(states, per, per * (4 + 6))
    for _ in range(2):  # a session is used again
        session.reset()
        for step, texts in zip(steps, texts_of(steps), strict=True):
            found = session.run(step)
            assert session.lengths.tolist() == [len(text) for text in texts]
            for row in np.flatnonzero(step.lengths).tolist():
                exact = reference(plan, states[row // per], np.array(texts[row]), causal=causal)[-1]
                np.testing.assert_allclose(found[row], exact, atol=3e-5 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("peculiar", "reason"),
    [({"padding": True}, "without a place"), ({"relative": True}, "slots are no distances")],
)
def test_what_a_tree_cannot_hold_is_refused(peculiar: dict[str, bool], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_tree_decoder(without_cross(random_plan(replace(base_shape(), **peculiar), 0)))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    plan = without_cross(random_plan(base_shape(layers=3, heads=3, head_dim=16), 3))
    return Bench(plan, tmp_path_factory.mktemp("bench"), causal=False)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31), images=st.integers(2, 4), per=st.integers(1, 3))
def test_no_bit_depends_on_the_pictures_beside(
    bench: Bench, seed: int, images: int, per: int
) -> None:
    """Neither on what they show, nor on how long their prompts are, nor on which rows ended."""
    rng = np.random.default_rng(seed)
    states, steps = bench.states(rng, images), random_steps(rng, images, per, 5)
    together = bench.session(states, per, 64)
    alone = [bench.session(states[i : i + 1], per, per * 9) for i in range(images)]
    for step in steps:
        found = together.run(step)
        for image, session in enumerate(alone):
            rows = slice(image * per, (image + 1) * per)
            parents = None if step.parents is None else step.parents[rows] - image * per
            width = max(int(step.lengths[rows].max()), 1)
            single = session.run(Step(step.tokens[rows, :width], step.lengths[rows], parents))
            fed = step.lengths[rows] > 0
            np.testing.assert_array_equal(single[fed], found[rows][fed])


def test_every_token_of_a_prefill_has_logits(bench: Bench) -> None:
    rng = np.random.default_rng(5)
    states, step = bench.states(rng, 2), random_steps(rng, 2, 3, 0)[0]
    found = bench.session(states, 3, 16).run_all(step)
    exact = [
        reference(bench.plan, states[row // 3], step.tokens[row, :length], causal=False)
        for row, length in enumerate(step.lengths)
    ]
    np.testing.assert_allclose(found, np.concatenate(exact), atol=1e-4)


def test_equal_prompts_are_kept_once(bench: Bench) -> None:
    """Five beams of one prompt take its slots once, and each step one slot per beam."""
    session = bench.session(bench.states(np.random.default_rng(0), 2), 5, 64)
    session.run(Step(np.tile([[3, 1, 4]], (10, 1)), np.full(10, 3)))
    assert session._filled.tolist() == [PREFIX + 3] * 2
    session.run(Step(np.ones((10, 1), np.int64), np.repeat([1, 0], 5)))
    assert session._filled.tolist() == [PREFIX + 8, PREFIX + 3]


def test_no_keys_move_when_beams_change_places(bench: Bench) -> None:
    session = bench.session(bench.states(np.random.default_rng(0), 1), 3, 64)
    session.run(Step(np.array([[1], [2], [3]]), np.ones(3, np.int64)))
    before = {name: cache[:, :, : PREFIX + 3].copy() for name, cache in session._cache.items()}
    session.run(Step(np.ones((3, 1), np.int64), np.ones(3, np.int64), np.array([2, 2, 0])))
    for name, cache in session._cache.items():
        np.testing.assert_array_equal(cache[:, :, : PREFIX + 3], before[name])


def test_what_does_not_fit_is_refused(bench: Bench) -> None:
    rng = np.random.default_rng(0)
    step = Step(np.ones((1, 30), np.int64), np.array([30]))
    with pytest.raises(PromptError, match="slots a picture"):
        bench.session(bench.states(rng, 1), 1, 20).run(step)
    many = Step(np.ones((1, POSITIONS + 1), np.int64), np.array([POSITIONS + 1]))
    with pytest.raises(PromptError):
        bench.session(bench.states(rng, 1), 1, 64).run(many)


def test_what_the_operator_does_not_take_is_refused() -> None:
    plan = replace(without_cross(random_plan(base_shape(), 1)), head_dim=12)
    with pytest.raises(UnsupportedError, match="multiples of 8"):
        build_tree_decoder(plan)
    padded = without_cross(random_plan(base_shape(padding=True), 1))
    with pytest.raises(ValueError, match="without a place"):
        build_tree_decoder(padded)
