"""Reading pictures: from a file, its bytes, a Pillow image or an array, into one checked form.

What a `SourceImage` is does not depend on the way it came in:

* the first frame of an animation, the first page of a multi-page file;
* 8 bits per sample, mode RGB, or RGBA where the picture has transparency. Whether transparency is
  dropped or laid over white, and whether the EXIF orientation is applied, is the business of
  `primelens.preprocessing`: both change pixels, so both are part of a tower's identity;
* 16-bit greyscale keeps the high byte of every sample, as Pillow itself does for 16-bit colour.
  Pillow's plain ``convert("RGB")`` clips instead, so that everything above 255 of 65535 turns
  white; this is the one place where primelens deliberately differs from it. Samples of 32 bits or
  floats have no agreed range and are refused;
* CMYK, palette, YCbCr, Lab and bilevel pictures are converted by Pillow, without colour management
  (embedded ICC profiles are not applied), as the training stacks do;
* an unreadable EXIF block counts as none; TIFF is turned upright by Pillow while it is decoded.

Truncated and broken files are refused. Pillow's decoders run in this process: pictures from
strangers belong into a process of their own, with a time and memory limit.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from primelens.errors import ImageError, OptionError
from primelens.pillow_guard import DECODE_ERRORS, decoding

if TYPE_CHECKING:
    from primelens.store.key import Frame
    from primelens.video import Video

__all__ = [
    "FORMATS",
    "ImageLimits",
    "ImageSource",
    "SourceImage",
    "UndecodedImage",
    "open_image",
    "read_image",
]

# In the order they are tried; Pillow loads the plugins of the last two only when it gets there.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF")

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost.

    Attributes:
        bytes: size of the encoded file.
        pixels: width times height, checked from the header before anything is decoded.
        formats: Pillow's names of the file formats that are opened at all.

    Raises:
        OptionError: a cap is below 1, or Pillow has no such format.
    """

    bytes: int = 64 * 2**20
    pixels: int = 100_000_000
    formats: tuple[str, ...] = FORMATS

    def __post_init__(self) -> None:
        if self.bytes < 1 or self.pixels < 1:
            raise OptionError(
                f"ImageLimits({self.bytes} bytes, {self.pixels} pixels) lets no picture through.",
                remedy="Give positive numbers.",
            )
        if not set(self.formats) <= set(FORMATS):
            Image.init()
            if unknown := sorted(set(self.formats) - Image.OPEN.keys()):
                raise OptionError(
                    f"ImageLimits.formats: Pillow opens no format called {', '.join(unknown)}.",
                    remedy=f"It opens {', '.join(sorted(Image.OPEN))}.",
                )


_SEE_THROUGH = frozenset(("LA", "La", "PA", "RGBA", "RGBa"))

DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, eq=False)
class SourceImage:
    """A picture as it was given: decoded, but neither turned upright nor freed of transparency.

    Attributes:
        picture: mode RGB or RGBA; never changed by anyone.
        digest: SHA-256 (hex). For files and bytes, of the encoded bytes. For arrays and Pillow
            images, of ``primelens-pixels-1``, a zero byte, the mode (``RGB`` or ``RGBA``), a zero
            byte, width, height and orientation as little-endian 64-bit integers, then the samples
            row by row: two pictures with the same pixels share it, wherever they came from.
        size: (width, height) in pixels, before any turning.
        format: Pillow's name of the file format, ``"array"`` or ``"PIL"``.
        name: path, or a description in angle brackets; for messages and result rows.
        orientation: EXIF orientation, 1 (upright) to 8.
        frame: of a frame of a video file, the file's digest and which one it is; its own digest is
            the SHA-256 of both (`primelens.video`).
    """

    picture: Image.Image
    digest: str
    size: tuple[int, int]
    format: str
    name: str
    orientation: int = 1
    frame: tuple[str, Frame] | None = None

    def rgb(
        self,
        *,
        exif: Literal["apply", "ignore"] = "apply",
        alpha: Literal["drop", "white"] = "drop",
    ) -> Image.Image:
        """The picture in mode RGB.

        Args:
            exif: "apply" turns it upright.
            alpha: "drop" shows the colours under the transparency, "white" lays the picture over
                white.
        """
        picture = self.picture
        if exif == "apply" and self.orientation in _TRANSPOSITIONS:
            picture = picture.transpose(_TRANSPOSITIONS[self.orientation])
        if picture.mode == "RGBA":
            if alpha == "white":
                white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert("RGB")
        return picture


@dataclass(frozen=True, eq=False)
class UndecodedImage:
    """A picture's file, read and not decoded: its digest may be all that is asked for.

    Attributes:
        data: the bytes of the file.
        name: path, or a description in angle brackets.
        limits: what decoding may cost.
    """

    data: bytes
    name: str
    limits: ImageLimits

    @cached_property
    def digest(self) -> str:
        """What `SourceImage.digest` will be."""
        return hashlib.sha256(self.data).hexdigest()

    def decode(self) -> SourceImage:
        """The picture; raises `ImageError`."""
        return _from_bytes(self)


ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8] "
    "| SourceImage | Video"
)


def read_image(source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS) -> SourceImage:
    """Read and check one picture.

    Args:
        source: a path, a file's bytes, a Pillow image, or a uint8 array ``[H, W]`` (grey),
            ``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA). A `SourceImage` is returned as it is.
        limits: caps on bytes and pixels, and the formats to open.

    Raises:
        ImageError: the picture is missing, unreadable, not a picture, broken, truncated or too
            large; the message names it.
    """
    opened = open_image(source, limits=limits)
    return opened.decode() if isinstance(opened, UndecodedImage) else opened


def open_image(
    source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS
) -> SourceImage | UndecodedImage:
    """`read_image`, but files and bytes are not decoded yet; raises `ImageError` as far as that."""
    if isinstance(source, SourceImage):
        return source
    if isinstance(source, (str, os.PathLike)):
        name = _short(os.fsdecode(source))
        return UndecodedImage(_read_file(source, name, limits), name, limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return UndecodedImage(data, f"<{len(data)} bytes>", limits)
    if isinstance(source, Image.Image):
        return _from_pillow(source, limits)
    if isinstance(source, np.ndarray):
        return _from_array(source, limits)
    raise ImageError(
        f"A picture cannot be read from an object of type {type(source).__name__}.",
        remedy="Give a path, the file's bytes, a Pillow image, or a uint8 array [H, W, 3].",
    )


def _short(name: str) -> str:
    """``name`` printable and of bounded length: it may be a whole file in base64 by mistake."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= 300 else f"{text[:140]}…{text[-140:]}"


def _read_file(path: str | os.PathLike[str], name: str, limits: ImageLimits) -> bytes:
    """The bytes of a regular file; never blocks on a pipe, never opens a device."""
    if not os.fspath(path):
        raise ImageError("The picture's path is empty.", remedy="Give the path of a file.")
    flags = os.O_RDONLY
    for flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, flag, 0)
    try:
        _refuse_irregular(os.stat(path), name, limits)  # noqa: PTH116 - bytes-capable, no Path made
        descriptor = os.open(path, flags)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            # Checked again: the file may have been replaced between the two calls.
            _refuse_irregular(os.fstat(descriptor), name, limits)
            # The limit itself is never asked for: Python would reserve that much for a small file.
            size = os.fstat(descriptor).st_size
            data = file.read(min(size, limits.bytes) + 1)
            if len(data) > size:  # it has grown since
                data += file.read(max(0, limits.bytes + 1 - len(data)))
    except FileNotFoundError as error:
        raise ImageError(f"There is no picture at {name}.", remedy=_missing_remedy(name)) from error
    except PermissionError as error:
        raise ImageError(
            f"The picture {name} may not be read: permission denied.",
            remedy="Grant read permission on the file and its folders.",
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ImageError(
            f"The picture {name} cannot be read: {getattr(error, 'strerror', None) or error}.",
            remedy="Check the path and the disk.",
        ) from error
    _check_bytes(len(data), name, limits)
    return data


def _missing_remedy(name: str) -> str:
    if re.match(r"[a-z]{2,}:", name):
        return "Addresses are not fetched: download the picture and give its path or its bytes."
    return f"Check the path; relative ones start from the current folder, {os.getcwd()!r}."  # noqa: PTH109


def _refuse_irregular(status: os.stat_result, name: str, limits: ImageLimits) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(
            f"{name} is a folder, not a picture.", remedy="Give the pictures inside it one by one."
        )
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(
            f"{name} is not a regular file but a pipe, socket or device.",
            remedy="Read it yourself and give the bytes.",
        )
    _check_bytes(status.st_size, name, limits)


def _check_bytes(size: int, name: str, limits: ImageLimits) -> None:
    if size > limits.bytes:
        raise ImageError(
            f"The picture {name} has more than {limits.bytes} bytes, the limit.",
            remedy="Save it smaller, or raise ImageLimits.bytes.",
        )


def _check_pixels(size: tuple[int, int], name: str, limits: ImageLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(
            f"The picture {name} is empty: {width}x{height} pixels.", remedy="Give another picture."
        )
    if width * height > limits.pixels:
        raise ImageError(
            f"The picture {name} has {width}x{height} pixels, more than the limit of "
            f"{limits.pixels}.",
            remedy="Scale it down, or raise ImageLimits.pixels.",
        )


def _from_bytes(file: UndecodedImage) -> SourceImage:
    data, name, limits = file.data, file.name, file.limits
    _check_bytes(len(data), name, limits)
    if not data:
        raise ImageError(f"The picture {name} is empty: no bytes.", remedy="Fetch the file again.")
    with _open(data, name, limits) as opened:
        _check_pixels(opened.size, name, limits)
        format_name = opened.format or "unknown"
        orientation = _decode(opened, name)
    picture = _eight_bit(opened, name)
    return SourceImage(picture, file.digest, picture.size, format_name, name, orientation)


def _open(data: bytes, name: str, limits: ImageLimits) -> Image.Image:
    """The header, read; no pixel yet."""
    try:
        with decoding(name):
            return Image.open(io.BytesIO(data), formats=limits.formats)
    except ImageError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        raise ImageError(
            f"{name} is not a picture in a format that is read here.",
            remedy=f"Give one of {', '.join(limits.formats)}; fetch it again if it should be.",
        ) from error.__cause__


def _from_pillow(image: Image.Image, limits: ImageLimits) -> SourceImage:
    name = _short(str(getattr(image, "filename", "") or "")) or f"<{image.mode} image>"
    _check_pixels(image.size, name, limits)
    orientation = _decode(image, name)
    picture = _eight_bit(image, name)
    digest = _pixel_digest(picture, orientation)
    return SourceImage(picture, digest, picture.size, "PIL", name, orientation)


def _from_array(array: NDArray[Any], limits: ImageLimits) -> SourceImage:
    name = f"<array {list(array.shape)} {array.dtype}>"
    channels = {2: 1}.get(array.ndim, array.shape[-1] if array.ndim == 3 else 0)
    if channels not in (1, 3, 4):
        hint = " (channels come last)" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(
            f"A picture cannot be made of {name}.",
            remedy=f"Give one picture as [H, W], [H, W, 3] or [H, W, 4]{hint}.",
        )
    if array.dtype != np.uint8:
        raise ImageError(
            f"A picture cannot be made of {name}: samples are not uint8.",
            remedy="Scale the values to 0..255 and convert with astype(numpy.uint8).",
        )
    _check_pixels((array.shape[1], array.shape[0]), name, limits)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    # frombytes copies; fromarray may share memory that the caller goes on writing to.
    picture = Image.frombytes(mode, (array.shape[1], array.shape[0]), array.tobytes())
    picture = picture.convert("RGB") if mode == "L" else picture
    return SourceImage(picture, _pixel_digest(picture, 1), picture.size, "array", name)


def _pixel_digest(picture: Image.Image, orientation: int) -> str:
    head = b"primelens-pixels-1\0" + picture.mode.encode("ascii") + b"\0"
    digest = hashlib.sha256(head + struct.pack("<3q", *picture.size, orientation))
    digest.update(picture.tobytes())
    return digest.hexdigest()


def _decode(image: Image.Image, name: str) -> int:
    """Load the pixels; returns the EXIF (or XMP) orientation, 1 where none can be read."""
    with decoding(name):
        image.load()
        try:
            value: object = image.getexif().get(ExifTags.Base.Orientation, 1)
        except DECODE_ERRORS:
            value = 1
    return value if isinstance(value, int) and value in _TRANSPOSITIONS else 1


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """A new image of mode RGB or RGBA, as the module's docstring says."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ImageError(
            f"The picture {name} has 32-bit samples (mode {image.mode}) without an agreed range.",
            remedy="Scale it to 8 bits per sample first.",
        )
    if image.mode.startswith("I"):  # I;16 and its byte orders; Pillow scales PPM to 16 bits in I
        image = _high_bytes(image)
    see_through = image.mode in _SEE_THROUGH or image.info.get("transparency") is not None
    with decoding(name):
        if image.mode == "La":  # the only way from La leads through LA
            image = image.convert("LA")
        converted = image.convert("RGBA" if see_through else "RGB")
    # Pillow hands a file's metadata on with every copy; none of it is needed from here on.
    converted.info.clear()
    return converted


def _high_bytes(image: Image.Image) -> Image.Image:
    wide = np.asarray(image).astype(np.int64)
    grey = (wide >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(grey)
    alpha = np.where(wide == transparent, 0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey, alpha], axis=-1))
