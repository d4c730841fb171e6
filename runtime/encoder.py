"""Pictures to what the locked tower says about them: read, preprocess, look up, encode, keep.

The tower runs once per batch, over the pictures that are neither encoded nor kept already.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from primelens.bundle import Bundle
from primelens.engine import Array, Engine, Graph
from primelens.errors import BundleError, EngineError, InputError, ModelNotFoundError
from primelens.images import SourceImage, UndecodedImage, open_image
from primelens.options import CacheOptions
from primelens.preprocessing import Preprocessing
from primelens.results import EncodedImage, Failure, Timings
from primelens.video import Video, chosen, read_frames

if TYPE_CHECKING:
    from primelens.images import ImageSource
    from primelens.store.kept import Kept, KeptTaps, Missing

__all__ = [
    "Batch",
    "ImageEncoder",
    "LookedUp",
    "Prepared",
    "PreparedVideo",
    "check_batch_size",
    "name_of",
    "open_kept_of",
    "open_tower",
]


class Prepared:
    """A picture read and preprocessed, not yet encoded; the decoded one is let go of."""

    __slots__ = ("digest", "missing", "name", "pixels", "seconds", "size")

    def __init__(
        self, source: SourceImage, pixels: Any, seconds: float, missing: Missing | None
    ) -> None:
        self.digest, self.size, self.name = source.digest, source.size, source.name
        self.pixels, self.seconds, self.missing = pixels, seconds, missing


class LookedUp(NamedTuple):
    """A picture that is not kept, or was not looked for; of a file the content, not decoded."""

    image: SourceImage | UndecodedImage
    seconds: float
    missing: Missing | None


class PreparedVideo:
    """The frames of a video, each read and preprocessed, or kept already."""

    __slots__ = ("frames", "name", "timestamps")

    def __init__(
        self, name: str, frames: list[Prepared | EncodedImage], timestamps: tuple[float, ...]
    ) -> None:
        self.name, self.frames, self.timestamps = name, frames, timestamps

    def joined(self, encoded: Sequence[EncodedImage]) -> EncodedImage:
        """What the tower says about the frames, as one value."""
        first = encoded[0]
        times = [image.timings for image in encoded]
        missed = next((image for image in encoded if image.cache == "miss"), first)
        return EncodedImage(
            taps={name: np.stack([image.taps[name] for image in encoded]) for name in first.taps},
            identities=first.identities,
            source=_digest_of([image.source for image in encoded]),
            size=first.size,
            name=self.name,
            timings=Timings(
                preprocess=sum(time.preprocess for time in times),
                tower=max(time.tower for time in times),
            ),
            cache=missed.cache,
            missed=missed.missed,
            entries={
                name: _digest_of([image.entries[name] for image in encoded])
                for name in first.entries
            },
            timestamps=self.timestamps,
        )


Item: TypeAlias = "Prepared | PreparedVideo | EncodedImage"
Found: TypeAlias = "LookedUp | EncodedImage | Failure | None"
Batch: TypeAlias = "tuple[list[Item | Failure], list[EncodedImage]]"


class ImageEncoder:
    """The locked side of a bundle; thread-safe.

    Args:
        bundle: a checked bundle.
        tower: its opened graph; None in a text-only bundle.
        kept: where embeddings are kept, if anywhere.
        threads: that read and preprocess a batch's pictures side by side; None for as many as there
            are cores to use. The tower does not run meanwhile, so they take no core from it.
    """

    def __init__(
        self,
        bundle: Bundle,
        tower: Graph | None,
        kept: KeptTaps | None,
        *,
        threads: int | None = None,
    ) -> None:
        spec = bundle.manifest.tower
        self._name = bundle.manifest.name
        self.tower = tower
        self.preprocessing = Preprocessing.from_dict(dict(spec.preprocessing))
        self.identities = {name: tap.identity for name, tap in spec.taps.items()}
        self.kept = kept
        self._threads = threads or _usable_cores()
        self._frames = {head.frames for head in bundle.manifest.writers.values() if head.frames}

    def prepare(self, image: ImageSource | EncodedImage) -> Item:
        """Read and preprocess a picture or video, unless it is encoded or kept already."""
        if self.kept and not isinstance(image, EncodedImage):
            self.kept.store.write_meanwhile()
        return self._prepared(image)

    def _prepared(self, image: ImageSource | EncodedImage) -> Item:
        if isinstance(image, EncodedImage):
            return image
        if isinstance(image, Video):
            return self._video(image)
        if isinstance(image, np.ndarray) and image.ndim == 4:
            return self._video(Video(list(image)))
        return self._picture(image)

    def _video(self, video: Video) -> PreparedVideo:
        source = video.source
        if not isinstance(source, (str, os.PathLike)):
            if video.frames not in (None, len(source)):
                source = [source[number] for number in chosen(len(source), video.frames or 1)]
            return PreparedVideo(video.name, [self._picture(image) for image in source],
                                 tuple(float(number) for number in range(len(source))))  # fmt: skip
        if video.frames is None and len(self._frames) != 1:
            raise InputError(
                f"{video.name} is a video, and the bundle {self._name!r} does not say how many "
                "frames of it to take.",
                remedy="Say Video(path, frames=6), and choose a head that reads videos.",
            )
        read = read_frames(source, video.frames or next(iter(self._frames)))
        times = tuple(image.frame[1].timestamp_ns / 1e9 for image in read if image.frame)
        return PreparedVideo(video.name, [self._picture(image) for image in read], times)

    def _picture(self, image: ImageSource) -> Prepared | EncodedImage:
        found = self._looked_up(image)
        return found if isinstance(found, EncodedImage) else self._decoded(found)

    def _looked_up(self, image: ImageSource) -> LookedUp | EncodedImage:
        """What is kept of a picture; else its file."""
        start = time.perf_counter()
        opened = open_image(image)
        if self.kept is None:
            return LookedUp(opened, time.perf_counter() - start, None)
        found = self.kept.find(opened)
        seconds = time.perf_counter() - start
        if isinstance(found, EncodedImage):
            return replace(found, timings=Timings(preprocess=seconds))
        if self.tower is None:
            raise InputError(
                f"{opened.name} is not in the store {self.kept.store.path} ({found.why}), "
                f"and the bundle {self._name!r} has no tower to encode it with.",
                remedy="Fill the store with the whole bundle: primelens encode --cache.",
            )
        return LookedUp(opened, seconds, found)

    def _decoded(self, found: LookedUp) -> Prepared:
        start = time.perf_counter()
        opened = found.image
        source = opened.decode() if isinstance(opened, UndecodedImage) else opened
        pixels = self.preprocessing(source)
        return Prepared(source, pixels, found.seconds + time.perf_counter() - start, found.missing)

    def batches(self, images: Iterable[ImageSource | EncodedImage], size: int) -> Iterator[Batch]:
        """Per batch: every picture as it was prepared, and the good ones encoded."""
        check_batch_size(size)
        iterator = iter(images)
        while chunk := list(islice(iterator, size)):
            prepared = self.attempt_all(chunk)
            good = [item for item in prepared if not isinstance(item, Failure)]
            yield prepared, self.encode(good)

    def attempt_all(self, images: Sequence[ImageSource | EncodedImage]) -> list[Item | Failure]:
        """`attempt` of every picture, several at a time: decoding leaves Python to the others.

        With a store the caller looks up one file after the other, and readers decode meanwhile
        what is not kept. One that finds no picture left writes what is to be kept until the others
        are done: a core would be idle otherwise.
        """
        workers = min(self._threads, len(images))
        if workers < 2:
            return [self.attempt(image) for image in images]
        read = threading.Event()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="primelens-read")
        try:
            if self.kept is None:
                return list(pool.map(self.attempt, images))
            store = self.kept.store
            if store.is_behind():
                pool.submit(store.write_until, None)
            reading = [
                pool.submit(self._attempt_rest, image, self._attempt_to_find(image))
                for image in images
            ]
            pool.submit(store.write_until, read)
            return [one.result() for one in reading]
        finally:
            read.set()
            # What is just being written is let run on: a few entries, beside the next copying.
            pool.shutdown(wait=False, cancel_futures=True)

    def attempt(self, image: ImageSource | EncodedImage) -> Item | Failure:
        """`prepare`, with a `Failure` row for a picture that cannot be read."""
        try:
            return self.prepare(image)
        except InputError as error:
            return Failure(name_of(image), error)

    def _attempt_rest(self, image: ImageSource | EncodedImage, found: Found) -> Item | Failure:
        """`attempt` by one of several readers, from what was found of the picture before."""
        try:
            if found is None:
                return self._prepared(image)
            return self._decoded(found) if isinstance(found, LookedUp) else found
        except InputError as error:
            return Failure(name_of(image), error)

    def _attempt_to_find(self, image: ImageSource | EncodedImage) -> Found:
        """What is kept of a file, else its content; None for what is more work than that."""
        if not isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
            return None
        try:
            return self._looked_up(image)
        except InputError as error:
            return Failure(name_of(image), error)

    def encode(self, items: Sequence[Item]) -> list[EncodedImage]:
        """Run the tower once over all pictures that are not encoded yet, and once per video; keeps
        the order.
        """
        pictures = [item for item in items if not isinstance(item, PreparedVideo)]
        encoded = iter(self._encode(pictures))
        return [
            item.joined(self._encode(item.frames))
            if isinstance(item, PreparedVideo)
            else next(encoded)
            for item in items
        ]

    def _encode(self, items: Sequence[Prepared | EncodedImage]) -> list[EncodedImage]:
        fresh = [item for item in items if isinstance(item, Prepared)]
        if not fresh:
            return [item for item in items if isinstance(item, EncodedImage)]
        if self.tower is None:
            raise ModelNotFoundError(
                f"The bundle {self._name!r} has no tower, and {fresh[0].name} is not kept.",
                remedy="Encode the picture with a bundle that has the tower.",
            )
        # A picture that comes several times in one batch is encoded once.
        firsts: dict[str, Prepared] = {}
        for item in fresh:
            firsts.setdefault(item.digest, item)
        encoded = self._run(self.tower, list(firsts.values()))
        return [
            item if isinstance(item, EncodedImage) else _renamed(encoded[item.digest], item)
            for item in items
        ]

    def _run(self, tower: Graph, items: Sequence[Prepared]) -> dict[str, EncodedImage]:
        """Source digest → what the tower says, by one run over all items."""
        start = time.perf_counter()
        taps = tower.run({"pixel_values": np.stack([item.pixels for item in items])})
        seconds = time.perf_counter() - start
        for name, values in taps.items():
            if not np.isfinite(values).all():
                raise EngineError(
                    f"The tower's output {name!r} is not finite.",
                    remedy="The weights hold NaN: run `primelens verify` on the bundle.",
                )
        rows = [
            {name: _unchanging(values[row]) for name, values in taps.items()}
            for row in range(len(items))
        ]
        kept = self._keep(items, rows)
        encoded = [
            EncodedImage(
                taps=rows[row] if kept is None else kept[row].taps,
                identities=self.identities,
                source=item.digest,
                size=item.size,
                name=item.name,
                timings=Timings(preprocess=item.seconds, tower=seconds),
                cache="off" if kept is None else "miss",
                missed=item.missing and item.missing.why,
                entries={} if kept is None else kept[row].entries,
            )
            for row, item in enumerate(items)
        ]
        return {image.source: image for image in encoded}

    def _keep(
        self, items: Sequence[Prepared], rows: Sequence[Mapping[str, Array]]
    ) -> list[Kept] | None:
        """Keep what the tower says of pictures that were looked up; None where nothing is kept."""
        if self.kept is None:
            return None
        looked_up = [
            (item.missing, values, item.size)
            for item, values in zip(items, rows, strict=True)
            if item.missing is not None
        ]
        return self.kept.keep(looked_up) if len(looked_up) == len(items) else None


def _unchanging(values: Array) -> Array:
    """A copy that nobody may write to."""
    copy = values.copy()
    copy.setflags(write=False)
    return copy


def _usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_batch_size(size: int) -> None:
    """Raises `InputError` for a size below 1."""
    if size < 1:
        raise InputError(f"batch_size is {size}; it must be at least 1.")


def _digest_of(digests: Sequence[str]) -> str:
    """One digest of the frames' own, in order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _renamed(encoded: EncodedImage, item: Prepared) -> EncodedImage:
    """``encoded`` under the name of one of the items that it was encoded for."""
    if encoded.name == item.name:
        return encoded
    timings = replace(encoded.timings, preprocess=item.seconds)
    return replace(encoded, name=item.name, timings=timings)


def open_kept_of(bundle: Bundle, cache: CacheOptions | None) -> KeptTaps | None:
    """Where the bundle's embeddings are kept, if anywhere."""
    if cache is None:
        return None
    from primelens.store.kept import open_kept  # SQLite and the like, where they are needed

    return open_kept(bundle.manifest.tower, cache)


def open_tower(bundle: Bundle, engine: Engine) -> Graph | None:
    """The tower's graph, which must fit the manifest; None in a text-only bundle."""
    tower = bundle.manifest.tower
    if tower.graph is None:
        return None
    graph = engine.open(bundle.path(tower.graph))
    problems = [
        f"the tower graph has no output {tap!r}" for tap in tower.taps.keys() - graph.outputs.keys()
    ]
    problems += [
        f"tap {name!r} has shape {graph.outputs[name].shape[1:]}, the manifest says {tap.shape}"
        for name, tap in tower.taps.items()
        if name in graph.outputs and graph.outputs[name].shape[1:] != tap.shape
    ]
    if set(graph.inputs) != {"pixel_values"}:
        problems.append(f"the tower graph's inputs are {sorted(graph.inputs)}, not 'pixel_values'")
    if problems:
        raise BundleError(
            "The tower's graph does not fit the manifest:",
            remedy="Export the checkpoint again.",
            problems=problems,
        )
    return graph


def name_of(image: object) -> str:
    """What a picture is called in messages and result rows."""
    if isinstance(image, (str, Path)):
        return str(image)
    if isinstance(image, (EncodedImage, Video)):
        return image.name
    return f"<{type(image).__name__}>"
