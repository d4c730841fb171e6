"""``primelens tune``: tune a text side beside a locked tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from primelens.cli import rows
from primelens.cli.app import app
from primelens.cli.extras import needs_extra

__all__ = ["tune"]


@app.command("tune", no_args_is_help=True)
@click.argument("recipe", metavar="CONFIG.toml", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Plan or outcome as one JSON object.")
def tune(recipe: Path, dry_run: bool, resume: bool, as_json: bool) -> None:
    """Tune captions, answers or scores on an image tower that stays as it is.

    CONFIG.toml says what is tuned, on which data and how; tune/configs/ has examples. The tower is
    compared before and after, bit by bit, and a run that moved it fails. What comes out is an
    ordinary checkpoint in OUT/checkpoint, which `primelens export` takes. Needs primelens[tune].
    """
    with needs_extra("tune"):
        from primelens.tune import textside

        asked = textside.read_recipe(recipe)
        if dry_run:
            plan = textside.plan_run(asked, identify=_identities)
            _print(plan.numbers, plan.lines, as_json=as_json)
            return
        outcome = textside.tune(asked, resume=resume, identify=_identities, say=_say)
    tower = f"tower {outcome.tower_digest[:12]} as it was"
    lines = [f"{outcome.checkpoint}: {outcome.steps} steps, {tower}"]
    if outcome.score is not None:
        lines.append(f"{outcome.score[0]} {outcome.score[1]:.4f} on the validation data")
    _print(outcome.as_dict(), lines, as_json=as_json)


def _identities(folder: Path) -> dict[str, str]:
    """A tower's identities as an exporter computes them; none where there is no exporter."""
    from primelens.errors import CheckpointError

    try:
        from primelens.export.lock import identify

        return dict(identify(folder).taps)
    except (ModuleNotFoundError, CheckpointError):
        return {}


def _say(line: str) -> None:
    click.echo(line, err=True)


def _print(numbers: Any, lines: Any, *, as_json: bool) -> None:
    if as_json:
        rows.write_json(dict(numbers))
        return
    for line in lines:
        rows.write_text(line)
