"""What a proof is asked for, what it looks at, and who proves which kind of head.

`primelens.export.proof` makes a `Subject` of every head of a work and hands it to the function that
`prover` registered for its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from primelens.errors import UnsupportedError
from primelens.export.checkpoint import Checkpoint
from primelens.export.work import Work

__all__ = [
    "Array",
    "Case",
    "Findings",
    "ProofOptions",
    "Prover",
    "Subject",
    "Tokens",
    "cases",
    "prover",
    "prover_of",
]

Array = NDArray[Any]
Tokens = list[int]


@dataclass(frozen=True)
class ProofOptions:
    """How thorough the proof is.

    Attributes:
        pictures: random pictures of the gate, and those that the cases are taken from.
        steps, beam_steps: tokens per text, greedy and with beams.
        beams, penalties: of the beam searches.
        batches: pictures per call.
        prompted: whether the work's prompt is tried too.
        threads: threads of the inference engine and of torch; None leaves both as they are.
        seed: of weights and pictures.
        folder: where checkpoint and bundle are made and left; None for a temporary one.
    """

    pictures: int = 8
    steps: int = 48
    beam_steps: int = 24
    beams: tuple[int, ...] = (3, 5)
    penalties: tuple[float, ...] = (0.6, 1.4)
    batches: tuple[int, ...] = (1, 6)
    prompted: bool = True
    threads: int | None = None
    seed: int = 0
    folder: Path | None = None


@dataclass(frozen=True)
class Case:
    """One way to decode; one beam is greedy decoding."""

    beams: int
    penalty: float
    prompt: str | None
    batch: int

    def __str__(self) -> str:
        how = "greedy" if self.beams == 1 else f"{self.beams} beams, penalty {self.penalty:g}"
        said = "" if self.prompt is None else ", prompted"
        return f"{how}{said}, batch {self.batch}"


def cases(options: ProofOptions, prompt: str | None) -> list[Case]:
    """Greedy at every batch size without and with the prompt, then beams.

    Of all combinations of beams, penalty, prompt and batch every second one is taken, so that,
    where each has two values, every three of them meet in every way.
    """
    prompts = [None] if prompt is None or not options.prompted else [None, prompt]
    found = [Case(1, 1.0, said, batch) for said in prompts for batch in options.batches]
    for i, beams in enumerate(options.beams):
        for j, penalty in enumerate(options.penalties):
            for k, said in enumerate(prompts):
                found += [
                    Case(beams, penalty, said, batch)
                    for n, batch in enumerate(options.batches)
                    if (i + j + k + n) % 2 == 0
                ]
    return found


@dataclass
class Findings:
    """What was compared at one head, besides the gate."""

    tokens: int = 0
    ties: int = 0
    searches: int = 0
    rankings: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """One head of a work on both sides, for a prover.

    Attributes:
        work, options: what is proved, and how thoroughly.
        source: the opened checkpoint.
        name, head: the head in the source, as its family split it.
        model: the bundle, loaded.
        pictures: uint8 ``[h, w, 3]`` each.
        pixels: ``[K, 3, H, W]``, preprocessed.
        rounding: of the source's float32 logits, as the gate measured it.
    """

    work: Work
    options: ProofOptions
    source: Checkpoint
    name: str
    head: Any
    model: Any
    pictures: Sequence[Array]
    pixels: Array
    rounding: float


Prover = Callable[[Subject], Findings]
_PROVERS: dict[str, Prover] = {}
P = TypeVar("P", bound=Prover)


def prover(*kinds: str) -> Callable[[P], P]:
    """Register what proves heads of these kinds, beyond the gate."""

    def register(function: P) -> P:
        for kind in kinds:
            _PROVERS[kind] = function
        return function

    return register


def prover_of(kind: str) -> Prover:
    """What proves heads of a kind; raises `UnsupportedError` where nothing does."""
    if kind not in _PROVERS:
        raise UnsupportedError(f"Nothing proves {kind} heads beyond the gate.")
    return _PROVERS[kind]
