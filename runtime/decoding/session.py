"""Executes decode steps: owns the KV cache, the cross-attention K/V and every buffer of a step.

All buffers are allocated and bound once per session. A session holds ``rows`` sequences over
``images`` pictures: row ``r`` reads the cross-attention K/V of picture ``r // (rows // images)``,
so that the beams or questions of one picture share one copy. The self-attention cache is written in
place: the same buffer is bound as past and as present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from primelens.engine import Array, BoundCall, Graph
from primelens.errors import EngineError, PromptError
from primelens.manifest import DecoderSpec

__all__ = ["DecoderSession", "Session", "Step", "capacity_for", "finite", "too_long"]

_BLOCK = 32  # capacities are rounded up to it, so that sessions are used again
_ALL = np.iinfo(np.int64).max  # a row shares all positions with itself


@dataclass(frozen=True)
class Step:
    """What every row is to be fed next.

    Attributes:
        tokens: ``[R, T]`` int64, padded on the right.
        lengths: ``[R]`` int64, how many of a row's T tokens count. 0 parks a finished row: it is
            computed with the others, but nothing of it is kept.
        parents: ``[R]`` int64, the row whose past each row continues (beams); None for its own.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    parents: NDArray[np.int64] | None = None


class Session(Protocol):
    """What executes the steps of a decode."""

    spec: DecoderSpec
    logits: NDArray[np.float32]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``[R]`` tokens in each row's past (a copy)."""

    def reset(self) -> None:
        """Forget all sequences; buffers stay."""

    def run(self, step: Step) -> NDArray[np.float32]:
        """Feed one step to every row: ``[R, V]`` logits after each row's last token."""

    def run_all(self, step: Step) -> NDArray[np.float32]:
        """The same with logits after every token of the step: ``[N, V]``, by row, then by place."""


def too_long(rows: int, longest: int, room: str) -> PromptError:
    """What is raised where sequences outgrow a session."""
    return PromptError(
        f"{rows} sequences of {longest} tokens do not fit a session of {room}.",
        remedy="Shorten the prompt or lower max_new_tokens.",
    )


def finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """``logits``, or an `EngineError` where they are not finite."""
    if not np.isfinite(logits.max()):
        raise EngineError(
            "The decoder's logits are not finite.",
            remedy="The weights or the picture's embedding hold NaN: run `primelens verify`.",
        )
    return logits


def capacity_for(tokens: int, spec: DecoderSpec) -> int:
    """Cache positions to allocate for sequences of up to ``tokens`` tokens."""
    return min(-(-tokens // _BLOCK) * _BLOCK, -(-spec.max_positions // _BLOCK) * _BLOCK)


class DecoderSession:
    """Buffers and bound calls for a fixed number of rows.

    Args:
        graph: the decoder graph.
        spec: its sizes.
        rows: number of sequences R.
        capacity: cache positions per row S.
        cross: cross-attention input name → ``[I, H, L, D]`` float32 buffer, I a divisor of R; they
            may be filled anew between sequences (`primelens.model` binds the connector's outputs to
            them).
    """

    def __init__(
        self,
        graph: Graph,
        spec: DecoderSpec,
        *,
        rows: int,
        capacity: int,
        cross: dict[str, Array],
    ) -> None:
        self._graph, self.spec, self.rows, self.capacity = graph, spec, rows, capacity
        self.cross = cross
        names = [f"{kind}.{layer}" for layer in range(spec.layers) for kind in ("key", "value")]
        shape = (len(names), rows, spec.kv_heads, capacity, spec.head_dim)
        self._memory = np.zeros(shape, np.float32)  # one block, so that a beam moves in one copy
        self._cache = dict(zip(names, self._memory, strict=True))
        self._past = np.zeros(rows, np.int64)
        # [R, R] positions from the start that two rows hold in common because one was copied from
        # the other or both from a third; made when rows are first reordered.
        self._shared: NDArray[np.int64] | None = None
        self._seqlens = np.zeros(rows, np.int32)
        self._total = np.zeros((), np.int32)
        self._logits_rows = np.zeros(rows, np.int64)
        self.logits = np.zeros((rows, spec.vocab_size), np.float32)
        self._inputs: dict[int, tuple[Array, Array]] = {}
        self._calls: dict[int, BoundCall] = {}

    def reset(self) -> None:
        """Forget all sequences; buffers stay."""
        self._past[:] = 0
        self._shared = None

    def beside(self, rows: int, cross: dict[str, Array]) -> DecoderSession:
        """Another session of the same graph and capacity, over other cross-attention buffers."""
        return DecoderSession(
            self._graph, self.spec, rows=rows, capacity=self.capacity, cross=cross
        )

    def adopt(self, rows: slice, other: DecoderSession) -> None:
        """Let these rows go on from what the rows of another session hold."""
        length = int(other._past.max())
        self._memory[:, rows, :, :length] = other._memory[:, :, :, :length]
        self._past[rows] = other._past

    def renew(self, rows: slice) -> None:
        """Forget the sequences of these rows; the others stay."""
        self._past[rows] = 0
        if self._shared is not None:
            self._shared[rows, :] = 0
            self._shared[:, rows] = 0
            np.fill_diagonal(self._shared, _ALL)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``[R]`` tokens in each row's past (a copy)."""
        return self._past.copy()

    def run(self, step: Step) -> NDArray[np.float32]:
        """Feed one step to every row.

        Returns:
            ``[R, V]`` float32 logits after each row's last token: the session's own buffer,
            overwritten by the next call.

        Raises:
            PromptError: a row would grow beyond the capacity.
            EngineError: the logits are not finite.
        """
        width = self._take_up(step)
        self._call(width).run()
        self._past += step.lengths
        return finite(self.logits)

    def run_all(self, step: Step) -> NDArray[np.float32]:
        """The same with logits after every token of the step: ``[N, V]``, by row, then by place."""
        width = self._take_up(step)
        rows = np.repeat(np.arange(self.rows), step.lengths)
        columns = np.concatenate([np.arange(n) for n in step.lengths])
        logits = np.zeros((len(rows), self.spec.vocab_size), np.float32)
        self._bind(width, rows * width + columns, logits).run()
        self._past += step.lengths
        return finite(logits)

    def _take_up(self, step: Step) -> int:
        """Reorder, and fill the graph's inputs; returns the number of tokens per row."""
        if step.parents is not None:
            self._reorder(step.parents)
        rows, width = len(step.tokens), int(step.tokens.shape[1])
        longest = int((self._past + np.maximum(step.lengths, 1)).max())
        if longest > self.capacity or rows != self.rows:
            raise too_long(rows, longest, f"{self.rows} x {self.capacity}")
        self._write(step, width)
        return width

    def _write(self, step: Step, width: int) -> None:
        tokens, positions = self._buffers(width)
        counted = np.maximum(step.lengths, 1)  # a parked row writes one slot that is never read
        tokens[:] = step.tokens
        np.add(self._past[:, None], np.arange(width), out=positions)
        np.minimum(positions, self.spec.max_positions - 1, out=positions)
        self._seqlens[:] = self._past + counted - 1
        self._total[...] = (self._past + counted).max()
        self._logits_rows[:] = np.arange(self.rows) * width + counted - 1

    def _buffers(self, width: int) -> tuple[Array, Array]:
        if width not in self._inputs:
            shape = (self.rows, width)
            self._inputs[width] = (np.zeros(shape, np.int64), np.zeros(shape, np.int64))
        return self._inputs[width]

    def _call(self, width: int) -> BoundCall:
        if width not in self._calls:
            self._calls[width] = self._bind(width, self._logits_rows, self.logits)
        return self._calls[width]

    def _bind(self, width: int, logits_rows: Array, logits: Array) -> BoundCall:
        tokens, positions = self._inputs[width]
        inputs = {
            "input_ids": tokens,
            "position_ids": positions,
            "seqlens_k": self._seqlens,
            "total_sequence_length": self._total,
            "logits_rows": logits_rows,
            **{f"past_{name}": buffer for name, buffer in self._cache.items()},
            **self.cross,
        }
        outputs = {
            "logits": logits,
            **{f"present_{name}": buffer for name, buffer in self._cache.items()},
        }
        return self._graph.bind(inputs, outputs)

    def _reorder(self, parents: NDArray[np.int64]) -> None:
        """Let row r continue row ``parents[r]``.

        Copied are changed rows only, and of them the filled positions that the two rows do not hold
        in common already: beams of one picture mostly differ in their last tokens alone.
        """
        changed = np.flatnonzero(parents != np.arange(self.rows))
        if not changed.size:
            return
        if self._shared is None:
            self._shared = np.zeros((self.rows, self.rows), np.int64)
            np.fill_diagonal(self._shared, _ALL)
        sources = parents[changed]
        moves = [
            (row, source, slice(self._shared[row, source], self._past[source]))
            for row, source in zip(changed.tolist(), sources.tolist(), strict=True)
        ]
        if np.isin(sources, changed).any():  # a row is read that is overwritten: read all before
            pieces = [self._memory[:, source, :, part].copy() for _, source, part in moves]
        else:
            pieces = [self._memory[:, source, :, part] for _, source, part in moves]
        for (row, _, part), piece in zip(moves, pieces, strict=True):
            self._memory[:, row, :, part] = piece
        self._past = self._past[parents]
        shared = self._shared[np.ix_(parents, parents)]
        self._shared = np.minimum(shared, self._past[:, None])
        np.fill_diagonal(self._shared, _ALL)
