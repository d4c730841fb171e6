"""Broken and leaking pictures; result files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from primelens.errors import InputError
from primelens.tune.data import (
    Example,
    check_images,
    read_answers,
    read_captions,
    write_answers,
    write_captions,
)
from primelens.tune.data.example import FileImage, InlineImage, RemoteImage


def test_broken_pictures_are_listed_and_leaks_found_by_their_bytes(album: Path) -> None:
    same = InlineImage("elsewhere", (album / "0.png").read_bytes())
    found = check_images(
        [
            Example("a", FileImage(album / "0.png"), split="train"),
            Example("b", FileImage(album / "1.png"), split="train"),
            Example("b2", FileImage(album / "1.png"), split="train"),
            Example("c", FileImage(album / "broken.png"), split="train"),
            Example("d", FileImage(album / "missing.png"), split="test"),
            Example("e", RemoteImage("https://example.org/x.jpg"), split="test"),
            Example("other name", same, split="test"),
        ]
    )
    assert found.pictures == 7
    assert found.splits == {"train": 4, "test": 3}
    assert [item.id for item in found.broken] == ["c", "d", "e"]
    assert [leak.places for leak in found.leaks] == [(("train", "a"), ("test", "other name"))]
    assert found.repeated == 1
    assert found.lines[0] == (
        "7 pictures (train 4, test 3): 3 broken, 1 in several splits, 1 repeated"
    )
    assert found.lines[-1] == "leak: train:a = test:other name"
    assert len(found.lines) == 5


def test_without_decoding_only_unreadable_files_are_broken(album: Path) -> None:
    names = ("0", "broken", "missing")
    examples = [Example(name, FileImage(album / f"{name}.png")) for name in names]
    assert [item.id for item in check_images(examples, decode=False).broken] == ["missing"]


def test_result_files_come_back_and_have_the_servers_form(tmp_path: Path) -> None:
    captions = {"42": "a cat", "photo.jpg": "Ünïcode", "007": "bond"}
    write_captions(tmp_path / "r.json", captions)
    rows = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert rows[0] == {"image_id": 42, "caption": "a cat"}
    assert rows[2] == {"image_id": "007", "caption": "bond"}
    assert read_captions(tmp_path / "r.json") == captions
    write_answers(tmp_path / "a.json", {"420": "two"})
    assert json.loads((tmp_path / "a.json").read_text()) == [{"question_id": 420, "answer": "two"}]
    assert read_answers(tmp_path / "a.json") == {"420": "two"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "must hold a list"),
        ('[{"caption": "a"}]', "row 0 has no 'image_id'"),
        ('[{"image_id": true, "caption": "a"}]', "row 0 has no 'image_id'"),
        ('[{"image_id": 1}]', "row 0 has no 'caption'"),
        ('[{"image_id": 1, "caption": 5}]', "'caption' is 5"),
        (
            '[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]',
            "row 1 gives image_id 1 a second caption",
        ),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_a_wrong_result_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_captions(tmp_path / "r.json")
