"""Captions: systems, baselines, and the tables they come into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from primelens.tune.data import Example, read_captions
from primelens.tune.evaluation.baselines import most_frequent_texts, nearest_neighbours
from primelens.tune.evaluation.captioning import CaptionScorer
from primelens.tune.evaluation.report import Table, scored
from primelens.tune.evaluation.scene_slots import slot_tallies
from primelens.tune.evaluation.stage import POOL, Evaluation, Stage
from primelens.tune.evaluation.systems import (
    Predictions,
    caption_examples,
    is_result_file,
    require_all,
)
from primelens.tune.metrics import JavaScorer, Tally

__all__ = ["captioned"]

FREQUENT_CAPTION = "most frequent caption"
NEIGHBOUR = "nearest neighbour's caption"


def captioned(stage: Stage) -> Evaluation:
    """Let the systems caption, and score them."""
    return _CaptionRun(stage).evaluation()


class _CaptionRun:
    def __init__(self, stage: Stage) -> None:
        self._stage, self._request = stage, stage.request

    def evaluation(self) -> Evaluation:
        stage, how = self._stage, self._request.resampling
        field = stage.field(self._said)
        keys = [example.id for example in stage.examples]
        systems = {title: require_all(said, keys) for title, said in field.all.items()}
        systems |= self._baselines(field.main, keys)
        java = None if self._request.jars is None else JavaScorer(self._request.jars)
        scorer = CaptionScorer.of([example.captions for example in stage.examples], java)
        tables = [scorer.table(systems, how)]
        if scorer.fewest_references > 1:
            tables.append(scorer.leave_one_out(systems, how))
        else:
            stage.notes.append("No human row: there is a picture with a single reference.")
        if isinstance(self._request.data, str):
            tables.append(self._slots(keys, systems))
        report = stage.report(
            field, tables, lambda title: self._tallies(scorer, keys, systems[title])
        )
        own = dict(zip(keys, systems[field.main.name], strict=True))
        return Evaluation(report, own, "captions")

    def _tallies(
        self, scorer: CaptionScorer, keys: Sequence[str], texts: Sequence[str]
    ) -> list[Tally]:
        """What systems are compared by: of scenes the slots too."""
        found = list(scorer.tallies(texts))
        return found + (slot_tallies(keys, texts) if isinstance(self._request.data, str) else [])

    def _said(self, name: str) -> Predictions:
        if is_result_file(name):
            texts = read_captions(Path(name))
            known = {example.id for example in self._stage.examples}
            if extra := len(texts.keys() - known):
                self._stage.notes.append(
                    f"{name} speaks of {extra} pictures that are not evaluated."
                )
            return Predictions(Path(name).name, texts)
        return self._run(name, self._stage.examples)

    def _run(self, name: str, examples: Sequence[Example], *, speak: bool = True) -> Predictions:
        speaker = self._stage.speaker(name)
        found = caption_examples(speaker, examples, speak=speak, progress=self._stage.progress)
        self._stage.note_tower(found)
        return found

    def _baselines(self, main: Predictions, keys: list[str]) -> dict[str, list[str]]:
        stage = self._stage
        pool = stage.examples if stage.pool is None else stage.pool
        prefix = "" if stage.pool is None else POOL
        captions = {prefix + example.id: example.captions for example in pool}
        found = {FREQUENT_CAPTION: most_frequent_texts(keys, captions)}
        tower = self._request.tower
        if tower is None and not is_result_file(self._request.system):
            tower = self._request.system
        if tower is None:
            stage.notes.append(
                "No nearest neighbour: no bundle was given whose tower could find it."
            )
            return found
        mine = main
        if tower != self._request.system:
            mine = self._run(tower, stage.examples, speak=False)
        theirs = mine
        if stage.pool is not None:
            theirs = self._run(tower, stage.pool, speak=False)
            self._note_leaks(mine, theirs)
        if unread := [key for key in keys if key not in mine.embeddings]:
            stage.notes.append(f"No nearest neighbour: {len(unread)} pictures cannot be read.")
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
            self._stage.notes.append(
                f"LEAK: {len(leaks)} evaluated pictures are in the pool too, byte for byte, for "
                f"example {leaks[0]}."
            )

    def _slots(self, keys: Sequence[str], systems: Mapping[str, Sequence[str]]) -> Table:
        rows = {
            name: scored(slot_tallies(keys, texts), self._request.resampling)
            for name, texts in systems.items()
        }
        return Table("Slots: what of each caption is true of the scene", rows)
