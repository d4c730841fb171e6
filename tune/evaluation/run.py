"""From a request to a report: let every system speak, score, compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from primelens.errors import InputError, OptionError
from primelens.tune.data import Example, read_answers, read_captions
from primelens.tune.evaluation.answering import AnswerScorer, frequent_answers, per_kind_answers
from primelens.tune.evaluation.baselines import most_frequent_texts, nearest_neighbours
from primelens.tune.evaluation.captioning import CaptionScorer
from primelens.tune.evaluation.report import Report, Table, compared, scored
from primelens.tune.evaluation.request import Parts, Request, read_parts
from primelens.tune.evaluation.scene_slots import slot_tallies
from primelens.tune.evaluation.systems import (
    Predictions,
    Progress,
    caption_examples,
    is_result_file,
    require_all,
)
from primelens.tune.metrics import JavaScorer

if TYPE_CHECKING:
    from primelens.model import Model

__all__ = ["Evaluation", "evaluate"]

FREQUENT_CAPTION = "most frequent caption"
NEIGHBOUR = "nearest neighbour's caption"
FREQUENT_ANSWER = "most frequent answer"
SAME_BEGINNING = "most frequent answer for the question's beginning"

# Ids of a pool of its own must not be mistaken for those of evaluated pictures.
_POOL = "pool:"


@dataclass(frozen=True)
class Evaluation:
    """A report, and what the system said: id of picture or question → text."""

    report: Report
    predictions: dict[str, str]
    asks: bool


def evaluate(
    request: Request,
    *,
    load: Callable[[str], Model] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a system with its baselines.

    Args:
        request: what to measure.
        load: opens a bundle; `primelens.load` if not given.
        progress: called with the number of pictures captioned or encoded since the last call.

    Raises:
        InputError: the data cannot be read, or a system does not speak of all of it.
        ModelNotFoundError, BundleError: a bundle cannot be opened.
        DependencyError: the data's format or a metric needs something that is not installed.
    """
    parts = read_parts(request)
    if parts.asks:
        return _answers(request, parts)
    return _CaptionRun(request, parts, load or _load, progress).evaluation()


def _load(name: str) -> Model:
    import primelens

    return primelens.load(name)


class _CaptionRun:
    """One evaluation of captions under way."""

    def __init__(
        self,
        request: Request,
        parts: Parts,
        load: Callable[[str], Model],
        progress: Progress | None,
    ) -> None:
        self.request, self.examples, self.pool = request, parts.examples, parts.pool
        self.notes = list(parts.notes)
        self.provenance: dict[str, str] = {}
        self._load, self._progress = load, progress

    def evaluation(self) -> Evaluation:
        request = self.request
        main, systems, other = self._systems()
        java = None if request.jars is None else JavaScorer(request.jars)
        scorer = CaptionScorer.of([example.captions for example in self.examples], java)
        tables = [scorer.table(systems, request.resampling)]
        if scorer.fewest_references > 1:
            tables.append(scorer.leave_one_out(systems, request.resampling))
        else:
            self.notes.append("No human row: there is a picture with a single reference.")
        if isinstance(request.data, str):
            tables.append(self._slots(systems))
        against = None
        if other is not None:
            first, second = (scorer.tallies(systems[name]) for name in (main.name, other))
            against = (other, compared(first, second, request.resampling))
        report = Report(
            system=main.name,
            data=request.data_name,
            pictures=len(self.examples),
            tables=tuple(tables),
            resampling=request.resampling,
            against=against,
            broken=tuple(main.broken.values()),
            notes=tuple(self.notes),
            provenance=self.provenance,
        )
        own = {e.id: text for e, text in zip(self.examples, systems[main.name], strict=True)}
        return Evaluation(report, own, asks=False)

    def _systems(self) -> tuple[Predictions, dict[str, list[str]], str | None]:
        """The system itself, the texts of all of them, and the name of the other."""
        request = self.request
        main = self._said(request.system)
        # A picture that the system cannot read is left out for everyone.
        self.examples = [e for e in self.examples if e.id not in main.broken]
        if not self.examples:
            raise InputError(
                "Not one picture can be read.", problems=tuple(main.broken.values())[:5]
            )
        keys = [example.id for example in self.examples]
        systems = {main.name: require_all(main, keys)}
        other = None
        if request.against is not None:
            other, systems = self._with(systems, request.against, "{}")
        if request.untuned is not None:
            _, systems = self._with(systems, request.untuned, "untuned text side ({})")
        return main, systems | self._baselines(main), other

    def _with(
        self, systems: dict[str, list[str]], name: str, label: str
    ) -> tuple[str, dict[str, list[str]]]:
        said = self._said(name)
        title = label.format(said.name)
        while title in systems:
            title += " (other)"
        return title, systems | {title: require_all(said, [e.id for e in self.examples])}

    def _said(self, name: str) -> Predictions:
        if is_result_file(name):
            texts = read_captions(Path(name))
            known = {example.id for example in self.examples}
            if extra := len(texts.keys() - known):
                self.notes.append(f"{name} speaks of {extra} pictures that are not evaluated.")
            return Predictions(Path(name).name, texts, {}, {}, {})
        return self._run(name, self.examples)

    def _run(self, name: str, examples: Sequence[Example], *, speak: bool = True) -> Predictions:
        model = self._load(name)
        found = caption_examples(model, examples, speak=speak, progress=self._progress)
        if found.tower is not None:
            self.provenance[f"tower of {found.name}"] = found.tower
        return found

    def _baselines(self, main: Predictions) -> dict[str, list[str]]:
        pool = self.examples if self.pool is None else self.pool
        prefix = "" if self.pool is None else _POOL
        captions = {prefix + example.id: example.captions for example in pool}
        keys = [example.id for example in self.examples]
        found = {FREQUENT_CAPTION: most_frequent_texts(keys, captions)}
        tower = self.request.tower
        if tower is None and not is_result_file(self.request.system):
            tower = self.request.system
        if tower is None:
            self.notes.append(
                "No nearest neighbour: no bundle was given whose tower could find it."
            )
            return found
        mine = main
        if tower != self.request.system:
            mine = self._run(tower, self.examples, speak=False)
        theirs = mine
        if self.pool is not None:
            theirs = self._run(tower, self.pool, speak=False)
            self._note_leaks(mine, theirs)
        if unread := [key for key in keys if key not in mine.embeddings]:
            self.notes.append(f"No nearest neighbour: {len(unread)} pictures cannot be read.")
            return found
        near = nearest_neighbours(
            keys,
            mine.embeddings,
            {prefix + key: vector for key, vector in theirs.embeddings.items()},
        )
        return found | {NEIGHBOUR: [captions[key][0] for key in near]}

    def _note_leaks(self, mine: Predictions, theirs: Predictions) -> None:
        known = set(theirs.digests.values())
        if leaks := [key for key, digest in mine.digests.items() if digest in known]:
            self.notes.append(
                f"LEAK: {len(leaks)} evaluated pictures are in the pool too, byte for byte, for "
                f"example {leaks[0]}."
            )

    def _slots(self, systems: Mapping[str, Sequence[str]]) -> Table:
        keys = [example.id for example in self.examples]
        rows = {
            name: scored(slot_tallies(keys, texts), self.request.resampling)
            for name, texts in systems.items()
        }
        return Table("Slots: what of each caption is true of the scene", rows)


def _answers(request: Request, parts: Parts) -> Evaluation:
    """Questions: so far of result files."""
    for name in (request.system, request.against):
        if name is not None and not is_result_file(name):
            raise OptionError(
                f"{name} would have to answer questions, which this version's bundles do not.",
                remedy='Give a result file: [{"question_id": 1, "answer": "…"}].',
            )
    scorer = AnswerScorer(parts.examples)
    keys = [question.id for question in scorer.questions]

    def said(name: str) -> list[str]:
        found = Predictions(Path(name).name, read_answers(Path(name)), {}, {}, {})
        return require_all(found, keys, "questions")

    name, other = Path(request.system).name, None
    systems = {name: said(request.system)}
    if request.against is not None:
        other = Path(request.against).name
        other += " (other)" if other == name else ""
        systems[other] = said(request.against)
    pool = parts.examples if parts.pool is None else parts.pool
    systems[FREQUENT_ANSWER] = frequent_answers(parts.examples, pool)
    systems[SAME_BEGINNING] = per_kind_answers(parts.examples, pool)
    tables = [scorer.table(systems, request.resampling)]
    if scorer.fewest_answers > 1:
        tables.append(scorer.leave_one_out(systems, request.resampling))
    against = None
    if other is not None:
        first, second = (scorer.tallies(systems[system]) for system in (name, other))
        against = (other, compared(first, second, request.resampling))
    report = Report(
        system=name,
        data=request.data_name,
        pictures=len(parts.examples),
        tables=tuple(tables),
        resampling=request.resampling,
        against=against,
        notes=tuple(parts.notes),
    )
    return Evaluation(report, dict(zip(keys, systems[name], strict=True)), asks=True)
