"""One record for every data set: a picture, where its bytes are, and what people said about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

from primelens.errors import ImageError, InputError
from primelens.tune.data.arrow import open_parquet

__all__ = [
    "ArchiveImage",
    "Example",
    "FileImage",
    "IdentifiedImage",
    "ImageBytes",
    "InlineImage",
    "Question",
    "RemoteImage",
    "TableImage",
]


@runtime_checkable
class ImageBytes(Protocol):
    """Where the encoded bytes of a picture are.

    ``read`` gives them anew each time; nothing is kept. It raises `ImageError` where it cannot.
    """

    @property
    def name(self) -> str:
        """Path, or archive and member; for messages and result rows."""

    def read(self) -> bytes:
        """The file's bytes."""


@runtime_checkable
class IdentifiedImage(ImageBytes, Protocol):
    """A picture whose identity is known before its bytes are."""

    @property
    def source(self) -> str:
        """SHA-256 in hex of whatever decides the pixels; stands for the digest of the bytes."""


@dataclass(frozen=True)
class FileImage:
    """A file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ImageError(f"{self.path} cannot be read: {error.strerror or error}.") from error


@dataclass(frozen=True)
class InlineImage:
    """Bytes already at hand (of a compressed stream, which cannot be read at a place)."""

    name: str
    data: bytes

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class ArchiveImage:
    """A stretch of an uncompressed tar file; read in place, never unpacked."""

    archive: Path
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.archive}:{self.member}"

    def read(self) -> bytes:
        try:
            with self.archive.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise ImageError(f"{self.name} cannot be read: {error.strerror or error}.") from error
        if len(data) != self.size:
            raise ImageError(f"{self.name} ends after {len(data)} of {self.size} bytes.")
        return data


@dataclass(frozen=True)
class TableImage:
    """A cell of a parquet file; its row group is read once for all neighbours read in a row."""

    table: Path
    column: str
    group: int
    row: int

    @property
    def name(self) -> str:
        return f"{self.table}:{self.group}:{self.row}"

    def read(self) -> bytes:
        data = _image_cells(self.table, self.column, self.group)[self.row]
        if data is None:
            raise ImageError(f"{self.name} holds no picture.")
        return data


@dataclass(frozen=True)
class RemoteImage:
    """A picture that is only named by an address; it is never fetched."""

    name: str

    def read(self) -> bytes:
        raise ImageError(
            f"{self.name} is an address and not a file.",
            remedy="Download the pictures, and name the files instead.",
        )


@lru_cache(maxsize=2)
def _image_cells(table: Path, column: str, group: int) -> list[bytes | None]:
    try:
        with open_parquet(table) as file:
            cells = file.read_row_group(group, columns=[column]).column(column).to_pylist()
    except InputError as error:
        raise ImageError(error.message) from error
    return [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Attributes:
        id: as in its file, in text.
        text: the question.
        answers: of the annotators, one each; empty where they are not public.
        kind: ``yes/no``, ``number``, ``other``, or empty.
    """

    id: str
    text: str
    answers: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Example:
    """A picture with all that belongs to it.

    Attributes:
        id: names the picture within its data set; a COCO id in text, else a file name.
        image: where its bytes are.
        captions: in the file's order.
        questions: in the file's order.
        label: the class, where the data set has classes.
        split: ``train``, ``val``, ``test``, or empty where the data set does not say.
    """

    id: str
    image: ImageBytes
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    label: str | None = None
    split: str = ""
