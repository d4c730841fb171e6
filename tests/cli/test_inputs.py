"""`primelens.cli.inputs`: files, folders and patterns, in order, with nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from primelens.cli.inputs import PICTURE_SUFFIXES, Unmatched, expand
from primelens.images import FORMATS


def test_files_are_taken_as_they_are_in_the_order_given(pictures: Path) -> None:
    names = ["notes.txt", "cat.png", "missing.png", "cat.png"]
    assert expand(names) == names


def test_a_folder_gives_its_direct_pictures_sorted(pictures: Path) -> None:
    expected = [f"{pictures}/bad.jpeg", f"{pictures}/bird.JPG", f"{pictures}/cat.png"]
    assert expand([str(pictures)]) == expected
    assert expand(["."]) == ["bad.jpeg", "bird.JPG", "cat.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["cat.png"]),
        ("**", ["bad.jpeg", "bird.JPG", "cat.png", "deep/deeper/eel.gif", "deep/dog.webp"]),
        ("**/*.webp", ["deep/dog.webp"]),
        ("[bc]*", ["bad.jpeg", "bird.JPG", "cat.png"]),
        ("ca?.png", ["cat.png"]),
    ],
)
def test_a_pattern_gives_matching_pictures_sorted(
    pictures: Path, pattern: str, expected: list[str]
) -> None:
    assert expand([pattern]) == expected


def test_an_absolute_pattern_works(pictures: Path) -> None:
    assert expand([f"{pictures}/deep/**/*.gif"]) == [f"{pictures}/deep/deeper/eel.gif"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(pictures: Path) -> None:
    (pictures / "cat[1].png").write_bytes(b"")
    assert expand(["cat[1].png"]) == ["cat[1].png"]


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("empty", "the folder holds no picture"),
        ("nothing-*.png", "no file matches the pattern"),
        ("*.txt", "only files that are no pictures match"),
        ("dee?", "no file matches the pattern"),
    ],
)
def test_what_yields_nothing_stays_with_its_reason(
    pictures: Path, argument: str, reason: str
) -> None:
    assert expand(["cat.png", argument]) == ["cat.png", Unmatched(argument, reason)]


def test_the_suffixes_are_those_of_the_formats_that_the_runtime_reads() -> None:
    Image.init()
    known = {s: form for s, form in Image.registered_extensions().items() if form in FORMATS}
    assert set(known) - {".pfm"} == set(PICTURE_SUFFIXES)  # .pfm holds floats: no photographs
    assert set(known.values()) == set(FORMATS)
