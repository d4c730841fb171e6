"""A progress bar on standard error, where a person watches and nothing else shows progress."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import click

__all__ = ["Progress", "progress"]


class Progress(Protocol):
    """What moves forward by one picture at a time."""

    def update(self, n_steps: int) -> None:
        """Move forward."""


class _Silent:
    def update(self, n_steps: int) -> None:
        """Nothing is shown."""


@contextmanager
def progress(total: int) -> Iterator[Progress]:
    """A bar over ``total`` pictures.

    It is shown only where standard error is a terminal and standard output is not: in a terminal
    the captions themselves show the progress, and a bar between them would tear them apart.
    """
    if total < 2 or not sys.stderr.isatty() or sys.stdout.isatty():
        yield _Silent()
        return
    with click.progressbar(length=total, label="pictures", file=sys.stderr) as bar:
        yield bar
