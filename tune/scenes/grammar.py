"""Captions read back: a parser for every phrasing of :mod:`primelens.tune.scenes.language`,
and the score of a caption against the scene that it describes."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from primelens.tune.scenes.language import (
    NUMBER_WORDS,
    OPENINGS,
    PLACE_PHRASES,
    RELATION_PHRASES,
    SIZE_WORDS,
    TIME_PHRASES,
)
from primelens.tune.scenes.objects import KIND_BY_NAME
from primelens.tune.scenes.world import Place, Relation, Scene, Size, Time, holds

T = TypeVar("T")


@dataclass(frozen=True)
class Mention:
    """A noun phrase: kind, count and the size it claims, if any."""

    kind: int
    count: int
    size: Size | None


@dataclass(frozen=True)
class Slots:
    """What a caption claims.

    Attributes:
        subjects: what stands before the relation; everything, where there is no relation.
        objects: what stands behind it.
        unread: words that the grammar has no place for; a fluent caption has none.
    """

    subjects: tuple[Mention, ...]
    relation: Relation | None
    objects: tuple[Mention, ...]
    place: Place | None
    time: Time | None
    unread: tuple[str, ...]

    @property
    def mentions(self) -> tuple[Mention, ...]:
        """All noun phrases in the order of the words."""
        return self.subjects + self.objects


@dataclass(frozen=True)
class CaptionScore:
    """How true and how complete one caption is.

    Attributes:
        precision: share of the stated kinds that are in the scene (1 where none is stated).
        recall: share of the scene's kinds that are stated.
        counts: share of the scene's groups that are stated once and with the right count.
        relation: a relation is stated and true; ``None`` for a scene with a single group.
        extras: everything else stated (sizes, place, time) is true.
        place_stated: a place is named at all; likewise ``time_stated``.
        whole: all slots right at once and no word unread.
    """

    precision: float
    recall: float
    counts: float
    relation: bool | None
    extras: bool
    place_stated: bool
    time_stated: bool
    whole: bool

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall of the object set."""
        total = self.precision + self.recall
        return 2.0 * self.precision * self.recall / total if total else 0.0


def parse_caption(text: str) -> Slots:
    """Read a caption. Never fails: what cannot be read is in ``unread``."""
    words = " ".join(re.findall(r"[a-z]+", text.lower()))
    words, place = _take(words, _places())
    words, time = _take(words, _times())
    for opening in OPENINGS:
        words = words.removeprefix(opening + " ")
    relations: list[Relation] = []
    sides: list[list[Mention]] = [[], []]
    unread: list[str] = []
    for match in _pattern().finditer(words):
        if match["number"]:
            kind = KIND_BY_NAME[match["name"]]
            size = _sizes().get(match["size"] or "")
            mention = Mention(kind, _numbers()[match["number"]], size)
            sides[1 if relations else 0].append(mention)
        elif match["relation"]:
            relations.append(_relations()[match["relation"]])
        elif match["other"] not in ("and", "is", "are"):
            unread.append(match["other"])
    # A second relation is outside the grammar: which objects it is about cannot be known.
    unread.extend(relations[1:])
    relation = relations[0] if relations else None
    return Slots(tuple(sides[0]), relation, tuple(sides[1]), place, time, tuple(unread))


def score_caption(scene: Scene, text: str) -> CaptionScore:
    """Compare a caption with the scene it describes."""
    slots = parse_caption(text)
    by_kind = {group.kind: i for i, group in enumerate(scene.groups)}
    stated = [m.kind for m in slots.mentions]
    found = set(stated) & set(by_kind)
    precision = len(found) / len(set(stated)) if stated else 1.0
    recall = len(found) / len(by_kind)
    right = [
        [m.count for m in slots.mentions if m.kind == group.kind] == [group.count]
        for group in scene.groups
    ]
    relation = _relation_is_true(scene, slots, by_kind)
    sizes = all(
        m.size is None or (m.kind in by_kind and scene.groups[by_kind[m.kind]].size == m.size)
        for m in slots.mentions
    )
    extras = sizes and slots.place in (None, scene.place) and slots.time in (None, scene.time)
    whole = (
        precision == recall == 1.0
        and len(stated) == len(by_kind)
        and all(right)
        and relation is not False
        and extras
        and not slots.unread
    )
    return CaptionScore(
        precision=precision,
        recall=recall,
        counts=sum(right) / len(right),
        relation=relation,
        extras=extras,
        place_stated=slots.place is not None,
        time_stated=slots.time is not None,
        whole=whole,
    )


def _relation_is_true(scene: Scene, slots: Slots, by_kind: dict[int, int]) -> bool | None:
    if len(scene.groups) == 1:
        # Alone on the picture, so every relation to something else is false.
        return None if slots.relation is None else False
    if slots.relation is None or any(m.kind not in by_kind for m in slots.mentions):
        return False
    subjects, objects = (
        [by_kind[m.kind] for m in side] for side in (slots.subjects, slots.objects)
    )
    return holds(scene, slots.relation, subjects, objects)


def _take(words: str, phrases: Sequence[tuple[str, T]]) -> tuple[str, T | None]:
    """Cut the first phrase that occurs out of the words."""
    for phrase, meaning in phrases:
        cut, hits = re.subn(rf"\b{phrase}\b", " ", words, count=1)
        if hits:
            return " ".join(cut.split()), meaning
    return words, None


def _phrases(table: dict[T, tuple[str, ...]]) -> list[tuple[str, T]]:
    return [(phrase, meaning) for meaning, phrases in table.items() for phrase in phrases]


@functools.cache
def _places() -> list[tuple[str, Place]]:
    return _phrases(PLACE_PHRASES)


@functools.cache
def _times() -> list[tuple[str, Time]]:
    return _phrases(TIME_PHRASES)


@functools.cache
def _numbers() -> dict[str, int]:
    return {"a": 1, "an": 1} | {word: n for n, word in enumerate(NUMBER_WORDS) if n}


@functools.cache
def _sizes() -> dict[str, Size]:
    return {word: size for size, words in SIZE_WORDS.items() for word in words}


@functools.cache
def _relations() -> dict[str, Relation]:
    return dict(_phrases(RELATION_PHRASES))


@functools.cache
def _pattern() -> re.Pattern[str]:
    """Noun phrases, relation phrases, then any other word; longer names are tried first."""

    def either(words: dict[str, int] | dict[str, Size] | dict[str, Relation]) -> str:
        return "|".join(sorted(words, key=len, reverse=True))

    noun = (
        rf"(?P<number>{either(_numbers())}) (?:(?P<size>{either(_sizes())}) )?"
        rf"(?P<name>{either(KIND_BY_NAME)})\b"
    )
    return re.compile(rf"\b(?:{noun}|(?P<relation>{either(_relations())})\b|(?P<other>[a-z]+))")
