"""What a bundle's locked tower says about drawn scenes, kept in one memory-mapped file.

The shipped bundle holds its tower as a graph only. That is all a text side needs: the runtime
encodes every picture once, and from then on no picture is drawn and no tower is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.atomic import write_bytes
from primelens.errors import InputError
from primelens.model import Model
from primelens.results import Failure
from primelens.tune.scenes.render import render
from primelens.tune.scenes.world import Split, scene

__all__ = ["KeptScenes", "SceneChoice", "keep_scenes", "open_scenes"]

_AT_ONCE = 32


@dataclass(frozen=True)
class SceneChoice:
    """Which scenes are kept, in which order.

    Attributes:
        split, seed: of the scenes.
        first: index of the first candidate.
        count: how many are kept.
        single: in every so many scenes one has a single group, whatever the stream has; 0 takes
            the stream as it comes. Naming one object needs them more than the stream has them.
    """

    split: Split = "train"
    first: int = 2_000_000
    count: int = 36_000
    single: int = 3
    seed: int = 0

    def indices(self) -> NDArray[np.int64]:
        """``[count]`` scene indices; the same for the same choice."""
        return np.fromiter(islice(self._walk(), self.count), np.int64, self.count)

    def _walk(self) -> Iterator[int]:
        index = self.first
        for place in range(self.count):
            alone = self.single > 0 and place % self.single == 0
            while alone and len(scene(self.split, index, self.seed).groups) != 1:
                index += 1
            yield index
            index += 1


@dataclass(frozen=True)
class KeptScenes:
    """Kept states, and of which scenes they are.

    Attributes:
        states: ``[count, L, C]`` float16, read-only, on disk.
        indices: ``[count]`` int64, scene indices.
        identity: of the tower at the tap that was kept.
    """

    states: NDArray[np.float16]
    indices: NDArray[np.int64]
    identity: str
    choice: SceneChoice


def keep_scenes(folder: Path, model: Model, choice: SceneChoice, tap: str) -> KeptScenes:
    """Encode the chosen scenes once; go on where an earlier call stopped.

    Args:
        folder: made if it is absent; gets ``states.npy``, ``indices.npy`` and ``states.json``.
        model: the bundle whose tower looks.
        choice: the scenes.
        tap: which of its taps is kept.

    Raises:
        InputError: the folder holds the states of another tower or choice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = model.manifest.tower.taps[tap]
    note = {"identity": spec.identity, "tap": tap, "choice": asdict(choice), "done": 0}
    found = _read_note(folder)
    mode = "w+" if found is None else "r+"
    if found is not None:
        if {**found, "done": 0} != note:
            raise InputError(
                f"{folder} holds the states of another tower or of other scenes.",
                remedy="Give another folder, or remove it.",
            )
        note = found
    else:
        np.save(folder / "indices.npy", choice.indices())
    indices = np.load(folder / "indices.npy")
    states = np.lib.format.open_memmap(
        folder / "states.npy", mode=mode, dtype=np.float16, shape=(choice.count, *spec.shape)
    )
    for start in range(int(str(note["done"])), choice.count, _AT_ONCE):
        rows = indices[start : start + _AT_ONCE]
        states[start : start + len(rows)] = _encode(model, choice, rows.tolist(), tap)
        if start // _AT_ONCE % 32 == 31 or start + len(rows) == choice.count:
            states.flush()
            note["done"] = start + len(rows)
            write_bytes(folder / "states.json", json.dumps(note).encode())
    return open_scenes(folder)


def open_scenes(folder: Path) -> KeptScenes:
    """What `keep_scenes` has kept so far.

    Raises:
        InputError: nothing is kept there.
    """
    note = _read_note(folder)
    if note is None:
        raise InputError(f"{folder} holds no kept scenes.", remedy="Keep some with keep_scenes.")
    done = int(note["done"])
    return KeptScenes(
        states=np.load(folder / "states.npy", mmap_mode="r")[:done],
        indices=np.load(folder / "indices.npy")[:done],
        identity=note["identity"],
        choice=SceneChoice(**note["choice"]),
    )


def _read_note(folder: Path) -> dict[str, Any] | None:
    path = folder / "states.json"
    if not path.is_file():
        return None
    note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return note


def _encode(
    model: Model, choice: SceneChoice, indices: Sequence[int], tap: str
) -> NDArray[np.float16]:
    pictures = [render(scene(choice.split, index, choice.seed)) for index in indices]
    rows = []
    for encoded in model.encode_batch(pictures, batch_size=len(pictures)):
        if isinstance(encoded, Failure):  # a drawn picture can be read
            raise encoded.error
        rows.append(encoded.taps[tap])
    return np.stack(rows).astype(np.float16)
