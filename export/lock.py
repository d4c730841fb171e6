"""What a checkpoint is made of, by digest; and whether tuning left its tower as it was.

`identify` computes what a bundle declares, from the checkpoint alone. `compare_towers` compares two
checkpoints tensor by tensor, upstream of the taps: weights, and the running statistics that a tower
in training mode goes on changing although nothing of it is trained. Either checkpoint may be a
whole model, or the bare image tower that tuning started from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

import primelens.towers  # noqa: F401 - registers its classes with transformers
from primelens.errors import CheckpointError, UnsupportedError
from primelens.export.checkpoint import open_checkpoint, read_config, read_preprocessor
from primelens.export.quiet import quiet_transformers
from primelens.export.registry import TowerSplit, supported, tower_family
from primelens.export.weight_files import find_weights
from primelens.identity import tower_identity, weights_digest
from primelens.processor_config import from_processor_config
from primelens.schema import canonical_json

__all__ = ["Identities", "LockReport", "Moved", "compare_towers", "identify"]


@dataclass(frozen=True)
class Identities:
    """Digests (hex SHA-256) of a checkpoint's parts.

    Attributes:
        name: the checkpoint.
        tower_family: who knows its tower.
        tower: of the tower's weights upstream of any tap, under canonical names.
        preprocessing: of the complete specification; None where the checkpoint has none.
        taps: tap name → identity, what kept embeddings are filed under; empty without
            preprocessing, which is part of it.
        heads: head name → digest of all its weights; empty for a bare tower.
        source: of all the checkpoint's tensors.
    """

    name: str
    tower_family: str
    tower: str
    preprocessing: str | None
    taps: Mapping[str, str]
    heads: Mapping[str, str]
    source: str


@dataclass(frozen=True)
class Moved:
    """A tensor that is not bit-identical.

    Attributes:
        name: its canonical name.
        values: how many of its values differ, of how many.
        largest: the largest absolute difference; 0 where only signs of zero differ.
        relative: RMS of the difference over the RMS of the base's values.
    """

    name: str
    values: tuple[int, int]
    largest: float
    relative: float


@dataclass(frozen=True)
class LockReport:
    """Whether a tuned checkpoint has its base's tower.

    Attributes:
        base, tuned: the checkpoints.
        compared: tensors that were compared.
        moved: those that differ, the most moved first.
        differences: whatever else differs: tensors of one side alone, shapes, architecture,
            preprocessing.
        notes: what was not compared, and why.
    """

    base: str
    tuned: str
    compared: int
    moved: tuple[Moved, ...] = ()
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def locked(self) -> bool:
        """Whether kept embeddings of the base are right for the tuned model."""
        return not self.moved and not self.differences


@dataclass(frozen=True)
class _Source:
    """A checkpoint as far as it matters here."""

    name: str
    family: str
    tower: TowerSplit
    preprocessing: Mapping[str, Any] | None
    digest: str
    heads: Mapping[str, str] = field(default_factory=dict)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Canonical name → values, upstream of any tap."""
        return {
            name: tensor.numpy()
            for tensors in self.tower.taps.values()
            for name, tensor in tensors.items()
        }


def identify(folder: str | Path) -> Identities:
    """The digests of a checkpoint's parts.

    Args:
        folder: a whole model, or a bare image tower.

    Raises:
        CheckpointError: it is incomplete, cannot be loaded, or has no exporter.
    """
    source = _open(Path(folder))
    taps, preprocessing = {}, None
    if source.preprocessing is not None:
        taps = {tap: _identity(source, source.preprocessing, tap) for tap in source.tower.taps}
        document = canonical_json(dict(source.preprocessing))
        preprocessing = hashlib.sha256(document).hexdigest()
    return Identities(
        name=source.name,
        tower_family=source.family,
        tower=weights_digest(source.tensors()),
        preprocessing=preprocessing,
        taps=taps,
        heads=source.heads,
        source=source.digest,
    )


def compare_towers(base: str | Path, tuned: str | Path) -> LockReport:
    """Compare the towers of two checkpoints, bit by bit.

    Args:
        base: what tuning started from: a whole model, or a bare image tower.
        tuned: what came out of it.

    Raises:
        CheckpointError: one of them is incomplete, cannot be loaded, or has no exporter.
    """
    old, new = _open(Path(base)), _open(Path(tuned))
    before, after = old.tensors(), new.tensors()
    moved, shared = [], sorted(before.keys() & after.keys())
    differences = _structure(old, new)
    differences += [f"{name}: only in {old.name}" for name in sorted(before.keys() - after.keys())]
    differences += [f"{name}: only in {new.name}" for name in sorted(after.keys() - before.keys())]
    for name in shared:
        one, other = before[name], after[name]
        if one.shape != other.shape:
            shapes = f"{list(one.shape)} in {old.name}, {list(other.shape)} in {new.name}"
            differences.append(f"{name}: {shapes}")
        elif (change := _change(name, one, other)) is not None:
            moved.append(change)
    notes, different = _preprocessing(old, new)
    return LockReport(
        base=old.name,
        tuned=new.name,
        compared=len(shared),
        moved=tuple(sorted(moved, key=lambda change: -change.relative)),
        differences=tuple(differences + different),
        notes=tuple(notes),
    )


def _change(name: str, one: NDArray[Any], other: NDArray[Any]) -> Moved | None:
    bits = [np.ascontiguousarray(array, np.float32).view(np.uint32) for array in (one, other)]
    count = int(np.count_nonzero(bits[0] != bits[1]))
    if not count:
        return None
    difference = other.astype(np.float64) - one
    size = float(np.sqrt(np.square(one.astype(np.float64)).mean()))
    rms = float(np.sqrt(np.square(difference).mean()))
    largest = float(np.abs(difference).max())
    return Moved(name, (count, one.size), largest, rms / size if size else float(rms > 0))


def _structure(old: _Source, new: _Source) -> list[str]:
    if old.family != new.family:
        return [f"the towers are of different families: {old.family}, {new.family}"]
    return _fields("architecture", old.tower.architecture, new.tower.architecture)


def _preprocessing(old: _Source, new: _Source) -> tuple[list[str], list[str]]:
    """Notes and differences."""
    if old.preprocessing is None or new.preprocessing is None:
        lacking = " and ".join(s.name for s in (old, new) if s.preprocessing is None)
        return [f"preprocessing was not compared: {lacking} has none"], []
    return [], _fields("preprocessing", old.preprocessing, new.preprocessing)


def _fields(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{what}, {key}: {old.get(key)!r} became {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _identity(source: _Source, preprocessing: Mapping[str, Any], tap: str) -> str:
    return tower_identity(
        family=source.family,
        architecture=source.tower.architecture,
        preprocessing=preprocessing,
        tap=tap,
        tensors={name: tensor.numpy() for name, tensor in source.tower.taps[tap].items()},
    )


def _open(folder: Path) -> _Source:
    problems: list[str] = []
    raw = read_config(folder, problems)
    if raw is not None and raw.get("model_type") in supported()["towers"]:
        return _open_tower(folder, raw)
    checkpoint = open_checkpoint(folder)  # which reports what is missing, all at once
    split = checkpoint.family.split(checkpoint.model)
    return _Source(
        name=checkpoint.name,
        family=split.tower_family,
        tower=split.tower,
        preprocessing=checkpoint.preprocessing.to_dict(),
        digest=checkpoint.digest,
        heads={
            name: weights_digest({key: tensor.numpy() for key, tensor in head.tensors.items()})
            for name, head in split.heads.items()
        },
    )


def _open_tower(folder: Path, raw: Mapping[str, Any]) -> _Source:
    """A bare image tower, as ``save_pretrained`` writes it, in whatever wrapping class."""
    problems: list[str] = []
    weights = find_weights(folder, problems)
    unread: list[str] = []
    settings = read_preprocessor(folder, unread)
    problems += [problem for problem in unread if not problem.endswith(" is missing")]
    if "auto_map" in raw:
        problems.append("config.json: auto_map asks for code from outside transformers")
    if problems or weights is None:
        raise CheckpointError(
            f"The image tower {folder} is incomplete or cannot be used:",
            remedy="Save the model with save_pretrained.",
            problems=problems,
        )
    family = tower_family(raw["model_type"])
    with quiet_transformers():
        digest = weights.check()
        model = _load_tower(folder)
    if gaps := family.gaps(model.config):
        raise UnsupportedError(f"The tower {folder} asks for what is not known:", problems=gaps)
    return _Source(
        name=folder.resolve().name,
        family=family.name,
        tower=family.split(model),
        preprocessing=None if settings is None else from_processor_config(settings).to_dict(),
        digest=digest,
    )


def _load_tower(folder: Path) -> Any:
    try:
        loaded: Any = transformers.AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many unrelated classes
        raise CheckpointError(
            f"transformers {transformers.__version__} cannot load {folder}: {error}",
            remedy="Check that the weights belong to its config.json.",
        ) from error
    model, report = loaded
    missing = [name for name in sorted(report["missing_keys"]) if "pooler." not in name]
    if missing:
        raise CheckpointError(
            f"The weights in {folder} do not fill the tower that config.json describes:",
            remedy="Check that the weights belong to this config.json.",
            problems=[f"{name}: would be left random" for name in missing],
        )
    return model.eval().requires_grad_(False)
