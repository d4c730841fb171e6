"""``primelens verify``: does this copy of a bundle, on this machine, still say the same?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from primelens.cli import rows
from primelens.cli.app import app
from primelens.cli.extras import needs_extra

if TYPE_CHECKING:
    from primelens.verify import VerifyReport

__all__ = ["verify"]


@app.command("verify", no_args_is_help=True)
@click.argument("bundle")
@click.option(
    "--against",
    metavar="CHECKPOINT",
    help="Compare with this source (a folder or a hub id) instead. Needs primelens[export].",
)
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
@click.pass_context
def verify(ctx: click.Context, bundle: str, against: str | None, as_json: bool) -> None:
    """Prove a bundle again.

    Every file is compared with its SHA-256. Then the golden pictures are run and compared with
    what the source model said when the bundle was exported; with --against, the bundle is compared
    with the source checkpoint itself. The exit status is 1 if any check fails.
    """
    report = _replay(bundle) if against is None else _compare(bundle, against)
    if as_json:
        rows.write_json(report.as_dict())
    else:
        for line in report.lines:
            rows.write_text(line)
        verdict = "verified" if report.passed else "NOT verified"
        rows.write_text(f"{bundle}: {verdict}, {len(report.lines)} checks")
    if not report.passed:
        ctx.exit(1)


def _replay(bundle: str) -> VerifyReport:
    from primelens.verify import verify as replay

    return replay(bundle)


def _compare(bundle: str, checkpoint: str) -> VerifyReport:
    with needs_extra("export"):
        from primelens.export import verify_against

    return verify_against(bundle, checkpoint)
