"""What primelens asks of an inference engine: arrays and names, never text.

An `Engine` opens a graph file; a `Graph` runs it, either once over fresh arrays (`Graph.run`) or
many times over the *same* buffers (`Graph.bind`), which is what the decode loop does: every array
of a step is allocated
once, written in place, and bound once. Implementations: `primelens.engine_onnx.OnnxEngine` (ONNX
    Runtime) and
`primelens.engine_fake.FakeEngine` (plain Python functions, for tests).

Thread safety: a `Graph` may be run from several threads at once; a `BoundCall` owns its buffers and
    belongs
to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["Array", "BoundCall", "Engine", "Graph", "TensorSpec"]

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype (NumPy's name) and shape of a graph's input or output; None marks a free
    dimension.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class BoundCall(Protocol):
    """A graph bound to fixed buffers."""

    def run(self) -> None:
        """Run once: read every input buffer, write every output buffer, in place."""


class Graph(Protocol):
    """An opened graph."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Input name → specification."""

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Output name → specification."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once over ``feeds`` (all inputs); returns freshly allocated outputs.

        Raises:
            EngineError: an input is missing, or has another dtype or shape than the graph wants.
        """

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundCall:
        """Bind C-contiguous buffers once; the same buffer may stand for a past and a present.

        Every output has to be bound. Shapes are taken from the buffers.
        """


class Engine(Protocol):
    """Opens graphs."""

    @property
    def name(self) -> str:
        """For people and result files, for example ``onnxruntime 1.32.0 (CPU, 2 threads)``."""

    def open(self, path: Path) -> Graph:
        """Open a graph file; its external weights lie beside it.

        Raises:
            EngineError: the file is no graph that this engine can run.
        """
