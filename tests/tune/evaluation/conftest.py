"""Pictures of one colour, and a model that knows what to say of each."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from primelens.images import read_image
from primelens.options import CaptionOptions
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


class FakeRanker:
    """Words are colours: a text's embedding is the sum of those of its words.

    Attributes:
        asked: every text that was embedded.
    """

    spec = SimpleNamespace(templates=("a {} wall",))
    words: ClassVar[dict[str, tuple[int, int, int]]] = {
        "red": (250, 0, 0),
        "pink": (250, 90, 90),
        "blue": (0, 0, 250),
        "green": (0, 250, 0),
    }

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed_image(self, image: EncodedImage) -> np.ndarray:
        colour = image.taps["states"][0] - 1
        return np.asarray(colour / np.linalg.norm(colour), np.float32)

    def embed_text(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        sums = [
            np.sum([self.words.get(word, (1, 1, 1)) for word in text.split()], axis=0)
            for text in texts
        ]
        return np.stack([total / np.linalg.norm(total) for total in sums]).astype(np.float32)

    def embed_labels(self, labels: list[str], templates: list[str] | None) -> np.ndarray:
        (template,) = templates or self.spec.templates
        return self.embed_text([template.replace("{}", label) for label in labels])


@dataclass
class FakeColours(FakeModel):
    """A model that ranks by colour, and answers ``yes`` to everything but *why*."""

    ranker: FakeRanker = field(default_factory=FakeRanker)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def rank_head(self, name: str | None = None) -> FakeRanker:
        assert name in (None, "rank")
        return self.ranker

    def answer_batch(
        self,
        asked: Iterable[tuple[EncodedImage, str]],
        options: CaptionOptions,
        *,
        batch_size: int,
    ) -> Iterator[Caption]:
        for image, question in asked:
            self.asked.append((image.source, question))
            text = "because" if question.startswith("Why") else options.head or "yes"
            yield Caption(text, (1,), -1.0, (-1.0,), "stop", Timings(), image.name)


@pytest.fixture
def colours(world: World) -> FakeColours:
    """Under the name ``colours`` in `world`."""
    model = FakeColours("colours", dict(world.models["good"].says))
    world.models["colours"] = model
    return model
