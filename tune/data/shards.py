"""Webdataset shards: tar files whose neighbouring members with one stem are one sample.

A shard is streamed: nothing is unpacked to disk, and of an uncompressed shard only the texts are
read; a picture is read in its place when it is asked for. Members that Python would execute on
loading (``.pkl``, ``.pt`` and their kin) are ignored unopened. A shard is refused as a whole where
a member is a link or a device, has a name that leads elsewhere, or is larger than any picture or
text may be.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from primelens.errors import InputError
from primelens.tune.data.example import ArchiveImage, Example, ImageBytes, InlineImage
from primelens.tune.data.folders import said

__all__ = ["ShardLimits", "expand_shards", "read_shards"]

_IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "ppm", "tif", "tiff"})
_TEXTS = frozenset({"txt", "caption", "json", "cls"})
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class ShardLimits:
    """What a member may weigh, in bytes, and how many one sample may have."""

    image: int = 64 * 2**20
    text: int = 2**20
    members: int = 64


DEFAULT_LIMITS = ShardLimits()


@dataclass
class _Sample:
    key: str
    image: ImageBytes | None = None
    captions: tuple[str, ...] = ()
    label: str | None = None
    extensions: set[str] = field(default_factory=set)

    def add(self, kind: str, text: str, where: str) -> None:
        """Take up what a text member says."""
        if kind == "cls":
            self.label = text.strip()
        elif kind == "json":
            item = json.loads(text)
            if not isinstance(item, dict):
                raise InputError(f"{where} holds no object.")
            self.captions += said(item, where)
        else:
            self.captions += (text.strip(),)

    def example(self, split: str) -> Iterator[Example]:
        if self.image is not None:
            yield Example(self.key, self.image, self.captions, label=self.label, split=split)


def expand_shards(path: Path) -> list[Path]:
    """A shard, a folder's ``*.tar`` by name, or ``name-{000..012}.tar``.

    Raises:
        InputError: nothing is found.
    """
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if _is_tar(p) and p.is_file())
    elif braces := _BRACES.search(path.name):
        first, last = braces.groups()
        numbers = range(int(first), int(last) + 1)
        head, tail = path.name[: braces.start()], path.name[braces.end() :]
        found = [path.parent / f"{head}{n:0{len(first)}d}{tail}" for n in numbers]
    else:
        found = [path]
    if not found:
        raise InputError(f"{path} holds no shard.")
    return found


def read_shards(
    path: Path, *, split: str = "", limits: ShardLimits = DEFAULT_LIMITS
) -> Iterator[Example]:
    """The samples that have a picture, shard after shard, in their order.

    ``txt``, ``caption`` and the ``text``, ``caption`` or ``captions`` of ``json`` are captions,
    ``cls`` is a label.

    Args:
        path: as of `expand_shards`.
        split: what the examples are marked with.
        limits: beyond which a shard is refused.

    Raises:
        InputError: a shard cannot be read to its end, or holds a member that it must not.
    """
    for shard in expand_shards(path):
        try:
            yield from _read_shard(shard, split, limits)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise InputError(f"{shard} cannot be read: {error}.") from error


def _is_tar(path: Path) -> bool:
    return path.name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"))


def _read_shard(shard: Path, split: str, limits: ShardLimits) -> Iterator[Example]:
    in_place = shard.suffix == ".tar"
    with shard.open("rb") as raw, tarfile.open(fileobj=raw, mode=_mode(in_place)) as tar:
        sample = _Sample("")
        for member in tar:
            stem, extension = _checked(shard, member)
            if not member.isfile():
                continue
            if stem != sample.key:
                yield from sample.example(split)
                sample = _Sample(stem)
            if extension in sample.extensions or len(sample.extensions) >= limits.members:
                raise InputError(f"{shard}:{member.name}: its sample has it twice, or too many.")
            sample.extensions.add(extension)
            kind = extension.rpartition(".")[2]
            if kind in _IMAGES:
                _check_size(shard, member, limits.image)
                image: ImageBytes
                if in_place:
                    image = ArchiveImage(shard, member.name, member.offset_data, member.size)
                else:
                    image = InlineImage(f"{shard}:{member.name}", _content(tar, member))
                sample.image = sample.image or image
            elif kind in _TEXTS:
                _check_size(shard, member, limits.text)
                sample.add(kind, _content(tar, member).decode("utf-8"), f"{shard}:{member.name}")
        yield from sample.example(split)


def _mode(in_place: bool) -> Literal["r:", "r|*"]:
    return "r:" if in_place else "r|*"


def _checked(shard: Path, member: tarfile.TarInfo) -> tuple[str, str]:
    """Stem and extension of a member that is harmless by its header."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise InputError(f"{shard} holds {member.name!r}, which leads out of it.")
    if not member.isreg() and not member.isdir():
        raise InputError(f"{shard}:{member.name} is a link or a device and not a file.")
    name, _, extension = path.name.partition(".")
    return str(path.with_name(name)) if name else member.name, extension.lower()


def _check_size(shard: Path, member: tarfile.TarInfo, most: int) -> None:
    if member.size > most or member.issparse():
        raise InputError(f"{shard}:{member.name} has {member.size} bytes; at most {most} are read.")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # None is for members that are no files
    return file.read()
