"""Asking a source from the seam on: it is fed with what the bundle's own tower says.

So is proved a head whose checkpoint came without a tower, or whose bundle rounds the tower's
weights: what the tower says is given, and everything behind it has to equal the source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.engine_onnx import OnnxEngine
from primelens.errors import BundleError, UnsupportedError
from primelens.export.golden import COUNT
from primelens.export.head_source import HeadSource
from primelens.export.kinds import kind_of
from primelens.export.options import GateOptions
from primelens.export.pictures import random_pictures
from primelens.export.quiet import quiet_transformers
from primelens.export.registry import HeadSplit
from primelens.export.remake import Remake
from primelens.images import read_image
from primelens.preprocessing import Preprocessing
from primelens.results import EncodedImage

__all__ = ["ask_at_the_seam", "pictures_for"]

Array = NDArray[Any]


def pictures_for(
    golden: Mapping[str, Array], preprocessing: Preprocessing, options: GateOptions
) -> list[NDArray[np.uint8]]:
    """The pictures that a bundle is replayed on, then random ones and the given ones."""
    pictures = [golden[f"image.{k}"] for k in range(COUNT) if f"image.{k}" in golden]
    size = preprocessing.output_size or (224, 224)
    pictures += random_pictures(options.random_images, size, options.seed + 1000)
    return pictures + [np.asarray(read_image(path).rgb()) for path in options.images]


def ask_at_the_seam(
    remake: Remake,
    source: HeadSource,
    pictures: Sequence[NDArray[np.uint8]],
    options: GateOptions,
) -> Any:
    """What the source's text side says when it is fed with what the bundle's tower says.

    Args:
        remake: the bundle, with the tower that it will have.
        source: the head.
        pictures: what to show; a bundle without a tower knows its golden pictures alone.
        options: of the gate.

    Raises:
        UnsupportedError: a head of this kind, or of this family, cannot be asked so.
        BundleError: the bundle has no tower, and fewer than two golden pictures.
    """
    head = source.head
    source_head: Any = head  # either kind of split
    if isinstance(head, HeadSplit) and not hasattr(head.reference, "generate_from"):
        raise UnsupportedError(
            f"A head of the family {source.checkpoint.family.name!r} can be proved from the pixels "
            "on only.",
            remedy="Give a checkpoint with its tower, and a float32 bundle with its tower.",
        )
    preprocessing = Preprocessing.from_dict(dict(remake.tower.preprocessing))
    encoded = _encoded(remake, head.tap, pictures, preprocessing, options.threads)
    shown = [picture for picture, _ in encoded]
    images = [image for _, image in encoded]
    pixels = [preprocessing(read_image(picture)) for picture in shown]
    fed = {_name(row): image.taps[head.tap] for row, image in zip(pixels, images, strict=True)}
    checkpoint = replace(source.checkpoint, processor=_Processor(preprocessing))
    fed_head: Any = replace(source_head, reference=_FromTheSeam(head.reference, head.tap, fed))
    with quiet_transformers():
        answers = kind_of(head).ask(checkpoint, fed_head, shown, options)
    return replace(answers, encoded=tuple(images))


def _encoded(
    remake: Remake,
    tap: str,
    pictures: Sequence[NDArray[np.uint8]],
    preprocessing: Preprocessing,
    threads: int | None,
) -> list[tuple[NDArray[np.uint8], EncodedImage]]:
    """The pictures, and each as the bundle encodes it."""
    tower, golden = remake.tower, remake.golden
    if tower.graph is None:
        kept = [k for k in range(len(pictures)) if f"tap.{tap}.{k}" in golden]
        if len(kept) < 2:
            raise BundleError(
                "The bundle has no tower, and fewer than two golden pictures to prove a head on.",
                remedy="Put the head into the whole bundle, and split that.",
            )
        return [(pictures[k], _image(remake, pictures[k], {tap: golden[f"tap.{tap}.{k}"]}))
                for k in kept]  # fmt: skip
    path: Path = remake.files()[tower.graph]
    graph = OnnxEngine(threads=threads).open(path)
    found = []
    for picture in pictures:
        pixels = preprocessing(read_image(picture))
        taps = graph.run({"pixel_values": pixels[None]})
        found.append((picture, _image(remake, picture, {name: v[0] for name, v in taps.items()})))
    return found


def _image(remake: Remake, picture: NDArray[np.uint8], taps: Mapping[str, Array]) -> EncodedImage:
    source = read_image(picture)
    return EncodedImage(
        taps=taps,
        identities={name: tap.identity for name, tap in remake.tower.taps.items()},
        source=source.digest,
        size=source.size,
        name=source.name,
    )


def _name(pixels: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()


class _Processor:
    """The bundle's preprocessing under the interface of transformers' image processors."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing

    def __call__(self, *, images: Any, return_tensors: str) -> dict[str, Array]:
        assert return_tensors == "np"
        return {"pixel_values": self._preprocessing(read_image(np.asarray(images)))[None]}


class _FromTheSeam:
    """A reference, or one of a rank head, that is fed with given taps."""

    def __init__(self, reference: Any, tap: str, fed: Mapping[bytes, Array]) -> None:
        self._reference, self._tap, self._fed = reference, tap, fed

    def taps(self, pixels: Array) -> dict[str, Array]:
        return {self._tap: np.stack([self._fed[_name(row)] for row in pixels])}

    def asking(self, questions: Sequence[Sequence[int]]) -> _FromTheSeam:
        """The same, asked one question per row, where the source reads questions."""
        return _FromTheSeam(self._reference.asking(questions), self._tap, self._fed)

    def logits(self, tap: Array, tokens: Array) -> Array:
        logits: Array = self._reference.logits(tap, tokens)
        return logits

    def generate(
        self, pixels: Array, settings: Mapping[str, Any], *, plain: bool
    ) -> list[list[int]]:
        states = self.taps(pixels)[self._tap]
        texts: list[list[int]] = self._reference.generate_from(states, settings, plain=plain)
        return texts

    def answer(self, tap: Array, ids: Array, mask: Array) -> tuple[Array, Array, Array]:
        answer: tuple[Array, Array, Array] = self._reference.answer(tap, ids, mask)
        return answer

    def match(self, tap: Array, ids: Array, mask: Array) -> Array:
        logits: Array = self._reference.match(tap, ids, mask)
        return logits

    def widen(self) -> Any:
        return self._reference.widen()
