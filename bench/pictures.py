"""Pictures to work on: drawn anew for every request, so that nothing can have been seen before.

A system with a cache answers a picture that it has seen much faster; a benchmark that shows the
same picture again measures that cache without saying so. Pictures repeat only where a reuse is
asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["PictureSource", "reuse_order"]

_SIDES = (320, 240)


class PictureSource:
    """Numbered pictures; number i is always the same one, and unlike all others.

    Args:
        folder: where they are written, or, with ``given``, not used.
        seed: of the drawings.
        given: pictures to take instead of drawn ones, each once.
    """

    def __init__(self, folder: Path, seed: int, given: Sequence[Path] = ()) -> None:
        self._folder, self._seed, self._given = folder, seed, list(given)
        self._next = 0

    def fresh(self, count: int) -> list[str]:
        """Paths of ``count`` pictures that were never handed out before.

        Raises:
            ValueError: the given pictures do not suffice.
        """
        numbers = range(self._next, self._next + count)
        if self._given and numbers.stop > len(self._given):
            raise ValueError(
                f"{numbers.stop} different pictures are needed, {len(self._given)} are given"
            )
        self._next = numbers.stop
        if self._given:
            return [str(self._given[number]) for number in numbers]
        return [str(self._drawn(number)) for number in numbers]

    def _drawn(self, number: int) -> Path:
        path = self._folder / f"{number:06d}.jpg"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            draw(np.random.default_rng([self._seed, number])).save(path, quality=90)
        return path


def draw(random: np.random.Generator) -> Image.Image:
    """A picture with large shapes, texture and noise, ``320 x 240`` pixels."""
    width, height = _SIDES
    corners = random.uniform(0, 255, (2, 2, 3)).astype(np.uint8)
    picture = Image.fromarray(corners).resize(_SIDES, Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(picture)
    for _ in range(int(random.integers(3, 9))):
        x, y = random.uniform(-40, width), random.uniform(-40, height)
        w, h = random.uniform(20, 160, 2)
        red, green, blue = (int(value) for value in random.integers(0, 256, 3))
        shape = canvas.ellipse if random.random() < 0.5 else canvas.rectangle
        shape((x, y, x + w, y + h), fill=(red, green, blue))
    noise = random.normal(0, 12, (height, width, 3))
    pixels = np.clip(np.asarray(picture, np.float64) + noise, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def reuse_order(count: int, reuse: float, seed: int) -> list[int]:
    """Which picture each of ``count`` requests shows: a share ``reuse`` shows one seen before.

    The first request always shows a new one; the number of repeated requests is exactly
    ``round(reuse x count)``, at most ``count - 1``, and they are spread at random.
    """
    if not 0.0 <= reuse <= 1.0:
        raise ValueError(f"reuse is {reuse}; it must lie between 0 and 1")
    random = np.random.default_rng(seed)
    repeats = min(round(reuse * count), max(0, count - 1))
    repeated = set(1 + random.permutation(max(0, count - 1))[:repeats])
    order: list[int] = []
    seen = 0
    for place in range(count):
        if place in repeated:
            order.append(int(random.integers(0, seen)))
        else:
            order.append(seen)
            seen += 1
    return order
