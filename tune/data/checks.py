"""Do all pictures open, and is none of them in two splits?

Pictures are compared by the SHA-256 of their bytes, because one and the same photograph has other
names in other data sets (Flickr30k and COCO share some; so do COCO's own releases).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from primelens.errors import ImageError
from primelens.images import read_image
from primelens.tune.data.example import Example

__all__ = ["BrokenImage", "ImageCheck", "Leak", "check_images"]


@dataclass(frozen=True)
class BrokenImage:
    """A picture that cannot be used, and why."""

    id: str
    name: str
    reason: str


@dataclass(frozen=True)
class Leak:
    """One picture that is in several splits: (split, id) of every occurrence."""

    digest: str
    places: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ImageCheck:
    """What was found.

    Attributes:
        pictures: how many examples were looked at.
        splits: split → how many.
        broken: those that cannot be read or decoded.
        leaks: those whose bytes occur in more than one split.
        repeated: how many occur again within their own split.
    """

    pictures: int
    splits: dict[str, int]
    broken: tuple[BrokenImage, ...]
    leaks: tuple[Leak, ...]
    repeated: int

    @property
    def lines(self) -> tuple[str, ...]:
        """For people: counts first, then one line per finding."""
        parts = ", ".join(f"{name or 'no split'} {count}" for name, count in self.splits.items())
        counts = f"{len(self.broken)} broken, {len(self.leaks)} in several splits"
        head = f"{self.pictures} pictures ({parts}): {counts}, {self.repeated} repeated"
        found = [f"broken: {item.name}: {item.reason}" for item in self.broken]
        found += [
            "leak: " + " = ".join(f"{split or 'no split'}:{key}" for split, key in leak.places)
            for leak in self.leaks
        ]
        return (head, *found)


def check_images(examples: Iterable[Example], *, decode: bool = True) -> ImageCheck:
    """Read every picture once; nothing that is wrong with one is fatal.

    Args:
        examples: of all splits together; consumed lazily.
        decode: also decode each picture; without, only its bytes are read and compared.
    """
    places: dict[str, list[tuple[str, str]]] = {}
    splits: dict[str, int] = {}
    broken = []
    for example in examples:
        splits[example.split] = splits.get(example.split, 0) + 1
        try:
            data = example.image.read()
            if decode:
                read_image(data)
        except ImageError as error:
            broken.append(BrokenImage(example.id, example.image.name, error.message))
            continue
        digest = hashlib.sha256(data).hexdigest()
        places.setdefault(digest, []).append((example.split, example.id))
    leaks = [
        Leak(digest, tuple(found))
        for digest, found in places.items()
        if len({split for split, _ in found}) > 1
    ]
    return ImageCheck(
        pictures=sum(splits.values()),
        splits=splits,
        broken=tuple(broken),
        leaks=tuple(leaks),
        repeated=sum(len(found) - len({split for split, _ in found}) for found in places.values()),
    )
