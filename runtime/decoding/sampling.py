"""Draws tokens at random, by a generator whose numbers belong to one picture's one sequence.

The numbers come from Philox, a counter-based generator, keyed by the seed, the picture's digest and
the number of the sequence; a sequence takes one number per token. So what is drawn for a picture
depends neither on its companions in the batch nor on its place there, and can be drawn again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from primelens.decoding.search import Continuation, Controls, Greedy, Limits

__all__ = ["Sampling", "stream_of"]


def stream_of(seed: int, picture: str, number: int) -> np.random.Generator:
    """The random numbers of one sequence.

    Args:
        seed: the caller's.
        picture: the picture's digest.
        number: which of the picture's sequences.
    """
    digest = hashlib.sha256(f"{seed}\n{picture}\n{number}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


class Sampling(Greedy):
    """Every row's next token drawn from the softmax of its processed scores.

    Args:
        prompts: one per row; the rows of one picture lie side by side.
        limits: when rows end; one entry of ``max_new_tokens`` per row.
        streams: one generator per row.
        controls: what else is obeyed, warpers such as top-k among the processors.
        per_picture: rows that continue the same picture: the first is the result, the rest its
            ``others``, in the order in which they are numbered.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        streams: Sequence[np.random.Generator],
        controls: Controls = Controls(),  # noqa: B008 - frozen, hence safe to share
        per_picture: int = 1,
    ) -> None:
        super().__init__(prompts, limits, controls)
        self._streams = streams
        self._firsts = self._rows[::per_picture]
        for number, first in enumerate(self._firsts):
            start = number * per_picture
            first.others = self._rows[start + 1 : start + per_picture]

    @property
    def results(self) -> Sequence[Continuation]:
        return self._firsts

    def _choose(self, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        chosen = np.full(len(scores), self._limits.pad_token, np.int64)
        self._demand_choice(scores.max(axis=1))
        for row, result in enumerate(self._rows):
            if result.finish_reason is None:
                chosen[row] = draw(scores[row], self._streams[row].random())
        return chosen


def draw(scores: NDArray[np.float32], number: float) -> int:
    """The token at which the summed softmax of ``[V]`` scores passes ``number`` of ``[0, 1)``."""
    allowed = np.flatnonzero(scores > -np.inf)
    powers = np.exp((scores[allowed] - scores[allowed].max()).astype(np.float64))
    mass = np.cumsum(powers)
    place = int(np.searchsorted(mass, number * mass[-1], side="right"))
    return int(allowed[min(place, len(allowed) - 1)])
