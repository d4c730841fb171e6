"""What decoding options say in words, turned into what a search understands: ids and tests."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from primelens.decoding.constraint import Choices, Constraint, Grammar, Vocabulary
from primelens.decoding.effective import Effective
from primelens.decoding.stopping import StopText
from primelens.text import TokenText

__all__ = ["Wording"]


class Wording:
    """The words of one head; thread-safe.

    Args:
        text: its tokenizer.
        vocab_size: width of its logits.
        eos: its end tokens.
    """

    def __init__(self, text: TokenText, vocab_size: int, eos: Sequence[int]) -> None:
        self._text, self._size, self._eos = text, vocab_size, eos
        self._vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()

    def bad_words(self, wanted: Effective) -> tuple[tuple[int, ...], ...]:
        """Ids of every forbidden word, at the beginning of a text and after a space."""
        written = [f"{space}{word}" for word in wanted.bad_words for space in ("", " ")]
        return tuple(dict.fromkeys(tuple(self._text.encode(word)) for word in written))

    def stop(self, wanted: Effective) -> StopText | None:
        """The test that ends sequences by their text."""
        return StopText(self._text.piece_bytes, wanted.stop) if wanted.stop else None

    def constraint(self, wanted: Effective) -> Constraint | None:
        """What may follow, where the options say so.

        Raises:
            OptionError: the expression or schema is not understood, or nothing could end a text.
            DependencyError: a grammar is wanted and llguidance is not installed.
        """
        if wanted.choices is not None:
            return Choices([self._text.encode(choice) for choice in wanted.choices], self._eos)
        if wanted.regex is None and wanted.json_schema is None:
            return None
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._text.pieces(self._size), self._eos)
        return Grammar(
            self._vocabulary,
            regex=wanted.regex,
            json_schema=wanted.json_schema,
            leading_space=self._text.drops_first_space,
        )
