"""A checkpoint's weight files, read without ever running code from them.

safetensors files are preferred. A ``.bin`` file is a pickle: it is opened only through torch's
weights-only unpickler, which knows tensors and nothing else; a file that needs more is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from primelens.errors import CheckpointError
from primelens.identity import weights_digest
from primelens.manifest import plain_file_name

__all__ = ["WeightFiles", "find_weights"]

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_LOSSLESS = (torch.float32, torch.float16, torch.bfloat16)


def find_weights(folder: Path, problems: list[str]) -> WeightFiles | None:
    """The weight files of a checkpoint folder; findings are appended to ``problems``."""
    for name in _SINGLE:
        if (folder / name).is_file():
            return WeightFiles(folder, (name,))
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = _shards(index, problems)
            return WeightFiles(folder, shards) if shards else None
    problems.append(f"no weights: neither {' nor '.join(_SINGLE)}, whole or sharded")
    return None


def _shards(index: Path, problems: list[str]) -> tuple[str, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        problems.append(f"{index.name}: no valid index of shards ({error!r})")
        return ()
    before = len(problems)
    for name in names:
        if not isinstance(name, str) or not plain_file_name(name):
            problems.append(f"{index.name}: {name!r} is not a plain file name")
        elif not (index.parent / name).is_file():
            problems.append(f"{index.name}: the shard {name} is missing")
    return tuple(names) if len(problems) == before else ()


class WeightFiles(Mapping[str, NDArray[np.float32]]):
    """Tensor name → values widened to float32, read from disk one at a time.

    Tensors of other than floating-point type (position counters) are left out.
    """

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self._folder, self.names = folder, names
        self._places: dict[str, str] = {}
        self._pickled: dict[str, torch.Tensor] = {}
        self._problems: list[str] = []
        for name in names:
            self._index(name)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self._tensor(name).to(torch.float32).numpy()
        return array

    def check(self) -> str:
        """The digest of all tensors, once every value is known to be finite.

        Raises:
            CheckpointError: NaN, infinity or a type that float32 does not hold; names every tensor.
        """
        problems = list(self._problems)
        for name in self:
            tensor = self._tensor(name)
            if not bool(torch.isfinite(tensor).all()):
                count = int((~torch.isfinite(tensor)).sum())
                problems.append(f"{name}: {count} of {tensor.numel()} values are NaN or infinite")
        if problems:
            raise CheckpointError(
                f"The weights in {self._folder} cannot be exported:",
                remedy="Repair the training run that wrote them, or export an earlier checkpoint.",
                problems=problems,
            )
        return weights_digest(self)

    def _index(self, file: str) -> None:
        path = self._folder / file
        for name, dtype in self._listed(path):
            if dtype in _LOSSLESS:
                self._places[name] = file
            elif dtype.is_floating_point or dtype.is_complex:
                self._problems.append(f"{name}: {dtype} cannot be held in float32 without loss")

    def _listed(self, path: Path) -> list[tuple[str, torch.dtype]]:
        if path.suffix == ".bin":
            tensors = _unpickled(path)
            self._pickled |= tensors
            return [(name, tensor.dtype) for name, tensor in tensors.items()]
        try:
            with safe_open(path, framework="pt") as file:
                return [(name, _slice_dtype(file, name)) for name in file.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a readable safetensors file: {error}.",
                remedy="Fetch or save the checkpoint again.",
            ) from error

    def _tensor(self, name: str) -> torch.Tensor:
        if name in self._pickled:
            return self._pickled[name]
        with safe_open(self._folder / self._places[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


_SAFETENSORS_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}


def _slice_dtype(file: Any, name: str) -> torch.dtype:
    code = file.get_slice(name).get_dtype()
    if code.startswith(("F8", "F4", "F6")):
        return torch.float64  # reported as not lossless: it stands for scaled integers
    return _SAFETENSORS_DTYPES.get(code, torch.int64)


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # the unpickler raises a dozen unrelated classes
        raise CheckpointError(
            f"{path} is refused: it holds more than tensors, and loading it could run code "
            f"({type(error).__name__}).",
            remedy="Save the checkpoint as safetensors where it is trusted: "
            "model.save_pretrained(folder).",
        ) from error
    tensors = {name: value for name, value in dict(data).items() if torch.is_tensor(value)}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors.", remedy="Fetch or save the checkpoint again."
        )
    return tensors


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
