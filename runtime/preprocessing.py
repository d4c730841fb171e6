"""Preprocessing as data: from a picture to the tower's input, exactly as the source model does it.

A `Preprocessing` says everything that changes a pixel, and nothing else, so it is part of a tower's
identity as a whole. It is stored in the bundle and carried out with numpy and Pillow alone, bit for
bit like the PIL image processors of transformers 5 (``ViTImageProcessorPil`` and its kin)::

    decode -> upright -> RGB -> steps (on 8-bit pixels) -> rescale -> normalise -> [3, H, W]

or, where pictures keep their shape, packed patches (`primelens.patches`).

``decoder: "pillow"`` stands for what `primelens.images` documents and for Pillow's own defaults:
libjpeg with its default DCT and chroma upsampling, resizing without ``reducing_gap`` or ``box``.

The arithmetic: ``float32(float64(v) * rescale)``, then ``(x - mean) / std`` in float32. A sample
has only 256 values, so each channel is a table of 256 results, computed once by that arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from primelens.errors import BundleError, ImageError, InputError
from primelens.images import ImageSource, read_image
from primelens.patches import FitPatches, packed, patches_of
from primelens.schema import canonical_json, decode, encode

__all__ = [
    "AlignLongAxis",
    "CenterCrop",
    "Normalize",
    "Pad",
    "Preprocessing",
    "Resample",
    "Resize",
    "ResizeShortest",
    "Step",
    "Thumbnail",
]

Resample: TypeAlias = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

_SIDE_CAP = 8192

# A thin strip resized by its short edge can grow without bound: 1 x 30000 pixels at edge 224.
_PIXEL_CAP = _SIDE_CAP**2


class _ShapeError(Exception):
    """A step cannot be done to a picture of this shape; the message goes on after its name."""


def _check_sides(**sides: int) -> None:
    wrong = [
        f"{name} is {side}; it must be 1 to {_SIDE_CAP}"
        for name, side in sides.items()
        if not 1 <= side <= _SIDE_CAP
    ]
    if wrong:
        raise ValueError(", ".join(wrong))


def _resized(image: Image.Image, height: int, width: int, resample: Resample) -> Image.Image:
    if height < 1 or width < 1 or height * width > _PIXEL_CAP:
        raise _ShapeError(f"would be resized to {width}x{height}")
    return image.resize((width, height), Image.Resampling[resample.upper()])


@dataclass(frozen=True)
class Resize:
    """To exactly ``height`` by ``width`` pixels, whatever the shape was."""

    height: int
    width: int
    resample: Resample
    op: Literal["resize"] = "resize"

    def __post_init__(self) -> None:
        _check_sides(height=self.height, width=self.width)

    def __call__(self, image: Image.Image) -> Image.Image:
        return _resized(image, self.height, self.width, self.resample)


@dataclass(frozen=True)
class ResizeShortest:
    """The shorter side to ``edge`` pixels, the longer one in proportion, rounded down."""

    edge: int
    resample: Resample
    op: Literal["resize_shortest"] = "resize_shortest"

    def __post_init__(self) -> None:
        _check_sides(edge=self.edge)

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        long = int(self.edge * max(width, height) / min(width, height))
        new = (long, self.edge) if width <= height else (self.edge, long)
        return _resized(image, *new, self.resample)


@dataclass(frozen=True)
class Thumbnail:
    """Shrunk, never enlarged, to fit into ``height`` by ``width``, as Donut's processor does it."""

    height: int
    width: int
    resample: Resample
    op: Literal["thumbnail"] = "thumbnail"

    def __post_init__(self) -> None:
        _check_sides(height=self.height, width=self.width)

    def __call__(self, image: Image.Image) -> Image.Image:
        old_width, old_height = image.size
        height, width = min(old_height, self.height), min(old_width, self.width)
        if (height, width) == (old_height, old_width):
            return image
        if old_height > old_width:
            width = int(old_width * height / old_height)
        elif old_width > old_height:
            height = int(old_height * width / old_width)
        return _resized(image, height, width, self.resample)


@dataclass(frozen=True)
class AlignLongAxis:
    """Turned clockwise by 90 degrees where one lies and the other stands, as Donut does it."""

    height: int
    width: int
    op: Literal["align_long_axis"] = "align_long_axis"

    def __post_init__(self) -> None:
        _check_sides(height=self.height, width=self.width)

    def __call__(self, image: Image.Image) -> Image.Image:
        lies, stands = image.width > image.height, image.width < image.height
        if (self.width < self.height and lies) or (self.width > self.height and stands):
            return image.transpose(Image.Transpose.ROTATE_270)
        return image


@dataclass(frozen=True)
class Pad:
    """Black around it, up to ``height`` by ``width``; an odd pixel goes to the right or below."""

    height: int
    width: int
    op: Literal["pad"] = "pad"

    def __post_init__(self) -> None:
        _check_sides(height=self.height, width=self.width)

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.width > self.width or image.height > self.height:
            raise _ShapeError(f"does not fit into {self.width}x{self.height}")
        padded = Image.new("RGB", (self.width, self.height))
        padded.paste(image, ((self.width - image.width) // 2, (self.height - image.height) // 2))
        return padded


@dataclass(frozen=True)
class CenterCrop:
    """The middle ``height`` by ``width`` pixels; where the picture is smaller, black around it."""

    height: int
    width: int
    op: Literal["center_crop"] = "center_crop"

    def __post_init__(self) -> None:
        _check_sides(height=self.height, width=self.width)

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left = self._start(image.height, self.height), self._start(image.width, self.width)
        # Pillow fills what lies outside of the picture with zeros.
        return image.crop((left, top, left + self.width, top + self.height))

    @staticmethod
    def _start(size: int, crop: int) -> int:
        return (size - crop) // 2


Step: TypeAlias = (
    Resize | ResizeShortest | Thumbnail | AlignLongAxis | Pad | CenterCrop | FitPatches
)

_STEPS: dict[str, type[Step]] = {
    step.op: step
    for step in (Resize, ResizeShortest, Thumbnail, AlignLongAxis, Pad, CenterCrop, FitPatches)
}


@dataclass(frozen=True)
class Normalize:
    """``(x - mean) / std`` per channel, in float32."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            # One canonical form: 0 and -0.0 are 0.0.
            values = tuple(float(value) + 0.0 for value in getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} is {values}; it must be three finite numbers")
        if not all(value > 0 and np.float32(value) > 0 for value in self.std):
            raise ValueError(f"std is {self.std}; it must be positive")


@dataclass(frozen=True)
class _Values:
    """The scalar fields of `Preprocessing`, for `primelens.schema.decode`."""

    exif: Literal["apply", "ignore"]
    alpha: Literal["drop", "white"]
    steps: tuple[Any, ...]
    rescale: float | None
    normalize: Normalize | None
    decoder: Literal["pillow"]
    layout: Literal["NCHW", "patches"]
    dtype: Literal["float32"]


@dataclass(frozen=True)
class Preprocessing:
    """The complete specification; calling it carries it out.

    Attributes:
        steps: geometry, in order, on 8-bit RGB pixels.
        rescale: factor on the 0..255 samples, or None.
        normalize: mean and standard deviation, or None.
        exif: whether the picture is turned upright first ("apply") or not ("ignore").
        alpha: "drop" shows the colours under transparency, "white" lays the picture over white.
        decoder, dtype: the only values there are; written out because the data is complete.
        layout: "NCHW" for ``[3, H, W]``, "patches" for packed patches; the latter goes with a
            `FitPatches` as the last step.

    Raises:
        ValueError: from the constructor, where a value makes no sense.
    """

    steps: tuple[Step, ...]
    rescale: float | None
    normalize: Normalize | None
    exif: Literal["apply", "ignore"] = "apply"
    alpha: Literal["drop", "white"] = "drop"
    decoder: Literal["pillow"] = "pillow"
    layout: Literal["NCHW", "patches"] = "NCHW"
    dtype: Literal["float32"] = "float32"

    def __post_init__(self) -> None:
        if (self.layout == "patches") != (self._fit is not None):
            raise ValueError("layout 'patches' goes with fit_patches as the last step")
        if any(isinstance(step, FitPatches) for step in self.steps[:-1]):
            raise ValueError("fit_patches must be the last step")
        if self.rescale is not None:
            object.__setattr__(self, "rescale", float(self.rescale))
            if not (math.isfinite(self.rescale) and self.rescale > 0):
                raise ValueError(f"rescale is {self.rescale}; it must be a positive number")
        if not np.isfinite(self._table).all():
            raise ValueError("rescale and normalize overflow float32")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data, every field written out."""
        data: dict[str, Any] = encode(self)
        return data

    def canonical_bytes(self) -> bytes:
        """The one byte string that stands for this specification in a digest."""
        return canonical_json(self.to_dict())

    @staticmethod
    def from_dict(data: Mapping[str, Any], *, where: str = "preprocessing") -> Preprocessing:
        """From parsed JSON, strictly.

        Raises:
            BundleError: unknown or missing keys, wrong types, impossible numbers; ``problems`` has
                one line per finding.
        """
        problems: list[str] = []
        raw: Any = data
        # The steps are looked at whether or not the rest is sound: all findings at once.
        steps = _steps(raw.get("steps") if isinstance(raw, dict) else None, where, problems)
        values = decode(_Values, raw, where=where, problems=problems)
        if values is not None and not problems:
            try:
                return Preprocessing(
                    steps=tuple(steps),
                    rescale=values.rescale,
                    normalize=values.normalize,
                    exif=values.exif,
                    alpha=values.alpha,
                    layout=values.layout,
                )
            except ValueError as error:
                problems.append(f"{where}: {error}")
        raise BundleError(
            "The preprocessing specification is malformed:",
            remedy="Export the checkpoint again, or fetch an unaltered copy of the bundle.",
            problems=problems,
        )

    @staticmethod
    def from_processor_config(
        config: Mapping[str, Any],
        *,
        processor: str | None = None,
        exif: Literal["apply", "ignore"] = "apply",
        alpha: Literal["drop", "white"] | None = None,
    ) -> Preprocessing:
        """From a Hugging Face config; see `primelens.processor_config.from_processor_config`."""
        # Imported here because that module builds on this one, and no bundle needs it.
        from primelens.processor_config import from_processor_config

        return from_processor_config(config, processor=processor, exif=exif, alpha=alpha)

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every output; None where it depends on the picture."""
        size: tuple[int, int] | None = None
        for step in self.steps:
            if isinstance(step, (Resize, Pad, CenterCrop)):
                size = (step.height, step.width)
            else:
                size = None
        return size

    @property
    def output_shape(self) -> tuple[int, ...] | None:
        """Of every output, ``(3, H, W)`` or that of packed patches; None where it depends on the
        picture.
        """
        if self._fit is not None:
            return self._fit.shape
        return None if self.output_size is None else (3, *self.output_size)

    @property
    def _fit(self) -> FitPatches | None:
        last = self.steps[-1] if self.steps else None
        return last if isinstance(last, FitPatches) else None

    def __call__(self, image: ImageSource) -> NDArray[np.float32]:
        """One picture, ``[3, H, W]`` float32, or packed patches, C-contiguous.

        Raises:
            ImageError: the picture cannot be read, or its shape is too extreme for the steps.
        """
        return self._laid_out(self._geometry(image))

    def seen(self, image: ImageSource) -> NDArray[np.uint8]:
        """What the tower is shown, before rescaling and normalisation: ``[H, W, 3]`` uint8.

        Raises:
            ImageError: as for `__call__`.
        """
        return np.asarray(self._geometry(image))

    def normalized(self, seen: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``[3, H, W]`` float32, or packed patches, of what `seen` returned."""
        return self._laid_out(Image.fromarray(seen))

    def _laid_out(self, picture: Image.Image) -> NDArray[np.float32]:
        out = np.empty((3, picture.height, picture.width), dtype=np.float32)
        self._fill(out, picture)
        fit = self._fit
        if fit is None:
            return out
        grid = picture.height // fit.patch, picture.width // fit.patch
        return packed(patches_of(out, fit.patch), *grid, fit.most)

    def batch(self, images: Sequence[ImageSource]) -> NDArray[np.float32]:
        """Several pictures, ``[B, 3, H, W]`` float32, or packed patches of each.

        Raises:
            ImageError: as for one picture.
            InputError: the outputs differ in size, or there is no picture.
        """
        pictures = [self._geometry(image) for image in images]
        if self._fit is not None and pictures:
            return np.stack([self._laid_out(picture) for picture in pictures])
        sizes = {picture.size for picture in pictures}
        if len(sizes) != 1:
            listed = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)) or "none at all"
            raise InputError(
                f"A batch needs pictures of one size after preprocessing; these have {listed}.",
                remedy="Preprocess them one by one.",
            )
        width, height = sizes.pop()
        out = np.empty((len(pictures), 3, height, width), dtype=np.float32)
        for row, picture in zip(out, pictures, strict=True):
            self._fill(row, picture)
        return out

    def _geometry(self, image: ImageSource) -> Image.Image:
        source = read_image(image)
        picture = source.rgb(exif=self.exif, alpha=self.alpha)
        for step in self.steps:
            try:
                picture = step(picture)
            except _ShapeError as error:
                size = f"{picture.width}x{picture.height}"
                raise ImageError(
                    f"The picture {source.name} of {size} pixels {error}.",
                    remedy="Its shape is too extreme for this model: crop or scale it first.",
                ) from None
        return picture

    def _fill(self, out: NDArray[np.float32], picture: Image.Image) -> None:
        """Write ``picture`` into ``out [3, H, W]``."""
        pixels = np.asarray(picture)
        for channel, table in enumerate(self._table):
            # "clip" never clips a uint8 here; unlike "raise" it needs no second buffer.
            np.take(table, pixels[:, :, channel], out=out[channel], mode="clip")

    @cached_property
    def _table(self) -> NDArray[np.float32]:
        """``[3, 256]``: what each channel's 256 sample values become."""
        values = np.arange(256, dtype=np.uint8)
        scaled = values.astype(np.float32)
        with np.errstate(over="ignore"):  # the constructor refuses what is not finite
            if self.rescale is not None:
                scaled = (values.astype(np.float64) * self.rescale).astype(np.float32)
            if self.normalize is None:
                return np.stack([scaled] * 3)
            mean = np.array(self.normalize.mean, dtype=np.float32)[:, None]
            std = np.array(self.normalize.std, dtype=np.float32)[:, None]
            table: NDArray[np.float32] = (scaled - mean) / std
        return table


def _steps(data: Any, where: str, problems: list[str]) -> list[Step]:
    """The geometric steps; `decode` has no unions of dataclasses, ``op`` says which one it is."""
    steps = []
    for i, item in enumerate(data if isinstance(data, list) else []):
        place = f"{where}.steps[{i}]"
        op = item.get("op") if isinstance(item, dict) else None
        if not isinstance(op, str) or op not in _STEPS:
            problems.append(f"{place}: op is {op!r}; it must be one of {sorted(_STEPS)}")
            continue
        step: Step | None = decode(_STEPS[op], item, where=place, problems=problems)
        if step is not None:
            steps.append(step)
    return steps
