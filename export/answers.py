"""What the source model says about the gate's pictures: in float32, and in float64 as the arbiter.

The float64 run has two uses. It says how far the source's own float32 result is from the exact
one, which is the yardstick for the exported graphs: they may be a few times as far, and no
further. And it decides whether two tokens are a tie that rounding may break either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.export.checkpoint import Checkpoint
from primelens.export.questions import PER_PICTURE, ids_of, questions_for
from primelens.export.registry import HeadSplit
from primelens.manifest import Generation
from primelens.patches import packed
from primelens.results import EncodedImage

__all__ = ["Answers", "Compared", "ask", "pixels_of"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Compared:
    """One tensor as the source computes it.

    Attributes:
        single: in float32.
        double: in float64.
    """

    single: Array
    double: Array

    @property
    def noise(self) -> float:
        """Largest distance of the float32 result from the float64 one."""
        return float(np.abs(self.single - self.double).max())

    @property
    def spread(self) -> float:
        """Standard deviation of the values."""
        return float(self.double.std())


@dataclass(frozen=True)
class Answers:
    """All answers for one head.

    Attributes:
        pictures: K pictures, ``[h, w, 3]`` uint8.
        pixels: ``[K, 3, H, W]`` by the source's own image processor.
        tap: what the tower says, ``[K, L, C]``.
        forced: K continuations of equal length with end tokens forbidden, from one batch.
        alone: the same for the first picture by itself.
        natural: K greedy continuations to their natural end or the default length.
        texts: `natural` as the source's tokenizer decodes it.
        default: K continuations as the checkpoint's generation_config has them (beams, penalties);
            None where it asks for nothing but greedy decoding, or for sampling.
        generation: decoding defaults of the source.
        inputs: ``[K, T]`` start tokens and `forced` without its last token.
        logits: ``[K, T, V]`` after each of `inputs`.
        natural_logits: K arrays ``[n, V]``, before each token of `natural`, in float32.
        questions: N of them, `per_picture` about every picture, in the pictures' order; everything
            above that says K is then N, but for `pictures`, `pixels` and `tap`. None is no
            question; empty where the head has no encoder for them.
        encoded: where the source was fed with what the bundle's own tower says, the pictures as the
            bundle encodes them; the gate then begins at the seam.
    """

    pictures: Sequence[NDArray[np.uint8]]
    pixels: Array
    tap: Compared
    forced: Sequence[Sequence[int]]
    alone: Sequence[int]
    natural: Sequence[Sequence[int]]
    texts: Sequence[str]
    default: Sequence[Sequence[int]] | None
    generation: Generation
    inputs: NDArray[np.int64]
    logits: Compared
    natural_logits: Sequence[Array]
    questions: Sequence[str | None] = ()
    encoded: Sequence[EncodedImage] | None = None

    @property
    def per_picture(self) -> int:
        """How many texts there are about every picture."""
        return max(1, len(self.questions) // len(self.pictures))

    @property
    def compared(self) -> dict[str, Compared]:
        """What a replay of the golden outputs compares, under the names of its tolerances."""
        return {"tap": self.tap, "logits": self.logits}


def ask(
    checkpoint: Checkpoint, head: HeadSplit, pictures: Sequence[NDArray[np.uint8]], steps: int
) -> Answers:
    """Put all questions to the source model.

    Args:
        checkpoint: the loaded source.
        head: one of its heads.
        pictures: what to show.
        steps: length of the forced continuations; shortened where positions run out.
    """
    first, generation = head.reference, head.generation
    reference: Any = head.reference
    questions = questions_for(checkpoint.tokenizer, head, len(pictures))
    start = list(generation.start_tokens)
    steps = min(steps, head.plan.max_positions - len(start))
    pixels = np.concatenate([pixels_of(checkpoint.processor, picture) for picture in pictures])
    forced_length = {"max_new_tokens": steps, "min_new_tokens": steps}
    shown = pixels
    if questions:
        ids = ids_of(checkpoint.tokenizer, head, questions)
        reference, first = reference.asking(ids), reference.asking(ids[:1])
        shown = np.repeat(pixels, PER_PICTURE, axis=0)
    forced = reference.generate(shown, forced_length, plain=True)
    alone = first.generate(pixels[:1], forced_length, plain=True)[0]
    longest = min(generation.max_new_tokens, head.plan.max_positions - len(start))
    natural = reference.generate(shown, {"max_new_tokens": longest}, plain=True)
    default = None
    if generation.settings and not generation.settings.get("do_sample"):
        default = reference.generate(shown, {"max_new_tokens": longest}, plain=False)
    inputs = np.array([start + tokens[:-1] for tokens in forced], np.int64)
    head = replace(head, reference=reference)
    tap, logits = _forward(head, pixels, inputs)
    natural_logits = _natural_logits(head, tap, natural)
    with reference.widen():
        tap_double, logits_double = _forward(head, pixels, inputs)
    decode = checkpoint.tokenizer.decode
    return Answers(
        pictures=pictures,
        pixels=pixels,
        tap=Compared(tap, tap_double),
        forced=forced,
        alone=alone,
        natural=natural,
        texts=[decode(tokens, skip_special_tokens=True).strip() for tokens in natural],
        default=default,
        generation=generation,
        inputs=inputs,
        logits=Compared(logits, logits_double),
        natural_logits=natural_logits,
        questions=questions,
    )


def _forward(head: HeadSplit, pixels: Array, inputs: Array) -> tuple[Array, Array]:
    """The tap, and the logits after each of the inputs."""
    tap = head.reference.taps(pixels)[head.tap]
    return tap, head.reference.logits(_per_text(tap, len(inputs)), inputs)


def _per_text(tap: Array, texts: int) -> Array:
    """A row of the tap for every text."""
    return np.repeat(tap, texts // len(tap), axis=0)


def _natural_logits(head: HeadSplit, tap: Array, natural: Sequence[Sequence[int]]) -> list[Array]:
    """Before each token; rows are padded on the right, where a causal decoder does not look."""
    start, pad = list(head.generation.start_tokens), head.generation.pad_token
    inputs = np.full((len(natural), len(start) - 1 + max(map(len, natural))), pad, np.int64)
    for row, tokens in enumerate(natural):
        fed = start + list(tokens[:-1])
        inputs[row, : len(fed)] = fed
    logits = head.reference.logits(_per_text(tap, len(inputs)), inputs)
    first = len(start) - 1
    return [logits[row, first : first + len(tokens)] for row, tokens in enumerate(natural)]


def pixels_of(processor: Any, picture: NDArray[np.uint8]) -> Array:
    """``[1, 3, H, W]`` by the source's image processor; of a video ``[1, F, 3, H, W]``; packed
    patches ``[1, 1 + N, D]`` where pictures keep their shape.
    """
    from PIL import Image

    if picture.ndim == 4:
        return np.concatenate([pixels_of(processor, frame) for frame in picture])[None]

    found = processor(images=Image.fromarray(picture), return_tensors="np")
    values = np.asarray(found["pixel_values"], np.float32)
    if "spatial_shapes" in found:
        rows, columns = (int(side) for side in found["spatial_shapes"][0])
        return packed(values[0], rows, columns, values.shape[1])[None]
    if values.ndim == 3:
        return values
    return values.reshape(1, *values.shape[-3:])  # of a video processor, one frame of one video
