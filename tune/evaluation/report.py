"""What an evaluation found: tables of scores with intervals, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from primelens.tune.metrics import Comparison, Interval, Resampling, Tally, compare, intervals

__all__ = ["HUMAN", "Report", "Table", "compared", "scored"]

#: The row of the person who wrote one of the references.
HUMAN = "a human"


@dataclass(frozen=True)
class Table:
    """Systems and their scores under one protocol.

    Attributes:
        title: the protocol, in one line.
        rows: system → metric → score; a system may lack metrics that others have.
    """

    title: str
    rows: Mapping[str, Mapping[str, Interval]]

    @property
    def metrics(self) -> list[str]:
        """Every metric of any row, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows.values() for name in row))


@dataclass(frozen=True)
class Report:
    """One evaluation.

    Attributes:
        system, data: what was measured on what.
        pictures: how many images the scores are of.
        tables: each with the system and all baselines.
        against: other system → metric → system minus other.
        broken: pictures that could not be read, left out for every system alike.
        notes: what a reader must know: what was not measured, and why.
        resampling: of all intervals and tests.
        provenance: versions and identities.
    """

    system: str
    data: str
    pictures: int
    tables: tuple[Table, ...]
    resampling: Resampling
    against: Mapping[str, Mapping[str, Comparison]] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        tables = [
            {
                "title": table.title,
                "rows": {
                    system: {name: asdict(score) for name, score in row.items()}
                    for system, row in table.rows.items()
                },
            }
            for table in self.tables
        ]
        against = [
            {"system": name, "metrics": {key: asdict(c) for key, c in found.items()}}
            for name, found in self.against.items()
        ]
        return {
            "system": self.system,
            "data": self.data,
            "pictures": self.pictures,
            "tables": tables,
            "against": against,
            "broken": list(self.broken),
            "notes": list(self.notes),
            "resampling": asdict(self.resampling),
            "provenance": dict(self.provenance),
        }

    @property
    def lines(self) -> tuple[str, ...]:
        """Plain text with aligned columns."""
        return tuple(self._lines(_aligned, ""))

    def markdown(self) -> str:
        """The same as a Markdown document."""
        return "\n".join(self._lines(_piped, "## ")) + "\n"

    def _lines(self, layout: Any, heading: str) -> Iterator[str]:
        yield f"{heading}{self.system} on {self.data}, {self.pictures} pictures"
        percent = f"{100 * self.resampling.level:g} %"
        yield (
            f"[low, high]: {percent} bootstrap intervals over pictures, "
            f"{self.resampling.samples} samples, seed {self.resampling.seed}"
        )
        for table in self.tables:
            yield ""
            yield f"{heading and '### '}{table.title}"
            yield ""
            yield from layout(_cells(table))
        for name, found in self.against.items():
            yield ""
            yield f"{heading and '### '}{self.system} minus {name}, paired"
            yield ""
            yield from layout(_comparison_cells(found))
        yield from self._remarks(heading)

    def _remarks(self, heading: str) -> Iterator[str]:
        remarks = list(self.notes)
        if self.broken:
            remarks.append(f"{len(self.broken)} broken pictures were left out:")
            remarks += [f"broken: {line}" for line in self.broken]
        if remarks:
            yield ""
        for remark in remarks:
            yield f"* {remark}" if heading else remark


def scored(tallies: Sequence[Tally], how: Resampling) -> dict[str, Interval]:
    """All scores of some tallies, with intervals."""
    return {name: score for tally in tallies for name, score in intervals(tally, how).items()}


def compared(
    first: Sequence[Tally], second: Sequence[Tally], how: Resampling
) -> dict[str, Comparison]:
    """All scores of two systems, in pairs."""
    return {
        name: found
        for one, other in zip(first, second, strict=True)
        for name, found in compare(one, other, how).items()
    }


def _cells(table: Table) -> list[list[str]]:
    metrics = table.metrics
    body = [
        [system, *(_score(row[name]) if name in row else "–" for name in metrics)]
        for system, row in table.rows.items()
    ]
    return [["system", *metrics], *body]


def _comparison_cells(found: Mapping[str, Comparison]) -> list[list[str]]:
    body = [[name, _score(item.difference), f"{item.p_value:.4f}"] for name, item in found.items()]
    return [["metric", "difference", "p"], *body]


def _score(interval: Interval) -> str:
    return f"{interval.value:.4f} [{interval.low:.3f}, {interval.high:.3f}]"


def _aligned(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _piped(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    for number, row in enumerate(cells):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        if not number:
            yield "|" + "---|" * len(row)
