"""The lock: a tower that is guaranteed not to move while the text side is tuned.

Freezing parameters is not enough. ``model.train()`` switches a batch normalisation back to batch
statistics and lets its running ones drift, dropout comes back, and an optimiser that was made
earlier still holds the parameters. So a locked module stays in evaluation mode whatever its owner
says, and its content is digested before and compared after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import nn

from primelens.errors import PrimelensError


class TowerMovedError(PrimelensError):
    """A locked tower is not the one that was locked."""


class Lock:
    """A handle on a locked module.

    Attributes:
        digest: the content that was locked, see :func:`content_digest`.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._required = {name: p.requires_grad for name, p in module.named_parameters()}
        self._training = {name: part.training for name, part in module.named_modules()}
        self.digest = content_digest(module)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for part in module.modules():
            part.train = MethodType(_stay, part)  # type: ignore[method-assign]
            part.training = False

    def check(self) -> None:
        """Compare the module with what was locked.

        Raises:
            TowerMovedError: if any weight or statistic changed, or the module left evaluation mode.
        """
        awake = [name or "itself" for name, part in self._module.named_modules() if part.training]
        if awake:
            raise TowerMovedError(
                f"the locked tower left evaluation mode ({awake[0]}): something set .training "
                "by hand; statistics may have drifted"
            )
        found = content_digest(self._module)
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


def lock(module: nn.Module) -> Lock:
    """Lock a module for good, or until :meth:`Lock.release`."""
    return Lock(module)


@contextmanager
def locked(module: nn.Module) -> Iterator[Lock]:
    """Lock a module for a block; its content is compared at the end.

    Raises:
        TowerMovedError: at the end of a block that went well but moved the module.
    """
    handle = Lock(module)
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


@torch.no_grad()
def content_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers of a module, as hexadecimal.

    Over the sorted state names: the name, the shape, and the values widened to little-endian
    float32 (integers to int64), so a checkpoint stored in half precision and its widened copy
    have the same digest. float64 is digested as it is, for widening must not lose bits.
    """
    digest = hashlib.sha256()
    state = module.state_dict()
    for name in sorted(state):
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


def _stay(part: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001
    """``train`` of a locked module: stays in evaluation mode, whatever is asked."""
    return part
