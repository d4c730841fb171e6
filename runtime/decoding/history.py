"""What has been decoded so far, as one matrix, so that logits processors need no loop over rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["History"]

_ABSENT = -1  # no token has this id, so that comparisons with it never match


class History:
    """The tokens of R rows, prompts included; rows may be of different length.

    Args:
        prompts: the ids that each row starts with.
        room: new tokens to make room for; the matrix grows where they do not suffice.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], room: int = 32) -> None:
        self.prompt_lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        self.lengths = self.prompt_lengths.copy()
        width = int(self.lengths.max(initial=0)) + room
        self._tokens = np.full((len(prompts), width), _ABSENT, np.int64)
        for row, prompt in enumerate(prompts):
            self._tokens[row, : len(prompt)] = prompt

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """``[R, S]`` all tokens from the left, -1 after the end of a shorter row (a view)."""
        return self._tokens[:, : int(self.lengths.max(initial=0))]

    @property
    def new_lengths(self) -> NDArray[np.int64]:
        """``[R]`` tokens after the prompt."""
        return self.lengths - self.prompt_lengths

    def row(self, row: int) -> list[int]:
        """All tokens of one row."""
        found: list[int] = self._tokens[row, : self.lengths[row]].tolist()
        return found

    def last(self, count: int) -> NDArray[np.int64]:
        """``[R, count]`` the last tokens of every row, -1 before the start of a shorter one."""
        places = self.lengths[:, None] + np.arange(-count, 0)
        found = np.take_along_axis(self._tokens, np.maximum(places, 0), axis=1)
        return np.where(places < 0, _ABSENT, found)

    def append(self, tokens: NDArray[np.int64], counted: NDArray[np.int64]) -> None:
        """Add ``tokens[r]`` to every row whose ``counted[r]`` is not 0 (both ``[R]``)."""
        rows = np.flatnonzero(counted)
        if not rows.size:
            return
        if self.lengths[rows].max() >= self._tokens.shape[1]:
            more = np.full_like(self._tokens, _ABSENT)
            self._tokens = np.concatenate((self._tokens, more), axis=1)
        self._tokens[rows, self.lengths[rows]] = tokens[rows]
        self.lengths[rows] += 1

    def reorder(self, parents: NDArray[np.int64]) -> None:
        """Let row r continue row ``parents[r]``."""
        self._tokens = self._tokens[parents]
        self.lengths = self.lengths[parents]
        self.prompt_lengths = self.prompt_lengths[parents]
