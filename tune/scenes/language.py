"""What people say about a scene: captions.

A caption always states every group with its count and, where there are several groups, the
relation that the scene was made for. Sizes, place and time are stated in a share of the captions:
place and the darker times in most, "during the day" and sizes in few, because a greedy decode says
what most captions say.
"""

from __future__ import annotations

import numpy as np

from primelens.tune.scenes.objects import KINDS
from primelens.tune.scenes.world import Group, Place, Relation, Scene, Size, Time, generator

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five")
"""A count as a word, by index."""

SIZE_WORDS: dict[Size, tuple[str, ...]] = {
    "small": ("small", "little"),
    "medium": (),
    "large": ("big", "large"),
}
PLACE_PHRASES: dict[Place, tuple[str, ...]] = {
    "meadow": ("in a meadow", "on the grass"),
    "beach": ("on a beach", "at the beach"),
    "street": ("on a street", "in the street"),
    "snow": ("in the snow", "on the snow"),
    "room": ("in a room", "indoors"),
    "lake": ("on a lake", "on the water"),
    "desert": ("in the desert", "in a desert"),
    "forest": ("in a forest", "in the woods"),
}
TIME_PHRASES: dict[Time, tuple[str, ...]] = {
    "day": ("during the day", "in the daytime"),
    "evening": ("in the evening", "at sunset"),
    "night": ("at night", "after dark"),
}
RELATION_PHRASES: dict[Relation, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
    "front": ("in front of",),
    "behind": ("behind",),
    "between": ("between",),
}
OPENINGS = ("there is", "there are", "a picture of")

_INVERSES: dict[Relation, Relation] = {"left": "right", "above": "below", "front": "behind"}
_STREAM = 1000  # of the scene's generator; variants count up from here
_OPENING_SHARE = 0.16
_FIRST = 0.7  # share of the first, plainest phrase among its rivals: keeps the mode clear


def caption(scene: Scene, variant: int = 0) -> str:
    """One of many true captions of a scene; the same for the same variant, for ever."""
    draw = generator(scene.split, scene.index, scene.seed, stream=_STREAM + variant)
    way = draw.random()
    body = _body(draw, scene, may_have_verb=way >= _OPENING_SHARE)
    place = _place_and_time(draw, scene)
    if way < _OPENING_SHARE / 2:
        body = f"a picture of {body}"
    elif way < _OPENING_SHARE:
        number = "is" if body.startswith(("a ", "an ")) else "are"
        body = f"there {number} {body}"
    elif place and way > 0.88:
        return f"{place}, {body}"
    return f"{body} {place}".rstrip()


def noun_phrase(kind: int, count: int, size_word: str = "") -> str:
    """``an apple``, ``two big apples``."""
    name = KINDS[kind].singular if count == 1 else KINDS[kind].plural
    words = f"{size_word} {name}".strip()
    if count > 1:
        return f"{NUMBER_WORDS[count]} {words}"
    if size_word:
        return f"a {words}"
    return f"{KINDS[kind].article} {words}"


def _body(draw: np.random.Generator, scene: Scene, may_have_verb: bool) -> str:
    """The objects and their relation: ``two cats (are) left of a dog``."""
    statement = scene.statement
    if statement is None:
        return _group_words(draw, scene.groups[0])
    relation, subjects, objects = statement.relation, statement.subjects, statement.objects
    if relation in _INVERSES and draw.random() >= _FIRST:
        relation, subjects, objects = _INVERSES[relation], objects, subjects
    if relation == "between" and draw.random() >= _FIRST:
        objects = objects[::-1]
    words = [_list_words(draw, scene, side) for side in (subjects, objects)]
    phrase = _pick(draw, RELATION_PHRASES[relation])
    if draw.random() < 0.15 and may_have_verb:
        plural = len(subjects) > 1 or scene.groups[subjects[0]].count > 1
        phrase = f"{'are' if plural else 'is'} {phrase}"
    return f"{words[0]} {phrase} {words[1]}"


def _list_words(draw: np.random.Generator, scene: Scene, indices: tuple[int, ...]) -> str:
    return " and ".join(_group_words(draw, scene.groups[i]) for i in indices)


def _group_words(draw: np.random.Generator, group: Group) -> str:
    words = SIZE_WORDS[group.size]
    size_word = _pick(draw, words) if words and draw.random() < 0.3 else ""
    return noun_phrase(group.kind, group.count, size_word)


def _place_and_time(draw: np.random.Generator, scene: Scene) -> str:
    parts = []
    if draw.random() < 0.8:
        parts.append(_pick(draw, PLACE_PHRASES[scene.place]))
    if draw.random() < (0.3 if scene.time == "day" else 0.75):
        parts.append(_pick(draw, TIME_PHRASES[scene.time]))
    return " ".join(parts)


def _pick(draw: np.random.Generator, phrases: tuple[str, ...]) -> str:
    if len(phrases) == 1 or draw.random() < _FIRST:
        return phrases[0]
    return phrases[1 + int(draw.integers(len(phrases) - 1))]
