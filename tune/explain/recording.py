"""Decoder graphs that also say what their attention read: queries, keys, and the mask.

`RecordingEngine` opens a bundle's graphs as the runtime's own engine does. A graph that attends to
a picture gets its attention's queries as further outputs, and every bound call remembers them, so
that the runtime runs unchanged and attention is read off beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from primelens.engine import Array, BoundCall, TensorSpec
from primelens.engine_onnx import OnnxEngine, OnnxGraph
from primelens.errors import DependencyError, EngineError

__all__ = ["AttentionNode", "Recorded", "RecordingEngine", "RecordingGraph"]

_CROSS = ("MultiHeadAttention", "CrossAttention", "CrossAttentionRagged")


@dataclass(frozen=True)
class AttentionNode:
    """One attention operator that sees the picture.

    Attributes:
        kind: "cross" attends to the picture's keys, "prefix" to a cache that starts with them.
        query: name of its first input: queries ``[I, N, H·D]``, or packed queries, keys and values.
        key: name of the graph's input that holds the keys ``[I, H, L, D]``.
        heads: H.
        scale: factor on the scores.
    """

    kind: Literal["cross", "prefix"]
    query: str
    key: str
    heads: int
    scale: float


@dataclass(frozen=True)
class Recorded:
    """One run of a decoder: what each node's queries were, and the arrays that it was fed."""

    queries: Mapping[str, NDArray[np.float32]]
    fed: Mapping[str, Array]


class RecordingEngine(OnnxEngine):
    """Opens graphs; those that attend to a picture stand in `recording`, the others in `graphs`."""

    def __init__(self, *, threads: int | None = None) -> None:
        super().__init__(threads=threads)
        self.recording: list[RecordingGraph] = []
        self.graphs: dict[str, OnnxGraph] = {}

    def open(self, path: Path) -> Any:
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise DependencyError(
                "Reading attention needs the package 'onnx', which is not installed.",
                remedy="Run `pip install 'primelens[explain]'`.",
            ) from error
        model = onnx.load(str(path), load_external_data=False)
        nodes = attention_nodes(model.graph)
        if not nodes:
            self.graphs[path.name] = super().open(path)
            return self.graphs[path.name]
        present = {value.name for value in model.graph.output}
        for node in nodes:
            if node.query not in present:
                value = onnx.helper.make_tensor_value_info(node.query, onnx.TensorProto.FLOAT, None)
                model.graph.output.append(value)
        graph = RecordingGraph(self._session(model.SerializeToString(), path), path.name, nodes)
        self.recording.append(graph)
        return graph

    def _session(self, data: bytes, path: Path) -> Any:
        from primelens.installation import onnxruntime_module

        ort = onnxruntime_module()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        folder = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder, str(path.parent))
        try:
            return ort.InferenceSession(
                data, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot open {path} for reading its attention: "
                f"{error}",
                remedy="Check the bundle with `primelens verify`.",
            ) from error


def attention_nodes(graph: Any) -> list[AttentionNode]:
    """The nodes of a decoder graph (``onnx.GraphProto``) that see the picture, in order."""
    shapes = {value.name: value.type.tensor_type.shape for value in graph.input}
    found = []
    for node in graph.node:
        attributes = {item.name: item for item in node.attribute}
        if node.op_type in _CROSS and node.input[1].startswith("cross_key."):
            kind: Literal["cross", "prefix"] = "cross"
            key = node.input[1]
        elif node.op_type == "GroupQueryAttention" and "attention_bias" in node.input:
            kind, key = "prefix", node.input[3]
        else:
            continue
        if key in shapes:
            given = attributes.get("num_heads")
            heads = shapes[key].dim[1].dim_value if given is None else int(given.i)
            scale = float(attributes["scale"].f)
            found.append(AttentionNode(kind, node.input[0], key, heads, scale))
    return found


class RecordingGraph(OnnxGraph):
    """A graph whose bound calls remember what their attention read."""

    def __init__(self, session: Any, name: str, nodes: list[AttentionNode]) -> None:
        super().__init__(session, name)
        self.nodes = nodes
        self.runs: list[Recorded] = []
        extra = {node.query for node in nodes}
        self._all_outputs = dict(self._outputs)
        self._outputs: dict[str, TensorSpec] = {
            key: spec for key, spec in self._all_outputs.items() if key not in extra
        }
        self._output_names = list(self._outputs)
        self._queries = [node.query for node in nodes]

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundCall:
        return _RecordingCall(self, inputs, outputs)

    def run_recorded(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Run once, write ``outputs``, and remember the run."""
        names = [*outputs, *self._queries]
        values = self._session.run(names, dict(inputs))
        for name, value in zip(names, values, strict=True):
            if name in outputs:
                outputs[name][...] = value
        queries = dict(zip(self._queries, values[len(outputs) :], strict=True))
        fed = {name: array.copy() for name, array in inputs.items()}
        self.runs.append(Recorded(queries, fed))


@dataclass
class _RecordingCall:
    """Copies instead of sharing: this is for looking, not for speed."""

    graph: RecordingGraph
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array] = field(default_factory=dict)

    def run(self) -> None:
        self.graph.run_recorded(self.inputs, self.outputs)
