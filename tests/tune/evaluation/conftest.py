"""Pictures of one colour, and a model that knows what to say of each."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from primelens.images import read_image
from primelens.results import Caption, EncodedImage, Timings


@dataclass
class FakeModel:
    """Captions by picture; its tower is the picture's mean colour.

    Attributes:
        says: SHA-256 of the picture → caption.
        encoded: how often the tower ran.
    """

    name: str
    says: dict[str, str]
    encoded: int = 0
    batches: list[int] = field(default_factory=list)

    def encode(self, data: bytes) -> EncodedImage:
        source = read_image(data)
        self.encoded += 1
        colour = np.asarray(source.rgb(), np.float32).mean(axis=(0, 1))
        states = np.stack([colour + 1, colour + 3])
        return EncodedImage(
            {"states": states}, {"states": "t" * 64}, source.digest, source.size, "x", Timings()
        )

    def caption_batch(
        self, images: Iterable[EncodedImage], *, batch_size: int = 8
    ) -> Iterator[Caption]:
        images = list(images)
        self.batches.append(len(images))
        for image in images:
            text = self.says[image.source]
            yield Caption(text, (1,), -1.0, (-1.0,), "stop", Timings(), image.name)


COLOURS = {
    "red.png": (250, 0, 0),
    "pink.png": (250, 60, 60),
    "blue.png": (0, 0, 250),
    "navy.png": (0, 0, 120),
}
CAPTIONS = {
    "red.png": ["a red wall", "the wall is red", "a wall"],
    "pink.png": ["a pink wall", "a wall in pink", "a wall"],
    "blue.png": ["the blue sky", "a blue sky", "sky"],
    "navy.png": ["a dark blue sky", "the night sky", "sky at night"],
}


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class World:
    """A folder of pictures and the models that speak of them."""

    folder: Path
    models: dict[str, FakeModel]

    def load(self, name: str) -> Any:
        return self.models[name]

    def results(self, name: str, texts: dict[str, str]) -> str:
        path = self.folder.parent / name
        path.write_text(json.dumps([{"image_id": k, "caption": v} for k, v in texts.items()]))
        return str(path)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Four pictures, three captions each; ``good`` repeats the first, ``dull`` says one thing."""
    folder = tmp_path / "album"
    folder.mkdir()
    good, dull = {}, {}
    for name, colour in COLOURS.items():
        (folder / name).write_bytes(png(colour))
        digest = read_image(png(colour)).digest
        good[digest], dull[digest] = CAPTIONS[name][0], "a wall"
    rows = [{"file_name": name, "captions": own} for name, own in CAPTIONS.items()]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return World(folder, {"good": FakeModel("good", good), "dull": FakeModel("dull", dull)})
