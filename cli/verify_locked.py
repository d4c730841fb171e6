"""``primelens verify-locked``: did tuning leave the image tower as it was?"""

from __future__ import annotations

from dataclasses import asdict

import click

from primelens.cli import rows
from primelens.cli.app import app
from primelens.cli.extras import needs_extra

__all__ = ["verify_locked"]


@app.command("verify-locked", no_args_is_help=True)
@click.argument("base")
@click.argument("tuned")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="List that many of the tensors that moved.",
)
@click.pass_context
def verify_locked(ctx: click.Context, base: str, tuned: str, as_json: bool, limit: int) -> None:
    """Prove that TUNED has the image tower of BASE, to the last bit.

    Both are checkpoints; BASE may be the bare tower that tuning started from. Every tensor that
    embeddings depend on is compared, running statistics of batch normalisation included, and the
    preprocessing too. If anything moved, the tensors are listed, the most moved first, and the
    exit status is 1. Needs primelens[export].
    """
    from primelens.hub import resolve

    with needs_extra("export"):
        from primelens.export.lock import compare_towers

    report = compare_towers(resolve(base, kind="checkpoint"), resolve(tuned, kind="checkpoint"))
    if as_json:
        rows.write_json({"locked": report.locked, **asdict(report)})
    else:
        for line in report.differences:
            rows.write_text(rows.printable(line))
        for moved in report.moved[:limit]:
            count, size = moved.values
            rows.write_text(
                f"{moved.name}: {count} of {size} values moved, by at most {moved.largest:.3g} "
                f"({moved.relative:.2g} of its RMS)"
            )
        if len(report.moved) > limit:
            rows.write_text(f"and {len(report.moved) - limit} more tensors")
        for note in report.notes:
            rows.write_text(rows.printable(f"note: {note}"))
        verdict = "is the base's, bit by bit" if report.locked else "is NOT the base's"
        rows.write_text(
            f"{rows.printable(report.tuned)}: the tower {verdict} "
            f"({report.compared} tensors, {len(report.moved)} moved)"
        )
    if not report.locked:
        ctx.exit(1)
