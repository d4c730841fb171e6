"""What to measure, and the pictures it names: those evaluated, and those the baselines draw on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from primelens.errors import InputError, OptionError
from primelens.tune.data import DataSource, Example, read_examples
from primelens.tune.evaluation.scene_slots import parse_scene_source, scene_examples
from primelens.tune.metrics import Resampling

__all__ = ["Parts", "Request", "read_parts"]


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        system: a bundle (folder, shipped name or hub id), or a COCO result file ``*.json``.
        data: what on; ``scenes:test:500`` as text for drawn scenes.
        pool: where the baselines draw from; the other evaluated pictures if not given.
        holdout: evaluate this many pictures, drawn by the seed; the rest are the pool.
        limit: evaluate the first so many pictures.
        against: a second system, compared in pairs.
        untuned: a bundle whose text side was not tuned, as a baseline.
        tower: a bundle whose tower finds neighbours; the system's own if it is one.
        jars: the folder of ``pycocoevalcap``, for METEOR and SPICE.
        resampling: for intervals and tests; its seed also draws ``holdout``.
    """

    system: str
    data: DataSource | str
    pool: DataSource | None = None
    holdout: int | None = None
    limit: int | None = None
    against: str | None = None
    untuned: str | None = None
    tower: str | None = None
    jars: Path | None = None
    resampling: Resampling = field(default_factory=Resampling)

    def __post_init__(self) -> None:
        if self.holdout is not None and self.pool is not None:
            raise OptionError(
                "A held-out part and a pool of its own exclude each other.",
                remedy="Give one of them.",
            )
        for name in ("holdout", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; it must be at least 1.")

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
        examples: to be evaluated; each has a caption, or each has a question.
        pool: for the baselines; None where the evaluated pictures serve each other.
        notes: what was left out.
    """

    examples: list[Example]
    pool: list[Example] | None
    notes: list[str]

    @property
    def asks(self) -> bool:
        """Whether questions are to be answered; else there are captions."""
        return bool(self.examples[0].questions)


def read_parts(request: Request) -> Parts:
    """Read the data of a request.

    Raises:
        InputError: it cannot be read, nothing is left, or two pictures have one id.
    """
    if isinstance(request.data, str):
        found = list(scene_examples(*parse_scene_source(request.data)))
    else:
        found = list(read_examples(request.data))
    asks = any(example.questions for example in found)
    examples = _speaking(found, asks)
    notes = []
    if silent := len(found) - len(examples):
        notes.append(f"{silent} pictures without caption or question were left out.")
    repeated = [key for key, n in Counter(example.id for example in examples).items() if n > 1]
    if repeated:
        raise InputError(f"{len(repeated)} ids occur twice, for example {repeated[0]!r}.")
    if not examples:
        raise InputError(f"{request.data_name} holds no picture with a caption or a question.")
    pool = None if request.pool is None else _speaking(read_examples(request.pool), asks)
    if request.holdout is not None:
        examples, pool = _hold_out(examples, request.holdout, request.resampling.seed)
    return Parts(examples[: request.limit], pool, notes)


def _speaking(examples: Iterable[Example], asks: bool) -> list[Example]:
    return [e for e in examples if (e.questions if asks else e.captions)]


def _hold_out(
    examples: list[Example], number: int, seed: int
) -> tuple[list[Example], list[Example]]:
    if number >= len(examples):
        raise OptionError(f"holdout is {number}, but there are {len(examples)} pictures.")
    drawn = set(np.random.default_rng(seed).choice(len(examples), number, replace=False).tolist())
    held = [example for place, example in enumerate(examples) if place in drawn]
    return held, [example for place, example in enumerate(examples) if place not in drawn]
