"""Between a model and its tower: the taps of pictures that were encoded before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from primelens.errors import EngineError
from primelens.images import SourceImage, UndecodedImage
from primelens.manifest import TowerSpec
from primelens.options import CacheOptions
from primelens.results import EncodedImage
from primelens.store.derived import DerivedTensors
from primelens.store.key import Frame, LazyKey, TapKeys
from primelens.store.outcome import Hit, Miss, StoreStats
from primelens.store.store import EmbeddingStore

__all__ = ["Kept", "KeptTaps", "Missing", "open_kept"]

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


class Missing(NamedTuple):
    """A picture that is not kept: why, and tap name → what it will be filed under."""

    why: Miss
    keys: dict[str, LazyKey]


class Kept(NamedTuple):
    """Of a picture that was encoded, tap name → values as a hit gives them, and → entry's key."""

    taps: dict[str, NDArray[np.float32]]
    entries: dict[str, str]


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

    def find(self, image: SourceImage | UndecodedImage) -> EncodedImage | Missing:
        """The picture as it was encoded before, or why there is nothing."""
        keys = self._keys(image.digest, getattr(image, "frame", None))
        found: dict[str, Hit] = {}
        for name, key in keys.items():
            result = self.store.get(key)
            if isinstance(result, Miss):
                return Missing(result, keys)
            if result.values.shape != self.tower.taps[name].shape:
                return Missing(Miss("corrupt"), keys)
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

    def keep(self, fresh: Sequence[tuple[Missing, _TapValues, tuple[int, int]]]) -> list[Kept]:
        """Keep what the tower said; returned is what a later hit will hold.

        Args:
            fresh: of each picture, what `find` said; tap name → values, all finite and never
                changed any more; its (width, height) in pixels.
        """
        items = [
            (key, values[name], size)
            for missing, values, size in fresh
            for name, key in missing.keys.items()
        ]
        try:
            restored = iter(self.store.put_all(items, later=True, checked=True))
        except ValueError as error:
            raise EngineError(f"The tower's output cannot be kept: {error}.") from error
        return [
            Kept(
                {name: next(restored) for name in missing.keys},
                {name: key.digest for name, key in missing.keys.items()},
            )
            for missing, _, _ in fresh
        ]

    def stats(self) -> StoreStats:
        """Counters of the store and of the second tier."""
        tensors = self.derived
        return replace(self.store.stats(), derived_hits=tensors.hits, derived_misses=tensors.misses)

    def _keys(self, source: str, frame: tuple[str, Frame] | None = None) -> dict[str, LazyKey]:
        """The keys of a picture; of a frame, those of its place in the video's file."""
        file, place = frame or (source, None)
        return {name: LazyKey(tap, file, place) for name, tap in self._taps.items()}

    @cached_property
    def _taps(self) -> dict[str, TapKeys]:
        dtype = self.store.options.dtype
        return {
            name: TapKeys(tap.identity, self.tower.variant, dtype, name)
            for name, tap in self.tower.taps.items()
        }
