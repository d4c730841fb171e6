"""Captions: the official protocol, and leave-one-out, where a human can take part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from primelens.tune.evaluation.report import HUMAN, Table, scored
from primelens.tune.metrics import (
    JavaScorer,
    Resampling,
    Tally,
    caption_tallies,
    joined,
    tokenize,
)

__all__ = ["CaptionScorer"]


@dataclass(frozen=True)
class CaptionScorer:
    """Scores systems against the references of N pictures.

    Attributes:
        references: ``[N]``, each picture's captions, tokenised; one or more.
        java: also METEOR and SPICE by the official jars.
    """

    references: tuple[tuple[tuple[str, ...], ...], ...]
    java: JavaScorer | None = None

    @classmethod
    def of(cls, captions: Sequence[Sequence[str]], java: JavaScorer | None = None) -> CaptionScorer:
        """Tokenise the references."""
        return cls(tuple(tuple(tuple(tokenize(c)) for c in own) for own in captions), java)

    @property
    def fewest_references(self) -> int:
        """Of any picture."""
        return min(len(own) for own in self.references)

    def tallies(self, texts: Sequence[str]) -> list[Tally]:
        """All metrics of one system against all references: the official protocol."""
        candidates = [tokenize(text) for text in texts]
        found = caption_tallies(candidates, self.references)
        if self.java is not None:
            found.append(self.java.meteor(candidates, self.references))
            found.append(self.java.spice(candidates, self.references))
        return found

    def table(self, systems: Mapping[str, Sequence[str]], how: Resampling) -> Table:
        """The official protocol."""
        counts = sorted({len(own) for own in self.references})
        number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        rows = {name: scored(self.tallies(texts), how) for name, texts in systems.items()}
        return Table(f"All {number} references of each picture", rows)

    def leave_one_out(self, systems: Mapping[str, Sequence[str]], how: Resampling) -> Table:
        """Everyone against the same number of references, a human among them.

        With n references per picture there are n rounds. In round j reference j is the human's
        caption and every system, the human too, is scored against the n - 1 others. A score is the
        mean over the rounds. Where pictures have more references than others, the first n of each
        are used, n being the least that any has.
        """
        rounds = range(self.fewest_references)
        candidates = {
            name: [[tokenize(text) for text in texts]] * len(rounds)
            for name, texts in systems.items()
        }
        candidates[HUMAN] = [[list(own[j]) for own in self.references] for j in rounds]
        others = [[[own[i] for i in rounds if i != j] for own in self.references] for j in rounds]
        rows = {}
        for name, by_round in candidates.items():
            parts = [caption_tallies(by_round[j], others[j]) for j in rounds]
            rows[name] = scored([joined(list(part)) for part in zip(*parts, strict=True)], how)
        return Table(
            f"Leave one out: everyone against {len(rounds) - 1} references, mean of "
            f"{len(rounds)} rounds",
            rows,
        )
