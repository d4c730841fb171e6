"""What tuning minimises: pure functions of scores, each checked against a derivation in float64.

Sources: locked-image tuning (Zhai et al. 2022) and its sigmoid variant (Zhai et al. 2023), with the
constants of their official code: embeddings are divided by ``norm + 1e-8``, the temperature is kept
as its logarithm and starts at 10, the sigmoid's bias starts at -2.71.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as distributed
import torch.nn.functional as F

__all__ = [
    "LOG_SCALE_START",
    "SIGMOID_BIAS_START",
    "gathered",
    "lit_loss",
    "matching_loss",
    "normalised",
    "siglip_loss",
    "token_loss",
]

LOG_SCALE_START = math.log(10.0)
SIGMOID_BIAS_START = -2.71
_EPSILON = 1e-8


def token_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, smoothing: float = 0.0, tokens: int | None = None
) -> torch.Tensor:
    """Cross-entropy of the labels, in float32; captions and answers alike.

    Args:
        logits: ``[B, T, V]``; those at place t speak of the label at place t.
        labels: ``[B, T]`` int64; -100 is not learned: padding, and a question in front of its
            answer.
        smoothing: share of the target that is spread evenly over the vocabulary.
        tokens: what to divide the sum by; the number of labels here if not given. An accumulated
            or a distributed batch divides every part by the tokens of the whole, else short parts
            would count more.

    Returns:
        A scalar, float32.
    """
    flat, wanted = logits.float().flatten(0, 1), labels.flatten()
    count = int((wanted != -100).sum()) if tokens is None else tokens
    total = F.cross_entropy(flat, wanted, reduction="sum", label_smoothing=smoothing)
    return total / max(1, count)


def normalised(embeddings: torch.Tensor) -> torch.Tensor:
    """``[N, D]`` divided by their length plus 1e-8, in float32."""
    wide = embeddings.float() if embeddings.dtype != torch.float64 else embeddings
    lengths: torch.Tensor = wide.norm(dim=1, keepdim=True)
    return wide / (lengths + _EPSILON)


def lit_loss(
    image: torch.Tensor, text: torch.Tensor, log_scale: torch.Tensor, *, everywhere: bool = False
) -> torch.Tensor:
    """Contrastive softmax loss, in both directions: row i of both sides belongs together.

    Args:
        image, text: embeddings ``[B, D]``, of any length.
        log_scale: scalar; the scores are ``exp(log_scale)`` times the cosine.
        everywhere: compare with the batches of all processes. Each process then returns the loss
            of its own rows; the mean over processes is the loss of the whole batch, and so are
            gradients that are averaged over processes.

    Returns:
        A scalar.
    """
    image, text = normalised(image), normalised(text)
    images, texts, first = _others(image, text, everywhere)
    wanted = torch.arange(len(image), device=image.device) + first
    scale = log_scale.exp()
    to_text = F.cross_entropy(scale * image @ texts.T, wanted)
    to_image = F.cross_entropy(scale * text @ images.T, wanted)
    return 0.5 * (to_text + to_image)


def siglip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    log_scale: torch.Tensor,
    bias: torch.Tensor,
    *,
    everywhere: bool = False,
) -> torch.Tensor:
    """Sigmoid loss: every pair is judged by itself; the sum over a picture's texts, mean over rows.

    Args:
        image, text: embeddings ``[B, D]``.
        log_scale: scalar, as of `lit_loss`.
        bias: scalar, added to every score; starts negative because most pairs do not belong
            together.
        everywhere: as of `lit_loss`.

    Returns:
        A scalar.
    """
    image, text = normalised(image), normalised(text)
    _, texts, first = _others(image, text, everywhere)
    scores = log_scale.exp() * image @ texts.T + bias
    own = torch.arange(len(image), device=image.device)
    sign = -torch.ones_like(scores)
    sign[own, own + first] = 1.0
    return -F.logsigmoid(sign * scores).sum(dim=1).mean()


def matching_loss(logits: torch.Tensor, belongs: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of "this text belongs to this picture".

    Args:
        logits: ``[N]``.
        belongs: ``[N]`` bool.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), belongs.float())


class _Gather(torch.autograd.Function):
    """Rows of all processes in the order of their ranks; gradients flow back to their process."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        ctx.rows = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        # Every process's loss reads these rows, so what each of them says is summed.
        gradient = gradients[0].contiguous()
        distributed.all_reduce(gradient)
        first = distributed.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows]


def gathered(rows: torch.Tensor) -> torch.Tensor:
    """``[B, D]`` of every process as ``[processes * B, D]``; B must be the same for all."""
    result: torch.Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return result


def _others(
    image: torch.Tensor, text: torch.Tensor, everywhere: bool
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """All rows to be compared with, and the place of the first own one among them."""
    if not everywhere:
        return image, text, 0
    return gathered(image), gathered(text), distributed.get_rank() * len(image)
