"""All data sets behind one call: a `DataSource` says what, `read_examples` gives `Example` records.

A format registers itself in `FORMATS`; ``auto`` looks at the path and, for JSON, at its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from primelens.errors import InputError, OptionError
from primelens.tune.data.coco import read_coco, read_karpathy, read_vqa
from primelens.tune.data.example import Example
from primelens.tune.data.folders import class_folders, described_folders, read_classes, read_folder
from primelens.tune.data.listings import read_conceptual, read_flickr8k
from primelens.tune.data.parsing import load_json
from primelens.tune.data.shards import read_shards
from primelens.tune.data.tables import read_parquet

__all__ = ["FORMATS", "DataSource", "detect_format", "read_examples"]


@dataclass(frozen=True)
class DataSource:
    """A data set on disk.

    Attributes:
        path: annotation file, folder, shard or shard pattern.
        format: a key of `FORMATS`, or ``auto``.
        images: the folder of the pictures; beside the annotation file if not given.
        split: where the data set has splits, this one alone; elsewhere what to mark examples with.
        answers: VQAv2's annotations, which are a file of their own.
    """

    path: Path
    format: str = "auto"
    images: Path | None = None
    split: str | None = None
    answers: Path | None = None

    def __post_init__(self) -> None:
        if self.format != "auto" and self.format not in FORMATS:
            known = ", ".join(["auto", *FORMATS])
            raise OptionError(f"{self.format!r} is no data format.", remedy=f"Known: {known}.")

    @property
    def image_folder(self) -> Path:
        """Where the names of pictures start from."""
        return self.path.parent if self.images is None else self.images


FORMATS: dict[str, Callable[[DataSource], Iterator[Example]]] = {
    "coco": lambda s: read_coco(s.path, s.image_folder, split=s.split or ""),
    "karpathy": lambda s: read_karpathy(s.path, s.image_folder, split=s.split),
    "vqa": lambda s: read_vqa(s.path, s.answers, s.image_folder, split=s.split),
    "flickr8k": lambda s: read_flickr8k(s.path, s.image_folder, split=s.split or ""),
    "conceptual": lambda s: read_conceptual(s.path, s.image_folder, split=s.split or ""),
    "folder": lambda s: read_folder(s.path, split=s.split),
    "classes": lambda s: read_classes(s.path, split=s.split or ""),
    "parquet": lambda s: read_parquet(s.path, split=s.split),
    "webdataset": lambda s: read_shards(s.path, split=s.split or ""),
}


def read_examples(source: DataSource) -> Iterator[Example]:
    """The examples of a data set, lazily where its format allows.

    Raises:
        InputError: the format is not recognised, or a file does not have it.
        DependencyError: the format needs a package that is not installed.
    """
    name = detect_format(source.path) if source.format == "auto" else source.format
    return FORMATS[name](source)


def detect_format(path: Path) -> str:
    """The key of `FORMATS` that a path looks like.

    Raises:
        InputError: it looks like none.
    """
    if path.is_dir():
        found = _format_of_folder(path)
    elif ".tar" in path.suffixes or path.suffix == ".tgz":
        found = "webdataset"
    elif path.suffix == ".json":
        found = _format_of_json(path)
    else:
        suffixes = {".parquet": "parquet", ".tsv": "conceptual"}
        found = suffixes.get(path.suffix) or ("flickr8k" if path.suffix in (".txt", ".csv") else "")
    if not found:
        raise InputError(
            f"{path} is in no format that is recognised.",
            remedy=f"Name the format: {', '.join(FORMATS)}.",
        )
    return found


def _format_of_folder(path: Path) -> str:
    if described_folders(path):
        return "folder"
    names = [entry.name for entry in path.iterdir()]
    if any(name.endswith(".parquet") for name in names):
        return "parquet"
    if any(".tar" in name for name in names):
        return "webdataset"
    return "classes" if class_folders(path) else ""


def _format_of_json(path: Path) -> str:
    data = load_json(path)
    if not isinstance(data, dict):
        return ""
    if "questions" in data:
        return "vqa"
    if "annotations" in data:
        return "coco"
    images = data.get("images")
    first = images[0] if isinstance(images, list) and images else None
    return "karpathy" if isinstance(first, dict) and "sentences" in first else ""
