"""BLIP-2 with T5: its source's ways, and prompts in company."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import primelens
from primelens import CaptionOptions, DecodingOptions, LoadOptions
from primelens.errors import PromptError
from primelens.export.bundle_writer import write_draft
from primelens.export.pictures import random_pictures
from primelens.export.pipeline import export_checkpoint
from primelens.export.proof import ProofOptions, Subject, prove_captions
from primelens.export.questions import ids_of
from primelens.export.work import find_work
from primelens.verify import verify

from .conftest import OPTIONS, Work
from .t5_works import HEAD, NAMES, head_of, load

PROMPTS = [None, "a view of", "how many of the red shapes are there in the picture?", "who?", None]
QUICK = CaptionOptions(max_new_tokens=8)
BEAMS = CaptionOptions(max_new_tokens=8, decoding=DecodingOptions(num_beams=3))


@pytest.fixture(scope="module")
def bundle(t5_works: Callable[[str], Work], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "flan"
    export_checkpoint(t5_works(NAMES[0]).folder, folder, OPTIONS)
    return folder


# The source --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_beams_and_prompts_equal_generate(
    t5_works: Callable[[str], Work], name: str, tmp_path: Path
) -> None:
    work, answers = t5_works(name), t5_works(name).answers[HEAD]
    write_draft(work.draft, tmp_path, OPTIONS)
    small = ProofOptions(
        pictures=4, steps=20, beams=(3,), penalties=(0.6, 1.4), batches=(3,), threads=1
    )
    subject = Subject(
        work=find_work(name),
        options=small,
        source=work.checkpoint,
        name=HEAD,
        head=work.split.heads[HEAD],
        model=load(tmp_path),
        pictures=answers.pictures,
        pixels=answers.pixels,
        rounding=answers.logits.noise,
    )
    found = prove_captions(subject)
    assert found.failures == []
    assert found.ties == 0
    assert found.searches == 2 * 3


def test_padding_between_prompts_changes_nothing_in_the_source(
    t5_works: Callable[[str], Work],
) -> None:
    """So a batch of prompts of different length has its reference in the prompts by themselves."""
    work = t5_works(NAMES[0])
    model, head = work.checkpoint.model, head_of(work)
    asked = ids_of(work.checkpoint.tokenizer, head, PROMPTS[1:3])
    pixels = torch.from_numpy(work.answers[HEAD].pixels[:2])
    wanted = head.reference.asking(asked).generate(
        pixels.numpy(), {"max_new_tokens": 12}, plain=True
    )
    queries, longest = [model.config.image_token_index] * 8, max(map(len, asked))
    ids = torch.tensor([[*queries, *one, *[0] * (longest - len(one))] for one in asked])
    mask = torch.tensor([[1] * (8 + len(one)) + [0] * (longest - len(one)) for one in asked])
    rows = model.generate(pixels, input_ids=ids, attention_mask=mask, max_new_tokens=12)
    ends = set(head.generation.eos_tokens)
    for row, text in zip(rows[:, 1:].tolist(), wanted, strict=True):
        assert row[: len(text)] == text
        assert len(text) == 12 or text[-1] in ends


def test_what_cannot_be_mirrored_is_refused(t5_works: Callable[[str], Work]) -> None:
    work = t5_works(NAMES[0])
    family, config = work.checkpoint.family, work.checkpoint.model.config
    assert family.gaps(config) == []
    changes = {"bos_token_id": None, "num_decoder_layers": 9, "dense_act_fn": "tanh"}
    before = {name: getattr(config.text_config, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(config.text_config, name, value)
        assert len(family.gaps(config)) == 3
    finally:
        for name, value in before.items():
            setattr(config.text_config, name, value)


# The runtime -------------------------------------------------------------------------------------


def test_a_caption_depends_on_no_companion(bundle: Path) -> None:
    """Tokens and every bit of the log-probabilities: alone, together, among other pictures."""
    model, pictures = load(bundle), random_pictures(3, (32, 32), 7)
    pairs = [(n % 3, PROMPTS[n % 5]) for n in range(11)]
    for options in (QUICK, BEAMS):
        named = dataclasses.replace(options, head=HEAD)
        alone = [
            model.caption(pictures[p], dataclasses.replace(options, prompt=q)) for p, q in pairs
        ]
        assert len({tuple(a.tokens) for a in alone}) > 6
        asked = [(pictures[p], q) for p, q in pairs]
        for wanted, found in zip(
            alone, model.answer_batch(asked, named, batch_size=11), strict=True
        ):
            assert isinstance(found, primelens.Caption)
            assert (found.tokens, found.token_logprobs, found.score) == (
                wanted.tokens,
                wanted.token_logprobs,
                wanted.score,
            )
        together = model.caption(pictures, options)
        assert [c.token_logprobs for c in together] == [
            model.caption(p, options).token_logprobs for p in pictures
        ]


def test_without_a_question_and_with_too_long_a_one(bundle: Path) -> None:
    model, picture = load(bundle), random_pictures(1, (32, 32), 5)[0]
    spec = model.manifest.writers[HEAD].question
    assert spec is not None
    assert (spec.picture, spec.unasked_tokens, spec.suffix_tokens) == (8, (1,), (1,))
    plain = model.caption(picture, QUICK)
    (streamed,) = [p.caption for p in model.stream(picture, QUICK) if p.caption is not None]
    assert streamed.tokens == plain.tokens
    assert plain.tokens != model.caption(picture, CaptionOptions(8, prompt="a view of")).tokens
    with pytest.raises(PromptError, match="positions for 2048"):
        model.caption(picture, CaptionOptions(prompt="why? " * 2000))


def test_golden_captions_replay(bundle: Path) -> None:
    report = verify(bundle, options=LoadOptions(threads=1))
    assert report.passed
    assert sum("caption tokens" in check.name for check in report.checks) == 4


def test_a_head_for_questions(t5_works: Callable[[str], Work], tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, head_kind="answer")
    assert export_checkpoint(t5_works(NAMES[1]).folder, tmp_path / "out", options).passed
    model = load(tmp_path / "out")
    picture = random_pictures(1, (32, 32), 5)[0]
    found = model.answer(picture, ["what is this?", "who?"], QUICK)
    assert [answer.question for answer in found] == ["what is this?", "who?"]
    assert found[1].token_logprobs == model.answer(picture, "who?", QUICK).token_logprobs
