"""How the tuned weights move: optimiser, learning rate, adapters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from primelens.errors import DependencyError, OptionError
from primelens.tune.textside.recipe import Lora, Optimiser

__all__ = ["add_adapters", "make_optimiser", "merge_adapters", "share_of_rate"]


def make_optimiser(module: nn.Module, choice: Optimiser) -> torch.optim.Optimizer:
    """Over everything that is tuned; matrices and tables decay, biases and norms do not."""
    tuned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in tuned if p.ndim >= 2], "weight_decay": choice.weight_decay},
        {"params": [p for p in tuned if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if choice.name == "adafactor":
        return torch.optim.Adafactor(groups, lr=choice.rate)
    return torch.optim.AdamW(groups, lr=choice.rate, betas=(choice.betas[0], choice.betas[1]))


def share_of_rate(step: int, steps: int, choice: Optimiser) -> float:
    """Share of the peak learning rate at a step: a line up, then half a cosine down."""
    if step < choice.warm_up:
        return (step + 1) / choice.warm_up
    way = (step - choice.warm_up) / max(1, steps - choice.warm_up)
    return choice.last_share + (1 - choice.last_share) * 0.5 * (1 + math.cos(math.pi * way))


def add_adapters(module: nn.Module, choice: Lora) -> Any:
    """Freeze a text side and put adapters beside its layers; returns what `merge_adapters` takes.

    Raises:
        DependencyError: peft is not installed.
        OptionError: no layer has one of the names.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ModuleNotFoundError as error:
        raise DependencyError(
            "Adapters need the package 'peft', which is not installed.",
            remedy="Run `pip install 'primelens[lora]'`.",
        ) from error
    settings = LoraConfig(
        r=choice.rank,
        lora_alpha=choice.alpha,
        lora_dropout=choice.dropout,
        target_modules=list(choice.targets),
        # GPT-2's layers hold their weights transposed.
        fan_in_fan_out=any(type(part).__name__ == "Conv1D" for part in module.modules()),
    )
    names = [name for name, _ in module.named_modules()]
    if absent := [t for t in choice.targets if not any(name.endswith(t) for name in names)]:
        raise OptionError(
            f"lora.targets: the text side has no layer named {', '.join(absent)}.",
            remedy=f"Its layers end in {', '.join(sorted({n.rpartition('.')[2] for n in names}))}.",
        )
    return LoraModel(module, settings, "default")


def merge_adapters(adapted: Any) -> nn.Module:
    """The text side with its adapters added into its weights; an ordinary module again."""
    merged: nn.Module = adapted.merge_and_unload()
    return merged
