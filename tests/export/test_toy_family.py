"""Adding an architecture takes one file, and no edit elsewhere."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from transformers import GPT2Config

import primelens
from primelens.errors import UnsupportedError
from primelens.export import ExportOptions, GateOptions, export_checkpoint, registry, supported
from primelens.export.checkpoint import open_checkpoint
from primelens.export.companions import write_companions
from primelens.export.pictures import random_picture
from primelens.export.works.parts import TINY_GPT2
from primelens.export.works.vision_encoder_decoder import vision_encoder_decoder

SIDE = 32


@pytest.fixture(scope="module")
def toy() -> Iterator[ModuleType]:
    """The toy's file, imported; taken out of the register afterwards."""
    supported()  # so that what is registered by itself is there already
    from . import toy_family

    yield toy_family
    registry._TOWERS.pop(toy_family.MosaicConfig.model_type)


def write(folder: Path, toy: ModuleType, **fields: Any) -> Path:
    model = vision_encoder_decoder(toy.MosaicConfig(**fields), GPT2Config(**TINY_GPT2), seed=2)
    model.save_pretrained(folder)
    write_companions(folder, vocab_size=320, size=SIDE)
    return folder


def test_the_file_is_small_and_is_all(toy: ModuleType) -> None:
    assert len(Path(str(toy.__file__)).read_text().splitlines()) < 150
    assert "toy-mosaic" in supported()["towers"]


def test_it_is_exported_proved_and_captions(tmp_path: Path, toy: ModuleType) -> None:
    folder = write(tmp_path / "checkpoint", toy)
    gate = GateOptions(threads=1, random_images=3, steps=12)
    report = export_checkpoint(folder, tmp_path / "out", ExportOptions(gate=gate))
    assert report.passed
    assert report.parity["heads"]["caption"]["tokens_compared"] >= 3 * 12
    model = primelens.load(tmp_path / "out", options=primelens.LoadOptions(threads=1))
    assert model.manifest.tower.family == "toy_mosaic"
    assert model.manifest.tower.taps["last_hidden_state"].shape == (16, 24)
    caption = model.caption(bytes_of_a_picture())
    assert len(caption.tokens) == 20


def test_its_gaps_refuse_a_checkpoint(tmp_path: Path, toy: ModuleType) -> None:
    with pytest.raises(UnsupportedError) as caught:
        open_checkpoint(write(tmp_path / "checkpoint", toy, cells=1))
    assert "encoder.cells is 1: there would be no mosaic" in caught.value.problems


def bytes_of_a_picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random_picture(50, 40, 7)).save(buffer, "PNG")
    return buffer.getvalue()
