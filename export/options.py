"""What an export may be asked for, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from primelens.errors import OptionError
from primelens.images import ImageSource
from primelens.manifest import Domain

__all__ = ["AGREEMENT", "ExportOptions", "ExportReport", "GateOptions", "Precision", "TaskMetric"]

Precision = Literal["fp32", "int8", "int4", "auto"]

#: What a bundle in fewer bits must reach by default: top-1 agreement with its source,
#: teacher-forced.
AGREEMENT = {"int8": 0.99, "int4": 0.95}

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
        agreement: least top-1 agreement of a quantised bundle with its source, teacher-forced;
            None asks for what its precision is held to (`AGREEMENT`).
        allow_mismatch: write the bundle although the gate failed; the manifest says so.
    """

    images: tuple[Path, ...] = ()
    random_images: int = 4
    steps: int = 24
    threads: int | None = None
    seed: int = 0
    agreement: float | None = None
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        for name in ("random_images", "steps"):
            if getattr(self, name) < 2:
                raise OptionError(f"{name} is {getattr(self, name)}; the gate needs at least 2.")

    def least_agreement(self, precision: str) -> float:
        """What a head of this precision must reach."""
        return AGREEMENT.get(precision, 1.0) if self.agreement is None else self.agreement


@dataclass(frozen=True)
class TaskMetric:
    """How well a bundle does its task, on labelled data.

    Attributes:
        name: metric and data, for the manifest: "CIDEr-D on val.json".
        measure: the bundle's folder → the metric; higher is better, and a point is 0.01.
        reference: what it is in float32; the export measures that first.
    """

    name: str
    measure: Callable[[Path], float]
    reference: float | None = None

    def least(self, precision: str) -> float:
        """What a bundle of this precision must reach: in 8 bits all but half a per cent of the
        reference, in 4 bits all but a point.
        """
        reference = self.reference or 0.0
        return reference - 0.01 if precision == "int4" else 0.995 * reference


@dataclass(frozen=True)
class ExportOptions:
    """How a checkpoint becomes a bundle.

    Attributes:
        precision: "fp32"; "int8" for products of 8-bit weights with activations that are rounded
            row by row; "int4" for decoders with 4-bit weights beside the rest of "int8"; "auto"
            for the narrowest of these that passes its gate.
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
        calibration: pictures (paths, bytes or arrays) that 4-bit weights are rounded by; random
            structured ones where there are none.
        metric: what the bundle must do as well as in float32, where that can be measured.
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
    calibration: tuple[ImageSource, ...] = ()
    metric: TaskMetric | None = None
    gate: GateOptions = field(default_factory=GateOptions)

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise OptionError(f"precision is {self.precision!r}; known: {known}.")
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
