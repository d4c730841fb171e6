"""What a scene is, and how one is drawn at random from a split.

Lengths are in 1/128 of the picture's side, the origin is the upper left corner.

A split is held out in two ways. Its random stream is its own (the Philox counter holds the split),
and so are combinations of objects: every unordered pair of kinds belongs to exactly one split
(:func:`pair_split`, 80 % train, 10 % validation, 10 % test). All pairs of a train scene are train
pairs. A scene of another split with two or more groups holds at least one pair of that split, and
its other pairs are train pairs or its own. Single-group scenes differ by their stream only.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from primelens.tune.scenes.layout import Placement, arrange
from primelens.tune.scenes.objects import KINDS

Split = Literal["train", "validation", "test"]
Relation = Literal["left", "right", "above", "below", "front", "behind", "between"]
Size = Literal["small", "medium", "large"]
Place = Literal["meadow", "beach", "street", "snow", "room", "lake", "desert", "forest"]
Time = Literal["day", "evening", "night"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PLACES: tuple[Place, ...] = (
    "meadow", "beach", "street", "snow", "room", "lake", "desert", "forest",
)  # fmt: skip
TIMES: tuple[Time, ...] = ("day", "evening", "night")
MAX_COUNT = 5
MAX_GLYPHS = 8
_INVERSE: dict[Relation, Relation] = {
    "left": "right", "right": "left", "above": "below", "below": "above",
    "front": "behind", "behind": "front",
}  # fmt: skip
_GROUP_COUNT_ODDS = (0.20, 0.45, 0.26, 0.09)
_OBJECT_COUNT_ODDS = (0.40, 0.22, 0.16, 0.12, 0.10)


@dataclass(frozen=True)
class Glyph:
    """One drawn object: its centre, its side, and its turn in degrees."""

    x: float
    y: float
    side: float
    angle: float


@dataclass(frozen=True)
class Group:
    """Objects of one kind that belong together."""

    kind: int
    size: Size
    glyphs: tuple[Glyph, ...]

    @property
    def count(self) -> int:
        """How many objects, 1 to 5."""
        return len(self.glyphs)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the upright squares of all objects."""
        return (
            min(g.x - g.side / 2 for g in self.glyphs),
            min(g.y - g.side / 2 for g in self.glyphs),
            max(g.x + g.side / 2 for g in self.glyphs),
            max(g.y + g.side / 2 for g in self.glyphs),
        )


@dataclass(frozen=True)
class Statement:
    """``subjects relation objects``, by index of the groups; it holds for every pair of them.

    ``between`` has one subject and two objects.
    """

    relation: Relation
    subjects: tuple[int, ...]
    objects: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """Everything that is true of one picture.

    Attributes:
        groups: 1 to 4 groups of different kinds, in the order they are painted.
        statement: the relation that the layout was made for; ``None`` with a single group.
    """

    split: Split
    index: int
    seed: int
    groups: tuple[Group, ...]
    statement: Statement | None
    place: Place
    time: Time


def scene(split: Split, index: int, seed: int = 0) -> Scene:
    """The scene number ``index`` of a split; the same for the same arguments, for ever.

    Raises:
        ValueError: for an unknown split or a negative index.
    """
    if split not in SPLITS or index < 0:
        raise ValueError(f"no scene {index} in split {split!r}: use one of {', '.join(SPLITS)}")
    draw = generator(split, index, seed, stream=0)
    number = 1 + int(draw.choice(4, p=_GROUP_COUNT_ODDS))
    kinds = _draw_kinds(draw, split, number)
    counts = _draw_counts(draw, number)
    placements, relation, subjects, objects = arrange(draw, counts)
    groups = tuple(_group(kind, p) for kind, p in zip(kinds, placements, strict=True))
    statement = Statement(relation, subjects, objects) if relation is not None else None
    place = PLACES[int(draw.integers(len(PLACES)))]
    time = TIMES[int(draw.integers(len(TIMES)))]
    return Scene(split, index, seed, groups, statement, place, time)


def generator(split: Split, index: int, seed: int, stream: int) -> np.random.Generator:
    """Random numbers that belong to one scene; ``stream`` keeps picture and words apart."""
    counter = np.array([0, stream, index, SPLITS.index(split)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def pair_split(first: int, second: int) -> Split:
    """The split that owns an unordered pair of kinds, by a hash of their singular names."""
    return SPLITS[int(_pair_table()[first, second])]


def holds(scene: Scene, relation: Relation, subjects: list[int], objects: list[int]) -> bool:
    """Whether a relation between groups (by index) is true in the geometry of a scene."""
    if not subjects or not objects or set(subjects) & set(objects):
        return False
    if relation == "between":
        return len(objects) == 2 and all(_between(scene, s, objects) for s in subjects)
    return all(_holds_for_pair(scene, relation, s, o) for s in subjects for o in objects)


def _between(scene: Scene, subject: int, objects: list[int]) -> bool:
    first, second = objects
    return any(
        _holds_for_pair(scene, one, subject, first)
        and _holds_for_pair(scene, _INVERSE[one], subject, second)
        for one in ("left", "right", "above", "below")
    )


def _holds_for_pair(scene: Scene, relation: Relation, subject: int, other: int) -> bool:
    if relation in ("right", "below", "behind"):
        return _holds_for_pair(scene, _INVERSE[relation], other, subject)
    a, b = scene.groups[subject].box, scene.groups[other].box
    if relation == "left":
        return a[2] <= b[0]
    if relation == "above":
        return a[3] <= b[1]
    overlap = a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    return overlap and subject > other  # painted later is nearer


@functools.cache
def _pair_table() -> np.ndarray:
    """``[K, K]`` int8: index of the owning split of every pair; the diagonal is -1."""
    table = np.full((len(KINDS), len(KINDS)), -1, dtype=np.int8)
    for i, first in enumerate(KINDS):
        for j in range(i):
            names = "|".join(sorted((first.singular, KINDS[j].singular)))
            tenth = hashlib.sha256(names.encode()).digest()[0] % 10
            table[i, j] = table[j, i] = 0 if tenth < 8 else tenth - 7
    return table


def _draw_kinds(draw: np.random.Generator, split: Split, number: int) -> list[int]:
    table, own = _pair_table(), SPLITS.index(split)
    kinds = [int(draw.integers(len(KINDS)))]
    while len(kinds) < number:
        rows = table[kinds]
        allowed = ((rows == own) | (rows == 0)).all(axis=0)
        if len(kinds) == 1:
            allowed &= rows[0] == own
        kinds.append(int(draw.choice(np.flatnonzero(allowed))))
    order = draw.permutation(number)
    return [kinds[i] for i in order]


def _draw_counts(draw: np.random.Generator, number: int) -> list[int]:
    counts = [1 + int(draw.choice(MAX_COUNT, p=_OBJECT_COUNT_ODDS)) for _ in range(number)]
    while sum(counts) > MAX_GLYPHS:
        counts[counts.index(max(counts))] -= 1
    return counts


def _group(kind: int, placement: Placement) -> Group:
    glyphs = tuple(
        Glyph(x, y, placement.side, angle)
        for (x, y), angle in zip(placement.centres, placement.angles, strict=True)
    )
    return Group(kind, size_name(placement.side), glyphs)


def size_name(side: float) -> Size:
    """The size class of a side; no scene has a side within 4 of a border."""
    return "small" if side < 24.0 else "medium" if side < 37.0 else "large"
