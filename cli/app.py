"""The group that all verbs belong to, and what a failure looks like from outside.

Exit codes: 0 everything came out; 1 something failed (what it was stands on standard error, and
everything else still came out); 2 the command line itself is wrong; 130 interrupted; 141 the reader
of standard output went away.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click

__all__ = ["DEBUG_VARIABLE", "app", "debugging", "main", "report"]

DEBUG_VARIABLE = "PRIMELENS_DEBUG"

_INTERRUPTED = 130
_READER_GONE = 141
_DEBUG_KEY = "primelens.debug"


def debugging() -> bool:
    """Whether tracebacks were asked for, before or after the verb or by the environment."""
    return bool(click.get_current_context().find_root().meta.get(_DEBUG_KEY))


def report(error: BaseException | str) -> None:
    """Say on standard error what went wrong; with the traceback behind it when debugging."""
    click.echo(f"primelens: error: {error}", err=True)
    if isinstance(error, BaseException) and debugging():
        import traceback

        traceback.print_exception(error, file=sys.stderr)


def _switch_debugging_on(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.find_root().meta.get(_DEBUG_KEY):
        import logging

        ctx.find_root().meta[_DEBUG_KEY] = True
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")


def _debug_option(*, hidden: bool) -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        hidden=hidden,
        expose_value=False,
        envvar=None if hidden else DEBUG_VARIABLE,
        callback=_switch_debugging_on,
        help=f"Log what happens and show tracebacks; also {DEBUG_VARIABLE}=1.",
    )


class Verb(click.Command):
    """A command that takes ``--debug`` too: it is typed behind the command that just failed."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.params.append(_debug_option(hidden=True))


class App(click.Group):
    """The group; turns primelens' own errors into one message and an exit code."""

    command_class = Verb

    def invoke(self, ctx: click.Context) -> Any:
        from primelens.errors import PrimelensError

        try:
            return super().invoke(ctx)
        except PrimelensError as error:
            report(error)
            raise click.exceptions.Exit(1) from error
        except BrokenPipeError as error:
            _silence_stdout()
            raise click.exceptions.Exit(_READER_GONE) from error
        except OSError as error:  # a full disk, a folder that may not be written
            report(f"The operating system refused: {_refusal(error)}.")
            if debugging():
                raise
            _silence_stdout()
            raise click.exceptions.Exit(1) from error


def _refusal(error: OSError) -> str:
    where = "" if error.filename is None else f" ({error.filename})"
    return f"{error.strerror or error}{where}"


def _silence_stdout() -> None:
    """Let the interpreter's last flush go nowhere instead of failing once more."""
    with contextlib.suppress(OSError, ValueError):  # a captured stream has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        import primelens

        click.echo(f"primelens {primelens.__version__}")
        ctx.exit()


_version_option = click.Option(
    ["--version"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)

app = App(
    name="primelens",
    params=[_debug_option(hidden=False), _version_option],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
    help="""Caption pictures with image-to-text models whose image tower is locked.

    Exit status: 0 all came out, 1 something failed, 2 wrong usage, 130 interrupted.
    """,
)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    run: Callable[..., Any] = app.main
    try:
        code = run(prog_name="primelens", standalone_mode=False)
    except click.Abort:
        code = _INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    sys.exit(code)
