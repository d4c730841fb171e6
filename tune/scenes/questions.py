"""Questions about a scene, each with its one short answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from primelens.tune.scenes.language import NUMBER_WORDS, noun_phrase
from primelens.tune.scenes.objects import KINDS
from primelens.tune.scenes.world import Relation, Scene, generator, holds

_STREAM = 500
_ASKED: dict[Relation, str] = {
    "left": "left of",
    "right": "right of",
    "above": "above",
    "below": "below",
    "front": "in front of",
    "behind": "behind",
}


@dataclass(frozen=True)
class Question:
    """A question, its answer, and what is asked for: count, presence, relation, place or time."""

    text: str
    answer: str
    topic: str


def questions(scene: Scene) -> tuple[Question, ...]:
    """Every kind of question that the scene answers without doubt; some of it drawn by lot."""
    draw = generator(scene.split, scene.index, scene.seed, stream=_STREAM)
    asked = [
        Question(f"how many {KINDS[g.kind].plural} are there?", NUMBER_WORDS[g.count], "count")
        for g in scene.groups
    ]
    asked += [_presence(draw, scene, there) for there in (True, False)]
    asked += _relations(scene)
    asked.append(Question("where is this?", scene.place, "place"))
    asked.append(Question("what time of day is it?", scene.time, "time"))
    if len(scene.groups) == 1:
        group = scene.groups[0]
        asked.append(
            Question("what is in the picture?", noun_phrase(group.kind, group.count), "object")
        )
    return tuple(asked)


def _presence(draw: np.random.Generator, scene: Scene, there: bool) -> Question:
    present = [g.kind for g in scene.groups]
    if there:
        kind = present[int(draw.integers(len(present)))]
    else:
        absent = sorted(set(range(len(KINDS))) - set(present))
        kind = absent[int(draw.integers(len(absent)))]
    text = f"is there {noun_phrase(kind, 1)}?"
    return Question(text, "yes" if there else "no", "presence")


def _relations(scene: Scene) -> list[Question]:
    """``what is left of the dog?`` wherever exactly one group is."""
    found = []
    everyone = range(len(scene.groups))
    for relation, phrase in _ASKED.items():
        for j in everyone:
            there = [i for i in everyone if i != j and holds(scene, relation, [i], [j])]
            if len(there) == 1:
                other, group = scene.groups[j], scene.groups[there[0]]
                name = KINDS[other.kind].singular if other.count == 1 else KINDS[other.kind].plural
                found.append(
                    Question(
                        f"what is {phrase} the {name}?",
                        noun_phrase(group.kind, group.count),
                        "relation",
                    )
                )
    return found
