"""``primelens export``: a tuned checkpoint in, a proved bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from primelens.cli import rows
from primelens.cli.app import app
from primelens.cli.extras import needs_extra

__all__ = ["export"]


@app.command("export", no_args_is_help=True)
@click.argument("checkpoint")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The bundle's folder-to-be."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the text side's weights.",
)
@click.option("--revision", help="Commit, branch or tag, where CHECKPOINT is a hub id.")
@click.option(
    "--calibration",
    type=click.Path(exists=True, path_type=Path),
    help="Labelled pictures to measure the cost of int8 on.",
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
@click.option(
    "--allow-mismatch",
    is_flag=True,
    help="Write the bundle although it differs from its source. The manifest says so for ever.",
)
def export(checkpoint: str, out: Path, **chosen: Any) -> None:
    """Export a checkpoint to a bundle.

    CHECKPOINT is a folder in the Hugging Face layout, or a hub id. The exported graphs are compared
    with the source model, and nothing is written if they differ. Needs primelens[export].
    """
    with needs_extra("export"):
        from primelens.export import ExportOptions, export_checkpoint

    report = export_checkpoint(checkpoint, out, ExportOptions(**chosen))
    for line in report.lines:
        rows.write_text(line)
