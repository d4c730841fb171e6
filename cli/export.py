"""``primelens export``: a tuned checkpoint in, a proved bundle out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from primelens.cli import rows
from primelens.cli.app import app
from primelens.cli.calibration import calibration_of
from primelens.cli.extras import needs_extra
from primelens.cli.inputs import Unmatched, expand

if TYPE_CHECKING:
    from primelens.export import ExportOptions, ExportReport

__all__ = ["ExportRequest", "chosen_pictures", "report_lines"]


@dataclass(frozen=True)
class ExportRequest:
    """What the command line asks for, under the names of its options."""

    checkpoint: str
    out: Path
    precision: str
    storage: str
    head_kind: str | None
    name: str | None
    revision: str | None
    license: str | None
    domain: str | None
    images: tuple[str, ...]
    agreement: float | None
    calibration: str | None
    threads: int | None
    overwrite: bool
    allow_mismatch: bool
    as_json: bool


@app.command("export", no_args_is_help=True)
@click.argument("checkpoint")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The bundle's folder-to-be."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8", "int4", "auto"]),
    default="fp32",
    show_default=True,
    help="What is computed with; auto: the narrowest that passes its gate.",
)
@click.option(
    "--storage",
    type=click.Choice(["auto", "fp32"]),
    default="auto",
    show_default=True,
    help="auto stores weights in half the bytes where that loses nothing.",
)
@click.option(
    "--head-kind",
    type=click.Choice(["caption", "answer"]),
    help="What a head that continues prompts is called (GIT, BLIP-2).  [default: caption]",
)
@click.option("--name", help="The bundle's short name.  [default: the checkpoint's]")
@click.option("--revision", help="Commit, branch or tag, where CHECKPOINT is a hub id.")
@click.option("--license", metavar="SPDX", help="The licence of the weights.")
@click.option("--domain", metavar="TEXT", help="What pictures the model was made for.")
@click.option(
    "--images",
    multiple=True,
    metavar="IMAGE",
    help="Compare on these pictures too (file, folder or pattern); may be repeated.",
)
@click.option(
    "--agreement",
    type=click.FloatRange(0, 1),
    help="Least share of equal tokens, fed with the source's own, that fewer bits must reach.  "
    "[default: 0.99 for int8, 0.95 for int4]",
)
@click.option(
    "--calibration",
    metavar="DATA",
    help="Round 4-bit weights by these pictures, and where they are labelled demand that the task "
    "be done as well: a folder, pattern, annotation file, or drawn scenes (scenes:train:500).",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine in the proof.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
@click.option(
    "--allow-mismatch",
    is_flag=True,
    help="Write the bundle although it differs from its source. Its manifest says so for ever.",
)
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def export(**chosen: Any) -> None:
    """Export a checkpoint to a bundle.

    CHECKPOINT is a folder in the Hugging Face layout, or a hub id. The exported graphs are compared
    with the source model, and nothing is written if they differ. Needs primelens[export].
    """
    request = ExportRequest(**chosen)
    _refuse_to_replace(request)
    with needs_extra("export"):
        from primelens.export import export_checkpoint

        report = export_checkpoint(request.checkpoint, request.out, _options(request))
    if request.as_json:
        rows.write_json(report.as_dict())
        return
    for line in report_lines(report):
        rows.write_text(line)


def _refuse_to_replace(request: ExportRequest) -> None:
    """Say so before minutes of work, not after; the exporter checks it once more when it writes."""
    if request.out.exists() and not request.overwrite:
        from primelens.errors import OptionError

        raise OptionError(
            f"{request.out} is there already.", remedy="Give another name, or add --overwrite."
        )


def _options(request: ExportRequest) -> ExportOptions:
    from primelens.export import ExportOptions, GateOptions
    from primelens.manifest import Domain

    given: dict[str, Any] = {"domain": Domain(request.domain)} if request.domain else {}
    return ExportOptions(
        precision=request.precision,  # type: ignore[arg-type] # the option's choices are these
        storage=request.storage,  # type: ignore[arg-type] # likewise
        head_kind=request.head_kind,  # type: ignore[arg-type] # likewise
        name=request.name,
        revision=request.revision,
        license=request.license,
        overwrite=request.overwrite,
        gate=GateOptions(
            images=chosen_pictures(request.images),
            agreement=request.agreement,
            threads=request.threads,
            allow_mismatch=request.allow_mismatch,
        ),
        **given,
        **calibration_of(request.calibration),
    )


def chosen_pictures(arguments: tuple[str, ...], option: str = "--images") -> tuple[Path, ...]:
    """The files that an option names; raises `click.BadParameter`."""
    pictures = []
    for entry in expand(arguments):
        if isinstance(entry, Unmatched):
            raise click.BadParameter(f"{entry.argument}: {entry.reason}.", param_hint=option)
        pictures.append(Path(entry))
    return tuple(pictures)


def report_lines(report: ExportReport) -> Iterator[str]:
    """What an export says to people."""
    for note in report.notes:
        yield f"note: {note}"
    for failure in report.parity.get("failures", ()):
        yield f"DIFFERS FROM ITS SOURCE: {failure}"
    for gap in report.parity.get("not_measured", ()):
        yield f"not measured: {gap}"
    seconds = sum(report.seconds.values())
    proof = "equal to its source" if report.passed else "NOT equal to its source, as was allowed"
    precision = report.parity.get("recipe", {}).get("precision", "fp32")
    if report.passed and precision != "fp32":
        proof = f"{precision}, {_agreement(report)}"
    yield f"{report.bundle}: {report.size / 1e6:.1f} MB, {proof}; took {seconds:.1f} s"


def _agreement(report: ExportReport) -> str:
    """How a bundle in fewer bits passed."""
    heads = report.parity.get("heads", {}).values()
    shares = [h.get("top1_agreement", h.get("logits", {}).get("top1_agreement")) for h in heads]
    least = min((share for share in shares if share is not None), default=1.0)
    task = report.parity.get("task")
    text = f"top-1 agreement with its source {least:.4f}"
    return text + (f", {task['name']} {task['value']:.4f}" if task else "")
