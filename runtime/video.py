"""Videos: which of their frames are looked at, and reading them.

A head that reads videos takes a fixed number of frames. They are spread evenly: of a video of T
frames, the middle ones of N equal parts, number ``(2 i + 1) T // (2 N)`` for i from 0. So the same
file always yields the same frames. (transformers' example for such models draws a random stretch.)
A video of fewer frames than that shows some of them more than once.

Every frame is a picture of its own to the tower, and is kept by itself: under the digest of the
video's file, its number and its presentation time.

Frames are decoded by FFmpeg through PyAV (``pip install 'primelens[video]'``) in this process, and
shown as they are stored: a rotation that the container asks for is not applied. Videos from
strangers belong into a process of their own, with a time and memory limit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from primelens.errors import DependencyError, ImageError, OptionError
from primelens.images import DEFAULT_LIMITS, SourceImage, read_image

if TYPE_CHECKING:
    from primelens.images import ImageSource
    from primelens.preprocessing import Preprocessing
    from primelens.store.key import Frame

__all__ = ["SUFFIXES", "Video", "chosen", "preprocessed", "read_frames"]

SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm"))
_CONTAINERS = "avi,matroska,mov,mp4,mpeg,mpegts,ogg,webm"  # that never name another file
_BYTES = 4 * 2**30

VideoSource: TypeAlias = "str | os.PathLike[str] | Sequence[ImageSource]"


@dataclass(frozen=True, eq=False)
class Video:
    """A video, accepted wherever a picture is by a model whose head reads videos.

    Attributes:
        source: a path, or the frames themselves: pictures in order, in any form that is read. (A
            uint8 array ``[F, H, W, 3]`` is taken for such a video wherever a picture is.)
        frames: how many frames to take; None takes as many as the model's head reads.
    """

    source: VideoSource
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise OptionError(f"frames is {self.frames}; it must be at least 1.")
        if not isinstance(self.source, (str, os.PathLike)) and not len(self.source):
            raise OptionError("The video has no frames.")

    @property
    def name(self) -> str:
        """The path, or a description in angle brackets."""
        if isinstance(self.source, (str, os.PathLike)):
            return os.fspath(self.source)
        return f"<video of {len(self.source)} frames>"


def chosen(total: int, count: int) -> list[int]:
    """Numbers of the ``count`` frames that are looked at, of ``total``."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def preprocessed(preprocessing: Preprocessing, picture: Any) -> Any:
    """``[3, H, W]`` of a picture, ``[F, 3, H, W]`` of a video that is given as ``[F, h, w, 3]``."""
    if isinstance(picture, np.ndarray) and picture.ndim == 4:
        return np.stack([preprocessing(read_image(frame)) for frame in picture])
    return preprocessing(read_image(picture))


def read_frames(path: str | os.PathLike[str], count: int) -> list[SourceImage]:
    """The frames that are looked at, decoded; each knows its number and presentation time.

    Args:
        path: a video file.
        count: how many.

    Raises:
        ImageError: the file is missing, is no video, is broken, or is too large.
        DependencyError: PyAV is not installed.
    """
    from primelens.store.key import Frame  # the store is loaded where something is kept, or here

    name = os.fspath(path)
    digest, total = _digest(name), sum(1 for _ in _packets(name))
    if not total:
        raise ImageError(f"{name}: the video has no frames.")
    wanted = chosen(total, count)
    found: dict[int, SourceImage] = {}
    for index, (time, pixels) in enumerate(_frames(name)):
        if index in wanted:
            found[index] = _source(name, digest, Frame(index, time), pixels)
        if index == wanted[-1]:
            return [found[number] for number in wanted]
    raise ImageError(
        f"{name}: the video announces {total} frames and cannot be decoded up to the last ones.",
        remedy="The file is broken or cut off: encode it again.",
    )


def _source(name: str, digest: str, frame: Frame, pixels: Any) -> SourceImage:
    picture = Image.fromarray(pixels)
    return SourceImage(
        picture=picture,
        digest=hashlib.sha256(
            f"primelens-frame-1\0{digest}\0{frame.index}\0{frame.timestamp_ns}".encode()
        ).hexdigest(),
        size=picture.size,
        format="video",
        name=f"{name}#{frame.index}",
        frame=(digest, frame),
    )


def _digest(name: str) -> str:
    path = Path(name)
    if not path.is_file():
        raise ImageError(f"{name}: there is no such file.", remedy="Check the path.")
    if path.stat().st_size > _BYTES:
        raise ImageError(f"{name}: the video has more than {_BYTES >> 30} GiB.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _packets(name: str) -> Iterator[Any]:
    """The video's packets, one per frame."""
    with _Opened(name) as (container, stream):
        yield from (packet for packet in container.demux(stream) if packet.size)


def _frames(name: str) -> Iterator[tuple[int, Any]]:
    """(presentation time in nanoseconds, ``[H, W, 3]`` uint8) of every frame."""
    with _Opened(name) as (container, stream):
        for frame in container.decode(stream):
            time = 0.0 if frame.time is None else frame.time
            yield round(time * 1e9), np.ascontiguousarray(frame.to_ndarray(format="rgb24"))


class _Opened:
    """A container and its first video stream; whatever FFmpeg refuses is an `ImageError`."""

    def __init__(self, name: str) -> None:
        self._name, self._av = name, _av()

    def __enter__(self) -> tuple[Any, Any]:
        self._file = Path(self._name).open("rb")
        try:
            options = {"format_whitelist": _CONTAINERS}
            self._container = self._av.open(self._file, mode="r", container_options=options)
            if not self._container.streams.video:
                raise ImageError(f"{self._name}: the file has no video stream.")
            stream = self._container.streams.video[0]
            pixels = stream.codec_context.width * stream.codec_context.height
            if pixels > DEFAULT_LIMITS.pixels:
                raise ImageError(
                    f"{self._name}: its frames have {pixels} pixels; that is too many."
                )
            return self._container, stream
        except BaseException as error:
            self._file.close()
            self._translate(error)
            raise

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._container.close()
        self._file.close()
        self._translate(error)

    def _translate(self, error: BaseException | None) -> None:
        if isinstance(error, self._av.FFmpegError):
            raise ImageError(
                f"{self._name}: no video that can be decoded: {error.strerror}.",
                remedy="Videos are read from MP4, MOV, WebM, Matroska, AVI, MPEG and Ogg files.",
            ) from error


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise DependencyError(
            "Reading a video file needs PyAV.",
            remedy="Run `pip install 'primelens[video]'`, or give the frames: Video([...]).",
        ) from error
    return av
