"""Image-text matching: a text encoder that reads a text with the picture, and two logits.

One pass of the encoder for every pair. What it reads of a picture, the keys and values of its
cross-attention, is computed once per picture, whatever number of texts is matched with it; the
texts of one picture run together, folded into one longer query.

A pair's logits do not depend on other pairs: texts are padded to a length of their own, as for the
text tower, and padding is masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from primelens.engine import Array, Graph, TensorSpec
from primelens.errors import EngineError
from primelens.head import differences
from primelens.results import EncodedImage
from primelens.text_tower import TextTower

if TYPE_CHECKING:
    from primelens.store.derived import DerivedTier

__all__ = ["Matcher", "shapes"]


class Matcher:
    """The matching side of a rank head; thread-safe.

    Args:
        connector: graph from the tap to what the encoder reads of a picture.
        graph: the encoder.
        text: makes ids of texts.
        tap: name and shape of the tap.
        derived: where the connector's outputs are held for pictures that come again, if anywhere.
    """

    def __init__(
        self,
        connector: Graph,
        graph: Graph,
        text: TextTower,
        tap: tuple[str, tuple[int, ...]],
        derived: DerivedTier | None = None,
    ) -> None:
        self._connector, self._graph, self._text = connector, graph, text
        self._tap, self._derived = tap, derived

    def problems(self) -> list[str]:
        """Where the graphs differ from ARCHITECTURE.md, "Graph contract"."""
        name, shape = self._tap
        connector, graph = self._connector, self._graph
        read: dict[str, tuple[int | None, ...]] = {
            "input_ids": (None, None),
            "text_lengths": (None,),
            **shapes(connector.outputs),
        }
        return [
            *differences("matching connector", {name: (None, *shape)}, shapes(connector.inputs)),
            *differences("matching input", read, shapes(graph.inputs)),
            *differences("matching output", {"match_logits": (None, 2)}, shapes(graph.outputs)),
        ]

    def logits(self, image: EncodedImage, texts: Sequence[str]) -> NDArray[np.float32]:
        """``[N, 2]`` float32 for one picture and N texts: that they do not match, and that they do.

        Raises:
            PromptError: a text holds no token.
            EngineError: a logit is not finite.
        """
        found: dict[str, NDArray[np.float32]] = {}
        picture = self._read(image)
        for length, part in self._text.parts(dict.fromkeys(texts)):
            ids = np.full((len(part), length), self._text.spec.pad_token, np.int64)
            for row, (_, tokens) in enumerate(part):
                ids[row, : len(tokens)] = tokens
            lengths = np.array([len(tokens) for _, tokens in part], np.int32)
            feeds: dict[str, Array] = {"input_ids": ids, "text_lengths": lengths, **picture}
            rows = self._graph.run(feeds)["match_logits"]
            if not np.isfinite(rows).all():
                raise EngineError(
                    f"A matching score of {image.name} is not finite.",
                    remedy="The weights hold NaN: run `primelens verify` on the bundle.",
                )
            found |= {text: row.copy() for (text, _), row in zip(part, rows, strict=True)}
        return np.stack([found[text] for text in texts])

    def _read(self, image: EncodedImage) -> dict[str, Array]:
        """What the encoder reads of a picture."""
        name, _ = self._tap
        entries = [image.entries.get(name)]
        if self._derived is not None and entries[0] is not None:
            buffers: dict[str, Array] = {
                output: np.zeros((1, *(n or 1 for n in tensor.shape[1:])), np.float32)
                for output, tensor in self._connector.outputs.items()
            }
            if self._derived.fill(entries, buffers):
                return buffers
        tap = np.ascontiguousarray(image.taps[name], np.float32)
        outputs = dict(self._connector.run({name: tap[None]}))
        if self._derived is not None:
            self._derived.keep(entries, outputs)
        return outputs


def shapes(tensors: Mapping[str, TensorSpec]) -> dict[str, tuple[int | None, ...]]:
    """Name → shape of a graph's inputs or outputs."""
    return {name: tensor.shape for name, tensor in tensors.items()}
