"""Ids to text and back, whole or piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from primelens.errors import BundleError, PromptError

__all__ = ["TextStream", "TokenText"]

# The joins that transformers' `clean_up_tokenization` makes, in its order.
_JOINS = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
_START = "abcdef"  # a text for tokens to stand behind
_RAW_BYTE = re.compile(r"<0x[0-9a-fA-F]{2}>")


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
        self._bytes_of = _byte_alphabet(decoder)
        self._pieces: dict[int, bytes] = {}
        # Cleaning joins a word to what follows it, so a stream must hold back the last word.
        self.joins_words = clean_up or bool(decoder.get("cleanup"))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Entry → id, added tokens included."""
        entries: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return entries

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

    def piece_bytes(self, token: int) -> bytes:
        """What one id stands for inside a text, as UTF-8, half characters too; empty for an id
        that the tokenizer does not know.

        Follows transformers 5.23, ``StopStringCriteria.clean_tokenizer_vocab``: a special token
        stands for its name, and a token that a space precedes when decoded has that space.
        """
        if token not in self._pieces:
            self._pieces[token] = self._find_piece(token)
        return self._pieces[token]

    def pieces(self, count: int) -> list[bytes]:
        """`piece_bytes` of the first ``count`` ids, empty for special tokens too: what decoded text
        is made of.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token for token, entry in added.items() if entry.special}
        return [b"" if i in special else self.piece_bytes(i) for i in range(count)]

    @property
    def drops_first_space(self) -> bool:
        """Whether decoding takes away the space that the first token of a text brings."""
        first = self._tokenizer.encode(_START, add_special_tokens=False).ids[:1]
        return any(self.piece_bytes(i).startswith(b" ") for i in first) and not self.decode(
            first
        ).startswith(" ")

    def _find_piece(self, token: int) -> bytes:
        entry = self._tokenizer.id_to_token(token)
        if entry is None:
            return b""
        if self._bytes_of is not None:
            if all(symbol in self._bytes_of for symbol in entry):
                return bytes(self._bytes_of[symbol] for symbol in entry)
        elif _RAW_BYTE.fullmatch(entry):
            return bytes([int(entry[3:5], 16)])
        start = self._tokenizer.encode(_START, add_special_tokens=False).tokens
        decoder = self._tokenizer.decoder
        joined = [*start, entry]
        text: str = decoder.decode(joined) if decoder is not None else " ".join(joined)
        place = text.find(_START)
        return (text[place + len(_START) :] if place >= 0 else entry).encode("utf-8")


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


def _byte_alphabet(decoder: Any) -> dict[str, int] | None:
    """Symbol → byte of a byte-level vocabulary; None where the decoder is of another kind.

    GPT-2's alphabet: a byte that Latin-1 can print stands for itself, the others for the code
    points from 256 on.
    """
    kinds = re.findall(r'"type": "(\w+)"', json.dumps(decoder))
    if "ByteLevel" not in kinds or "ByteFallback" in kinds:
        return None
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    alphabet = {chr(byte): byte for byte in printed}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}
