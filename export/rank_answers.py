"""What the source of a rank head says about the gate's pictures and texts.

In float32, and in float64 as the arbiter: see `primelens.export.answers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.export.answers import Compared, pixels_of
from primelens.export.checkpoint import Checkpoint
from primelens.export.registry import RankSplit
from primelens.manifest import TextTowerSpec
from primelens.results import EncodedImage

__all__ = ["RankAnswers", "ask_rank", "gate_texts", "text_gaps", "text_spec"]

Array = NDArray[Any]

_UNSET = 1 << 20  # transformers writes a huge number for "no limit"
# Of one word and of many, in upper case, with punctuation, with white space around and inside.
_TEXTS = (
    "cat",
    "a dog",
    "a photo of a red square.",
    "TWO Bicycles, leaning against the wall!",
    "  the   sea at night ",
    "a close-up of someone's hand (holding 3 keys)",
    "naïve café, façade",
    "it is raining; people run across the street with umbrellas and bags on their heads",
)


@dataclass(frozen=True)
class RankAnswers:
    """All answers for one rank head.

    Attributes:
        pictures: K pictures, ``[h, w, 3]`` uint8.
        pixels: ``[K, 3, H, W]`` by the source's own image processor.
        tap: what the tower says.
        texts: N texts; the last one is longer than the head reads.
        ids: of each, by the source's own tokenizer, with padding where every text has it.
        image: ``[K, W]`` image embeddings.
        text: ``[N, W]`` text embeddings, of all texts in one padded batch.
        scores: ``[K, N]``.
        match: ``[K, N, 2]`` logits of the matching, where the head has one.
        scoring, templates: what the head's scores become, and what its labels are put in.
        encoded: where the source was fed with what the bundle's own tower says, the pictures as the
            bundle encodes them; the gate then begins at the seam.
    """

    pictures: Sequence[NDArray[np.uint8]]
    pixels: Array
    tap: Compared
    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    image: Compared
    text: Compared
    scores: Compared
    scoring: str
    templates: tuple[str, ...]
    encoded: Sequence[EncodedImage] | None = None
    match: Compared | None = None

    @property
    def compared(self) -> dict[str, Compared]:
        """What a replay of the golden outputs compares, under the names of its tolerances."""
        found = {"tap": self.tap, "image": self.image, "text": self.text, "scores": self.scores}
        return found if self.match is None else {**found, "match": self.match}


def gate_texts(max_length: int) -> list[str]:
    """Texts for the gate; the last one has more words than ``max_length`` tokens."""
    words = " ".join(_TEXTS[2:5]).split()
    repeated = (words * (max_length // len(words) + 1))[: max_length + 3]
    return [*_TEXTS, " ".join(repeated)]


def text_spec(checkpoint: Checkpoint, head: RankSplit, graph: str) -> TextTowerSpec:
    """How the source's tokenizer prepares texts for the head."""
    tokenizer = checkpoint.tokenizer
    limit = int(tokenizer.model_max_length or _UNSET)
    pad = tokenizer.pad_token_id
    return TextTowerSpec(
        graph=graph,
        max_length=min(head.max_positions, limit),
        pad_token=0 if pad is None else int(pad),
        pad_to_max=head.pad_to_max,
        pad_left=head.pad_to_max and tokenizer.padding_side == "left",
        masked="attention_mask" in tokenizer.model_input_names,
    )


def text_gaps(checkpoint: Checkpoint, head: RankSplit) -> list[str]:
    """What the tokenizer asks for that texts cannot be given."""
    tokenizer, gaps = checkpoint.tokenizer, []
    if tokenizer.pad_token_id is None:
        gaps.append("the tokenizer has no padding token")
    if tokenizer.padding_side == "left" and not head.pad_to_max:
        gaps.append("the tokenizer pads on the left: a text's positions would depend on the others")
    if tokenizer.truncation_side != "right":
        gaps.append(f"the tokenizer cuts texts on the {tokenizer.truncation_side}")
    if head.matching is not None and "attention_mask" not in tokenizer.model_input_names:
        gaps.append("the tokenizer masks no padding, which a matching would read")
    return gaps


def ask_rank(
    checkpoint: Checkpoint, head: RankSplit, pictures: Sequence[NDArray[np.uint8]]
) -> RankAnswers:
    """Put all questions to the source model.

    Args:
        checkpoint: the loaded source.
        head: one of its heads.
        pictures: what to show.
    """
    reference, tokenizer = head.reference, checkpoint.tokenizer
    spec = text_spec(checkpoint, head, "")
    texts = gate_texts(spec.max_length)
    padding = "max_length" if head.pad_to_max else "longest"
    prepared = [
        tokenizer(asked, padding=padding, truncation=True, max_length=spec.max_length)
        for asked in (texts, *([text] for text in texts))
    ]
    batch, alone = prepared[0], prepared[1:]
    ids = np.array(batch["input_ids"], np.int64)
    mask = np.array(batch["attention_mask"], np.int64) if spec.masked else np.ones_like(ids)
    pixels = np.concatenate([pixels_of(checkpoint.processor, picture) for picture in pictures])
    tap = reference.taps(pixels)[head.tap]
    asked = _answer if head.matching is None else _answer_and_match
    single = asked(reference, tap, ids, mask)
    with reference.widen():
        tap_double = reference.taps(pixels)[head.tap]
        double = asked(reference, tap_double, ids, mask)
    image, text, scores, *match = (Compared(a, b) for a, b in zip(single, double, strict=True))
    return RankAnswers(
        pictures=pictures,
        pixels=pixels,
        tap=Compared(tap, tap_double),
        texts=texts,
        ids=[one["input_ids"][0] for one in alone],
        image=image,
        text=text,
        scores=scores,
        scoring=head.scoring,
        templates=head.templates,
        match=match[0] if match else None,
    )


def _answer(reference: Any, tap: Array, ids: Array, mask: Array) -> tuple[Array, ...]:
    found: tuple[Array, ...] = reference.answer(tap, ids, mask)
    return found


def _answer_and_match(reference: Any, tap: Array, ids: Array, mask: Array) -> tuple[Array, ...]:
    return (*reference.answer(tap, ids, mask), reference.match(tap, ids, mask))
