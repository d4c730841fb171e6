"""Ids to text and back, whole or piece by piece."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from primelens.errors import BundleError, PromptError

__all__ = ["TextStream", "TokenText"]

# The joins that transformers' `clean_up_tokenization` makes, in its order.
_JOINS = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class TokenText:
    """A head's tokenizer.

    Args:
        path: a ``tokenizer.json``.
        clean_up: apply transformers' ``clean_up_tokenization_spaces`` after decoding.
    """

    def __init__(self, path: Path, *, clean_up: bool = False) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            decoder = json.loads(path.read_text(encoding="utf-8")).get("decoder") or {}
        except Exception as error:  # the Rust side raises plain Exception
            raise BundleError(
                f"{path} is not a tokenizer that this version of tokenizers reads: {error}.",
                remedy="Upgrade tokenizers, or export the checkpoint again.",
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._clean_up = clean_up
        # Cleaning joins a word to what follows it, so a stream must hold back the last word.
        self.joins_words = clean_up or bool(decoder.get("cleanup"))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` without special tokens; raises `PromptError` where that is nothing."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            raise PromptError(f"The prompt {text!r} holds no token.", remedy="Give some text.")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens left out, white space at the ends kept."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        if self._clean_up:
            for join in _JOINS:
                text = text.replace(join, join.strip())
        return text

    def piece(self, token: int) -> str:
        """The vocabulary's entry for one id, for tables."""
        return self._tokenizer.id_to_token(token) or f"<{token}>"


class TextStream:
    """Turns a growing list of ids into text that is never taken back.

    Held back until more is known: an unfinished character (a byte-level tokenizer splits one over
        several
    tokens), white space at the end, and, where the tokenizer's clean-up may join it to its
    successor, the last word. The pieces joined equal ``TokenText.decode(all ids).strip()``.
    """

    def __init__(self, text: TokenText) -> None:
        self._text = text
        self._ids: list[int] = []
        self._emitted = ""

    def push(self, token: int) -> str:
        """Add one id; returns the text that is now certain (often empty)."""
        self._ids.append(token)
        text = self._text.decode(self._ids).lstrip()
        stable = text.rstrip().rstrip("\ufffd")
        if self._text.joins_words:
            stable = stable[: max(stable.rfind(" "), 0)]
        return self._emit(stable.rstrip())

    def finish(self) -> str:
        """The rest."""
        return self._emit(self._text.decode(self._ids).strip())

    def _emit(self, text: str) -> str:
        if len(text) <= len(self._emitted) or not text.startswith(self._emitted):
            return ""
        new = text[len(self._emitted) :]
        self._emitted = text
        return new
