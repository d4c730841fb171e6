"""What primelens promises of its speed, and how a measurement is held against it.

A *part* is what is measured together, in one run beside its peers; its *checks* are the figures
that are promised. Two kinds of bound occur: a ratio to a peer's time must be at least so large, and
a time, a number of bytes or a multiple of the machine's limit at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["PARTS", "Check", "Judged", "Part", "judge", "part_names"]

MEGABYTE = 10**6


@dataclass(frozen=True)
class Check:
    """One promised figure.

    Attributes:
        value: its key among the part's values.
        text: for people: what is held against what.
        bound: that it must reach, or must not exceed.
        least: whether the bound is the least (a ratio) or the most (a time) that is allowed.
        unit: behind the figure: "×", "s" or "MB".
    """

    value: str
    text: str
    bound: float
    least: bool = True
    unit: str = "×"

    def met_by(self, figure: float) -> bool:
        """Whether ``figure`` keeps the promise."""
        return figure >= self.bound if self.least else figure <= self.bound

    @property
    def target(self) -> str:
        """The bound for people."""
        return f"{'≥' if self.least else '≤'} {self.bound:g} {self.unit}"


@dataclass(frozen=True)
class Part:
    """What is measured in one run.

    Attributes:
        name: for ``--only``.
        title: for people.
        work: the reference work whose checkpoint everything is made of.
        kind: how it is measured: captions, kept pictures, the tower, steps, or fresh processes.
        precisions: of the bundles that take part.
        checks: what is promised.
        peers: that take part, as far as their environments are built.
        beams: 1 is greedy.
        batches: pictures at a time; the best counts where there are several.
        blocks: repetitions that count; one more at the start does not.
    """

    name: str
    title: str
    work: str
    kind: Literal["caption", "kept", "tower", "step", "start"]
    precisions: tuple[str, ...]
    checks: tuple[Check, ...]
    peers: tuple[str, ...] = ("transformers", "optimum")
    beams: int = 1
    batches: tuple[int, ...] = (1,)
    blocks: int = 5


@dataclass(frozen=True)
class Judged:
    """A check and what became of it.

    Attributes:
        part, check: which.
        verdict: "met", "missed" or "not measured".
        figure: what was measured, if anything.
        interval: its 95 % interval, where it is a ratio of turns.
        why: of a check that was not measured.
    """

    part: Part
    check: Check
    verdict: Literal["met", "missed", "not measured"]
    figure: float | None = None
    interval: tuple[float, float] | None = None
    why: str = ""


def judge(part: Part, measured: Mapping[str, Any] | None) -> list[Judged]:
    """Hold what was measured (the part's entry in the file, or None) against its checks."""
    if measured is None:
        missing = f"run it with --only {part.name}"
        return [Judged(part, check, "not measured", why=missing) for check in part.checks]
    found = []
    for check in part.checks:
        value = measured["values"].get(check.value)
        if value is None:
            why = measured["missing"].get(check.value, "no such figure came of the run")
            found.append(Judged(part, check, "not measured", why=why))
            continue
        interval = (value["low"], value["high"]) if "low" in value else None
        verdict: Literal["met", "missed"] = "met" if check.met_by(value["value"]) else "missed"
        found.append(Judged(part, check, verdict, value["value"], interval))
    return found


def part_names() -> tuple[str, ...]:
    """For ``--only``."""
    return tuple(part.name for part in PARTS)


def _against(precision: str, eager: float, other: float | None = None) -> tuple[Check, ...]:
    """A part's ratios of peers' times to that of a bundle of ``precision``."""
    checks = [Check(f"{precision}/transformers", f"{precision} against transformers eager", eager)]
    if other is not None:
        checks.append(
            Check(f"{precision}/other", f"{precision} against the best other peer", other)
        )
    return tuple(checks)


def _of_limit(precision: str, batch: int, bound: float) -> Check:
    text = f"{precision}, batch {batch}: of its limit"
    return Check(f"{precision}/limit/{batch}", text, bound, least=False)


def _start(precision: str) -> tuple[Check, ...]:
    return (
        Check(f"{precision}/transformers", f"{precision} against transformers eager", 6.5),
        Check(f"{precision}/seconds", f"{precision}: from process start", 1.1, False, "s"),
        Check(
            f"{precision}/beyond",
            f"{precision}: peak RSS beyond its weights",
            150 if precision == "int8" else 300,
            least=False,
            unit="MB",
        ),
    )


_GPT2, _BLIP = "vitgpt2-base", "blip-captioning-base"
_EAGER = ("transformers",)

PARTS: Sequence[Part] = (
    Part(
        "cold",
        "ViT-base + GPT-2, new pictures one by one, 20 tokens",
        _GPT2,
        "caption",
        ("int8", "fp32"),
        (*_against("int8", 5.5, 6.5), *_against("fp32", 2.2, 2.7)),
    ),
    Part(
        "beams",
        "the same with 3 beams",
        _GPT2,
        "caption",
        ("int8",),
        _against("int8", 8.5, 10),
        beams=3,
        blocks=4,
    ),
    Part(
        "offline",
        "the same in batches, each system at its best",
        _GPT2,
        "caption",
        ("int8",),
        _against("int8", 4, 6),
        batches=(4, 8),
        blocks=3,
    ),
    Part(
        "kept",
        "the same, picture kept; peers encode it again",
        _GPT2,
        "kept",
        ("int8", "int4"),
        (*_against("int8", 12), *_against("int4", 15)),
        peers=_EAGER,
    ),
    Part(
        "tower",
        "ViT-base at 224 px alone, one by one",
        _GPT2,
        "tower",
        ("int8",),
        (
            Check("int8/transformers", "int8 against transformers eager", 2.5),
            Check("int8/of-fastest", "int8: of the fastest peer's time", 0.55, least=False),
        ),
        peers=("transformers", "optimum", "openvino"),
        blocks=8,
    ),
    Part(
        "step",
        "GPT-2 with cross-attention, one decode step, past 16",
        _GPT2,
        "step",
        ("fp32", "int8", "int4"),
        (
            _of_limit("fp32", 1, 1.25),
            _of_limit("int8", 1, 1.25),
            _of_limit("int4", 1, 1.6),
            *(_of_limit("int8", batch, 1.6) for batch in (4, 8, 16)),
        ),
        peers=(),
        batches=(1, 4, 8, 16),
    ),
    Part(
        "start",
        "process start to first caption, page cache warm",
        _GPT2,
        "start",
        ("fp32", "int8"),
        (*_start("fp32"), *_start("int8")),
        peers=_EAGER,
    ),
    Part(
        "blip-cold",
        "BLIP-base at 384 px, new pictures one by one, 20 tokens",
        _BLIP,
        "caption",
        ("int8",),
        _against("int8", 5),
        peers=_EAGER,
        blocks=4,
    ),
    Part(
        "blip-beams",
        "the same with 3 beams",
        _BLIP,
        "caption",
        ("int8",),
        _against("int8", 6.5),
        peers=_EAGER,
        beams=3,
        blocks=3,
    ),
    Part(
        "blip-offline",
        "the same in batches, each system at its best",
        _BLIP,
        "caption",
        ("int8",),
        _against("int8", 3.3),
        peers=_EAGER,
        batches=(4,),
        blocks=3,
    ),
)
"""Every part, in the order of the table."""
