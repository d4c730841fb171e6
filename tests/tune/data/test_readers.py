"""Every format gives the same kind of record, is recognised, and says where it is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from primelens.errors import InputError, OptionError
from primelens.tune.data import DataSource, Example, detect_format, read_examples


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def read(path: Path, **options: Any) -> list[Example]:
    return list(read_examples(DataSource(path, **options)))


def table(examples: list[Example]) -> list[tuple[str, tuple[str, ...], str]]:
    return [(e.id, e.captions, e.split) for e in examples]


COCO = {
    "images": [{"id": 7, "file_name": "1.png"}, {"id": 5, "file_name": "0.png"}],
    "annotations": [
        {"id": 1, "image_id": 5, "caption": "a"},
        {"id": 2, "image_id": 7, "caption": "b"},
        {"id": 3, "image_id": 5, "caption": "c"},
    ],
}


def test_coco(album: Path) -> None:
    path = write(album.parent / "captions_val.json", COCO)
    found = read(path, images=album, split="val")
    assert table(found) == [("7", ("b",), "val"), ("5", ("a", "c"), "val")]
    assert found[1].image.read() == (album / "0.png").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": [{"id": "7", "file_name": "x"}]}, "image 0: 'id' is '7'"),
        ({"images": [{"id": 7}]}, "image 0 has no 'file_name'"),
        ({"images": COCO["images"] * 2}, "id 7 of another"),
        ({"images": []}, "captions of 2 pictures"),
        ({"annotations": [{"image_id": 5}]}, "annotation 0 has no 'caption'"),
        ({"annotations": {"a": 1}}, "not of type list"),
        ({"images": [{"id": 7, "file_name": "../../etc/passwd"}]}, "does not lie in"),
        ({"images": [{"id": 7, "file_name": "/etc/passwd"}]}, "does not lie in"),
        ({"images": [{"id": 7, "file_name": "..\\x.png"}]}, "does not lie in"),
    ],
)
def test_a_wrong_coco_file_is_refused(album: Path, change: dict[str, Any], said: str) -> None:
    path = write(album / "c.json", COCO | change)
    with pytest.raises(InputError, match=said):
        read(path)


def test_karpathy(tmp_path: Path) -> None:
    def image(number: int, split: str) -> dict[str, Any]:
        sentences = [{"raw": f"{number}{mark}", "tokens": []} for mark in "ab"]
        return {
            "filepath": "val2014",
            "filename": f"{number}.jpg",
            "cocoid": number,
            "split": split,
            "sentences": sentences,
        }

    rows = [image(1, "train"), image(2, "restval"), image(3, "test")]
    path = write(tmp_path / "dataset_coco.json", {"images": rows, "dataset": "coco"})
    assert table(read(path)) == [
        ("1", ("1a", "1b"), "train"),
        ("2", ("2a", "2b"), "train"),
        ("3", ("3a", "3b"), "test"),
    ]
    assert [e.id for e in read(path, split="train")] == ["1", "2"]
    assert read(path)[0].image.name == str(tmp_path / "val2014" / "1.jpg")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Flickr8k.token.txt", "0.png#0\tA dog , runs .\n0.png#1\tTwo\n1.png#0\tThree\n"),
        ("captions.txt", "image,caption\n0.png,A dog , runs .\n0.png,Two\n\n1.png,Three\n"),
        ("captions.csv", 'image,caption\r\n0.png,"A dog , runs ."\r\n0.png,Two\r\n1.png,Three'),
    ],
)
def test_flickr8k_in_its_two_forms(album: Path, name: str, text: str) -> None:
    found = read(write(album / name, text))
    assert table(found) == [("0.png", ("A dog , runs .", "Two"), ""), ("1.png", ("Three",), "")]
    assert found[0].image.read() == (album / "0.png").read_bytes()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.png\tA\n", "line 1 is not 'name#number"),
        ("0.png#0\tA\n0.png#x\tB\n", "line 2 is not"),
        ("image,caption\n0.png\n", "not followed by a caption"),
        ("../0.png#0\tA\n", "does not lie in"),
    ],
)
def test_a_wrong_flickr8k_file_is_refused(album: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(write(album / "x.txt", text))


def test_conceptual_rows_and_addresses(album: Path) -> None:
    text = "caption\tfilepath\na dog, and a cat\t0.png\nfar away\thttps://example.org/a.jpg\n"
    found = read(write(album / "cc.tsv", text), split="train")
    assert [e.captions for e in found] == [("a dog, and a cat",), ("far away",)]
    assert found[0].image.read() == (album / "0.png").read_bytes()
    with pytest.raises(InputError, match="is an address"):
        found[1].image.read()
    with pytest.raises(InputError, match="line 1 has no tab"):
        read(write(album / "bad.tsv", "caption only\n"))


def test_a_folder_with_metadata(album: Path) -> None:
    rows = [
        {"file_name": "1.png", "text": "one", "label": 3},
        {"file_name": "0.png", "captions": ["zero", "nought"]},
    ]
    write(album / "metadata.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n")
    found = read(album)
    assert table(found) == [("1.png", ("one",), ""), ("0.png", ("zero", "nought"), "")]
    assert [e.label for e in found] == ["3", None]


def test_a_folder_of_splits(album: Path) -> None:
    for split in ("train", "test"):
        write(album / split / "captions.json", [{"file": "0.png", "caption": split}])
    assert table(read(album)) == [("0.png", ("test",), "test"), ("0.png", ("train",), "train")]
    assert table(read(album, split="train")) == [("0.png", ("train",), "train")]
    assert read(album)[0].image.name == str(album / "test" / "0.png")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no JSON"),
        ("[]", "line 2 has no 'file_name'"),
        ('{"file_name": "0.png", "text": 5}', "neither a text nor a list"),
        ('{"file_name": "a/../../x.png"}', "does not lie in"),
    ],
)
def test_wrong_metadata_is_refused(album: Path, line: str, said: str) -> None:
    write(album / "metadata.jsonl", '{"file_name": "0.png"}\n' + line)
    with pytest.raises(InputError, match=said):
        read(album)


def _vqa(folder: Path) -> tuple[Path, Path]:
    questions = {
        "data_subtype": "val2014",
        "questions": [
            {"question_id": 420, "image_id": 42, "question": "What?"},
            {"question_id": 70, "image_id": 7, "question": "Why?"},
            {"question_id": 421, "image_id": 42, "question": "How many?"},
        ],
    }
    annotations = {
        "annotations": [
            {"question_id": q, "answer_type": kind, "answers": [{"answer": a}, {"answer": "b"}]}
            for q, kind, a in ((70, "other", "x"), (420, "other", "cat"), (421, "number", "2"))
        ]
    }
    return write(folder / "q.json", questions), write(folder / "a.json", annotations)


def test_vqa(tmp_path: Path) -> None:
    questions, annotations = _vqa(tmp_path)
    (tmp_path / "000000000007.jpg").write_bytes(b"")
    found = read(questions, answers=annotations)
    assert [(e.id, [q.id for q in e.questions]) for e in found] == [
        ("42", ["420", "421"]),
        ("7", ["70"]),
    ]
    asked = found[0].questions[1]
    assert (asked.text, asked.answers, asked.kind) == ("How many?", ("2", "b"), "number")
    assert [Path(e.image.name).name for e in found] == [
        "COCO_val2014_000000000042.jpg",
        "000000000007.jpg",
    ]
    assert {e.split for e in found} == {"val2014"}
    assert read(questions)[0].questions[0].answers == ()


def test_vqa_questions_without_their_answer_are_refused(tmp_path: Path) -> None:
    questions, annotations = _vqa(tmp_path)
    data = json.loads(annotations.read_text())
    del data["annotations"][0]
    write(annotations, data)
    with pytest.raises(InputError, match="the id 70, which"):
        read(questions, answers=annotations)


def test_formats_are_recognised(album: Path) -> None:
    cases: dict[str, Any] = {
        "coco": ("c.json", COCO),
        "karpathy": ("k.json", {"images": [{"sentences": []}]}),
        "vqa": ("q.json", {"questions": []}),
        "conceptual": ("c.tsv", ""),
        "flickr8k": ("c.csv", ""),
    }
    for name, (file, content) in cases.items():
        assert detect_format(write(album / file, content)) == name
    assert detect_format(Path("train-{000..012}.tar")) == "webdataset"
    assert detect_format(Path("a.tar.gz")) == "webdataset"
    assert detect_format(Path("a.parquet")) == "parquet"
    for path in (album, Path("a.xml"), write(album / "list.json", [])):
        with pytest.raises(InputError, match="no format that is recognised"):
            detect_format(path)


def test_a_folder_for_each_class(album: Path) -> None:
    for name in ("wolf", "ape"):
        (album / name).mkdir()
        (album / name / "2.png").write_bytes((album / "2.png").read_bytes())
    (album / "ape" / "1.JPG").write_bytes((album / "1.png").read_bytes())
    (album / "ape" / "notes.txt").write_text("no picture")
    (album / "empty").mkdir()
    assert detect_format(album) == "classes"
    found = [(e.id, e.label, e.split) for e in read(album, split="val")]
    assert found == [
        ("ape/1.JPG", "ape", "val"),
        ("ape/2.png", "ape", "val"),
        ("wolf/2.png", "wolf", "val"),
    ]
    with pytest.raises(InputError, match="no folder with pictures"):
        read(album / "empty", format="classes")


def test_an_unknown_format_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'cocoa' is no data format"):
        DataSource(tmp_path, format="cocoa")
    for name in ("none.json", "none.tsv", "none.txt"):
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)
