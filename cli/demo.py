"""``primelens demo``: the shipped model on the shipped pictures."""

from __future__ import annotations

import time
from pathlib import Path

import click

from primelens.cli import rows
from primelens.cli.app import app, report

__all__ = ["demo", "sample_pictures"]


def sample_pictures() -> list[Path]:
    """The pictures that are installed with primelens, sorted by name."""
    import primelens
    from primelens.cli.inputs import PICTURE_SUFFIXES

    folder = Path(primelens.__file__).parent / "assets" / "samples"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)


@app.command("demo")
@click.option(
    "--model", default="default", metavar="BUNDLE", help="Another model than the shipped."
)
@click.pass_context
def demo(ctx: click.Context, model: str) -> None:
    """Caption the sample pictures that come with primelens.

    Shows each caption, the time that it took, and where the picture lies, so that it can be looked
    at. The shipped model knows drawn scenes only.
    """
    import primelens
    from primelens.errors import ModelNotFoundError

    pictures = sample_pictures()
    if not pictures:
        raise ModelNotFoundError(
            "This installation of primelens carries no sample pictures.",
            remedy="Install it again; or caption your own: primelens caption PICTURE.",
        )
    begin = time.perf_counter()
    loaded = primelens.load(model)
    rows.write_text(f"{loaded.name}: loaded in {_milliseconds(begin)} ms ({loaded.engine_name})")
    rows.write_text(f"domain: {loaded.manifest.domain.description}\n")
    failed = 0
    for path in pictures:
        begin = time.perf_counter()
        try:
            caption = loaded.caption(path)
        except primelens.InputError as error:
            failed += 1
            report(error)
            continue
        rows.write_text(f"  {rows.printable(caption.text)}")
        rows.write_text(f"      {_milliseconds(begin)} ms   {path}")
    if failed:
        ctx.exit(1)


def _milliseconds(begin: float) -> str:
    return f"{(time.perf_counter() - begin) * 1e3:.0f}"
