"""The text side of a rank head: texts to embeddings, whatever company they come in.

A text's embedding does not depend on the texts it is embedded with: it is padded to a length that
depends on itself alone, and texts of one such length run together.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from primelens.engine import Array, Graph
from primelens.errors import BundleError, EngineError, PromptError
from primelens.head_spec import TextTowerSpec

__all__ = ["TextTower"]

_STEP = 8  # texts whose padding is masked are padded to multiples of it
_TEXTS_AT_ONCE = 32
_KEPT = 4096  # embeddings of the texts that were used last

Floats = NDArray[np.float32]


class TextTower:
    """An opened text tower; thread-safe.

    Args:
        spec: what the manifest says of it.
        graph: its graph, opened.
        tokenizer: its ``tokenizer.json``.

    Raises:
        BundleError: the tokenizer cannot be read.
    """

    def __init__(self, spec: TextTowerSpec, graph: Graph, tokenizer: Path) -> None:
        self.spec = spec
        self._graph = graph
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the Rust side raises plain Exception
            raise BundleError(
                f"{tokenizer} is not a tokenizer that this version of tokenizers reads: {error}.",
                remedy="Upgrade tokenizers, or export the checkpoint again.",
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(spec.max_length)
        self._kept: OrderedDict[str, Floats] = OrderedDict()
        self._lock = threading.Lock()

    def ids(self, text: str) -> list[int]:
        """The text's ids, special tokens included, cut to ``max_length`` as the source's tokenizer
        cuts.

        Raises:
            PromptError: there is no token.
        """
        ids: list[int] = self._tokenizer.encode(text).ids
        if not ids:
            raise PromptError(f"The text {text!r} holds no token.", remedy="Give some text.")
        return ids

    def embed(self, texts: Sequence[str]) -> Floats:
        """``[N, width]`` float32 of length 1; the texts used last are remembered.

        Raises:
            PromptError: a text holds no token.
            EngineError: an embedding is not finite.
        """
        wanted = dict.fromkeys(texts)
        with self._lock:
            known = {text: self._kept[text] for text in wanted if text in self._kept}
        new = [text for text in wanted if text not in known]
        known |= self.computed(new)
        with self._lock:
            for text in wanted:
                self._kept[text] = known[text]
                self._kept.move_to_end(text)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return np.stack([known[text] for text in texts])

    def computed(self, texts: Sequence[str]) -> dict[str, Floats]:
        """Text → its embedding ``[width]``, by runs over texts of one padded length; nothing is
        remembered.
        """
        found: dict[str, Floats] = {}
        for length, part in self.parts(texts):
            embeds = self.run([ids for _, ids in part], length)
            found |= {text: row.copy() for (text, _), row in zip(part, embeds, strict=True)}
        return found

    def parts(self, texts: Iterable[str]) -> Iterator[tuple[int, list[tuple[str, list[int]]]]]:
        """What may run together: a padded length, and texts of that length with their ids."""
        by_length: dict[int, list[tuple[str, list[int]]]] = {}
        for text in texts:
            ids = self.ids(text)
            by_length.setdefault(self._padded(len(ids)), []).append((text, ids))
        for length, rows in by_length.items():
            for first in range(0, len(rows), _TEXTS_AT_ONCE):
                yield length, rows[first : first + _TEXTS_AT_ONCE]

    def _padded(self, count: int) -> int:
        spec = self.spec
        if spec.pad_to_max:
            return spec.max_length
        if not spec.masked:
            return count
        return min(spec.max_length, -(-count // _STEP) * _STEP)

    def run(self, rows: Sequence[Sequence[int]], length: int) -> Floats:
        """Embeddings of ids, every row padded to ``length``.

        Raises:
            EngineError: an embedding is not finite.
        """
        spec = self.spec
        ids = np.full((len(rows), length), spec.pad_token, np.int64)
        mask: Array = np.full(ids.shape, 0 if spec.masked else 1, np.int64)
        for row, tokens in enumerate(rows):
            place = slice(length - len(tokens), None) if spec.pad_left else slice(0, len(tokens))
            ids[row, place] = tokens
            mask[row, place] = 1
        feeds = {"input_ids": ids, "attention_mask": mask}
        embeds: Floats = self._graph.run(feeds)["text_embeds"]
        if not np.isfinite(embeds).all():
            raise EngineError(
                "A text embedding is not finite.",
                remedy="The weights hold NaN: run `primelens verify` on the bundle.",
            )
        return embeds
