"""What each step is shown: a function of the recipe, the data and the number of the step alone.

So a run that was interrupted needs to remember nothing of the data but how many steps it had done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.errors import InputError, OptionError
from primelens.tune.data import DataSource, Example, read_examples
from primelens.tune.data.example import Question
from primelens.tune.evaluation.scene_slots import parse_scene_source, scene_examples, scene_of
from primelens.tune.evaluation.scene_tasks import drawn_examples, names_objects
from primelens.tune.scenes.questions import Question as SceneQuestion
from primelens.tune.scenes.questions import questions
from primelens.tune.textside.recipe import DataChoice, Recipe

__all__ = ["Item", "Lesson", "Lessons", "read_items", "training_lessons"]

_ORDER, _WORDS = 1, 2  # streams of random numbers


@dataclass(frozen=True)
class Item:
    """A picture with what is to be said of it, or one question about it.

    Attributes:
        picture: the example's number in its data set.
        question: None for captions and scores.
        texts: captions, or the answers of the annotators.
    """

    example: Example
    picture: int
    texts: tuple[str, ...]
    question: str | None = None


@dataclass(frozen=True)
class Lesson:
    """One batch.

    Attributes:
        items: the pictures, or questions.
        texts: one of each item's texts.
        epochs: the epoch that each item belongs to; of interest to augmentation.
        draw: for whatever else is left to chance in this step.
    """

    items: tuple[Item, ...]
    texts: tuple[str, ...]
    epochs: tuple[int, ...]
    draw: np.random.Generator


@dataclass(frozen=True)
class Lessons:
    """All batches of a run; `at` gives that of any step."""

    items: tuple[Item, ...]
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; what is left over is shown in another epoch, whose order is another."""
        return len(self.items) // self.batch_size

    def at(self, step: int) -> Lesson:
        """The batch of a step, from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        chosen = self._order(epoch)[place * self.batch_size :][: self.batch_size]
        return self._lesson(chosen, epoch, np.random.default_rng([self.seed, _WORDS, step]))

    def in_order(self) -> Iterator[Lesson]:
        """Every item once, in the order of the data, always with the same texts."""
        for start in range(0, len(self.items), self.batch_size):
            chosen = np.arange(start, min(len(self.items), start + self.batch_size))
            draw = np.random.default_rng([self.seed, _WORDS, start])
            yield self._lesson(chosen, 0, draw)

    def _lesson(self, chosen: NDArray[np.int64], epoch: int, draw: np.random.Generator) -> Lesson:
        items = tuple(self.items[place] for place in chosen.tolist())
        texts = tuple(item.texts[int(draw.integers(len(item.texts)))] for item in items)
        return Lesson(items, texts, (epoch,) * len(items), draw)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._last.get("epoch") != epoch:
            random = np.random.default_rng([self.seed, _ORDER, epoch])
            self._last.update(epoch=epoch, order=random.permutation(len(self.items)))
        order: NDArray[np.int64] = self._last["order"]
        return order

    @cached_property
    def _last(self) -> dict[str, Any]:
        return {}


def read_items(choice: DataChoice, objective: str) -> tuple[Item, ...]:
    """The items of a data set.

    Raises:
        InputError: it cannot be read, or has nothing to learn from.
        DependencyError: its format needs a package that is not installed.
    """
    found = []
    for number, example in enumerate(islice(_examples(choice, objective), choice.limit)):
        if objective == "answer":
            found += [
                Item(example, number, question.answers, question.text)
                for question in example.questions
                if question.answers
            ]
        elif texts := example.captions or _named(example, choice.templates):
            found.append(Item(example, number, texts))
    if not found:
        what = "question with an answer" if objective == "answer" else "picture with a caption"
        if objective != "answer" and not choice.templates:
            what += " (and no templates say what to do with labels)"
        raise InputError(f"{choice.path} holds no {what}.")
    return tuple(found)


def _named(example: Example, templates: Sequence[str]) -> tuple[str, ...]:
    """What the templates say of a labelled picture."""
    label = example.label
    return () if label is None else tuple(one.replace("{}", label) for one in templates)


def training_lessons(recipe: Recipe) -> Lessons:
    """The training data of a recipe.

    Raises:
        OptionError: a batch is larger than the data.
    """
    items: list[Item] = []
    for choice in (recipe.data.train, *recipe.data.also):
        first = items[-1].picture + 1 if items else 0
        read = read_items(choice, recipe.objective)
        items += [replace(item, picture=first + item.picture) for item in read] * choice.repeat
    size = recipe.training.batch_size
    if size > len(items):
        raise OptionError(
            f"training.batch_size is {size}, and there are {len(items)} items to learn from.",
            remedy="Lower the batch size.",
        )
    return Lessons(tuple(items), size, recipe.training.seed)


def _examples(choice: DataChoice, objective: str) -> Iterator[Example]:
    if not choice.scenes:
        yield from read_examples(
            DataSource(
                Path(choice.path),
                choice.format,
                images=None if choice.images is None else Path(choice.images),
                split=choice.split,
                answers=None if choice.answers is None else Path(choice.answers),
            )
        )
        return
    if names_objects(choice.path):
        yield from drawn_examples(choice.path)
        return
    split, count = parse_scene_source(choice.path)
    for example in scene_examples(split, count, choice.groups):
        if objective == "answer":
            asked = questions(scene_of(example.id))
            example = replace(example, questions=_as_data(example.id, asked))
        yield example


def _as_data(key: str, asked: Sequence[SceneQuestion]) -> tuple[Question, ...]:
    return tuple(
        Question(f"{key}:{place}", question.text, (question.answer,), question.topic)
        for place, question in enumerate(asked)
    )
