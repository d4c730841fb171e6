"""BLIP: its source's ways, questions in company, mutations of its exports, pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

import primelens
from primelens import CaptionOptions, DecodingOptions, LoadOptions
from primelens.engine_onnx import OnnxEngine
from primelens.errors import GateError, PromptError, UnsupportedError
from primelens.export.bundle_writer import write_draft
from primelens.export.checkpoint import open_checkpoint
from primelens.export.connector_graph import build_connector
from primelens.export.decoder_graph import build_decoder
from primelens.export.decoder_plan import Stack
from primelens.export.draft import Draft, draft_bundle
from primelens.export.framing import check_frame, frame_of
from primelens.export.pictures import random_pictures
from primelens.export.pipeline import answers_of, export_checkpoint, prove
from primelens.export.proof_captions import end_token
from primelens.export.question_graph import build_question_encoder, read_by
from primelens.export.reference_works import build
from primelens.export.registry import HeadSplit
from primelens.options import CacheOptions
from primelens.preprocessing import Preprocessing
from primelens.processor_config import from_processor_config
from primelens.verify import verify

from .conftest import OPTIONS, Work
from .mutations import (
    at,
    in_input,
    next_image,
    none,
    rolled,
    swapped_cross,
    times,
    zeroed,
)

_replace: Any = dataclasses.replace
QUESTIONS = [
    "who?",
    "what is this?",
    "how many of the red shapes are there in the picture, and where?",
    "is it red or blue?",
    "where is it?",
]
QUICK = CaptionOptions(max_new_tokens=8)


def work_of(folder: Path, name: str) -> Work:
    checkpoint = open_checkpoint(build(name, folder, seed=0))
    (head,) = checkpoint.family.split(checkpoint.model).heads.values()
    assert isinstance(head, HeadSplit)
    pixels = checkpoint.preprocessing.batch(random_pictures(4, (32, 32), OPTIONS.gate.seed))
    reference: Any = head.reference
    if head.question is not None:
        asked = [checkpoint.tokenizer(question)["input_ids"] for question in QUESTIONS[:4]]
        reference = reference.asking(asked)
    token = end_token(reference.generate(pixels, {"max_new_tokens": 20}, plain=True))
    assert token is not None
    family: Any = checkpoint.family
    family.end_with(folder, checkpoint.model, token)
    split = checkpoint.family.split(checkpoint.model)
    draft = draft_bundle(checkpoint, split, OPTIONS)
    return Work(folder, checkpoint, split, draft, answers_of(checkpoint, split, OPTIONS.gate))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are too small to share out: threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vqa(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return work_of(tmp_path_factory.mktemp("vqa"), "tiny-blip-vqa")


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return work_of(tmp_path_factory.mktemp("captioner"), "tiny-blip-captioning")


@pytest.fixture(scope="module")
def bundle(vqa: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "vqa"
    export_checkpoint(vqa.folder, folder, OPTIONS)
    return folder


def load(folder: Path, **more: Any) -> primelens.Model:
    return primelens.load(folder, options=LoadOptions(threads=1, check="size"), **more)


# Questions ---------------------------------------------------------------------------------------


def test_an_answer_depends_on_no_other_question(bundle: Path) -> None:
    """Tokens and every bit of the log-probabilities: alone, together, among other pictures."""
    model, pictures = load(bundle), random_pictures(3, (32, 32), 7)
    for options in (QUICK, CaptionOptions(max_new_tokens=8, decoding=DecodingOptions(num_beams=3))):
        alone = [[model.answer(p, q, options) for q in QUESTIONS] for p in pictures]
        assert len({tuple(a.tokens) for row in alone for a in row}) > len(QUESTIONS)
        for picture, wanted in zip(pictures, alone, strict=True):
            found = model.answer(picture, QUESTIONS, options)
            assert [a.question for a in found] == QUESTIONS
            assert [(a.tokens, a.token_logprobs, a.score) for a in found] == [
                (a.tokens, a.token_logprobs, a.score) for a in wanted
            ]
        rng = np.random.default_rng(0)
        pairs = [(int(rng.integers(3)), int(rng.integers(5))) for _ in range(11)]
        asked = [(pictures[p], QUESTIONS[q]) for p, q in pairs]
        for (p, q), item in zip(pairs, model.answer_batch(asked, options), strict=True):
            assert isinstance(item, primelens.Caption)
            assert (item.tokens, item.token_logprobs) == (
                alone[p][q].tokens,
                alone[p][q].token_logprobs,
            )


def test_answers_equal_generate_for_each_question_by_itself(vqa: Work, bundle: Path) -> None:
    model, pictures = load(bundle), random_pictures(2, (32, 32), 3)
    reference: Any = vqa.split.heads["answer"].reference
    ids = [vqa.checkpoint.tokenizer(question)["input_ids"] for question in QUESTIONS]
    for picture in pictures:
        pixels = np.repeat(model.preprocessing(picture)[None], len(QUESTIONS), axis=0)
        for beams in (1, 3):
            settings = {"max_new_tokens": 8, "num_beams": beams}
            wanted = reference.asking(ids).generate(pixels, settings, plain=True)
            options = CaptionOptions(max_new_tokens=8, decoding=DecodingOptions(num_beams=beams))
            found = [list(a.tokens) for a in model.answer(picture, QUESTIONS, options)]
            assert found == wanted


class _Counting(OnnxEngine):
    """Counts the runs of every graph."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.runs: dict[str, int] = {}

    def open(self, path: Path) -> Any:
        graph: Any = super().open(path)
        run, bind = graph.run, graph.bind

        def count() -> None:
            self.runs[path.name] = self.runs.get(path.name, 0) + 1

        def counted(feeds: Any) -> Any:
            count()
            return run(feeds)

        def bound(inputs: Any, outputs: Any) -> Any:
            call = bind(inputs, outputs)

            class Call:
                def run(self) -> None:
                    count()
                    call.run()

            return Call()

        graph.run, graph.bind = counted, bound
        return graph


def test_five_questions_read_one_picture_once(bundle: Path, tmp_path: Path) -> None:
    engine = _Counting()
    picture = random_pictures(1, (32, 32), 5)[0]
    model = load(bundle, engine=engine, cache=CacheOptions(tmp_path / "kept"))
    first = model.answer(picture, QUESTIONS, QUICK)
    assert engine.runs["tower.onnx"] == 1
    assert engine.runs["answer.connector.onnx"] == 1
    assert engine.runs["answer.question.onnx"] <= 4  # one call per filled-up length
    for question, before in zip(QUESTIONS[1:4], first[1:4], strict=True):
        assert model.answer(picture, question, QUICK).tokens == before.tokens
    assert engine.runs["tower.onnx"] == 1
    assert engine.runs["answer.connector.onnx"] == 2  # held from the second call on
    model.close()


def test_questions_that_cannot_be_asked(bundle: Path) -> None:
    model, picture = load(bundle), random_pictures(1, (32, 32), 5)[0]
    with pytest.raises(PromptError, match="positions for 88"):
        model.answer(picture, "why? " * 60)
    with pytest.raises(PromptError, match="was asked none"):
        model.caption(picture, CaptionOptions(head="answer"))
    with pytest.raises(PromptError, match="holds no token"):
        model.answer(picture, "")


def test_golden_answers_replay_and_a_changed_question_does_not(bundle: Path) -> None:
    report = verify(bundle, options=LoadOptions(threads=1))
    assert report.passed
    assert sum("answer tokens" in check.name for check in report.checks) == 4
    golden = bundle / "golden.safetensors"
    before = golden.read_bytes()
    from safetensors.numpy import load_file, save

    arrays = load_file(golden)
    arrays["question.answer.0"], arrays["question.answer.1"] = (
        arrays["question.answer.1"],
        arrays["question.answer.0"],
    )
    manifest = bundle / "bundle.json"
    text = manifest.read_bytes()
    try:
        import hashlib

        data = save(arrays)
        golden.write_bytes(data)
        old = hashlib.sha256(before).hexdigest().encode()
        manifest.write_bytes(text.replace(old, hashlib.sha256(data).hexdigest().encode()))
        assert not verify(bundle, options=LoadOptions(threads=1)).passed
    finally:
        golden.write_bytes(before)
        manifest.write_bytes(text)


def test_the_tokenizer_must_frame_prompts(captioner: Work) -> None:
    tokenizer = captioner.checkpoint.tokenizer
    assert frame_of(tokenizer) == ((2,), (1,))
    check_frame(tokenizer, (1, 1))
    with pytest.raises(UnsupportedError, match="lose their ends"):
        check_frame(tokenizer, (0, 1))


# Mutations ---------------------------------------------------------------------------------------

Change = Callable[[Any], Any]


def in_layers(index: int, change: Change) -> Change:
    def apply(stack: Stack) -> Any:
        layers = list(stack.layers)
        layers[index] = change(layers[index])
        return _replace(stack, layers=tuple(layers))

    return apply


def rebuild(draft: Draft, work: Work, *, plan: Change | None = None, stack: Change | None = None):
    """Build the head's graphs from changed descriptions."""
    (name,) = work.split.heads
    head: Any = work.split.heads[name]
    (length, _) = draft.tower.taps["last_hidden_state"].shape
    decoder = head.plan if plan is None else plan(head.plan)
    if head.question is None:
        draft.graphs[f"{name}.decoder"] = build_decoder(decoder, length)
        draft.graphs[f"{name}.connector"] = build_connector(
            read_by(decoder), tap="last_hidden_state", length=length, heads=decoder.heads
        )
        return
    reader = head.question.stack if stack is None else stack(head.question.stack)
    draft.graphs[f"{name}.decoder"] = build_decoder(decoder, ragged_cross=True)
    draft.graphs[f"{name}.question"] = build_question_encoder(
        reader, read_by(decoder), decoder.heads, length
    )
    draft.graphs[f"{name}.connector"] = build_connector(
        read_by(reader),
        tap="last_hidden_state",
        length=length,
        heads=reader.heads,
        outputs="picture",
    )


def plan(change: Change) -> Callable[[Draft, Work], None]:
    return lambda draft, work: rebuild(draft, work, plan=change)


def asker(change: Change) -> Callable[[Draft, Work], None]:
    return lambda draft, work: rebuild(draft, work, stack=change)


def manifest(path: str, **changes: Any) -> Callable[[Draft, Work], None]:
    def mutate(draft: Draft, work: Work) -> None:
        (name,) = work.split.heads
        part = _replace(getattr(draft.heads[name], path), **changes)
        draft.heads[name] = _replace(draft.heads[name], **{path: part})

    return mutate


def all_count(graph: Any, value: Any) -> Any:
    """The mask leaves nothing out."""
    import onnx_ir as ir

    big = ir.tensor(np.array(16, np.int32), name="mutated_all")
    constant = ir.Value(
        name="mutated_all", shape=big.shape, type=ir.TensorType(big.dtype), const_value=big
    )
    graph.register_initializer(constant)
    node = ir.node("Max", [value, constant])
    node.outputs[0].name = "mutated_lengths"
    graph.insert_before(graph[0], node)
    return node.outputs[0]


DECODER = {
    "query bias dropped": plan(in_layers(0, at("self_attention", "qkv", "bias", by=zeroed(0)))),
    "value bias dropped": plan(in_layers(1, at("self_attention", "qkv", "bias", by=zeroed(2)))),
    "output bias dropped": plan(in_layers(2, at("self_attention", "out", "bias", by=none))),
    "cross value bias dropped": plan(in_layers(0, at("cross_attention", "value", "bias", by=none))),
    "cross key and value swapped": plan(in_layers(1, swapped_cross)),
    "cross scale": plan(in_layers(1, at("cross_attention", "scale", by=times(1.02)))),
    "mlp bias dropped": plan(in_layers(1, at("feed_forward", "down", "bias", by=none))),
    "position one late": plan(at("embedding", "positions", by=rolled(1))),
    "position one early": plan(at("embedding", "positions", by=rolled(-1))),
    "epsilon": plan(in_layers(0, at("self_attention", "norm", "epsilon", by=lambda _: 1e-3))),
    "head bias dropped": plan(at("lm_head", "bias", by=none)),
    "head transform dropped": plan(at("lm_head", "transform", by=none)),
    "another start token": manifest("generation", start_tokens=(2,)),
    "another end token": manifest("generation", eos_tokens=(2,)),
}
CAPTIONS = {
    **DECODER,
    "another picture's keys": in_input("caption.decoder", "cross_key.1", next_image),
    "another picture's values": in_input("caption.decoder", "cross_value.2", next_image),
}
ANSWERS = {
    **DECODER,
    "question value bias dropped": asker(
        in_layers(1, at("self_attention", "qkv", "bias", by=zeroed(2)))
    ),
    "question cross bias dropped": asker(
        in_layers(0, at("cross_attention", "value", "bias", by=none))
    ),
    "question cross key and value swapped": asker(in_layers(2, swapped_cross)),
    "question cross scale": asker(in_layers(0, at("cross_attention", "scale", by=times(1.02)))),
    "question position one late": asker(at("embedding", "positions", by=rolled(1))),
    "question epsilon": asker(
        in_layers(0, at("feed_forward", "norm", "epsilon", by=lambda _: 1e-3))
    ),
    "question layer missing": asker(
        lambda s: _replace(s, layers=(s.layers[0], s.layers[0], s.layers[2]))
    ),
    "question mask missing": in_input("answer.question", "question_lengths", all_count),
    "padding answers": in_input("answer.decoder", "cross_lengths", all_count),
    "another picture's states": in_input("answer.question", "picture_key.1", next_image),
    "another question's keys": in_input("answer.decoder", "cross_key.0", next_image),
    "another question's values": in_input("answer.decoder", "cross_value.2", next_image),
    "question without its start": manifest("question", prefix_tokens=()),
    "question without its end": manifest("question", suffix_tokens=()),
}


def gate(draft: Draft, work: Work, folder: Path) -> None:
    write_draft(draft, folder, OPTIONS)
    prove(folder, work.split, work.answers, OPTIONS.gate)


@pytest.mark.parametrize("name", ["vqa", "captioner"])
def test_what_is_not_mutated_passes_and_can_be_seen(
    request: pytest.FixtureRequest, name: str, tmp_path: Path
) -> None:
    work: Work = request.getfixturevalue(name)
    draft = _replace(work.draft, graphs=dict(work.draft.graphs))
    rebuild(draft, work)
    gate(draft, work, tmp_path)
    (answers,) = work.answers.values()
    texts = [tuple(tokens) for tokens in answers.forced]
    assert len(set(texts)) == len(texts)
    assert np.mean([len(set(text)) / len(text) for text in texts]) >= 12 / 32
    assert len({len(tokens) for tokens in answers.natural}) > 1  # some texts end


@pytest.mark.parametrize(
    ("name", "what"),
    [("vqa", what) for what in ANSWERS] + [("captioner", what) for what in CAPTIONS],
)
def test_the_gate_catches(
    request: pytest.FixtureRequest, name: str, what: str, tmp_path: Path
) -> None:
    work: Work = request.getfixturevalue(name)
    draft = _replace(work.draft, graphs=dict(work.draft.graphs), heads=dict(work.draft.heads))
    ({"vqa": ANSWERS, "captioner": CAPTIONS}[name][what])(draft, work)
    with pytest.raises(GateError):
        gate(draft, work, tmp_path)


# Pictures ----------------------------------------------------------------------------------------


def test_pixels_equal_the_pillow_processor_bit_for_bit(captioner: Work) -> None:
    """200 pictures of random sizes and modes, at BLIP's own settings."""
    import json

    settings = json.loads((captioner.folder / "preprocessor_config.json").read_text())
    settings["size"] = {"height": 48, "width": 48}
    preprocessing: Preprocessing = from_processor_config(settings)
    processor = AutoImageProcessor.from_pretrained(
        captioner.folder, backend="pil", size=settings["size"]
    )
    assert type(processor).__name__ == "BlipImageProcessorPil"
    rng = np.random.default_rng(0)
    for number in range(200):
        width, height = (int(n) for n in rng.integers(1, 200, 2))
        mode = ("RGB", "L", "RGBA", "P", "CMYK", "LA", "1")[number % 7]
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture = (
            Image.fromarray(noise).convert("L" if mode in ("LA", "1") else "RGB").convert(mode)
        )
        wanted = processor(images=picture.convert("RGB"), return_tensors="np")["pixel_values"][0]
        assert np.array_equal(preprocessing(np.asarray(picture.convert("RGB"))), wanted)
        assert np.array_equal(
            wanted, processor(images=picture, return_tensors="np")["pixel_values"][0]
        )
