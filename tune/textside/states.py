"""What the tower says about the pictures of a batch: run, or read where it was kept.

Kept features lie in the runtime's own store (`primelens.store`), filed under the tower's identity,
so that another run of the same tower finds them. Their variant says that PyTorch computed them:
its last bits differ from the engine's, and a hit must equal a miss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from primelens.errors import EngineError
from primelens.identity import tower_identity
from primelens.images import UndecodedImage, open_image
from primelens.options import CacheOptions
from primelens.preprocessing import Preprocessing
from primelens.schema import canonical_json
from primelens.store import EmbeddingStore, EntryKey, Hit
from primelens.tune.data.augmentation import Augmentation
from primelens.tune.data.example import IdentifiedImage
from primelens.tune.textside.lessons import Item
from primelens.tune.textside.recipe import Features
from primelens.tune.textside.seam import Tap

__all__ = ["TowerStates", "TowerView", "own_identity"]

_NONE = Augmentation()


@dataclass(frozen=True)
class TowerView:
    """A tower, at one tap, with what its pictures go through before it.

    Attributes:
        tower: locked, or locked but for some parts.
        identity: of the tower at the tap; of one that is partly unlocked, as it was at first.
    """

    tower: PreTrainedModel
    tap: Tap
    preprocessing: Preprocessing
    identity: str
    device: torch.device

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[B, 3, H, W]`` to the tap, ``[B, L, C]`` or ``[B, C]``."""
        with torch.no_grad():
            values: NDArray[np.float32] = self.alive(pixels).cpu().numpy()
        return values

    def alive(self, pixels: NDArray[np.float32]) -> torch.Tensor:
        """The same on the tower's device, with gradients for the parts that are unlocked."""
        output = self.tower(pixel_values=torch.from_numpy(pixels).to(self.device))
        states: torch.Tensor = output[self.tap]
        return states.float()

    @property
    def moves(self) -> bool:
        """Whether some part of the tower is tuned."""
        return any(parameter.requires_grad for parameter in self.tower.parameters())

    @property
    def variant(self) -> str:
        """How entries of the store were computed."""
        place = "" if self.device.type == "cpu" else f"-{self.device.type}"
        return f"torch-fp32{place}"


@dataclass(frozen=True)
class _Asked:
    """What is not kept: an item in an epoch, and its picture if it was opened already."""

    item: Item
    epoch: int
    picture: UndecodedImage | None = None


class TowerStates:
    """Pictures to states; asks the tower only for what is not kept.

    Args:
        view: the tower.
        features: where they are kept, if anywhere.
        changes: what is done to training pictures.

    Attributes:
        runs: pictures that the tower has looked at.
        reads: pictures that were found in the store.
    """

    def __init__(self, view: TowerView, features: Features, changes: Augmentation = _NONE) -> None:
        self.view, self.changes = view, changes
        self.runs = self.reads = 0
        self._batch = features.batch
        self._dtype = features.dtype
        self._sources: dict[str, str] = {}
        self._store: EmbeddingStore | None = None
        if features.keep is not None:
            options = CacheOptions(
                features.keep, dtype=features.dtype, cap_bytes=features.cap_bytes
            )
            self._store = EmbeddingStore(options)

    def __call__(
        self, items: Sequence[Item], epochs: Sequence[int], *, changed: bool
    ) -> torch.Tensor:
        """The states of a batch, ``[B, L, C]`` or ``[B, C]`` float32 on the tower's device.

        Args:
            items: whose pictures.
            epochs: of each, for the augmentation.
            changed: augment the pictures as for training.

        Raises:
            ImageError: a picture cannot be read.
            EngineError: the tower's output is not finite.
        """
        changes = self.changes if changed else _NONE
        if self.view.moves:
            return self._alive(items, epochs, changes)
        found: dict[int, NDArray[np.float32]] = {}
        missing: dict[int, _Asked] = {}
        for place, (item, epoch) in enumerate(zip(items, epochs, strict=True)):
            got = self._kept(item, epoch, changes)
            if isinstance(got, _Asked):
                missing[place] = got
            else:
                found[place] = got
            if len(missing) == self._batch:
                found |= self._run(missing, changes)
                missing = {}
        found |= self._run(missing, changes)
        stacked = np.stack([found[place] for place in range(len(items))])
        return torch.from_numpy(stacked).to(self.view.device)

    def close(self) -> None:
        """Record in the store what was used."""
        if self._store is not None:
            self._store.close()

    def _kept(self, item: Item, epoch: int, changes: Augmentation) -> NDArray[np.float32] | _Asked:
        """From the store; a picture whose digest is known is not even read."""
        if self._store is None:
            return _Asked(item, epoch)
        picture: UndecodedImage | None = None
        source = self._sources.get(item.example.image.name)
        if source is None and isinstance(item.example.image, IdentifiedImage):
            source = self._sources[item.example.image.name] = item.example.image.source
        if source is None:
            opened = open_image(item.example.image.read())
            assert isinstance(opened, UndecodedImage)  # it was given bytes
            picture = opened
            source = self._sources[item.example.image.name] = opened.digest
        found = self._store.get(self._key(source, item, epoch, changes))
        if not isinstance(found, Hit):
            return _Asked(item, epoch, picture)
        self.reads += 1
        return found.values

    def _run(
        self, asked: Mapping[int, _Asked], changes: Augmentation
    ) -> dict[int, NDArray[np.float32]]:
        """Look at pictures, and keep what was seen."""
        if not asked:
            return {}
        pixels, sizes = self._pixels(list(asked.values()), changes)
        values = list(self.view(pixels))
        self._check(all(np.isfinite(row).all() for row in values))
        self.runs += len(asked)
        if self._store is not None:
            keys = [
                self._key(self._sources[one.item.example.image.name], one.item, one.epoch, changes)
                for one in asked.values()
            ]
            values = self._store.put_all(list(zip(keys, values, sizes, strict=True)))
        return dict(zip(asked, values, strict=True))

    def _alive(
        self, items: Sequence[Item], epochs: Sequence[int], changes: Augmentation
    ) -> torch.Tensor:
        """Of a tower that moves, all at once: its statistics may be those of the batch."""
        asked = [_Asked(item, epoch) for item, epoch in zip(items, epochs, strict=True)]
        states = self.view.alive(self._pixels(asked, changes)[0])
        self._check(bool(torch.isfinite(states).all()))
        self.runs += len(asked)
        return states

    def _pixels(
        self, asked: Sequence[_Asked], changes: Augmentation
    ) -> tuple[NDArray[np.float32], list[tuple[int, int]]]:
        """Pictures as the tower takes them, and their sizes before."""
        spec = self.view.preprocessing
        pixels, sizes = [], []
        for one in asked:
            opened = one.picture or open_image(one.item.example.image.read())
            picture = opened.decode() if isinstance(opened, UndecodedImage) else opened
            sizes.append(picture.size)
            if not changes.steps:
                pixels.append(spec(picture))
                continue
            upright = picture.rgb(exif=spec.exif, alpha=spec.alpha)
            pixels.append(spec(changes(upright, one.item.example.id, one.epoch)))
        return np.stack(pixels), sizes

    def _check(self, finite: bool) -> None:
        if not finite:
            raise EngineError(
                f"The tower's output {self.view.tap!r} is not finite.",
                remedy="Its weights hold NaN, or its pictures need another preprocessing.",
            )

    def _key(self, source: str, item: Item, epoch: int, changes: Augmentation) -> EntryKey:
        if changes.steps:
            document = {
                "augmentation": changes.to_dict(),
                "picture": item.example.id,
                "source": source,
                "view": epoch % (changes.views or 1),
            }
            source = hashlib.sha256(canonical_json(document)).hexdigest()
        view = self.view
        return EntryKey(view.identity, view.variant, self._dtype, source, tap=view.tap)


def own_identity(tower: PreTrainedModel, tap: Tap, preprocessing: Preprocessing) -> str:
    """A tower's identity by its transformers names, for one that has no exporter.

    Kept features are then found again by the same class of the same version of transformers.
    """
    return tower_identity(
        family=f"transformers.{type(tower).__name__}",
        architecture=tower.config.to_diff_dict(),
        preprocessing=preprocessing.to_dict(),
        tap=tap,
        tensors={
            name: value.detach().cpu().float().numpy()
            for name, value in tower.state_dict().items()
            if value.is_floating_point()
        },
    )
