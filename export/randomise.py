"""Gives every parameter of a freshly made model a value that matters.

Freshly initialised weights make a nearly blind test: biases are zero, norms are one, and the text
repeats one token. Here matrices keep a variance that preserves scale; biases, norm weights and
positions get spread; attention in the decoder is sharp, so that the picture and the past steer the
text and greedy decoding wanders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["randomise"]

_TABLES = ("word_embeddings", "wte", "lm_head", "token_type", "embed_tokens", "output_projection")
_QUERY_OR_KEY = (".query.", ".key.", "q_attn", ".q_proj.", ".k_proj.")
_CROSS_OUT = (
    "crossattention.output.dense",
    "crossattention.c_proj",
    "encoder_attn.out_proj",
)
_BRANCH_OUT = ("c_proj", "output.dense", "out_proj", "fc2")
_LAYER = re.compile(r"\.(?:h|layer|layers)\.(\d+)\.")
_SMALL_WIDTH, _SMALL_DEPTH = 64, 3  # of a decoder that wanders as it is
_SHARP = 4.0  # spread of attention: scores vary enough for a state to choose what it looks at
_STRONG = 4.0  # how much larger token vectors are where positions are sinusoids
_TEXT = "decoder."  # what the names of a text decoder's parameters start with


@torch.no_grad()
def randomise(
    model: Any, seed: int, *, text: str | tuple[str, ...] = _TEXT, even: bool = False
) -> None:
    """Overwrite every parameter, and every running statistic, with seeded noise.

    Args:
        model: any transformers model with a tower and a text decoder.
        seed: same seed, same model: same values.
        text: prefix, or prefixes, of the text decoder's parameter names; everything else counts as
            the tower.
        even: damp a wide and deep text decoder so that it wanders like a small one. Otherwise the
            head predicts the token that was just read (the wider, the more), and what the layers
            add drowns the positions (the deeper, the more): texts of 12 layers stutter.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    scales = {
        f"{name}.weight": float(module.embed_scale)
        for name, module in model.named_modules()
        if hasattr(module, "embed_scale")
    }
    names = [name for name, _ in model.named_parameters() if name.startswith(text)]
    if not any("position" in name or "wpe" in name for name in names):
        # Sinusoids instead of a table: neighbouring ones are alike, so the text has to wander by
        # what was said last.
        tables = [name for name in names if "embed_tokens" in name]
        scales |= {name: scales.get(name, 1.0) / _STRONG for name in tables}
    if even:
        scales = _evened(model, text, scales)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        value = _randomised(name, parameter, noise, decoder=name.startswith(text))
        # A table whose rows are scaled up would drown the positions, and every text would stutter.
        parameter.copy_(value / scales.get(name, 1.0))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        elif name.endswith("final_logits_bias"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))


def _evened(
    model: Any, text: str | tuple[str, ...], scales: Mapping[str, float]
) -> dict[str, float]:
    """``scales`` with those of the decoder's tables and of what its layers add to the stream."""
    names = [name for name, _ in model.named_parameters() if name.startswith(text)]
    layers = {match.group(1) for name in names if (match := _LAYER.search(name))}
    evened = dict(scales)
    for name, parameter in model.named_parameters():
        if not name.startswith(text) or parameter.ndim != 2:
            continue
        if any(part in name for part in _TABLES):
            wider = max(1.0, (parameter.shape[1] / _SMALL_WIDTH) ** 0.5)
            evened[name] = evened.get(name, 1.0) * wider
        elif any(part in name for part in _BRANCH_OUT):
            evened[name] = max(1.0, len(layers) / _SMALL_DEPTH)
    return evened


def _randomised(name: str, parameter: torch.Tensor, noise: torch.Tensor, *, decoder: bool) -> Any:
    """Independent normal values, at the scale that fits the parameter's role."""
    if name.endswith("bias"):
        return (0.1 if decoder else 0.2) * noise
    if "norm" in name.lower() or "ln_" in name:
        return 1.0 + 0.2 * noise
    if "position" in name or "wpe" in name:
        return (2.0 if decoder else 0.5) * noise  # so that no two steps look alike
    if parameter.ndim < 2 or "_token" in name or any(part in name for part in _TABLES):
        return 0.5 * noise
    conv1d = ".c_" in name or "q_attn" in name  # stored [in, out]
    fan_in = parameter.shape[0] if conv1d else parameter[0].numel()
    weight = noise / fan_in**0.5
    if any(part in name for part in _CROSS_OUT):
        return 0.4 * weight  # else what the picture says drowns what the text says
    if decoder and any(part in name for part in _QUERY_OR_KEY):
        weight *= _SHARP
    elif decoder and "c_attn" in name:  # [query,] key and value side by side: all but value
        weight[:, : -parameter.shape[0]] *= _SHARP
    return weight
