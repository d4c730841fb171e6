"""Random pictures with structure: what the gate shows to both sides.

White noise looks the same everywhere to a tower, and a black picture hides a wrong mean. These
pictures have large areas, edges and texture in strong colours, so that a channel swapped, a crop
moved or a filter changed moves every patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["as_videos", "random_picture", "random_pictures"]


def random_picture(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """One picture ``[height, width, 3]``, the same for the same arguments."""
    rng = np.random.default_rng([seed, width, height])
    picture = Image.fromarray(_gradient(rng, width, height))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(4, 9))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        a, b = rng.uniform(0.08, 0.4) * width, rng.uniform(0.08, 0.4) * height
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        box = (x - a, y - b, x + a, y + b)
        if rng.random() < 0.5:
            draw.ellipse(box, fill=colour)
        else:
            draw.rectangle(box, fill=colour)
    texture = rng.normal(0.0, 12.0, (height, width, 3))
    noisy = np.asarray(picture, np.float64) + texture
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _gradient(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    corners = rng.uniform(0, 255, (2, 2, 3))
    x = np.linspace(0, 1, width)[None, :, None]
    y = np.linspace(0, 1, height)[:, None, None]
    top = corners[0, 0] * (1 - x) + corners[0, 1] * x
    bottom = corners[1, 0] * (1 - x) + corners[1, 1] * x
    picture: NDArray[np.uint8] = np.rint(top * (1 - y) + bottom * y).astype(np.uint8)
    return picture


def random_pictures(count: int, size: tuple[int, int], seed: int) -> list[NDArray[np.uint8]]:
    """``count`` pictures; every other one has another size than the model's (height, width)."""
    height, width = size
    shapes = [(width, height), (width * 5 // 4, height * 3 // 4)]
    # One is turned: where the model's pictures stand, some have to lie.
    shapes += [(height, width), (width * 3 // 4, height * 4 // 3)]
    return [
        random_picture(max(shapes[i % 4][0], 8), max(shapes[i % 4][1], 8), seed + i)
        for i in range(count)
    ]


def as_videos(pictures: Sequence[NDArray[np.uint8]], frames: int | None) -> list[NDArray[np.uint8]]:
    """Of every picture ``[h, w, 3]`` a video ``[frames, h, w, 3]`` that pans over it while it turns
    brighter; the pictures themselves where ``frames`` is None.
    """
    if frames is None:
        return list(pictures)
    videos = []
    for picture in pictures:
        steps = [(number * picture.shape[1] // frames, number) for number in range(frames)]
        shown = [np.roll(picture, shift, axis=1) // 2 + 16 * number for shift, number in steps]
        videos.append(np.clip(np.stack(shown), 0, 255).astype(np.uint8))
    return videos
