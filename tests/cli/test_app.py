"""How the command fails: messages, tracebacks, exit codes, interrupts and broken pipes."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import primelens
from primelens.cli.extras import needs_extra
from primelens.errors import BundleError

Run = Callable[..., Result]

# A child process whose model is fake: `primelens.load` is replaced before the command runs.
CHILD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
import primelens
from primelens.results import Caption, Timings

class Model:
    name = "fake"
    def caption_batch(self, images, options, *, batch_size):
        for number, image in enumerate(images):
            if number == 1:
                {between}
            yield Caption("words " * 20, (1,), -1.0, (-1.0,), "stop", Timings(), image)

vars(primelens)["load"] = lambda *args, **settings: Model()
from primelens.cli import main
main()
"""


def _child(between: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(between=between), "caption", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def broken_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading fails as it does for a bundle with two problems."""

    def load(*args: Any, **settings: Any) -> None:
        raise BundleError("The bundle b is altered:", remedy="Fetch it.", problems=["x", "y"])

    monkeypatch.setitem(vars(primelens), "load", load)


def test_an_error_is_one_message_without_a_traceback(run: Run, broken_bundle: None) -> None:
    result = run("caption", "x.png")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        "primelens: error: The bundle b is altered:\n  - x\n  - y\nFetch it.\n"
    )


@pytest.mark.parametrize("place", ["before", "behind", "environment"])
def test_debugging_shows_the_traceback(
    run: Run, broken_bundle: None, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **settings: None)
    arguments = ["caption", "x.png"]
    if place == "environment":
        monkeypatch.setenv("PRIMELENS_DEBUG", "1")
    elif place == "before":
        arguments.insert(0, "--debug")
    else:
        arguments.append("--debug")
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("primelens: error: The bundle b is altered:")
    assert "Traceback (most recent call last)" in result.stderr
    assert "primelens.errors.BundleError" in result.stderr


def test_an_error_that_is_a_bug_is_not_swallowed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **settings: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(vars(primelens), "load", load)
    assert isinstance(run("caption", "x.png").exception, ZeroDivisionError)


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version").stdout == f"primelens {primelens.__version__}\n"


@pytest.mark.parametrize("verb", ["caption", "demo", "export", "info", "verify"])
def test_every_verb_has_help(run: Run, verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"primelens {verb}" in result.stdout.replace("Usage: ", "")
    assert "--debug" not in result.stdout
    assert verb in run("--help").stdout


def test_python_m_is_the_same_command() -> None:
    asked = [sys.executable, "-m", "primelens.cli", "--version"]
    finished = subprocess.run(asked, check=True, capture_output=True, text=True)
    assert finished.stdout == f"primelens {primelens.__version__}\n"


def test_ctrl_c_exits_with_130_and_keeps_what_was_written() -> None:
    child = _child("time.sleep(60)", "a.png", "b.png", "--json")
    assert child.stdout is not None
    first = child.stdout.readline()  # flushed while the second picture is still running
    child.send_signal(signal.SIGINT)
    rest, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert json.loads(first)["image"] == "a.png"
    assert rest == b""
    assert b"Traceback" not in errors


def test_a_reader_that_goes_away_ends_the_command_quietly(tmp_path: Path) -> None:
    many = [f"{number}.png" for number in range(3000)]  # more than any pipe buffers
    child = _child("pass", *many, "--json")
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 141
    assert errors == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
def test_a_full_disk_is_one_line_and_no_traceback() -> None:
    command = [sys.executable, "-m", "primelens.cli", "info", "default"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith(b"primelens: error: The operating system refused: No space left")
    assert b"Traceback" not in done.stderr


def test_measuring_asks_for_its_packages_before_it_starts(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyarrow" else found(name)
    )
    result = run("bench", "limits")
    assert result.exit_code == 1
    assert "pyarrow" in result.stderr
    assert "primelens[bench]" in result.stderr


def test_info_says_how_a_head_decodes(run: Run) -> None:
    lines = run("info", "default").stdout.splitlines()
    (line,) = [line for line in lines if "caption decodes" in line]
    assert "strategy=greedy" in line
    assert "max_new_tokens=40" in line
    assert max(map(len, lines)) < 500


def test_families_lists_what_can_be_exported(run: Run) -> None:
    found = json.loads(run("families", "--json").stdout)
    assert "vision-encoder-decoder" in found["models"]
    assert "vit" in found["towers"]
    assert "gpt2" in found["decoders"]
    assert "vit" in run("families").stdout


def test_a_missing_package_names_its_extra() -> None:
    absent = pytest.raises(primelens.DependencyError, match="'onnx_ir'")
    with absent as caught, needs_extra("export"):
        raise ModuleNotFoundError("No module named 'onnx_ir.passes'", name="onnx_ir.passes")
    assert "primelens[export]" in caught.value.remedy


def test_a_missing_part_of_primelens_is_a_bug_and_stays_one() -> None:
    with pytest.raises(ModuleNotFoundError), needs_extra("export"):
        raise ModuleNotFoundError("No module named 'primelens.x'", name="primelens.x")
