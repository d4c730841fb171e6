"""Between a model and its tower: the taps of pictures that were encoded before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from primelens.errors import EngineError
from primelens.images import SourceImage, UndecodedImage
from primelens.manifest import TowerSpec
from primelens.options import CacheOptions
from primelens.results import EncodedImage
from primelens.store.derived import DerivedTensors
from primelens.store.key import EntryKey, Frame
from primelens.store.outcome import Hit, Miss, StoreStats
from primelens.store.store import EmbeddingStore

__all__ = ["KeptTaps", "open_kept"]

T = TypeVar("T")
_TapValues = Mapping[str, NDArray[np.float32]]


def open_kept(tower: TowerSpec, options: CacheOptions | None) -> KeptTaps | None:
    """The kept taps of a tower; None where nothing is to be kept.

    Raises:
        StoreError: the folder is refused or cannot be opened.
    """
    if options is None or options.mode == "off":
        return None
    return KeptTaps(tower, EmbeddingStore(options), DerivedTensors(options.derived_bytes))


@dataclass(frozen=True)
class KeptTaps:
    """Looks pictures up, and keeps what the tower says about the others; safe for threads.

    Attributes:
        tower: what the bundle says of its tower.
        store: where the taps are kept; one entry per tap.
        derived: what heads derive from them.
    """

    tower: TowerSpec
    store: EmbeddingStore
    derived: DerivedTensors

    def find(self, image: SourceImage | UndecodedImage) -> EncodedImage | Miss:
        """The picture as it was encoded before, or why there is nothing."""
        keys = self._keys(image.digest, getattr(image, "frame", None))
        found: dict[str, Hit] = {}
        for name, key in keys.items():
            result = self.store.get(key)
            if isinstance(result, Miss):
                return result
            if result.values.shape != self.tower.taps[name].shape:
                return Miss("corrupt")
            found[name] = result
        return EncodedImage(
            taps={name: hit.values for name, hit in found.items()},
            identities={name: tap.identity for name, tap in self.tower.taps.items()},
            source=image.digest,
            size=next(iter(found.values())).size,
            name=image.name,
            cache="hit",
            entries={name: key.digest for name, key in keys.items()},
        )

    def keep(
        self,
        images: Sequence[EncodedImage],
        misses: Sequence[Miss],
        frames: Sequence[tuple[str, Frame] | None] | None = None,
    ) -> list[EncodedImage]:
        """Keep what the tower said; the results hold what a later hit will hold.

        Args:
            images: fresh from the tower.
            misses: what `find` said about each.
            frames: of frames of a video, the file's digest and which one each is.
        """
        frames = frames or [None] * len(images)
        keys = [self._keys(i.source, frame) for i, frame in zip(images, frames, strict=True)]
        items = [
            (key, values, image.size)
            for image, named in zip(images, keys, strict=True)
            for key, values in _paired(named, image.taps)
        ]
        try:
            restored = iter(self.store.put_all(items, later=True))
        except ValueError as error:
            raise EngineError(f"The tower's output cannot be kept: {error}.") from error
        return [
            replace(
                image,
                taps={name: next(restored) for name in named},
                cache="miss",
                cache_reason=str(miss),
                entries={name: key.digest for name, key in named.items()},
            )
            for image, named, miss in zip(images, keys, misses, strict=True)
        ]

    def stats(self) -> StoreStats:
        """Counters of the store and of the second tier."""
        tensors = self.derived
        return replace(self.store.stats(), derived_hits=tensors.hits, derived_misses=tensors.misses)

    def _keys(self, source: str, frame: tuple[str, Frame] | None = None) -> dict[str, EntryKey]:
        """The keys of a picture; of a frame, those of its place in the video's file."""
        file, place = frame or (source, None)
        return {
            name: EntryKey(
                tower=tap.identity,
                variant=self.tower.variant,
                dtype=self.store.options.dtype,
                source=file,
                frame=place,
                tap=name,
            )
            for name, tap in self.tower.taps.items()
        }


def _paired(
    keys: Mapping[str, EntryKey], taps: _TapValues
) -> list[tuple[EntryKey, NDArray[np.float32]]]:
    return [(key, taps[name]) for name, key in keys.items()]
