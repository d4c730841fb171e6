"""Sizes, names and words of the committed files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LONGEST_FILE = 500
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "stuff"}

# Each is put together here so that this file does not trip over itself. They are what must not
# leak into a public repository: a machine's paths, registry hosts, who or what wrote a line.
FORBIDDEN = [
    "".join(parts)
    for parts in (
        ("/wo", "rk/"),
        ("/ro", "ot/"),
        ("/op", "t/pypi"),
        ("py", "pi.org"),
        ("python", "hosted"),
        ("npm", "js.org"),
        ("deb.", "debian"),
        ("cla", "ude"),
        ("anthro", "pic"),
        ("chat", "gpt"),
        ("this se", "ssion"),
        ("my se", "ssion"),
        ("the ", "brief"),
        ("the le", "ad "),
        ("collea", "gue"),
        ("issue", " #"),
        ("ai-gen", "erated"),
    )
]

TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".c", ".h", ".sh", ".cfg", ""}


@pytest.fixture(scope="session")
def texts(committed_files: list[Path]) -> dict[Path, str]:
    """Every committed text file and what it says."""
    return {
        path: path.read_text(encoding="utf-8") for path in committed_files if path.suffix in TEXT
    }


def test_no_source_file_outgrows_the_house(texts: dict[Path, str], root: Path) -> None:
    long = {
        str(path.relative_to(root)): text.count("\n")
        for path, text in texts.items()
        if path.suffix == ".py" and text.count("\n") > LONGEST_FILE
    }
    assert long == {}


def test_no_module_has_a_vague_name(committed_files: list[Path], root: Path) -> None:
    vague = [
        str(path.relative_to(root))
        for path in committed_files
        if path.suffix == ".py" and VAGUE_NAMES.intersection(re.split(r"[_/.]", path.stem))
    ]
    assert vague == []


def _leaks(text: str) -> list[str]:
    lowered = text.lower()
    return [word for word in FORBIDDEN if word in lowered]


def test_nothing_private_is_committed(texts: dict[Path, str], root: Path) -> None:
    found = {str(path.relative_to(root)): _leaks(text) for path, text in texts.items()}
    assert {name: words for name, words in found.items() if words} == {}


def test_a_leak_is_found() -> None:
    assert _leaks("see " + "/WO" + "RK/somewhere") == ["/wo" + "rk/"]


def test_no_merge_was_left_half_done(texts: dict[Path, str], root: Path) -> None:
    mark = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)
    assert [str(path.relative_to(root)) for path, text in texts.items() if mark.search(text)] == []
