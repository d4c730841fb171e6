"""Small pictures and data sets in every format."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image


def picture(shade: int) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 255 - shade)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A folder with 0.png, 1.png, 2.png and broken.png."""
    folder = tmp_path / "album"
    folder.mkdir()
    for shade in range(3):
        (folder / f"{shade}.png").write_bytes(picture(shade))
    (folder / "broken.png").write_bytes(picture(9)[:40])
    return folder
