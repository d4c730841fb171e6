"""What a checkpoint without a tower says of the tower it was tuned on.

A text side may be tuned from kept embeddings alone. Its checkpoint is a folder as
``save_pretrained`` writes one for the *whole* model (``config.json``, ``generation_config.json``,
tokenizer, ``model.safetensors`` with the whole model's tensor names), but the tower's tensors may
be left out of the weights, and the image processor's settings too. In their place lies
``primelens_head.json``, which names the tower by its identity::

    {"format": "primelens-head",
     "format_version": 1,
     "tower_identity": "<sha256>",     of the tower at the tap, `primelens.identity`
     "tap": "last_hidden_state",
     "shape": [197, 768],              of the tap, without the batch
     "variant": "fp32",                how the tower computed what the head was tuned on
     "stored_dtype": "fp16",           what it was stored as in between
     "tower_family": "vit",            or null
     "preprocessing": {...}}           the complete specification, or null

`of_tap` makes it from a bundle's manifest, which is where the identity stands; tuning writes it,
``primelens add-head`` and ``swap-head`` read it. It is read as strictly as a manifest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from primelens.atomic import write_bytes
from primelens.errors import CheckpointError
from primelens.manifest import TowerSpec
from primelens.schema import decode, encode

__all__ = ["HEAD_FILE", "HEAD_FORMAT", "HEAD_FORMAT_VERSION", "TunedOn", "of_tap", "read", "write"]

HEAD_FILE = "primelens_head.json"
HEAD_FORMAT = "primelens-head"
HEAD_FORMAT_VERSION = 1

_DIGEST = re.compile(r"[0-9a-f]{64}")
_REMEDY = "Write the checkpoint again with primelens.tune, or add the tower's weights to it."


@dataclass(frozen=True)
class TunedOn:
    """The tower, and the state of its outputs, that a text side was tuned on.

    Attributes:
        tower_identity: hex SHA-256 of the tower at the tap.
        tap: the tap's name.
        shape: of the tap, without the batch.
        variant: precision and recipe of the tower's computation.
        stored_dtype: what the embeddings were stored as; "fp32" where they never were.
        tower_family: the tower family's registered name, where it is known.
        preprocessing: the complete specification, where it is known; it is part of the identity,
            and serves to say *what* differs from a bundle's tower.

    Raises:
        ValueError: the identity is no lower-case SHA-256, or the shape is not positive.
    """

    tower_identity: str
    tap: str
    shape: tuple[int, ...]
    variant: str = "fp32"
    stored_dtype: Literal["fp32", "fp16", "int8"] = "fp32"
    tower_family: str | None = None
    preprocessing: Mapping[str, Any] | None = None
    format: str = HEAD_FORMAT
    format_version: int = HEAD_FORMAT_VERSION

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.tower_identity):
            raise ValueError(
                f"tower_identity {self.tower_identity!r} is not a SHA-256 in lower-case hexadecimal"
            )
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape {list(self.shape)} is not the shape of a tap")
        if not self.tap or not self.variant:
            raise ValueError("tap or variant is empty")
        if (self.format, self.format_version) != (HEAD_FORMAT, HEAD_FORMAT_VERSION):
            raise ValueError(
                f"format {self.format!r}, version {self.format_version}; this primelens reads "
                f"{HEAD_FORMAT!r}, version {HEAD_FORMAT_VERSION}"
            )


def of_tap(
    tower: TowerSpec, tap: str, stored_dtype: Literal["fp32", "fp16", "int8"] = "fp32"
) -> TunedOn:
    """What a head says that was tuned on this tower of a bundle.

    Args:
        tower: ``manifest.tower`` of the bundle that encoded the pictures.
        tap: which of its taps.
        stored_dtype: what the embeddings were stored as.

    Raises:
        CheckpointError: the tower has no such tap.
    """
    if tap not in tower.taps:
        raise CheckpointError(
            f"The tower has no tap {tap!r} to tune on.", remedy=f"It has: {', '.join(tower.taps)}."
        )
    return TunedOn(
        tower_identity=tower.taps[tap].identity,
        tap=tap,
        shape=tower.taps[tap].shape,
        variant=tower.variant,
        stored_dtype=stored_dtype,
        tower_family=tower.family,
        preprocessing=dict(tower.preprocessing),
    )


def write(folder: Path, tuned_on: TunedOn) -> Path:
    """Write ``primelens_head.json`` into a checkpoint's folder; returns its path."""
    path = folder / HEAD_FILE
    text = json.dumps(encode(tuned_on), indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())
    return path


def read(folder: Path) -> TunedOn | None:
    """What a checkpoint says it was tuned on; None where it says nothing.

    Raises:
        CheckpointError: the file cannot be read, is malformed, or is newer than this primelens.
    """
    path = folder / HEAD_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", remedy=_REMEDY) from error
    problems: list[str] = []
    found = decode(TunedOn, data, where="head", problems=problems)
    if found is None:
        raise CheckpointError(f"{path} is malformed:", problems=problems, remedy=_REMEDY)
    return found
