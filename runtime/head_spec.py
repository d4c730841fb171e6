"""A bundle's tuned text sides, as its manifest describes them.

Two kinds of heads: a `HeadSpec` writes text (captions, answers), a `RankHeadSpec` scores given
texts. ``kind`` tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "DecoderSpec",
    "Generation",
    "HeadSpec",
    "MatchingSpec",
    "PromptSpec",
    "QuestionSpec",
    "RankHeadSpec",
    "TextTowerSpec",
    "check_digest",
    "check_positive",
]

_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_positive(**numbers: int) -> None:
    """Raises `ValueError` for a number below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")


def check_digest(name: str, text: str) -> None:
    """Raises `ValueError` for anything but a SHA-256 in lower-case hexadecimal."""
    if not _DIGEST.fullmatch(text):
        raise ValueError(f"{name} {text!r} is not a SHA-256 in lower-case hexadecimal")


@dataclass(frozen=True)
class DecoderSpec:
    """The tuned decoder's graph and the sizes that its caches are allocated from.

    Attributes:
        graph: ONNX file, inputs and outputs as ARCHITECTURE.md, "Graph contract", lists them.
        layers, kv_heads, head_dim: of the self-attention cache, ``[R, kv_heads, S, head_dim]`` per
            layer.
        vocab_size: width of the logits.
        max_positions: the longest sequence (prompt and new tokens) that positions exist for.
        prefix: 0 where the decoder attends to the picture by cross-attention; else the number of
            positions that the picture takes at the start of the self-attention cache.
    """

    graph: str
    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    prefix: int = 0

    def __post_init__(self) -> None:
        check_positive(
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            max_positions=self.max_positions,
        )
        if self.prefix < 0:
            raise ValueError(f"prefix is {self.prefix}; it cannot be negative")


@dataclass(frozen=True)
class Generation:
    """Decoding defaults, as the source checkpoint's ``generate`` would resolve them.

    Attributes:
        start_tokens: the ids that every sequence starts with (not part of the result's ``tokens``).
        eos_tokens: any of these ends a sequence.
        pad_token: what a finished row is filled with.
        max_new_tokens: the default length limit.
        settings: every other field of the source's generation_config that is not transformers'
            default, under transformers' own names (``num_beams``, ``no_repeat_ngram_size``, ...).
    """

    start_tokens: tuple[int, ...]
    eos_tokens: tuple[int, ...]
    pad_token: int
    max_new_tokens: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.start_tokens:
            raise ValueError("start_tokens is empty")
        check_positive(max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True)
class PromptSpec:
    """How a prompt or a question becomes the ids that a sequence starts with.

    The ids are ``start_tokens`` (of `Generation`), the template with the text in it, and the
    suffix.

    Attributes:
        template: the text stands in the place of ``{}``.
        suffix_tokens: ids between the text and what is written.
    """

    template: str = "{}"
    suffix_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise ValueError(f"template {self.template!r} must have one place {{}} for the text")

    def fill(self, text: str) -> str:
        """The template with ``text`` in its place."""
        return self.template.replace("{}", text)


@dataclass(frozen=True)
class QuestionSpec:
    """A text encoder that reads a question with the picture before the decoder answers it.

    The ids of a question are ``prefix_tokens``, the template with the question in it, and
    ``suffix_tokens``; the decoder then starts from ``start_tokens`` (of `Generation`) alone.

    Attributes:
        graph: ONNX file: ids and the connector's ``picture_key.i``/``picture_value.i`` →
            ``cross_key.i``/``cross_value.i``, which the decoder reads. Where the picture stands
            before the question, the connector gives its ``picture_states`` instead.
        vocab_size: of its embedding.
        max_length: longest question in tokens, prefix and suffix included.
        pad_token: what questions are filled up with; no result depends on it.
        prefix_tokens, suffix_tokens: ids around the question.
        template: the question stands in the place of ``{}``.
        picture: positions that the picture takes before the question's in what the encoder gives
            out; 0 where its tokens read the picture by cross-attention.
        unasked_tokens: the whole ids that stand for no question; None where there has to be one.
    """

    graph: str
    vocab_size: int
    max_length: int
    pad_token: int
    prefix_tokens: tuple[int, ...] = ()
    suffix_tokens: tuple[int, ...] = ()
    template: str = "{}"
    picture: int = 0
    unasked_tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_positive(vocab_size=self.vocab_size, max_length=self.max_length)
        if self.picture < 0:
            raise ValueError(f"picture is {self.picture}; it cannot be negative")
        if self.unasked_tokens is not None:
            check_positive(unasked_tokens=len(self.unasked_tokens))
        if self.template.count("{}") != 1:
            raise ValueError(f"template {self.template!r} must have one place {{}} for the text")

    @property
    def knows_its_tokens(self) -> bool:
        """Whether all special ids lie inside the vocabulary."""
        ids = (*self.prefix_tokens, *self.suffix_tokens, self.pad_token)
        ids = (*ids, *(self.unasked_tokens or ()))
        return all(0 <= token < self.vocab_size for token in ids)


@dataclass(frozen=True)
class HeadSpec:
    """A tuned text side that writes.

    Attributes:
        kind: what it answers to.
        family: the exporter family that made it, and whose text handling the runtime follows.
        tap: which of the tower's taps it reads.
        connector: ONNX file from the tap to ``cross_key.i``/``cross_value.i``, or to
            ``prefix_key.i``/``prefix_value.i`` where ``decoder.prefix`` is not 0.
        decoder: the decoder graph and its sizes.
        tokenizer: a ``tokenizer.json``.
        generation: decoding defaults.
        precision: ``fp32`` or ``int8``.
        digest: `weights_digest` of the head's source tensors.
        clean_up_spaces: decode text as transformers' ``clean_up_tokenization_spaces`` does.
        prompt: how a prompt or a question is put to it.
        frames: of a head that reads videos, how many frames it takes; None for pictures. Its
            connector reads the taps of all frames, ``[I, frames, *]``.
        question: the encoder that questions go through, where the decoder does not read them
            itself.
    """

    kind: Literal["caption", "answer", "generate"]
    family: str
    tap: str
    connector: str
    decoder: DecoderSpec
    tokenizer: str
    generation: Generation
    precision: str
    digest: str
    clean_up_spaces: bool = False
    prompt: PromptSpec = PromptSpec()
    frames: int | None = None
    question: QuestionSpec | None = None

    def __post_init__(self) -> None:
        check_digest("digest", self.digest)
        check_positive(frames=1 if self.frames is None else self.frames)

    @property
    def files(self) -> dict[str, str]:
        """Place in the head's description → the bundle's file that it names."""
        files = {
            "connector": self.connector,
            "decoder.graph": self.decoder.graph,
            "tokenizer": self.tokenizer,
        }
        return files if self.question is None else {**files, "question.graph": self.question.graph}

    @property
    def knows_its_tokens(self) -> bool:
        """Whether all special ids lie inside the vocabulary."""
        generation = self.generation
        ids = (*generation.start_tokens, *generation.eos_tokens, generation.pad_token)
        ids = (*ids, *self.prompt.suffix_tokens)
        if self.question is not None and not self.question.knows_its_tokens:
            return False
        return all(0 <= token < self.decoder.vocab_size for token in ids)


@dataclass(frozen=True)
class TextTowerSpec:
    """The text side of a dual encoder.

    Attributes:
        graph: ONNX file: ``input_ids``, ``attention_mask`` i64 ``[N, T]`` → ``text_embeds`` f32
            ``[N, width]`` of length 1.
        max_length: longest text in tokens, special tokens included; longer ones are cut.
        pad_token: id of the padding.
        pad_to_max: every text is padded to ``max_length``, and its last place counts (SigLIP).
        pad_left: padding stands before the text; only with ``pad_to_max``.
        masked: the mask is 0 at padding; else it is 1 everywhere, and padding is seen.
    """

    graph: str
    max_length: int
    pad_token: int
    pad_to_max: bool = False
    pad_left: bool = False
    masked: bool = True

    def __post_init__(self) -> None:
        check_positive(max_length=self.max_length)
        if self.pad_token < 0:
            raise ValueError(f"pad_token is {self.pad_token}; it cannot be negative")
        if self.pad_left and not self.pad_to_max:
            raise ValueError("pad_left goes with pad_to_max: positions would move with companions")


@dataclass(frozen=True)
class MatchingSpec:
    """A text encoder that reads a text with the picture and says whether they belong together.

    It reads the ids that the text tower reads, padded on the right and masked.

    Attributes:
        connector: ONNX file: the tap → ``picture_key.i``/``picture_value.i``, once per picture.
        graph: ONNX file: ``input_ids`` i64 ``[Q, T]``, ``text_lengths`` i32 ``[Q]`` and those →
            ``match_logits`` f32 ``[Q, 2]``: that they do not, and that they do.
    """

    connector: str
    graph: str


@dataclass(frozen=True)
class RankHeadSpec:
    """A tuned text side that scores texts against pictures.

    The score of a picture and a text is ``scale · ⟨image_embeds, text_embeds⟩ + bias``; where there
    is a `matching`, also the difference of its two logits.

    Attributes:
        kind: always ``rank``.
        family: the exporter family that made it.
        tap: which of the tower's taps it reads.
        image: ONNX file: the tap → ``image_embeds`` f32 ``[B, width]`` of length 1.
        text: the text tower.
        width: of both embeddings.
        scoring: ``softmax`` over the texts of one picture, or ``sigmoid`` of each score by itself.
        scale, bias: of the score.
        templates: prompts that labels are put in (``a photo of a {}.``); empty for the bare label.
        tokenizer: a ``tokenizer.json``.
        precision: ``fp32`` or ``int8``.
        digest: `weights_digest` of the head's source tensors.
        matching: what scores a text that it reads with the picture, where the head has that.
    """

    kind: Literal["rank"]
    family: str
    tap: str
    image: str
    text: TextTowerSpec
    width: int
    scoring: Literal["softmax", "sigmoid"]
    scale: float
    bias: float
    tokenizer: str
    precision: str
    digest: str
    templates: tuple[str, ...] = ()
    matching: MatchingSpec | None = None

    def __post_init__(self) -> None:
        check_digest("digest", self.digest)
        check_positive(width=self.width)
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must have one place {{}} for the label")
        if self.matching is not None and (self.text.pad_left or not self.text.masked):
            raise ValueError("matching reads texts that are padded on the right and masked")

    @property
    def files(self) -> dict[str, str]:
        """Place in the head's description → the bundle's file that it names."""
        files = {"image": self.image, "text.graph": self.text.graph, "tokenizer": self.tokenizer}
        if self.matching is None:
            return files
        own = {"connector": self.matching.connector, "graph": self.matching.graph}
        return {**files, **{f"matching.{place}": file for place, file in own.items()}}
