"""An engine of plain Python functions, so that decoding is tested without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from primelens.engine import Array, BoundCall, TensorSpec
from primelens.errors import EngineError

__all__ = ["FakeEngine", "FakeGraph"]

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class FakeGraph:
    """A graph that calls ``function(feeds) -> outputs``.

    Args:
        function: receives every input by name and returns every output by name.
        inputs: specifications of the inputs, if anything asks for them.
        outputs: specifications of the outputs, if anything asks for them.
    """

    def __init__(
        self,
        function: Function,
        inputs: Mapping[str, TensorSpec] | None = None,
        outputs: Mapping[str, TensorSpec] | None = None,
    ) -> None:
        self._function = function
        self._inputs = dict(inputs or {})
        self._outputs = dict(outputs or {})
        self.calls = 0

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.calls += 1
        return dict(self._function(feeds))

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundCall:
        return _FakeCall(self, dict(inputs), dict(outputs))


class _FakeCall:
    def __init__(
        self, graph: FakeGraph, inputs: dict[str, Array], outputs: dict[str, Array]
    ) -> None:
        self._graph, self._inputs, self._outputs = graph, inputs, outputs

    def run(self) -> None:
        results = self._graph.run(self._inputs)
        for name, buffer in self._outputs.items():
            if name in results:  # a fake may leave a cache alone
                np.copyto(buffer, results[name], casting="same_kind")


class FakeEngine:
    """Opens the graphs that it was given, by file name."""

    def __init__(self, graphs: Mapping[str, FakeGraph]) -> None:
        self._graphs = dict(graphs)

    @property
    def name(self) -> str:
        return "fake"

    def open(self, path: Path) -> FakeGraph:
        if path.name not in self._graphs:
            raise EngineError(f"The fake engine has no graph {path.name!r}.")
        return self._graphs[path.name]
