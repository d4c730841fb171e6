"""The export: load, split at the seam, build graphs, quantise, write, prove, keep.

Everything is written to a temporary folder beside the target, proved there by running the shipped
runtime on it, and renamed only when the gate has passed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from primelens.atomic import atomic_folder
from primelens.errors import GateError
from primelens.export.bundle_writer import write_draft, write_manifest
from primelens.export.checkpoint import Checkpoint, open_checkpoint
from primelens.export.draft import Draft, check_source, draft_bundle
from primelens.export.gate import NOISE_FACTOR, GateReport
from primelens.export.golden import golden_parity, tolerances
from primelens.export.golden_file import GOLDEN, write_golden
from primelens.export.kinds import kind_of
from primelens.export.options import ExportOptions, ExportReport, GateOptions, Precision
from primelens.export.pictures import random_pictures
from primelens.export.quiet import quiet_transformers
from primelens.export.registry import ModelSplit, called
from primelens.export.trial import recipe_record, try_out
from primelens.hub import resolve
from primelens.images import read_image
from primelens.manifest import HeadSpec, RankHeadSpec

__all__ = [
    "UNMEASURED",
    "Clock",
    "answers_of",
    "export_checkpoint",
    "prove",
    "unmeasured",
    "write_proved",
]

logger = logging.getLogger("primelens.export")

UNMEASURED = "text quality on labelled data"
_REPORT = "This is a defect of the exporter or of the checkpoint; please report it."
_MORE_BITS = (
    "Ask for more bits (int8, fp32), give calibration pictures of the model's domain, or accept "
    "less agreement."
)
NARROWEST_FIRST: tuple[Precision, ...] = ("int4", "int8", "fp32")


def export_checkpoint(
    checkpoint: str | Path, out: str | Path, options: ExportOptions | None = None
) -> ExportReport:
    """Turn a Hugging Face checkpoint into a proved bundle.

    Args:
        checkpoint: a folder as ``save_pretrained`` writes it, or a hub id.
        out: the bundle's folder; it must not exist unless ``options.overwrite``.
        options: precision, storage, metadata, gate.

    Raises:
        ModelNotFoundError: there is no such checkpoint.
        CheckpointError: it is incomplete, broken, or would have to run code.
        UnsupportedError: its architecture or a setting has no exporter; lists every gap.
        GateError: the exported graphs differ from the source; nothing was written.
    """
    options = options or ExportOptions()
    clock = Clock()
    with clock.stage("load"):
        folder = resolve(str(checkpoint), revision=options.revision, kind="checkpoint")
        source = open_checkpoint(folder, name=_name(checkpoint), revision=options.revision)
        split = called(source.family.split(source.model), options.head_kind)
        check_source(source, split)
    for note in source.notes:
        logger.warning("%s: %s", source.name, note)
    with clock.stage("ask the source"):
        answers = answers_of(source, split, options.gate)
    with TemporaryDirectory() as workshop, clock.stage("calibrate"):
        options, observed = try_out(source, split, options, Path(workshop) / "fp32")
    refused: dict[str, list[str]] = {}
    candidates = NARROWEST_FIRST if options.precision == "auto" else (options.precision,)
    for precision in candidates:
        last = precision == candidates[-1]  # a mismatch may be allowed where nothing is wider
        gate = replace(options.gate, allow_mismatch=last and options.gate.allow_mismatch)
        chosen = replace(options, precision=precision, gate=gate)
        with clock.stage("build"):
            draft = draft_bundle(source, split, chosen, observed)
        draft.notes += [_refusal(*each) for each in refused.items()]
        try:
            with atomic_folder(Path(out), overwrite=options.overwrite) as temporary:
                parity = write_proved(draft, split, answers, temporary, chosen, clock)
                size = sum(path.stat().st_size for path in temporary.iterdir())
            return ExportReport(Path(out), parity, tuple(draft.notes), clock.seconds, size)
        except GateError as error:
            if last:
                raise
            refused[precision] = list(error.problems)
            logger.warning("%s", _refusal(precision, refused[precision]))
    raise AssertionError("the last of the precisions passes or raises")


def _refusal(precision: str, problems: Sequence[str]) -> str:
    return f"precision auto: {precision} was refused: {'; '.join(problems)}"


def _name(checkpoint: str | Path) -> str | None:
    """A hub id is a name by itself; of a folder, the last part is taken."""
    return None if Path(checkpoint).exists() else str(checkpoint)


def answers_of(checkpoint: Checkpoint, split: ModelSplit, options: GateOptions) -> dict[str, Any]:
    """What the source says, head by head, about random pictures and the given ones."""
    size = checkpoint.preprocessing.output_size or (224, 224)
    pictures = random_pictures(options.random_images, size, options.seed)
    for path in options.images:
        pictures.append(np.asarray(read_image(path).rgb()))
    with quiet_transformers():
        return {
            name: kind_of(head).ask(checkpoint, head, pictures, options)
            for name, head in split.heads.items()
        }


def write_proved(
    draft: Draft,
    split: ModelSplit,
    answers: Mapping[str, Any],
    folder: Path,
    options: ExportOptions,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Write the draft into ``folder`` and prove it; returns the manifest's parity block.

    Raises:
        GateError: a head differs from its source, and ``allow_mismatch`` was not given.
    """
    clock = clock or Clock()
    with clock.stage("write"):
        write_draft(draft, folder, options)
    with clock.stage("prove"):
        reports = prove(folder, split, answers, options.gate)
    with clock.stage("measure"):
        task = measure(folder, options)
    parity = {**_parity(draft, answers, reports, options), **task}
    arrays: dict[str, Any] = {}
    with clock.stage("golden"):
        for name, head in split.heads.items():
            quantised = draft.heads[name].precision != "fp32"
            report = reports[name] if quantised else None
            if not reports[name].failures or not quantised:
                arrays |= kind_of(head).golden(name, head, answers[name], report)
        if arrays:
            write_golden(folder / GOLDEN, arrays)
        write_manifest(draft, folder, options, parity)
    return parity


def prove(
    folder: Path, split: ModelSplit, answers: Mapping[str, Any], options: GateOptions
) -> dict[str, GateReport]:
    """Run the gate over every head of the bundle in ``folder``.

    Raises:
        GateError: a head differs from its source, and ``allow_mismatch`` was not given.
    """
    reports = {
        name: kind_of(split.heads[name]).gate(folder, name, found, options)
        for name, found in answers.items()
    }
    failures = [f"head {name}, {line}" for name, r in reports.items() for line in r.failures]
    if failures and not options.allow_mismatch:
        rounded = all("top-1 agreement" in line for line in failures)
        raise GateError(
            "The exported graphs do not equal their source; nothing was written:",
            remedy=(_MORE_BITS if rounded else _REPORT)
            + " allow_mismatch writes the bundle all the same and says so in its manifest.",
            problems=failures,
        )
    if failures:
        logger.error("THE BUNDLE DOES NOT EQUAL ITS SOURCE: %s", "; ".join(failures))
    return reports


def measure(folder: Path, options: ExportOptions) -> dict[str, Any]:
    """The task metric of a bundle in fewer bits, for the parity block; empty where none is given.

    Raises:
        GateError: it lost too much, and ``allow_mismatch`` was not given.
    """
    metric, precision = options.metric, options.precision
    if metric is None or precision == "fp32":
        return {}
    value, least = metric.measure(folder), metric.least(precision)
    if value < least:
        line = f"{metric.name} is {value:.4f}, in float32 {metric.reference:.4f}; least {least:.4f}"
        if not options.gate.allow_mismatch:
            raise GateError(
                f"The bundle in {precision} does its task worse than in float32:",
                remedy="Give more calibration pictures of its domain, or a wider precision.",
                problems=[line],
            )
        logger.error("THE BUNDLE DOES ITS TASK WORSE: %s", line)
    found = {"name": metric.name, "value": value, "in_float32": metric.reference, "least": least}
    return {"task": found}


def _parity(
    draft: Draft,
    answers: Mapping[str, Any],
    reports: Mapping[str, GateReport],
    options: ExportOptions,
) -> dict[str, Any]:
    first = next(iter(answers))
    measured = options.metric is not None and options.precision != "fp32"
    not_measured = [] if measured else [UNMEASURED]
    for name, head in draft.heads.items():
        not_measured += unmeasured(name, head)
    return {
        "reference": f"{draft.source.architecture} in float32, with float64 as arbiter",
        "rule": _rule(draft, options.gate),
        "pictures": {"random": options.gate.random_images, "given": len(options.gate.images)},
        "seed": options.gate.seed,
        "recipe": recipe_record(options),
        "heads": {name: report.measured for name, report in reports.items()},
        "failures": [f"head {n}, {line}" for n, r in reports.items() for line in r.failures],
        "not_measured": not_measured,
        "golden": {
            **golden_parity(answers[first], reports[first].measured),
            "heads": {n: tolerances(answers[n], r.measured) for n, r in reports.items()},
            "taps": {
                draft.heads[n].tap: tolerances(answers[n], r.measured)["tap_tolerance"]
                for n, r in reports.items()
            },
        },
    }


def unmeasured(name: str, head: HeadSpec | RankHeadSpec) -> list[str]:
    """What the gate does not compare of a head, in lines for the manifest."""
    if isinstance(head, RankHeadSpec) or not head.generation.settings:
        return []
    if head.generation.settings.get("do_sample"):
        return [f"head {name}: sampling, which its generation_config asks for"]
    if head.precision != "fp32":
        return [f"head {name}: decoding by {dict(head.generation.settings)}"]
    return []


def _rule(draft: Draft, options: GateOptions) -> str:
    if all(head.precision == "fp32" for head in draft.heads.values()):
        return f"within {NOISE_FACTOR:g} x the source's own float32 rounding error; tokens equal"
    least = {options.least_agreement(head.precision) for head in draft.heads.values()}
    asked = ", ".join(f"{share:g}" for share in sorted(least))
    return (
        f"top-1 agreement of at least {asked}, teacher-forced; steps equal prefill; "
        "no result depends on the batch"
    )


class Clock:
    """Wall time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            logger.info("%s: %.1f s", name, self.seconds[name])
