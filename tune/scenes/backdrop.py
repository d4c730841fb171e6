"""Drawn places: what a scene's objects stand in front of."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from primelens.tune.scenes.world import PLACES, TIMES, Place, Time

_VARIANTS = 24
_Colour = tuple[int, int, int]
_Detail = Callable[[ImageDraw.ImageDraw, np.random.Generator, Time, int, int], None]

_SKY: dict[Time, tuple[_Colour, _Colour]] = {
    "day": ((120, 180, 235), (205, 230, 245)),
    "evening": ((110, 80, 140), (250, 170, 110)),
    "night": ((14, 18, 48), (48, 56, 100)),
}
_WALL: dict[Time, tuple[_Colour, _Colour]] = {
    "day": ((225, 214, 190), (236, 226, 205)),
    "evening": ((214, 170, 130), (224, 182, 140)),
    "night": ((74, 70, 92), (90, 84, 104)),
}
_GROUND: dict[Place, tuple[_Colour, _Colour]] = {
    "meadow": ((130, 185, 95), (95, 155, 65)),
    "beach": ((238, 218, 165), (222, 196, 135)),
    "street": ((128, 128, 132), (96, 96, 102)),
    "snow": ((242, 246, 252), (214, 226, 242)),
    "room": ((176, 128, 88), (148, 102, 66)),
    "lake": ((80, 150, 200), (40, 100, 160)),
    "desert": ((222, 160, 96), (196, 128, 70)),
    "forest": ((92, 110, 60), (66, 82, 44)),
}


def backdrop(place: Place, time: Time, variant: int, size: int) -> Image.Image:
    """A place at a time, ``size`` by ``size`` RGB; do not draw on it, it is shared."""
    return _drawn(place, time, variant % _VARIANTS, size)


@functools.lru_cache(maxsize=len(PLACES) * len(TIMES) * _VARIANTS)
def _drawn(place: Place, time: Time, variant: int, size: int) -> Image.Image:
    draw = np.random.default_rng([PLACES.index(place), TIMES.index(time), variant])
    horizon = int(size * draw.uniform(0.26, 0.5))
    sky = _WALL[time] if place == "room" else _SKY[time]
    picture = Image.new("RGB", (size, size))
    picture.paste(_gradient(*sky, size, horizon), (0, 0))
    ground = _dim(_GROUND[place], time)
    picture.paste(_gradient(*ground, size, size - horizon), (0, horizon))
    pen = ImageDraw.Draw(picture)
    if place == "room":
        _window(pen, draw, time, size, horizon)
    else:
        _lights_in_the_sky(pen, draw, time, size, horizon)
    _DETAILS[place](pen, draw, time, size, horizon)
    return picture.filter(ImageFilter.GaussianBlur(0.8))


def _gradient(top: _Colour, bottom: _Colour, width: int, height: int) -> Image.Image:
    ramp = np.linspace(np.array(top, dtype=float), np.array(bottom, dtype=float), max(height, 1))
    return Image.fromarray(np.repeat(ramp.astype(np.uint8)[:, None, :], width, axis=1))


def _shade(colour: _Colour, factor: float) -> _Colour:
    red, green, blue = (min(255, int(part * factor)) for part in colour)
    return red, green, blue


def _dim(colours: tuple[_Colour, _Colour], time: Time) -> tuple[_Colour, _Colour]:
    factor = {"day": 1.0, "evening": 0.85, "night": 0.5}[time]
    return _shade(colours[0], factor), _shade(colours[1], factor)


def _lights_in_the_sky(
    pen: ImageDraw.ImageDraw, draw: np.random.Generator, time: Time, size: int, horizon: int
) -> None:
    x, y = draw.uniform(0.1, 0.9) * size, draw.uniform(0.15, 0.6) * horizon
    radius = 0.05 * size
    if time == "night":
        for _ in range(14):
            sx, sy = draw.uniform(0, size), draw.uniform(0, horizon * 0.9)
            dot = size / 200.0
            pen.ellipse((sx - dot, sy - dot, sx + dot, sy + dot), fill=(235, 235, 210))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(235, 232, 205))
    elif time == "evening":
        low = horizon - radius * 0.6
        pen.ellipse((x - radius, low - radius, x + radius, low + radius), fill=(255, 120, 60))
    else:
        for _ in range(2):
            cx, cy = draw.uniform(0, size), draw.uniform(0.1, 0.8) * horizon
            w, h = 0.14 * size, 0.035 * size
            pen.ellipse((cx - w, cy - h, cx + w, cy + h), fill=(240, 246, 250))


def _window(
    pen: ImageDraw.ImageDraw, draw: np.random.Generator, time: Time, size: int, horizon: int
) -> None:
    left, top = draw.uniform(0.05, 0.7) * size, 0.12 * horizon
    right, bottom = left + 0.24 * size, 0.8 * horizon
    pen.rectangle((left, top, right, bottom), fill=_SKY[time][0], outline=(250, 250, 245))
    pen.line(((left + right) / 2, top, (left + right) / 2, bottom), fill=(250, 250, 245))


def _strokes(colour: _Colour, count: int, length: float, slope: float) -> _Detail:
    """Blades of grass, or ripples where the slope is nothing."""

    def paint(
        pen: ImageDraw.ImageDraw, draw: np.random.Generator, time: Time, size: int, horizon: int
    ) -> None:
        tint = _dim((colour, colour), time)[0]
        for _ in range(count):
            x, y = draw.uniform(0, size), draw.uniform(horizon, size)
            dx = length * size * draw.uniform(0.5, 1.0)
            pen.line((x, y, x + dx, y + slope * dx), fill=tint, width=max(1, size // 128))

    return paint


def _street(
    pen: ImageDraw.ImageDraw, draw: np.random.Generator, time: Time, size: int, horizon: int
) -> None:
    x = 0.0
    while x < size:
        width, height = draw.uniform(0.12, 0.24) * size, draw.uniform(0.4, 0.95) * horizon
        wall = _dim(((150, 110, 100), (0, 0, 0)), time)[0]
        wall = _shade(wall, float(draw.uniform(0.8, 1.2)))
        pen.rectangle((x, horizon - height, x + width, horizon), fill=wall)
        x += width
    stripe = _dim(((235, 235, 220), (0, 0, 0)), time)[0]
    middle = (horizon + size) / 2
    for k in range(5):
        x = (k + draw.uniform(0, 0.3)) * size / 5
        pen.line((x, middle, x + size / 10, middle), fill=stripe, width=max(2, size // 50))


def _forest(
    pen: ImageDraw.ImageDraw, draw: np.random.Generator, time: Time, size: int, horizon: int
) -> None:
    for _ in range(16):
        x, width = draw.uniform(-0.05, 1.0) * size, draw.uniform(0.05, 0.1) * size
        height = draw.uniform(0.7, 1.1) * horizon
        green = _shade(_dim(((52, 92, 52), (0, 0, 0)), time)[0], float(draw.uniform(0.7, 1.2)))
        pen.polygon(((x, horizon), (x + 2 * width, horizon), (x + width, horizon - height)), green)


def _hills(place: Place, colour: _Colour) -> _Detail:
    def paint(
        pen: ImageDraw.ImageDraw, draw: np.random.Generator, time: Time, size: int, horizon: int
    ) -> None:
        for _ in range(3):
            x, width = draw.uniform(0, size), draw.uniform(0.2, 0.45) * size
            height = draw.uniform(0.06, 0.2) * size
            tint = _shade(_dim((colour, colour), time)[0], float(draw.uniform(0.85, 1.1)))
            pen.ellipse((x - width, horizon - height, x + width, horizon + height), fill=tint)
        near = _dim(_GROUND[place], time)[0]
        pen.rectangle((0, horizon, size, horizon + size // 4), fill=near)

    return paint


def _beach(
    pen: ImageDraw.ImageDraw, draw: np.random.Generator, time: Time, size: int, horizon: int
) -> None:
    sea = _dim(((60, 140, 200), (0, 0, 0)), time)[0]
    depth = draw.uniform(0.1, 0.18) * size
    pen.rectangle((0, horizon, size, horizon + depth), fill=sea)
    foam = _dim(((245, 250, 250), (0, 0, 0)), time)[0]
    pen.line((0, horizon + depth, size, horizon + depth), fill=foam, width=max(1, size // 64))


def _planks(
    pen: ImageDraw.ImageDraw, draw: np.random.Generator, time: Time, size: int, horizon: int
) -> None:
    seam = _dim(((128, 86, 54), (0, 0, 0)), time)[0]
    vanish = draw.uniform(0.3, 0.7) * size
    for k in range(-6, 14):
        x = k * size / 8
        pen.line((vanish + (x - vanish) * 0.45, horizon, x, size), fill=seam)


_DETAILS: dict[Place, _Detail] = {
    "meadow": _strokes((80, 140, 50), 70, 0.02, -2.0),
    "beach": _beach,
    "street": _street,
    "snow": _hills("snow", (225, 232, 244)),
    "room": _planks,
    "lake": _strokes((150, 200, 230), 40, 0.08, 0.0),
    "desert": _hills("desert", (205, 140, 82)),
    "forest": _forest,
}
