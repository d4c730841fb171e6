"""COCO captions, Karpathy's splits, VQAv2, and the result files of both tasks.

Sources: the COCO data format, ``dataset_coco.json`` of Karpathy and Fei-Fei 2015, the VQA v2 files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from primelens.atomic import write_bytes
from primelens.errors import InputError
from primelens.tune.data.example import Example, FileImage, Question
from primelens.tune.data.parsing import field, image_path, load_json, strings

__all__ = [
    "read_answers",
    "read_captions",
    "read_coco",
    "read_karpathy",
    "read_vqa",
    "write_answers",
    "write_captions",
    "write_labels",
]


def read_coco(path: Path, images: Path, *, split: str = "") -> Iterator[Example]:
    """A COCO captions file: one example per picture, in the order of its list of pictures.

    Args:
        path: ``captions_val2017.json`` and its kin.
        images: the folder of the pictures.
        split: what the examples are marked with; the file itself does not say.
    """
    data = load_json(path)
    captions: dict[int, list[str]] = {}
    for number, item in enumerate(field(data, "annotations", list, str(path))):
        where = f"{path}, annotation {number}"
        text = field(item, "caption", str, where)
        captions.setdefault(field(item, "image_id", int, where), []).append(text)
    seen = set()
    for number, item in enumerate(field(data, "images", list, str(path))):
        where = f"{path}, image {number}"
        key = field(item, "id", int, where)
        if key in seen:
            raise InputError(f"{where} has the id {key} of another one.")
        seen.add(key)
        file = image_path(images, field(item, "file_name", str, where), where)
        yield Example(str(key), FileImage(file), tuple(captions.get(key, ())), split=split)
    if orphans := sorted(captions.keys() - seen):
        raise InputError(f"{path} has captions of {len(orphans)} pictures that it does not list.")


def read_karpathy(path: Path, images: Path, *, split: str | None = None) -> Iterator[Example]:
    """Karpathy's splits of COCO, Flickr8k or Flickr30k; ``restval`` counts as ``train``.

    Args:
        path: ``dataset_coco.json`` and its kin.
        images: the folder that holds ``train2014`` and ``val2014``, or the pictures themselves.
        split: ``train``, ``val`` or ``test`` alone.
    """
    for number, item in enumerate(field(load_json(path), "images", list, str(path))):
        where = f"{path}, image {number}"
        own = field(item, "split", str, where)
        own = "train" if own == "restval" else own
        if split is not None and own != split:
            continue
        name = "/".join(filter(None, (item.get("filepath"), field(item, "filename", str, where))))
        captions = [field(s, "raw", str, where) for s in field(item, "sentences", list, where)]
        key = item.get("cocoid", item["filename"])
        file = FileImage(image_path(images, name, where))
        yield Example(str(key), file, tuple(captions), split=own)


def read_vqa(
    questions: Path, annotations: Path | None, images: Path, *, split: str | None = None
) -> Iterator[Example]:
    """VQAv2: one example per picture, with all its questions.

    Args:
        questions: ``v2_OpenEnded_mscoco_val2014_questions.json`` and its kin.
        annotations: the annotators' answers; None where they are not public.
        images: the folder of the pictures, ``COCO_val2014_000000000042.jpg`` or
            ``000000000042.jpg``.
        split: what the examples are marked with; the file's own ``data_subtype`` if not given.
    """
    data = load_json(questions)
    subtype = str(data.get("data_subtype", "")) if isinstance(data, dict) else ""
    truth = {} if annotations is None else _annotated(annotations)
    by_image: dict[int, list[Question]] = {}
    for number, item in enumerate(field(data, "questions", list, str(questions))):
        where = f"{questions}, question {number}"
        key = field(item, "question_id", int, where)
        if annotations is not None and key not in truth:
            raise InputError(f"{where} has the id {key}, which {annotations} does not know.")
        answers, kind = truth.get(key, ((), ""))
        asked = Question(str(key), field(item, "question", str, where), answers, kind)
        by_image.setdefault(field(item, "image_id", int, where), []).append(asked)
    mark = subtype if split is None else split
    for image, own in by_image.items():
        file = FileImage(_coco_file(images, subtype, image))
        yield Example(str(image), file, questions=tuple(own), split=mark)


def read_captions(path: Path) -> dict[str, str]:
    """A COCO result file ``[{"image_id": 42, "caption": "…"}]``: id → caption.

    Raises:
        InputError: it has another form, or says two things of one picture.
    """
    return _read_results(path, "image_id", "caption")


def write_captions(path: Path, captions: Mapping[str, str]) -> None:
    """Write a COCO result file; an id that is a number is written as one, as the servers ask."""
    _write_results(path, "image_id", "caption", captions)


def read_answers(path: Path) -> dict[str, str]:
    """A VQA result file ``[{"question_id": 42000, "answer": "…"}]``: id → answer."""
    return _read_results(path, "question_id", "answer")


def write_answers(path: Path, answers: Mapping[str, str]) -> None:
    """Write a VQA result file."""
    _write_results(path, "question_id", "answer", answers)


def write_labels(path: Path, labels: Mapping[str, str]) -> None:
    """Write ``[{"image_id": 42, "label": "…"}]``."""
    _write_results(path, "image_id", "label", labels)


def _annotated(path: Path) -> dict[int, tuple[tuple[str, ...], str]]:
    truth = {}
    for number, item in enumerate(field(load_json(path), "annotations", list, str(path))):
        where = f"{path}, annotation {number}"
        given = field(item, "answers", list, where)
        texts = strings([field(answer, "answer", str, where) for answer in given], where)
        truth[field(item, "question_id", int, where)] = (texts, str(item.get("answer_type", "")))
    return truth


def _coco_file(images: Path, subtype: str, key: int) -> Path:
    long = images / f"COCO_{subtype}_{key:012d}.jpg"
    short = images / f"{key:012d}.jpg"
    return short if short.exists() and not long.exists() else long


def _read_results(path: Path, key: str, value: str) -> dict[str, str]:
    data = load_json(path)
    if not isinstance(data, list):
        raise InputError(f"{path} is no result file: it must hold a list of objects.")
    found: dict[str, str] = {}
    for number, item in enumerate(data):
        where = f"{path}, row {number}"
        name = item.get(key) if isinstance(item, dict) else None
        if not isinstance(name, int | str) or isinstance(name, bool):
            raise InputError(f"{where} has no {key!r}.")
        text = field(item, value, str, where)
        if found.setdefault(str(name), text) != text:
            raise InputError(f"{where} gives {key} {name} a second {value}.")
    return found


def _write_results(path: Path, key: str, value: str, results: Mapping[str, str]) -> None:
    rows: list[dict[str, Any]] = [
        {key: int(name) if _is_number(name) else name, value: text}
        for name, text in results.items()
    ]
    write_bytes(path, (json.dumps(rows, ensure_ascii=False) + "\n").encode("utf-8"))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name
