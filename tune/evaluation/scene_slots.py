"""Scenes as a data set: pictures drawn on demand, captions, and the truth of every slot."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from primelens.errors import InputError
from primelens.tune.data import Example
from primelens.tune.metrics import Tally, mean_tally
from primelens.tune.scenes.grammar import score_caption
from primelens.tune.scenes.language import caption
from primelens.tune.scenes.render import drawing_digest, render
from primelens.tune.scenes.world import Scene, Split, scene

__all__ = ["SceneImage", "parse_scene_source", "scene_examples", "scene_of", "slot_tallies"]

REFERENCES = 5
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_DEFAULT_COUNT = 1000


@dataclass(frozen=True)
class SceneImage:
    """A scene's picture, drawn and encoded without loss when it is read."""

    split: Split
    index: int
    size: int = 128

    @property
    def name(self) -> str:
        return f"scenes:{self.split}:{self.index}"

    @property
    def source(self) -> str:
        """What a store files the picture under: known without drawing it, which is the dear part.

        SHA-256 of the scene's name, the picture's size and `drawing_digest`.
        """
        drawn = f"{self.name} {self.size} {drawing_digest()}"
        return hashlib.sha256(drawn.encode()).hexdigest()

    def read(self) -> bytes:
        buffer = io.BytesIO()
        # Not compressed: that would take longer than to draw and to look.
        render(scene(self.split, self.index), self.size).save(buffer, "PNG", compress_level=0)
        return buffer.getvalue()


def parse_scene_source(text: str) -> tuple[Split, int]:
    """``scenes``, ``scenes:test`` or ``scenes:test:500`` → split and number.

    Raises:
        InputError: it is none of them.
    """
    name, _, rest = text.partition(":")
    wanted, _, count = rest.partition(":")
    split = next((s for s in _SPLITS if s == (wanted or "test")), None)
    number = int(count) if count.isdecimal() else _DEFAULT_COUNT
    if name != "scenes" or split is None or (count and not count.isdecimal()) or number < 1:
        raise InputError(f"{text!r} names no scenes.", remedy="Write scenes:test:500, for example.")
    return split, number


def scene_examples(split: Split, number: int, groups: int = 1) -> Iterator[Example]:
    """Of the first scenes of a split those with so many groups or more; five true captions each."""
    for index in range(number):
        shown = scene(split, index)
        if len(shown.groups) < groups:
            continue
        said = tuple(caption(shown, variant) for variant in range(REFERENCES))
        yield Example(f"{split}:{index}", SceneImage(split, index), said, split=split)


def slot_tallies(keys: Sequence[str], texts: Sequence[str]) -> list[Tally]:
    """What of each caption is true, by the definitions of `primelens.tune.scenes.evaluate`.

    Args:
        keys: ids of `scene_examples`.
        texts: the captions.
    """
    scenes = [scene_of(key) for key in keys]
    scores = [score_caption(s, text) for s, text in zip(scenes, texts, strict=True)]
    groups = np.array([len(s.groups) for s in scenes], np.float64)
    counts = np.array([score.counts for score in scores]) * groups
    related = np.array([score.relation is not None for score in scores], np.float64)
    true = np.array([bool(score.relation) for score in scores], np.float64)
    return [
        mean_tally("object F1", [score.f1 for score in scores]),
        mean_tally("count accuracy", counts, groups),
        mean_tally("relation accuracy", true, related),
        mean_tally("extras accuracy", [float(score.extras) for score in scores]),
        mean_tally("whole caption", [float(score.whole) for score in scores]),
    ]


def scene_of(key: str) -> Scene:
    """The scene of an example of `scene_examples`, by its id."""
    wanted, _, index = key.partition(":")
    split = next(s for s in _SPLITS if s == wanted)
    return scene(split, int(index))
