"""Augmentation as data: what may be done to a training picture, declared, seeded, carried out.

An `Augmentation` is a list of steps; it stands before the tower's own preprocessing, which stays
untouched. Every random draw comes from a generator keyed by (seed, epoch, example id), so a picture
looks the same in a run that was resumed, with any number of workers and in any order of the data.
Pillow and numpy do the work, on 8-bit RGB.

Kept tower features go with no augmentation, or with a fixed number of views (`views`): a picture
that looks different each epoch has no features to keep.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from primelens.errors import InputError

__all__ = [
    "OPERATIONS",
    "Augmentation",
    "ColourJitter",
    "HorizontalFlip",
    "RandAugment",
    "RandomResizedCrop",
    "Step",
]

_GREY = (128, 128, 128)
_LEVELS = 10


class Step(Protocol):
    """One random change of a picture; a frozen dataclass of numbers."""

    name: ClassVar[str]

    def apply(self, picture: Image.Image, random: np.random.Generator) -> Image.Image:
        """The changed picture, mode RGB; the given one stays as it is."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """A part of random area and shape, resized to a square.

    Attributes:
        size: side of the result, pixels.
        least_area, most_area: of the part, as shares of the picture.
        most_stretch: the part's width is at most that many times its height, or the reverse. The
            share and the logarithm of the shape are drawn evenly, ten times until the part fits;
            else the largest centred part of an allowed shape is taken.
    """

    name: ClassVar[str] = "random_resized_crop"
    size: int
    least_area: float = 0.08
    most_area: float = 1.0
    most_stretch: float = 4 / 3

    def __post_init__(self) -> None:
        _check(self.name, size=self.size >= 1, most_stretch=self.most_stretch >= 1)
        _check(self.name, least_area=0 < self.least_area <= self.most_area <= 1)

    def apply(self, picture: Image.Image, random: np.random.Generator) -> Image.Image:
        return picture.resize(
            (self.size, self.size), Image.Resampling.BICUBIC, box=self._box(picture.size, random)
        )

    def _box(self, size: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
        width, height = size
        limit = math.log(self.most_stretch)
        for _ in range(10):
            area = width * height * random.uniform(self.least_area, self.most_area)
            shape = math.exp(random.uniform(-limit, limit))
            w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < w <= width and 0 < h <= height:
                left = int(random.integers(0, width - w + 1))
                top = int(random.integers(0, height - h + 1))
                return left, top, left + w, top + h
        w = max(1, min(width, round(height * self.most_stretch)))
        h = max(1, min(height, round(width * self.most_stretch)))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@dataclass(frozen=True)
class HorizontalFlip:
    """Left and right exchanged.

    Captions that say *left* and *right* become false; leave it out where there are such.

    Attributes:
        probability: of the exchange.
    """

    name: ClassVar[str] = "horizontal_flip"
    probability: float = 0.5

    def __post_init__(self) -> None:
        _check(self.name, probability=0 <= self.probability <= 1)

    def apply(self, picture: Image.Image, random: np.random.Generator) -> Image.Image:
        return ImageOps.mirror(picture) if random.random() < self.probability else picture.copy()


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast and saturation, each times a factor drawn evenly from 1 ± its number."""

    name: ClassVar[str] = "colour_jitter"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(self.name, **{field.name: 0 <= getattr(self, field.name) <= 1})

    def apply(self, picture: Image.Image, random: np.random.Generator) -> Image.Image:
        for enhance, spread in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        ):
            factor = random.uniform(1 - spread, 1 + spread)
            picture = enhance(picture).enhance(factor)
        return picture


@dataclass(frozen=True)
class RandAugment:
    """Some operations of `OPERATIONS` in a row, all equally strong (Cubuk et al. 2020).

    Attributes:
        number: of operations, each drawn evenly from all.
        magnitude: 0 to 10.
    """

    name: ClassVar[str] = "rand_augment"
    number: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        _check(self.name, number=self.number >= 0, magnitude=0 <= self.magnitude <= _LEVELS)

    def apply(self, picture: Image.Image, random: np.random.Generator) -> Image.Image:
        names = list(OPERATIONS)
        picture = picture.copy()
        for _ in range(self.number):
            operation = OPERATIONS[names[int(random.integers(len(names)))]]
            sign = 1 if random.random() < 0.5 else -1
            picture = operation(picture, sign * self.magnitude / _LEVELS)
        return picture


STEPS: dict[str, type[Any]] = {
    step.name: step for step in (RandomResizedCrop, HorizontalFlip, ColourJitter, RandAugment)
}


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training picture, in order.

    Attributes:
        steps: none leaves the picture as it is.
        seed: of all draws.
        views: None draws anew each epoch; K shows K fixed views in turn (epoch modulo K), so that
            K tower features per picture can be kept.
    """

    steps: tuple[Step, ...] = ()
    seed: int = 0
    views: int | None = None

    def __post_init__(self) -> None:
        _check("augmentation", views=self.views is None or self.views >= 1, seed=self.seed >= 0)

    def __call__(self, picture: Image.Image, key: str, epoch: int = 0) -> Image.Image:
        """The picture as it looks in an epoch.

        Args:
            picture: any mode; turned to RGB first.
            key: the example's id.
            epoch: from 0.
        """
        view = epoch if self.views is None else epoch % self.views
        text = f"primelens-augmentation-1\0{self.seed}\0{view}\0{key}".encode()
        words = np.frombuffer(hashlib.sha256(text).digest(), np.uint32)
        random = np.random.Generator(np.random.PCG64(words.tolist()))
        picture = picture.convert("RGB")
        for step in self.steps:
            picture = step.apply(picture, random)
        return picture

    @property
    def features_can_be_kept(self) -> bool:
        """Whether a picture has a fixed number of looks."""
        return not self.steps or self.views is not None

    def to_dict(self) -> dict[str, Any]:
        """JSON data; `from_dict` makes the same augmentation of it."""
        steps = [{"step": step.name, **asdict(step)} for step in self.steps]  # type: ignore[call-overload]
        return {"steps": steps, "seed": self.seed, "views": self.views}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Augmentation:
        """Read a declaration.

        Raises:
            InputError: a step, a key or a value is unknown.
        """
        if unknown := data.keys() - {"steps", "seed", "views"}:
            raise InputError(f"augmentation: unknown key {sorted(unknown)[0]!r}.")
        seed, views = data.get("seed", 0), data.get("views")
        for name, value in (("seed", seed), ("views", views)):
            if type(value) is not int and (name, value) != ("views", None):
                raise InputError(f"augmentation: {name} is {value!r}, not a whole number.")
        return cls(tuple(_step(item) for item in data.get("steps", ())), seed, views)


def _step(item: Mapping[str, Any]) -> Step:
    kind = STEPS.get(str(item.get("step")))
    if kind is None:
        raise InputError(
            f"augmentation: unknown step {item.get('step')!r}.",
            remedy=f"Known: {', '.join(STEPS)}.",
        )
    settings = {key: value for key, value in item.items() if key != "step"}
    if unknown := settings.keys() - {field.name for field in fields(kind)}:
        raise InputError(f"{kind.name}: unknown key {sorted(unknown)[0]!r}.")
    for key, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{kind.name}: {key} is {value!r}, not a number.")
    try:
        step: Step = kind(**settings)
    except TypeError as error:
        raise InputError(f"{kind.name}: {error}.") from error
    return step


def _check(where: str, **conditions: bool) -> None:
    for name, holds in conditions.items():
        if not holds:
            raise InputError(f"{where}: {name} is out of range.")


def _affine(
    picture: Image.Image, matrix: tuple[float, float, float, float, float, float]
) -> Image.Image:
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BILINEAR,
        fillcolor=_GREY,
    )


def _enhanced(kind: Callable[[Image.Image], Any]) -> Callable[[Image.Image, float], Image.Image]:
    def apply(picture: Image.Image, strength: float) -> Image.Image:
        changed: Image.Image = kind(picture).enhance(1 + 0.9 * strength)
        return changed

    return apply


#: Name → (picture, strength from -1 to 1) → picture. Where a sign has no meaning it is ignored.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda p, _: p,
    "auto_contrast": lambda p, _: ImageOps.autocontrast(p),
    "equalise": lambda p, _: ImageOps.equalize(p),
    "posterise": lambda p, s: ImageOps.posterize(p, 8 - round(4 * abs(s))),
    "solarise": lambda p, s: ImageOps.solarize(p, 256 - round(256 * abs(s))),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "saturation": _enhanced(ImageEnhance.Color),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "rotate": lambda p, s: p.rotate(30 * s, Image.Resampling.BILINEAR, fillcolor=_GREY),
    "shear_x": lambda p, s: _affine(p, (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": lambda p, s: _affine(p, (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": lambda p, s: _affine(p, (1, 0, 0.3 * s * p.width, 0, 1, 0)),
    "translate_y": lambda p, s: _affine(p, (1, 0, 0, 0, 1, 0.3 * s * p.height)),
}
