"""Ends a sequence where its text says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["StopText"]


class StopText:
    """Whether a sequence's last token completes one of the stop strings.

    As transformers 5.23 has it (``StopStringCriteria``): texts are compared as bytes, token by
    token as they stand inside a text; the string may begin and end in the middle of a token and
    reach back into the prompt, but must end within the last token.

    Args:
        piece: the bytes that a token stands for inside a text
            (`primelens.text.TokenText.piece_bytes`).
        stops: the stop strings.
    """

    def __init__(self, piece: Callable[[int], bytes], stops: Sequence[str]) -> None:
        self._piece = piece
        self._stops = [stop.encode("utf-8") for stop in stops]

    @property
    def window(self) -> int:
        """Tokens that can matter: no more than the longest string has bytes."""
        return max(len(stop) for stop in self._stops)

    def __call__(self, tokens: Sequence[int]) -> bool:
        pieces = [self._piece(token) for token in tokens[-self.window :]]
        if not pieces or not pieces[-1]:
            return False
        text, before = b"".join(pieces), sum(map(len, pieces[:-1]))
        return any(text.find(stop, max(before - len(stop) + 1, 0)) >= 0 for stop in self._stops)
