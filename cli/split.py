"""``primelens split``: the text side of a bundle alone, or its tower alone."""

from __future__ import annotations

from pathlib import Path

import click

from primelens.cli import rows
from primelens.cli.app import app

__all__ = ["split"]


@app.command("split", no_args_is_help=True)
@click.argument("bundle")
@click.option(
    "--text-only",
    "half",
    flag_value="text-only",
    help="Leave out the tower: runs from kept embeddings.",
)
@click.option(
    "--tower-only", "half", flag_value="tower-only", help="Leave out the heads: encodes only."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The half's folder-to-be."
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
def split(bundle: str, half: str | None, out: Path, overwrite: bool) -> None:
    """Write one half of a bundle.

    The half without the tower captions pictures whose embeddings are kept (--cache), wherever they
    were encoded. The half without heads fills such folders: primelens encode.
    """
    if half is None:
        raise click.UsageError("Say which half: --text-only or --tower-only.")
    from primelens.export.split import split_bundle

    folder = split_bundle(bundle, out, half, overwrite=overwrite)  # type: ignore[arg-type]
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    rows.write_text(f"{rows.printable(str(folder))}: {half}, {size / 1e6:.1f} MB")
