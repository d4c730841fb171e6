"""What a training run is made of besides its loss: weights, their running mean, and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Run:
    """A module in training with AdamW, the running mean of its weights, and its last checkpoint.

    Attributes:
        step: optimiser steps done, those before an interruption included.
    """

    def __init__(self, path: Path, module: nn.Module, rate: float, weight_decay: float) -> None:
        """Go on from the checkpoint at ``path``, or begin."""
        self.step = 0
        self._path = path
        self._module = module
        self._rate = rate
        self._optimiser = torch.optim.AdamW(
            _groups(module, weight_decay), lr=rate, betas=(0.9, 0.98), fused=True
        )
        self._mean = {name: value.clone() for name, value in module.state_dict().items()}
        if path.is_file():
            self._resume()

    def update(self, loss: torch.Tensor, share: float, averaging: float) -> None:
        """One step at a share of the peak learning rate; gradients are clipped to norm 1.

        Args:
            loss: scalar.
            averaging: decay of the running mean; lower at first, so that it forgets the start.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate * share
        self._optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
        self._optimiser.step()
        self.step += 1
        decay = min(averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self._module.state_dict().items():
                if value.is_floating_point():
                    self._mean[name].lerp_(value, 1.0 - decay)
                else:
                    self._mean[name].copy_(value)

    def save(self) -> None:
        """Write a checkpoint; a reader sees the old one or the new one, never half of one."""
        temporary = self._path.with_name(self._path.name + ".new")
        torch.save(
            {
                "weights": self._module.state_dict(),
                "mean": self._mean,
                "optimiser": self._optimiser.state_dict(),
                "step": self.step,
            },
            temporary,
        )
        temporary.replace(self._path)

    def finish(self) -> None:
        """Give the module the running mean of its weights, and put it in evaluation mode."""
        self._module.load_state_dict(self._mean)
        self._module.eval()

    def _resume(self) -> None:
        saved = torch.load(self._path, weights_only=True)
        self._module.load_state_dict(saved["weights"])
        self._optimiser.load_state_dict(saved["optimiser"])
        self._mean = saved["mean"]
        self.step = int(saved["step"])


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Share of the peak learning rate: linear up, constant, linear down to 1 % from 70 % on."""
    if step < warm_up:
        return (step + 1) / warm_up
    return max(0.01, min(1.0, (1.0 - step / steps) / 0.3))


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one line of JSON to a log."""
    with path.open("a") as log:
        print(json.dumps(entry), file=log)


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices, kernels and tables decay; biases and norms do not."""
    decayed = [p for p in module.parameters() if p.ndim >= 2]
    rest = [p for p in module.parameters() if p.ndim < 2]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
