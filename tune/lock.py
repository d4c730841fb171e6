"""The lock: a tower that is guaranteed not to move while the text side is tuned.

Freezing parameters is not enough. ``model.train()`` switches a batch normalisation back to batch
statistics and lets its running ones drift, dropout comes back, and an optimiser that was made
earlier still holds the parameters. So a locked module stays in evaluation mode whatever its owner
says, and its content is digested before and compared after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType

import torch
from torch import nn

from primelens.errors import OptionError, PrimelensError

__all__ = [
    "Lock",
    "ParameterReport",
    "TowerMovedError",
    "content_digest",
    "lock",
    "locked",
    "parameter_report",
]


class TowerMovedError(PrimelensError):
    """A locked tower is not the one that was locked."""


class Lock:
    """A handle on a locked module.

    Args:
        module: what is locked.
        unlock: names of modules or parameters in it that stay free, with all that is below them.

    Attributes:
        digest: the content that was locked, see :func:`content_digest`; what is free is not in it.

    Raises:
        OptionError: nothing is called by one of the names.
    """

    def __init__(self, module: nn.Module, unlock: Sequence[str] = ()) -> None:
        self._module, self._free = module, tuple(unlock)
        names = {name for name, _ in [*module.named_modules(), *module.named_parameters()]}
        if unknown := sorted({*unlock} - names | {*unlock} & {""}):
            raise OptionError(
                f"The tower has no part named {', '.join(map(repr, unknown))}.",
                remedy=f"Its parts: {', '.join(name for name, _ in module.named_children())}.",
            )
        self._required = {name: p.requires_grad for name, p in module.named_parameters()}
        self._training = {name: part.training for name, part in module.named_modules()}
        self.digest = self._content()
        for name, parameter in module.named_parameters():
            if not self._is_free(name):
                parameter.requires_grad_(False)
                parameter.grad = None
        parts = dict(module.named_modules())
        for name, part in parts.items():
            if self._is_free(name):
                continue
            inside = f"{name}." if name else ""
            free = [parts[one] for one in unlock if one in parts and one.startswith(inside)]
            part.train = MethodType(_staying(free), part)
            part.training = False

    def _is_free(self, name: str) -> bool:
        return any(name == free or name.startswith(f"{free}.") for free in self._free)

    def _content(self) -> str:
        return content_digest(self._module, without=self._free)

    def check(self) -> None:
        """Compare the module with what was locked.

        Raises:
            TowerMovedError: if any weight or statistic changed, or the module left evaluation mode.
        """
        awake = [
            name or "itself"
            for name, part in self._module.named_modules()
            if part.training and not self._is_free(name)
        ]
        if awake:
            raise TowerMovedError(
                f"the locked tower left evaluation mode ({awake[0]}): something set .training "
                "by hand; statistics may have drifted"
            )
        found = self._content()
        if found != self.digest:
            raise TowerMovedError(
                f"the locked tower moved: its content was {self.digest[:12]} and is {found[:12]}. "
                "Kept embeddings no longer belong to it; an optimiser made before the lock may "
                "still hold its parameters"
            )

    def release(self) -> None:
        """Check, then give the module its former modes and gradients back."""
        try:
            self.check()
        finally:
            for name, part in self._module.named_modules():
                vars(part).pop("train", None)
                part.training = self._training[name]
            for name, parameter in self._module.named_parameters():
                parameter.requires_grad_(self._required[name])


def lock(module: nn.Module, unlock: Sequence[str] = ()) -> Lock:
    """Lock a module for good, or until :meth:`Lock.release`; arguments as of `Lock`."""
    return Lock(module, unlock)


@contextmanager
def locked(module: nn.Module, unlock: Sequence[str] = ()) -> Iterator[Lock]:
    """Lock a module for a block; its content is compared at the end.

    Raises:
        TowerMovedError: at the end of a block that went well but moved the module.
    """
    handle = Lock(module, unlock)
    try:
        yield handle
    except BaseException:
        # The block's own error says more than a moved tower would.
        try:
            handle.release()
        except TowerMovedError as moved:
            moved.__suppress_context__ = True
        raise
    handle.release()


@dataclass(frozen=True)
class ParameterReport:
    """What of a model is tuned.

    Attributes:
        locked, tuned: parameters, a shared one counted once.
        parts: name of a direct part → (locked, tuned).
    """

    locked: int
    tuned: int
    parts: dict[str, tuple[int, int]]


def parameter_report(model: nn.Module) -> ParameterReport:
    """Count what is locked and what is tuned, in all and part by part."""
    seen: set[int] = set()
    parts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        part = name.partition(".")[0]
        held, free = parts.get(part, (0, 0))
        size = parameter.numel()
        moves = parameter.requires_grad
        parts[part] = (held, free + size) if moves else (held + size, free)
    return ParameterReport(
        locked=sum(held for held, _ in parts.values()),
        tuned=sum(free for _, free in parts.values()),
        parts=parts,
    )


@torch.no_grad()
def content_digest(module: nn.Module, without: Sequence[str] = ()) -> str:
    """SHA-256 of all parameters and buffers of a module, as hexadecimal.

    Args:
        module: any.
        without: names of parts, parameters or buffers that are left out, with all below them.

    Over the sorted state names: the name, the shape, and the values widened to little-endian
    float32 (integers to int64), so a checkpoint stored in half precision and its widened copy
    have the same digest. float64 is digested as it is, for widening must not lose bits.
    """
    digest = hashlib.sha256()
    state = module.state_dict()
    for name in sorted(state):
        if any(name == part or name.startswith(f"{part}.") for part in without):
            continue
        value = state[name].detach().cpu().contiguous()
        if not value.is_floating_point():
            value = value.long()
        elif value.dtype != torch.float64:
            value = value.float()
        array = value.numpy()
        header = f"{name}\0{array.dtype.name}\0{','.join(map(str, array.shape))}\0"
        digest.update(header.encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _staying(free: Sequence[nn.Module]) -> Callable[..., nn.Module]:
    """``train`` of a locked module: it stays in evaluation mode, and passes on what is asked to the
    parts of it that are free.
    """

    def stay(part: nn.Module, mode: bool = True) -> nn.Module:
        for one in free:
            one.train(mode)
        return part

    return stay
