"""``primelens add-head``, ``swap-head``, ``remove-head``: a bundle's text sides come and go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from primelens.cli import rows
from primelens.cli.app import app
from primelens.cli.export import chosen_pictures, report_lines
from primelens.cli.extras import needs_extra

if TYPE_CHECKING:
    from primelens.export.heads import HeadOptions
    from primelens.export.options import ExportReport

__all__ = ["add_head", "remove_head", "swap_head"]

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.argument("bundle"),
    click.argument("checkpoint"),
    click.option("--name", required=True, help="The head's name in the bundle."),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="Write the new bundle here.  [default: in the old one's place]",
    ),
    click.option("--head", help="Which of the checkpoint's heads, where it has several."),
    click.option(
        "--kind",
        type=click.Choice(["caption", "answer"]),
        help="What a head that continues prompts is called.  [default: as it is exported]",
    ),
    click.option("--revision", help="Commit, branch or tag, where CHECKPOINT is a hub id."),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "int8", "int4"]),
        help="What the head is computed with.  [default: as the head before, or the first one]",
    ),
    click.option(
        "--images",
        multiple=True,
        metavar="IMAGE",
        help="Compare on these pictures too (file, folder or pattern); may be repeated.",
    ),
    click.option(
        "--agreement",
        type=click.FloatRange(0, 1),
        help="Least share of equal tokens, fed with the source's own, that fewer bits must reach.  "
        "[default: 0.99 for int8, 0.95 for int4]",
    ),
    click.option(
        "--calibration",
        multiple=True,
        metavar="IMAGE",
        help="Round 4-bit weights by these pictures (file, folder or pattern); may be repeated.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine."),
    click.option(
        "--allow-mismatch",
        is_flag=True,
        help="Take the head although it differs from its source. The manifest says so for ever.",
    ),
    click.option("--json", "as_json", is_flag=True, help="The report as one JSON object."),
)


def _with_options(function: F) -> F:
    for decorate in reversed(_OPTIONS):
        function = decorate(function)
    return function


@app.command("add-head", no_args_is_help=True)
@_with_options
def add_head(**chosen: Any) -> None:
    """Put one more head into a bundle.

    CHECKPOINT must have been tuned on the bundle's own tower: one whose tower differs in a single
    bit, or in its preprocessing, is refused, and the difference is named. A text side tuned on kept
    embeddings needs no tower. The head is compared with its source before anything changes. Needs
    primelens[export].
    """
    with needs_extra("export"):
        from primelens.export.heads import add_head as put_in

    _report(put_in(*_arguments(chosen), _options(chosen)), as_json=chosen["as_json"])


@app.command("swap-head", no_args_is_help=True)
@_with_options
def swap_head(**chosen: Any) -> None:
    """Exchange a head of a bundle for one that was tuned again.

    What is kept of pictures stays valid: the tower does not change. CHECKPOINT is as for
    `primelens add-head`. Needs primelens[export].
    """
    with needs_extra("export"):
        from primelens.export.heads import swap_head as exchange

    _report(exchange(*_arguments(chosen), _options(chosen)), as_json=chosen["as_json"])


@app.command("remove-head", no_args_is_help=True)
@click.argument("bundle")
@click.option("--name", required=True, help="The head's name in the bundle.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the new bundle here.  [default: in the old one's place]",
)
def remove_head(bundle: str, name: str, out: Path | None) -> None:
    """Take a head out of a bundle."""
    from primelens.export.remake import remove_head as remove

    folder = remove(bundle, name, out)
    rows.write_text(f"{rows.printable(str(folder))}: the head {rows.printable(name)} was removed")


def _arguments(chosen: dict[str, Any]) -> tuple[str, str, str]:
    return chosen["bundle"], chosen["checkpoint"], chosen["name"]


def _options(chosen: dict[str, Any]) -> HeadOptions:
    from primelens.export.heads import HeadOptions
    from primelens.export.options import GateOptions

    return HeadOptions(
        out=chosen["out"],
        head=chosen["head"],
        kind=chosen["kind"],
        revision=chosen["revision"],
        precision=chosen["precision"],
        calibration=chosen_pictures(chosen["calibration"], "--calibration"),
        gate=GateOptions(
            images=chosen_pictures(chosen["images"]),
            agreement=chosen["agreement"],
            threads=chosen["threads"],
            allow_mismatch=chosen["allow_mismatch"],
        ),
    )


def _report(report: ExportReport, *, as_json: bool) -> None:
    if as_json:
        rows.write_json(report.as_dict())
        return
    for line in report_lines(report):
        rows.write_text(line)
