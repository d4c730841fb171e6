"""``primelens bench``: measure, compare, report; everything behind the verb is the bench's own."""

from __future__ import annotations

import click

from primelens.cli.app import app
from primelens.cli.extras import needs_extra

__all__ = ["bench"]


@app.command(
    "bench",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def bench(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Measure this machine: run, compare, step, coldstart, limits, report (bench --help).

    Needs primelens[bench].
    """
    with needs_extra("bench"):
        from primelens.bench.commands import main

        ctx.exit(main(arguments, program="primelens bench"))
