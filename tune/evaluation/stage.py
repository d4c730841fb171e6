"""What all kinds of evaluation share while they run: systems, the pictures left, the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from primelens.errors import InputError, OptionError
from primelens.tune.data import DataSource, Example
from primelens.tune.evaluation.report import Report, Table, compared
from primelens.tune.evaluation.request import Parts, Request, read_source
from primelens.tune.evaluation.speakers import Speaker, SystemName, open_speaker
from primelens.tune.evaluation.systems import Predictions, Progress
from primelens.tune.metrics import Tally

if TYPE_CHECKING:
    from primelens.model import Model

__all__ = ["Evaluation", "Field", "Stage"]

# Ids of a pool of its own must not be mistaken for those of evaluated pictures.
POOL = "pool:"


@dataclass(frozen=True)
class Evaluation:
    """A report, and what the system said.

    Attributes:
        predictions: id of picture or question → caption, answer or label; of a retrieval the
            caption that was ranked first.
        says: what the predictions are.
    """

    report: Report
    predictions: dict[str, str]
    says: Literal["captions", "answers", "labels"]


@dataclass(frozen=True)
class Field:
    """The systems of an evaluation.

    Attributes:
        main: the system itself.
        others: title → a system that is compared with it in pairs.
        untuned: title → the same with an untuned text side; one or none.
    """

    main: Predictions
    others: Mapping[str, Predictions]
    untuned: Mapping[str, Predictions]

    @property
    def all(self) -> dict[str, Predictions]:
        """Title → system, in the order of the report."""
        return {self.main.name: self.main, **self.others, **self.untuned}


class Stage:
    """One evaluation under way.

    Args:
        request: what was asked.
        parts: its pictures.
        load: opens a bundle.
        progress: called with the number of pictures done since the last call.
    """

    def __init__(
        self,
        request: Request,
        parts: Parts,
        load: Callable[[str], Model],
        progress: Progress | None = None,
    ) -> None:
        self.request, self.examples, self.pool = request, parts.examples, parts.pool
        self.notes = list(parts.notes)
        self.provenance: dict[str, str] = {}
        self.progress = progress
        self._load = cache(load)

    def speaker(self, name: str) -> Speaker:
        """A bundle, or heads of it; a bundle is loaded once."""
        speaker = open_speaker(name, self._load)
        named = SystemName.parse(name)
        if self.request.fit is not None and len(named.heads) > 1 and not named.weighed:
            self._fit(speaker, self.request.fit)
        return speaker

    def _fit(self, speaker: Speaker, data: DataSource | str) -> None:
        """Fit the weights of heads on other pictures than those evaluated."""
        evaluated = {example.image.name for example in self.examples}
        known = []
        for example in read_source(data):
            if example.image.name in evaluated:
                raise OptionError(
                    f"{example.image.name} is evaluated, and weights would be fitted on it.",
                    remedy="Fit them on validation data.",
                )
            if truths := _truths(example):
                image = speaker.model.encode(example.image.read())
                known += [(image, question, text) for question, text in truths]
        fitted = speaker.fit(known)
        shares = ", ".join(f"{weight:.3f}" for weight in fitted.weights)
        alone = ", ".join(f"{value:.4f}" for value in fitted.alone)
        self.notes.append(
            f"{speaker.name}: weights {shares}, fitted on {fitted.tokens} tokens of {len(known)} "
            f"texts of other pictures; mean log-probability {fitted.together:.4f}, of each head "
            f"alone {alone}."
        )

    def field(self, said: Callable[[str], Predictions]) -> Field:
        """Let every system speak, the main one first.

        A picture that the main system cannot read is left out for everyone.

        Args:
            said: what the system of a name says of ``examples``.

        Raises:
            InputError: not one picture can be read.
        """
        main = said(self.request.system)
        self.note_tower(main)
        self.examples = [e for e in self.examples if e.id not in main.broken]
        if not self.examples:
            raise InputError(
                "Not one picture can be read.", problems=tuple(main.broken.values())[:5]
            )
        taken = {main.name}
        others = dict(self._named(taken, self.request.against, "{}", said))
        wanted = [self.request.untuned] if self.request.untuned is not None else []
        untuned = dict(self._named(taken, wanted, "untuned text side ({})", said))
        return Field(main, others, untuned)

    def _named(
        self,
        taken: set[str],
        names: Iterable[str],
        label: str,
        said: Callable[[str], Predictions],
    ) -> Iterable[tuple[str, Predictions]]:
        for name in names:
            found = said(name)
            title = label.format(found.name)
            while title in taken:
                title += " (other)"
            taken.add(title)
            self.note_tower(found)
            yield title, found

    def note_tower(self, found: Predictions) -> None:
        """Into the report, which tower looked at the pictures."""
        if found.tower is not None:
            self.provenance[f"tower of {found.name}"] = found.tower

    def report(
        self, field: Field, tables: Sequence[Table], tallies: Callable[[str], Sequence[Tally]]
    ) -> Report:
        """The report.

        Args:
            field: all systems.
            tables: their scores.
            tallies: of the system of a title; the others are compared with the main one by them.
        """
        how = self.request.resampling
        first = tallies(field.main.name) if field.others else ()
        return Report(
            system=field.main.name,
            data=self.request.data_name,
            pictures=len(self.examples),
            tables=tuple(tables),
            resampling=how,
            against={title: compared(first, tallies(title), how) for title in field.others},
            broken=tuple(field.main.broken.values()),
            notes=tuple(self.notes),
            provenance=self.provenance,
        )


def _truths(example: Example) -> list[tuple[str | None, str]]:
    """Questions with their commonest answer, or the first caption."""
    if example.questions:
        return [
            (one.text, max(one.answers, key=one.answers.count))
            for one in example.questions
            if one.answers
        ]
    return [(None, example.captions[0])] if example.captions else []
