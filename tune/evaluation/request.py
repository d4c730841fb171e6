"""What to measure, and the pictures it names: those evaluated, and those the baselines draw on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from primelens.errors import InputError, OptionError
from primelens.tune.data import DataSource, Example, read_examples
from primelens.tune.evaluation.scene_tasks import drawn_examples
from primelens.tune.metrics import Resampling

__all__ = ["TASKS", "Parts", "Request", "Task", "read_parts", "read_source"]

Task = Literal["auto", "caption", "answer", "retrieval", "zero-shot"]

#: What a system can be asked to do, and what its data must have.
TASKS: dict[str, str] = {
    "caption": "a caption",
    "answer": "a question",
    "retrieval": "a caption",
    "zero-shot": "a label",
}


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        system: a bundle (folder, shipped name or hub id), one or several of its heads (see
            `primelens.tune.evaluation.speakers`), or a COCO result file ``*.json``.
        data: what on; ``scenes:test:500``, ``scene-questions:test:500`` or
            ``scene-objects:test:500`` as text for drawn scenes.
        task: what to do; ``auto`` answers where there are questions, captions where there are
            captions, and labels where there are labels alone.
        pool: where the baselines draw from; the other evaluated pictures if not given.
        holdout: evaluate this many pictures, drawn by the seed; the rest are the pool.
        limit: evaluate the first so many pictures.
        fit: data on which the weights of two heads that write together are fitted, where the
            system's name gives none; never what is evaluated.
        against: other systems, each compared with the first in pairs.
        untuned: a bundle whose text side was not tuned, as a baseline.
        tower: a bundle whose tower finds neighbours; the system's own if it is one.
        labels: a file of labels to choose from, for ``zero-shot``; by default those of the data.
        templates: prompts with ``{}`` for the label; by default those of the head.
        jars: the folder of ``pycocoevalcap``, for METEOR and SPICE.
        resampling: for intervals and tests; its seed also draws ``holdout``.
    """

    system: str
    data: DataSource | str
    task: Task = "auto"
    pool: DataSource | None = None
    holdout: int | None = None
    limit: int | None = None
    fit: DataSource | str | None = None
    against: tuple[str, ...] = ()
    untuned: str | None = None
    tower: str | None = None
    labels: Path | None = None
    templates: tuple[str, ...] = ()
    jars: Path | None = None
    resampling: Resampling = field(default_factory=Resampling)

    def __post_init__(self) -> None:
        if self.holdout is not None and self.pool is not None:
            raise OptionError(
                "A held-out part and a pool of its own exclude each other.",
                remedy="Give one of them.",
            )
        if self.fit is not None and self.fit == self.data:
            raise OptionError(
                "Weights that are fitted on what is evaluated flatter.",
                remedy="Fit them on validation data.",
            )
        for name in ("holdout", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; it must be at least 1.")
        if self.task != "auto" and self.task not in TASKS:
            raise OptionError(f"{self.task!r} is no task.", remedy=f"Known: {', '.join(TASKS)}.")

    @property
    def data_name(self) -> str:
        """For the report."""
        if isinstance(self.data, str):
            return self.data
        split = f" ({self.data.split})" if self.data.split else ""
        held = f", {self.holdout} held out" if self.holdout else ""
        return f"{self.data.path.name}{split}{held}"


@dataclass(frozen=True)
class Parts:
    """The pictures of a request.

    Attributes:
        task: a key of `TASKS`.
        examples: to be evaluated; each has what the task asks for.
        pool: for the baselines; None where the evaluated pictures serve each other.
        notes: what was left out.
    """

    task: str
    examples: list[Example]
    pool: list[Example] | None
    notes: list[str]


def read_parts(request: Request) -> Parts:
    """Read the data of a request.

    Raises:
        InputError: it cannot be read, nothing is left, or two pictures have one id.
    """
    found = read_source(request.data)
    task = _task_of(found) if request.task == "auto" else request.task
    examples = _fitting(found, task)
    notes = []
    if silent := len(found) - len(examples):
        notes.append(f"{silent} pictures without {TASKS[task]} were left out.")
    repeated = [key for key, n in Counter(example.id for example in examples).items() if n > 1]
    if repeated:
        raise InputError(f"{len(repeated)} ids occur twice, for example {repeated[0]!r}.")
    if not examples:
        raise InputError(f"{request.data_name} holds no picture with {TASKS[task]}.")
    pool = None if request.pool is None else _fitting(read_examples(request.pool), task)
    if request.holdout is not None:
        examples, pool = _hold_out(examples, request.holdout, request.resampling.seed)
    return Parts(task, examples[: request.limit], pool, notes)


def read_source(data: DataSource | str) -> list[Example]:
    """The examples of a data set, or of drawn scenes; raises as `read_parts`."""
    return list(drawn_examples(data) if isinstance(data, str) else read_examples(data))


def _task_of(examples: list[Example]) -> str:
    if any(example.questions for example in examples):
        return "answer"
    if any(example.captions for example in examples):
        return "caption"
    return "zero-shot" if any(example.label is not None for example in examples) else "caption"


def _fitting(examples: Iterable[Example], task: str) -> list[Example]:
    if task == "answer":
        return [example for example in examples if example.questions]
    if task == "zero-shot":
        return [example for example in examples if example.label is not None]
    return [example for example in examples if example.captions]


def _hold_out(
    examples: list[Example], number: int, seed: int
) -> tuple[list[Example], list[Example]]:
    if number >= len(examples):
        raise OptionError(f"holdout is {number}, but there are {len(examples)} pictures.")
    drawn = set(np.random.default_rng(seed).choice(len(examples), number, replace=False).tolist())
    held = [example for place, example in enumerate(examples) if place in drawn]
    return held, [example for place, example in enumerate(examples) if place not in drawn]
