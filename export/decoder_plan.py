"""A transformer text decoder, described: what a family hands to the graph builder.

The description covers decoders made of a token and position embedding, layers of causal
self-attention, optional cross-attention to one image, and a feed-forward block, each with a
residual connection and a layer normalisation before (GPT-2) or after it (BERT), and a
language-model head that may share the embedding. Positions are a table that is added to the tokens,
or a bias that self-attention has for how far apart two tokens are (T5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Activation",
    "CrossAttention",
    "DecoderPlan",
    "Embedding",
    "FeedForward",
    "Layer",
    "Linear",
    "LmHead",
    "Norm",
    "RelativeBias",
    "SelfAttention",
    "Stack",
    "stack",
]

Array = NDArray[np.float32]

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "quick_gelu"]


@dataclass(frozen=True)
class Linear:
    """``x @ weight + bias``; ``weight [in, out]`` may be a transposed view."""

    weight: Array
    bias: Array | None = None


@dataclass(frozen=True)
class Norm:
    """Layer normalisation over the last axis.

    Attributes:
        centred: the mean is subtracted; else values are divided by their root mean square alone.
    """

    weight: Array
    bias: Array | None
    epsilon: float
    centred: bool = True


@dataclass(frozen=True)
class SelfAttention:
    """Causal self-attention: ``qkv [C, 3·H·D]`` packs query, key and value in this order."""

    qkv: Linear
    out: Linear
    scale: float
    norm: Norm


@dataclass(frozen=True)
class CrossAttention:
    """Attention to the image: ``key`` and ``value`` belong to the connector."""

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    scale: float
    norm: Norm


@dataclass(frozen=True)
class FeedForward:
    """``down(activation(up(x)))``, or ``down(activation(gate(x)) · up(x))`` with a gate."""

    up: Linear
    down: Linear
    activation: Activation
    norm: Norm
    gate: Linear | None = None


@dataclass(frozen=True)
class Layer:
    """One layer, its blocks in the order they run; each block names its own normalisation."""

    self_attention: SelfAttention
    cross_attention: CrossAttention | None
    feed_forward: FeedForward


@dataclass(frozen=True)
class Embedding:
    """``norm(scale · tokens[id] + positions[p])``.

    Attributes:
        tokens: ``[V, C]``.
        positions: ``[P, C]``, any offset cut off and any constant (token type) added in; None where
            nothing is added to the tokens.
        scale: factor on the token's vector.
        norm: normalisation of the sum, or None.
        padding: id of a token that takes no place: it has the vector `unplaced` instead of a
            position, and those after it in the same call count on as if it were not there. None
            where every token takes its place.
        unplaced: ``[C]``, with `padding` only.
    """

    tokens: Array
    positions: Array | None
    scale: float = 1.0
    norm: Norm | None = None
    padding: int | None = None
    unplaced: Array | None = None


@dataclass(frozen=True)
class LmHead:
    """``x → logits``.

    Attributes:
        weight: ``[V, C]``; the very array of `Embedding.tokens` where they are tied.
        bias: ``[V]`` or None.
        transform: a dense layer before it (BERT), with its activation and normalisation.
        scale: factor on the states before the product.
    """

    weight: Array
    bias: Array | None = None
    transform: tuple[Linear, Activation, Norm] | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class RelativeBias:
    """What self-attention adds to the score of a query at place i and a key at place j, in every
    layer alike: ``table[clip(j - i + zero, 0, N - 1)]``, a value for each head.

    Attributes:
        table: ``[N, H]``.
        zero: row of a query's own place.
        longest: sequence that is to be decoded; distances themselves have no end.
    """

    table: Array
    zero: int
    longest: int


@dataclass(frozen=True)
class Stack:
    """An embedding and layers on top of it.

    Attributes:
        norm_first: normalisations stand before their blocks, inside the residual branch (GPT-2).
        final_norm: after the last layer, or None.
        relative: bias of self-attention, or None.
    """

    embedding: Embedding
    layers: tuple[Layer, ...]
    heads: int
    head_dim: int
    norm_first: bool
    final_norm: Norm | None
    relative: RelativeBias | None = field(default=None, kw_only=True)

    @property
    def max_positions(self) -> int:
        """Rows of the position table; where there is none, the longest sequence."""
        if self.embedding.positions is not None:
            return int(self.embedding.positions.shape[0])
        if self.relative is None:
            raise ValueError("nothing says where a token stands")
        return self.relative.longest


@dataclass(frozen=True)
class DecoderPlan(Stack):
    """The whole decoder."""

    lm_head: LmHead

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return int(self.lm_head.weight.shape[0])


def stack(*linears: Linear) -> Linear:
    """Linears over the same input as one, outputs side by side; a missing bias counts as zeros."""
    weight = np.concatenate([linear.weight for linear in linears], axis=1)
    if all(linear.bias is None for linear in linears):
        return Linear(weight)
    biases = [
        np.zeros(linear.weight.shape[1], np.float32) if linear.bias is None else linear.bias
        for linear in linears
    ]
    return Linear(weight, np.concatenate(biases))
