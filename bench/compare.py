"""Is B slower than A? From two results, or from two bundles that are run in turns.

A difference counts where it is larger than 5 % *and* significant: the bootstrap interval over
blocks excludes 1 and the rank test agrees (`primelens.bench.estimators`). Results of different
environments or specs are refused: what differs between them could be the cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from primelens.bench.environment import differences
from primelens.bench.estimators import Comparison, compare_blocks
from primelens.bench.result import Result
from primelens.bench.table import align
from primelens.errors import OptionError

__all__ = ["CellComparison", "compare_results", "compare_systems", "comparison_lines"]


@dataclass(frozen=True)
class CellComparison:
    """B over A in one cell."""

    scenario: str
    lengths: str
    batch: int
    system: str
    comparison: Comparison

    @property
    def slower(self) -> bool:
        """B is slower than A, by more than the tolerance and significantly."""
        return self.comparison.verdict == "slower"

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        found = self.comparison
        return {**asdict(self), "verdict": found.verdict, "significant": found.significant}


def compare_results(first: Result, second: Result, *, seed: int = 0) -> list[CellComparison]:
    """Every cell that both results hold, by system.

    Raises:
        OptionError: the environments or the specs differ, a machine was busy, or nothing is common.
    """
    _refuse(first, second)
    found = []
    for cell in first.cells:
        other = second.cell(cell["system"], cell["scenario"], cell["lengths"], cell["batch"])
        if other is not None and min(len(cell["blocks"]), len(other["blocks"])) >= 2:
            found.append(_compared(cell, other, paired=False, seed=seed))
    if not found:
        raise OptionError("The two results have no cell in common.")
    return found


def compare_systems(
    result: Result, first: str, second: str, *, seed: int = 0
) -> list[CellComparison]:
    """Two systems of one interleaved run, pair by pair.

    Raises:
        OptionError: one of them was not measured beside the other.
    """
    found = []
    for cell in result.cells:
        if cell["system"] != first:
            continue
        other = result.cell(second, cell["scenario"], cell["lengths"], cell["batch"])
        if other is not None and len(other["blocks"]) == len(cell["blocks"]) >= 2:
            found.append(_compared(cell, other, paired=True, seed=seed))
    if not found:
        raise OptionError(f"The run has no cell in which {first} and {second} took turns.")
    return found


def _compared(
    cell: Mapping[str, Any], other: Mapping[str, Any], *, paired: bool, seed: int
) -> CellComparison:
    comparison = compare_blocks(cell["blocks"], other["blocks"], paired=paired, seed=seed)
    return CellComparison(
        cell["scenario"], cell["lengths"], cell["batch"], other["system"], comparison
    )


def _refuse(first: Result, second: Result) -> None:
    problems = differences(first.environment, second.environment)
    if first.spec_digest != second.spec_digest:
        keys = sorted({*first.spec, *second.spec})
        problems += [
            f"spec.{key}: {first.spec.get(key)} and {second.spec.get(key)}"
            for key in keys
            if first.spec.get(key) != second.spec.get(key)
        ]
    if problems:
        raise OptionError(
            "The two results cannot be compared, they differ in more than the system:",
            remedy="Measure both on one machine with one spec, or give two bundles to interleave.",
            problems=problems,
        )
    if not (first.load["concluded"] and second.load["concluded"]):
        raise OptionError(
            "One of the results was measured on a busy machine.",
            remedy="Measure again alone, or with --force.",
        )


def comparison_lines(rows: Sequence[CellComparison]) -> list[str]:
    """A table for people."""
    table = [["time of B over A's", "ratio", "95 % interval", "p", "test", "blocks", "verdict"]]
    for row in rows:
        found = row.comparison
        table.append(
            [
                f"{row.scenario}, {row.lengths}, batch {row.batch}: {row.system}",
                f"{found.ratio.estimate:.3f}",
                f"{found.ratio.low:.3f} to {found.ratio.high:.3f}",
                f"{found.p_value:.4f}",
                found.test,
                f"{found.blocks[0]}/{found.blocks[1]}",
                found.verdict,
            ]
        )
    return align(table)
