"""Scenes as data for questions and for labels, drawn on demand like those for captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice

from primelens.errors import InputError
from primelens.tune.data import Example, Question
from primelens.tune.evaluation.scene_slots import (
    SceneImage,
    parse_scene_source,
    scene_examples,
    scene_of,
)
from primelens.tune.scenes.objects import KINDS
from primelens.tune.scenes.questions import questions
from primelens.tune.scenes.world import Split, scene

__all__ = [
    "OBJECT_LABELS",
    "drawn_examples",
    "names_objects",
    "names_scenes",
    "object_examples",
    "question_examples",
]

#: What a picture of `object_examples` may show.
OBJECT_LABELS = tuple(kind.singular for kind in KINDS)

_ANNOTATORS = 10
_CAPTIONS, _QUESTIONS, _OBJECTS = "scenes", "scene-questions", "scene-objects"
# The plural comes to the fingers by itself, after scenes:test:500.
_SPELLINGS = {
    _CAPTIONS: _CAPTIONS,
    _QUESTIONS: _QUESTIONS,
    "scenes-questions": _QUESTIONS,
    _OBJECTS: _OBJECTS,
    "scenes-objects": _OBJECTS,
}


def names_scenes(text: str) -> bool:
    """Whether a name of data means drawn scenes."""
    return text.partition(":")[0] in _SPELLINGS


def names_objects(text: str) -> bool:
    """Whether a name of data means scenes with a single object."""
    return _SPELLINGS.get(text.partition(":")[0]) == _OBJECTS


def drawn_examples(text: str) -> Iterator[Example]:
    """``scenes:test:500``, ``scene-questions:test:500`` or ``scene-objects:test:500``.

    Raises:
        InputError: it names no scenes.
    """
    kind, _, rest = text.partition(":")
    split, number = parse_scene_source(f"scenes:{rest}" if rest else "scenes")
    if kind not in _SPELLINGS:
        raise InputError(
            f"{text!r} names no scenes.",
            remedy=f"Write one of {_CAPTIONS}, {_QUESTIONS}, {_OBJECTS}, then :test:500.",
        )
    makers = {
        _CAPTIONS: scene_examples,
        _QUESTIONS: question_examples,
        _OBJECTS: object_examples,
    }
    return makers[_SPELLINGS[kind]](split, number)


def question_examples(split: Split, number: int) -> Iterator[Example]:
    """The first scenes of a split, each with all that can be asked of it without doubt.

    A scene has one true answer. It stands ten times, as of ten annotators of one mind, because the
    official measure leaves one annotator out and asks three of the others.
    """
    for example in scene_examples(split, number):
        asked = tuple(
            Question(f"{example.id}:{place}", one.text, (one.answer,) * _ANNOTATORS, one.topic)
            for place, one in enumerate(questions(scene_of(example.id)))
        )
        yield replace(example, captions=(), questions=asked)


def object_examples(split: Split, number: int) -> Iterator[Example]:
    """The first scenes of a split that show a single object; its name is the label."""
    yield from islice(_single(split), number)


def _single(split: Split) -> Iterator[Example]:
    for index in count():
        groups = scene(split, index).groups
        if len(groups) == 1 and groups[0].count == 1:
            label = OBJECT_LABELS[groups[0].kind]
            yield Example(f"{split}:{index}", SceneImage(split, index), label=label, split=split)
