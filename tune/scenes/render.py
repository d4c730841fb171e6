"""A scene as a picture.

Sprites, backgrounds and noise are made once per process and re-used, which is what makes a picture
of 128 pixels cost about a millisecond. Everything that varies is drawn from the scene's own
generator, so a picture is a function of the scene and its size.
"""

from __future__ import annotations

import functools
import hashlib
import io
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from primelens.tune.scenes import backdrop as backdrops
from primelens.tune.scenes import layout, objects, world
from primelens.tune.scenes.backdrop import backdrop
from primelens.tune.scenes.objects import KINDS
from primelens.tune.scenes.world import Scene, generator

FONT_PATH = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
"""Where Debian's ``fonts-noto-color-emoji`` puts the font; it is never shipped."""

_FONT_SIZE = 109  # the one bitmap size in the font
_ANGLE_STEP = 5.0
_SIDE_STEPS_PER_OCTAVE = 8
_NOISE_SIDE = 512


def render(scene: Scene, size: int = 128) -> Image.Image:
    """Draw a scene as an RGB picture of ``size`` by ``size`` pixels.

    Raises:
        FileNotFoundError: if the emoji font is not installed.
    """
    draw = generator(scene.split, scene.index, scene.seed, stream=1)
    picture = backdrop(scene.place, scene.time, int(draw.integers(1 << 16)), size).copy()
    scale = size / 128.0
    for group in scene.groups:
        for glyph in group.glyphs:
            sprite = _sprite(group.kind, glyph.side * scale, glyph.angle)
            corner = (
                round(glyph.x * scale - sprite.width / 2),
                round(glyph.y * scale - sprite.height / 2),
            )
            picture.paste(sprite, corner, sprite)
    return _photograph(draw, picture, scene)


def font_is_installed() -> bool:
    """Whether pictures can be drawn on this machine."""
    return FONT_PATH.is_file()


@functools.cache
def drawing_digest() -> str:
    """SHA-256 of all that decides a scene's pixels but the scene: code, font, numpy and Pillow.

    With it a picture has a name that is good for as long as its pixels are.
    """
    digest = hashlib.sha256(f"numpy {np.__version__} Pillow {PIL.__version__}".encode())
    for module in (world, layout, objects, backdrops):
        digest.update(hashlib.sha256(_source_of(module)).digest())
    digest.update(hashlib.sha256(Path(__file__).read_bytes()).digest())
    if font_is_installed():
        digest.update(hashlib.sha256(FONT_PATH.read_bytes()).digest())
    return digest.hexdigest()


def _source_of(module: ModuleType) -> bytes:
    assert module.__file__ is not None  # they are files of this package
    return Path(module.__file__).read_bytes()


def _photograph(draw: np.random.Generator, picture: Image.Image, scene: Scene) -> Image.Image:
    """What light, lens and file format do to the picture."""
    if draw.random() < 0.3:
        radius = draw.uniform(0.2, 0.7) * picture.width / 128.0
        picture = picture.filter(ImageFilter.GaussianBlur(radius))
    light = {"day": (1.0, 1.0, 1.0), "evening": (1.0, 0.84, 0.72), "night": (0.68, 0.74, 0.92)}
    gain = np.asarray(light[scene.time]) * draw.uniform(0.85, 1.15) * draw.uniform(0.95, 1.05, 3)
    contrast = draw.uniform(0.85, 1.15)
    pixels: np.ndarray = np.asarray(picture, dtype=np.float32)
    pixels = pixels * (gain * contrast).astype(np.float32) + np.float32(110.0 * (1.0 - contrast))
    if draw.random() < 0.6:
        row, column = draw.random(2)
        strength = np.float32(draw.uniform(1.0, 7.0))
        pixels = pixels + _grain(picture.width, float(row), float(column)) * strength
    picture = Image.fromarray(np.clip(pixels, 0.0, 255.0).astype(np.uint8))
    if draw.random() < 0.3:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(draw.integers(45, 95)))
        picture = Image.open(buffer).convert("RGB")
    return picture


@functools.cache
def _noise() -> np.ndarray:
    """Unit Gaussian grain ``[512, 512, 3]`` float32, the same in every process."""
    grain = np.random.default_rng(7).standard_normal((_NOISE_SIDE, _NOISE_SIDE, 3))
    return grain.astype(np.float32)


def _grain(size: int, row: float, column: float) -> np.ndarray:
    """A window ``[size, size, 3]`` of the noise at a relative offset."""
    repeats = -(-size // _NOISE_SIDE)
    noise = _noise() if repeats == 1 else np.tile(_noise(), (repeats, repeats, 1))
    top, left = (int(part * (len(noise) - size + 1)) for part in (row, column))
    return noise[top : top + size, left : left + size]


@functools.cache
def _glyph(kind: int) -> Image.Image:
    """The font's bitmap of a kind, cropped and centred in a transparent square."""
    if not font_is_installed():
        raise FileNotFoundError(
            f"no emoji font at {FONT_PATH}: install Debian's fonts-noto-color-emoji"
        )
    font = ImageFont.truetype(str(FONT_PATH), _FONT_SIZE)
    canvas = Image.new("RGBA", (192, 192))
    ImageDraw.Draw(canvas).text((20, 20), KINDS[kind].glyph, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise FileNotFoundError(f"{FONT_PATH} has no glyph for {KINDS[kind].singular}")
    drawn = canvas.crop(box)
    side = max(drawn.size)
    square = Image.new("RGBA", (side, side))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square


def _sprite(kind: int, side: float, angle: float) -> Image.Image:
    """A glyph scaled and turned, both to the nearest cached step."""
    step = round(_SIDE_STEPS_PER_OCTAVE * np.log2(side))
    return _cached_sprite(kind, step, round(angle / _ANGLE_STEP))


@functools.lru_cache(maxsize=2_000)
def _turned_glyph(kind: int, angle_step: int) -> Image.Image:
    return _glyph(kind).rotate(
        angle_step * _ANGLE_STEP, resample=Image.Resampling.BICUBIC, expand=True
    )


@functools.lru_cache(maxsize=40_000)
def _cached_sprite(kind: int, side_step: int, angle_step: int) -> Image.Image:
    side = round(2.0 ** (side_step / _SIDE_STEPS_PER_OCTAVE))
    turned = _turned_glyph(kind, angle_step)
    scale = side / _glyph(kind).width
    extent = (max(1, round(turned.width * scale)), max(1, round(turned.height * scale)))
    return turned.resize(extent, resample=Image.Resampling.BOX)
