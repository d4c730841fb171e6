"""The progress bar is for a person at a terminal, and never among the captions."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

if sys.platform == "win32":  # pragma: no cover - no pseudo-terminals there
    pytest.skip("needs a pseudo-terminal", allow_module_level=True)

CHILD = """
from primelens.cli.progress import progress
with progress({total}) as bar:
    for number in range({total}):
        print("caption", number, flush=True)
        bar.update(1)
"""


def _run(total: int, *, stdout_is_terminal: bool, stderr_is_terminal: bool) -> tuple[str, str]:
    """What a child writes to standard output (if that is no terminal) and to the terminal."""
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(total=total)],
        stdout=theirs if stdout_is_terminal else subprocess.PIPE,
        stderr=theirs if stderr_is_terminal else subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm"},
        text=True,
    )
    os.close(theirs)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux says EIO where the other side is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    return output or "", shown.decode()


def test_it_is_shown_where_only_standard_error_is_a_terminal() -> None:
    output, shown = _run(3, stdout_is_terminal=False, stderr_is_terminal=True)
    assert output == "caption 0\ncaption 1\ncaption 2\n"
    assert "pictures" in shown
    assert "100%" in shown


def test_it_is_not_shown_between_captions_in_a_terminal() -> None:
    _, shown = _run(3, stdout_is_terminal=True, stderr_is_terminal=True)
    assert shown.splitlines() == ["caption 0", "caption 1", "caption 2"]


def test_it_is_not_shown_for_a_single_picture() -> None:
    assert _run(1, stdout_is_terminal=False, stderr_is_terminal=True) == ("caption 0\n", "")


def test_it_is_not_shown_where_standard_error_is_no_terminal() -> None:
    output, shown = _run(3, stdout_is_terminal=False, stderr_is_terminal=False)
    assert (len(output.splitlines()), shown) == (3, "")
