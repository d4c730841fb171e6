"""Executes decode steps of decoders that read their picture as a prefix: one cache row per picture.

All sequences of a picture (beams, questions) are rows of one tree. The picture's prefix lies at the
start of the picture's cache row, and every token that any of its sequences is fed takes the next
slot behind it; a mask says which slots are the ancestors of which sequence. So the prefix, and
whatever sequences have in common, is stored once and read once, and beams change places without a
copy of keys or values.

Tokens are packed: in the order of the sequences, without gaps. Which slot a token takes depends on
its own picture's sequences alone, and not on the pictures beside it, so that results do not either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from primelens.decoding.session import Step, finite, too_long
from primelens.engine import Array, BoundCall, Graph
from primelens.manifest import DecoderSpec

__all__ = ["TreeSession", "tree_capacity", "tree_slots"]

_BLOCK = 32  # capacities are rounded up to it, so that sessions are used again
_HIDDEN = np.float32(-1e9)  # of a score in float32: its exponential is no number beside any other's
_LEAST = 2  # queries of a prefill: the engine multiplies a single row in another order


def tree_slots(prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
    """The most slots that one picture's sequences take behind the prefix.

    Args:
        prompts: what they start with; equal prompts are kept once.
        new_tokens: the most tokens that follow the prompts, of all sequences together.
    """
    return sum(len(prompt) for prompt in {tuple(prompt) for prompt in prompts}) + new_tokens


def tree_capacity(spec: DecoderSpec, slots: int) -> int:
    """Cache slots to allocate per picture, for ``slots`` behind the prefix."""
    return -(-(spec.prefix + max(slots, _LEAST)) // _BLOCK) * _BLOCK


@dataclass(frozen=True)
class _Packed:
    """Where the tokens of a step go: one entry per token, in the order of the rows.

    Attributes:
        row, column: its place in the step.
        picture, query: its place among the graph's inputs.
        slot: of its picture's cache.
        counts: ``[I]`` tokens per picture.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    picture: NDArray[np.int64]
    query: NDArray[np.int64]
    slot: NDArray[np.int64]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class _Buffers:
    """The inputs of a call whose shape depends on the number of queries Q."""

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    bias: NDArray[np.float32]


class TreeSession:
    """Buffers and bound calls for a fixed number of rows; `DecoderSession`'s counterpart.

    Args:
        graph: the decoder graph.
        spec: its sizes; ``prefix`` is not 0.
        rows: number of sequences R.
        capacity: cache slots per picture S, the prefix included.
        prefix: ``prefix_key.i``, ``prefix_value.i`` → ``[I, H, P, D]`` float32 buffer, I a divisor
            of R; `reset` takes up what is in them.
    """

    def __init__(
        self,
        graph: Graph,
        spec: DecoderSpec,
        *,
        rows: int,
        capacity: int,
        prefix: Mapping[str, Array],
    ) -> None:
        self._graph, self.spec, self.rows, self.capacity = graph, spec, rows, capacity
        self.prefix = prefix
        images = len(next(iter(prefix.values())))
        self._images, self._per = images, rows // images
        names = [f"{kind}.{layer}" for layer in range(spec.layers) for kind in ("key", "value")]
        shape = (images, spec.kv_heads, capacity, spec.head_dim)
        self._cache = {name: np.zeros(shape, np.float32) for name in names}
        self._past = np.zeros(rows, np.int64)  # tokens of every row
        self._filled = np.zeros(images, np.int64)  # slots of every picture
        self._mask = np.zeros((rows, capacity), np.float32)  # 0 at a row's ancestors
        self._seqlens = np.zeros(images, np.int32)
        self._queries = np.ones(images, np.int32)
        self._total = np.array(capacity, np.int32)
        self._logits_rows = np.zeros(rows, np.int64)
        self.logits = np.zeros((rows, spec.vocab_size), np.float32)
        self._buffers: dict[int, _Buffers] = {}
        self._calls: dict[int, BoundCall] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all sequences, and take up what stands in the prefix buffers."""
        length = self.spec.prefix
        for name, cache in self._cache.items():
            cache[:, :, :length] = self.prefix[f"prefix_{name}"]
        self._past[:] = 0
        self._filled[:] = length
        self._mask.fill(_HIDDEN)
        self._mask[:, :length] = 0

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``[R]`` tokens in each row's past, the prefix not counted (a copy)."""
        return self._past.copy()

    def run(self, step: Step) -> NDArray[np.float32]:
        """Feed one step to every row.

        Returns:
            ``[R, V]`` float32 logits after each row's last token: the session's own buffer,
            overwritten by the next call.

        Raises:
            PromptError: a row would grow beyond the capacity or the positions.
            EngineError: the logits are not finite.
        """
        packed, source = self._take_up(step)
        width = self._write(step, packed)
        last = np.zeros(self.rows, np.int64)
        last[packed.row] = packed.picture * width + packed.query  # the last of a row counts
        self._logits_rows[:] = last[source]
        self._call(width).run()
        self._advance(step, packed, source)
        return finite(self.logits)

    def run_all(self, step: Step) -> NDArray[np.float32]:
        """The same with logits after every token of the step: ``[N, V]``, by row, then by place."""
        packed, source = self._take_up(step)
        width = self._write(step, packed)
        rows = np.repeat(np.arange(self.rows), step.lengths)
        columns = np.concatenate([np.arange(n) for n in step.lengths])
        places = np.zeros(step.tokens.shape, np.int64)
        places[packed.row, packed.column] = packed.picture * width + packed.query
        logits = np.zeros((len(rows), self.spec.vocab_size), np.float32)
        self._bind(width, places[source[rows], columns], logits).run()
        self._advance(step, packed, source)
        return finite(logits)

    # One step -----------------------------------------------------------------------------------

    def _take_up(self, step: Step) -> tuple[_Packed, NDArray[np.int64]]:
        """Reorder, and pack the step's tokens; also ``[R]`` the row that is fed in a row's stead:
        sequences that begin alike share their tokens.
        """
        if step.parents is not None:
            self._mask, self._past = self._mask[step.parents], self._past[step.parents]
        source = np.arange(self.rows)
        lengths = step.lengths
        if self._per > 1 and not self._past.any():
            source = self._equal_prompts(step)
            lengths = np.where(source == np.arange(self.rows), lengths, 0)
        row = np.repeat(np.arange(self.rows), lengths)
        column = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        counts = lengths.reshape(self._images, self._per).sum(axis=1)
        picture = row // self._per
        query = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        slot = self._filled[picture] + query
        longest = int((self._past + step.lengths).max(initial=0))
        full = int((self._filled + counts).max())
        if full > self.capacity or longest > self.spec.max_positions or len(lengths) != self.rows:
            raise too_long(self.rows, longest, f"{self.capacity} slots a picture")
        return _Packed(row, column, picture, query, slot, counts), source

    def _equal_prompts(self, step: Step) -> NDArray[np.int64]:
        """``[R]`` the first row of the same picture that is fed the same tokens."""
        source = np.arange(self.rows)
        seen: dict[tuple[int, bytes], int] = {}
        for row, length in enumerate(step.lengths.tolist()):
            key = (row // self._per, step.tokens[row, :length].tobytes())
            source[row] = seen.setdefault(key, row)
        return source

    def _write(self, step: Step, packed: _Packed) -> int:
        """Fill the graph's inputs; returns the number of queries per picture."""
        # Steps always have as many queries as a picture has rows: a bound call serves all of them,
        # and no result depends on which rows of other pictures have ended.
        if step.tokens.shape[1] == 1 and self._past.any():
            width = self._per
        else:
            width = max(int(packed.counts.max()), _LEAST)
        if width not in self._buffers:
            shape = (self._images, width)
            bias = np.zeros((self._images, 1, width, self.capacity), np.float32)
            self._buffers[width] = _Buffers(
                np.zeros(shape, np.int64), np.zeros(shape, np.int64), bias
            )
        into, row, query = self._buffers[width], packed.row, packed.query
        tokens = step.tokens[row, packed.column]
        into.tokens[packed.picture, query] = tokens
        into.positions[packed.picture, query] = self._past[row] + packed.column
        # All the row's new slots are opened to each of its tokens; the operator is causal.
        self._mask[row, packed.slot] = 0
        into.bias[packed.picture, 0, query] = self._mask[row]
        # A picture without tokens still feeds one, into a slot that is not counted.
        fed = np.maximum(packed.counts, 1)
        start = np.minimum(self._filled, self.capacity - fed)
        self._seqlens[:] = start + fed - 1
        self._queries[:] = fed
        return width

    def _advance(self, step: Step, packed: _Packed, source: NDArray[np.int64]) -> None:
        self._filled += packed.counts
        self._past += step.lengths
        shared = np.flatnonzero(source != np.arange(self.rows))
        self._mask[shared] = self._mask[source[shared]]

    def _call(self, width: int) -> BoundCall:
        if width not in self._calls:
            self._calls[width] = self._bind(width, self._logits_rows, self.logits)
        return self._calls[width]

    def _bind(self, width: int, logits_rows: Array, logits: Array) -> BoundCall:
        into = self._buffers[width]
        inputs: dict[str, Array] = {
            "input_ids": into.tokens,
            "position_ids": into.positions,
            "seqlens_k": self._seqlens,
            "query_seqlens": self._queries,
            "total_sequence_length": self._total,
            "attention_bias": into.bias,
            "logits_rows": logits_rows,
            **{f"past_{name}": buffer for name, buffer in self._cache.items()},
        }
        outputs: dict[str, Array] = {
            "logits": logits,
            **{f"present_{name}": buffer for name, buffer in self._cache.items()},
        }
        return self._graph.bind(inputs, outputs)
