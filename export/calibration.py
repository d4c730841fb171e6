"""What the products of a decoder are fed with: mean outer products of their activations.

A float32 bundle of the model writes texts about pictures, and every call of a watched graph is
asked for the rows of its products too. It is the shipped runtime that runs, so every kind of head
and of decode session is watched alike.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from primelens.engine import BoundCall, Graph, TensorSpec
from primelens.engine_onnx import OnnxEngine
from primelens.errors import OptionError
from primelens.export.products import find_products
from primelens.export.questions import PER_PICTURE
from primelens.kernels.layout import BLOCK
from primelens.model import load
from primelens.options import CaptionOptions, LoadOptions

__all__ = ["Observed", "observe", "watched_rows"]

logger = logging.getLogger("primelens.export")

Array = NDArray[Any]

_TOGETHER = 8  # pictures


@dataclass
class Observed:
    """Of every value that products read, the sum of xᵀx over its rows x.

    Attributes:
        sums: name of the value → float32 ``[K, K]``.
        rows: name → how many were seen.
    """

    sums: dict[str, Array] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, values: Array) -> None:
        """Count the rows of ``values [..., K]``."""
        rows = values.reshape(-1, values.shape[-1])
        known = self.sums.get(name)
        product = rows.T @ rows
        self.sums[name] = product if known is None else known + product
        self.rows[name] = self.rows.get(name, 0) + len(rows)

    def mean(self, name: str) -> Array | None:
        """Mean of xᵀx, or None where nothing was seen."""
        return self.sums[name] / max(1, self.rows[name]) if name in self.sums else None


def watched_rows(graph: ir.Model) -> list[str]:
    """Names of the values that the products of a graph read, where they may be of 4 bits."""
    rows = (product.rows for product in find_products(graph.graph, BLOCK))
    return list(dict.fromkeys(str(value.name) for value in rows))


def observe(
    folder: Path,
    names: Mapping[str, Sequence[str]],
    pictures: Sequence[NDArray[np.uint8]],
    *,
    questions: Mapping[str, Sequence[str | None]] | None = None,
    threads: int | None = None,
) -> dict[str, Observed]:
    """Let a float32 bundle write about pictures.

    Args:
        folder: the bundle.
        names: name of a graph without its suffix → names of the values to look at.
        pictures: ``[h, w, 3]`` uint8 each; of a model that reads videos ``[F, h, w, 3]``.
        questions: head → `PER_PICTURE` of them about each picture, where the head takes questions.
        threads: of the engine.

    Returns:
        Name of the graph → what was seen.

    Raises:
        OptionError: there are no pictures.
    """
    if not pictures:
        raise OptionError("Calibration needs pictures; there are none.")
    engine, asked = _Engine(threads, names), questions or {}
    model = load(folder, options=LoadOptions(threads=threads, check="size"), engine=engine)
    for first in range(0, len(pictures), _TOGETHER):
        encoded = [model.encode(picture) for picture in pictures[first : first + _TOGETHER]]
        for head, spec in model.manifest.writers.items():
            if Path(spec.decoder.graph).stem not in names:
                continue
            options = CaptionOptions(head=head)
            if not asked.get(head):
                model.caption(encoded, options)
                continue
            texts = asked[head][first * PER_PICTURE : (first + len(encoded)) * PER_PICTURE]
            pairs = [(encoded[row // PER_PICTURE], text) for row, text in enumerate(texts)]
            list(model.answer_batch(pairs, options, batch_size=len(pairs)))
    for stem, found in engine.observed.items():
        logger.info("%s: %d rows seen", stem, max(found.rows.values(), default=0))
    return engine.observed


class _Engine(OnnxEngine):
    """Opens the watched graphs twice: as they are, and with more outputs."""

    def __init__(self, threads: int | None, names: Mapping[str, Sequence[str]]) -> None:
        super().__init__(threads=threads)
        self._names = names
        self.observed: dict[str, Observed] = {}

    def open(self, path: Path) -> Any:
        plain, names = super().open(path), self._names.get(path.stem, ())
        if not names:
            return plain
        watched = path.with_name(f".{path.stem}.watched.onnx")
        try:
            _expose(path, names, watched)
            exposed = super().open(watched)
        finally:
            watched.unlink(missing_ok=True)
        observed = self.observed.setdefault(path.stem, Observed())
        return _WatchedGraph(plain, exposed, names, observed)


def _expose(path: Path, names: Sequence[str], out: Path) -> None:
    """Write the graph with more outputs beside it, over the same weights."""
    model = ir.load(path)
    outputs = model.graph.outputs
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    for name in names:
        if values[name] not in outputs:
            values[name].type = ir.TensorType(ir.DataType.FLOAT)
            outputs.append(values[name])
    ir.save(model, out)


@dataclass(frozen=True)
class _WatchedGraph:
    """Does what the plain graph does, and looks at the exposed one's rows."""

    plain: Graph
    exposed: Graph
    names: Sequence[str]
    observed: Observed

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self.plain.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self.plain.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.look(feeds)
        return self.plain.run(feeds)

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundCall:
        return _WatchedCall(self, inputs, self.plain.bind(inputs, outputs))

    def look(self, feeds: Mapping[str, Array]) -> None:
        """Add the rows of one call."""
        found = self.exposed.run(feeds)
        for name in self.names:
            self.observed.add(name, found[name])


@dataclass(frozen=True)
class _WatchedCall:
    graph: _WatchedGraph
    inputs: Mapping[str, Array]
    plain: BoundCall

    def run(self) -> None:
        self.graph.look(self.inputs)
        self.plain.run()
