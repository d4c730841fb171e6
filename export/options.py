"""What an export may be asked for, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from primelens.errors import OptionError
from primelens.manifest import Domain

__all__ = ["ExportOptions", "ExportReport", "GateOptions"]

Precision = Literal["fp32", "int8"]

_ANY_DOMAIN = Domain("General photographs; the exporter was told nothing more specific.")


@dataclass(frozen=True)
class GateOptions:
    """How thoroughly the exported graphs are compared with their source.

    Attributes:
        images: picture files compared besides the random ones.
        random_images: random structured pictures, of several sizes.
        steps: tokens of the forced comparison, end tokens forbidden.
        threads: threads of the inference engine.
        seed: of the random pictures.
        agreement: least top-1 agreement of a quantised bundle with its source, teacher-forced.
        allow_mismatch: write the bundle although the gate failed; the manifest says so.
    """

    images: tuple[Path, ...] = ()
    random_images: int = 4
    steps: int = 24
    threads: int | None = None
    seed: int = 0
    agreement: float = 0.99
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        for name in ("random_images", "steps"):
            if getattr(self, name) < 2:
                raise OptionError(f"{name} is {getattr(self, name)}; the gate needs at least 2.")


@dataclass(frozen=True)
class ExportOptions:
    """How a checkpoint becomes a bundle.

    Attributes:
        precision: "fp32", or "int8" for weights of 8 bits (computed with in float32 or, in the
            decoder's products, with activations rounded per row).
        storage: "auto" stores weights in half the bytes where that loses nothing, "fp32" never
            does.
        head_kind: "caption" or "answer": what a head that continues prompts is called, because
            nothing in a checkpoint (of GIT, of BLIP-2) says what it was tuned on; None calls it
            as the family does.
        name: the bundle's short name; by default the checkpoint's.
        revision: commit, branch or tag, where the checkpoint is a hub id.
        license: SPDX expression of the weights' licence.
        domain: what pictures the model was made for; ``detector`` is taken from ``detector_file``.
        detector_file: a safetensors file with a fitted `primelens.domain` detector.
        overwrite: replace an existing bundle.
        gate: how to prove it.
    """

    precision: Precision = "fp32"
    storage: Literal["auto", "fp32"] = "auto"
    head_kind: Literal["caption", "answer"] | None = None
    name: str | None = None
    revision: str | None = None
    license: str | None = None
    domain: Domain = _ANY_DOMAIN
    detector_file: Path | None = None
    overwrite: bool = False
    gate: GateOptions = field(default_factory=GateOptions)

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "int8"):
            raise OptionError(f"precision is {self.precision!r}; it must be 'fp32' or 'int8'.")
        if self.storage not in ("auto", "fp32"):
            raise OptionError(f"storage is {self.storage!r}; it must be 'auto' or 'fp32'.")
        if self.head_kind not in (None, "caption", "answer"):
            raise OptionError(f"head_kind is {self.head_kind!r}; it must be 'caption' or 'answer'.")
        if (self.detector_file is None) != (self.domain.threshold is None):
            raise OptionError("A detector_file needs the domain's detector and threshold.")


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        bundle: the folder.
        parity: the manifest's parity block.
        notes: what a user ought to know.
        seconds: stage → wall time.
        size: bytes of all files.
    """

    bundle: Path
    parity: Mapping[str, Any]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    size: int

    @property
    def passed(self) -> bool:
        """Whether the gate passed; false only where ``allow_mismatch`` was given."""
        return not self.parity.get("failures")

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "bundle": str(self.bundle),
            "passed": self.passed,
            "parity": dict(self.parity),
            "notes": list(self.notes),
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "size": self.size,
        }
