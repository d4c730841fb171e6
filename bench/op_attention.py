"""The kernels' cross-attention beside the engine's, with keys and values that come from memory.

As in `primelens.bench.op_graphs` a graph holds as many nodes as it takes to read several times what
the last-level cache holds; here each reads keys and values of its own, which are inputs of the
graph, as they are in a decoder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.bench.cold_weights import copies_for, time_in_turns
from primelens.bench.estimators import compare_blocks, percentile
from primelens.bench.op_graphs import register_kernels
from primelens.errors import EngineError

__all__ = [
    "WAYS",
    "AttentionCase",
    "AttentionShape",
    "attention_lines",
    "attention_shapes",
    "attention_sizes",
    "measure_attention",
]

Array = NDArray[Any]
# way → domain, operator, version of the kernels
WAYS = {
    "kernel": ("primelens.kernels", "CrossAttention", ""),
    "kernel, avx2": ("primelens.kernels", "CrossAttention", "avx2"),
    "MultiHeadAttention": ("com.microsoft", "MultiHeadAttention", ""),
}
_CLOSE = 2e-6  # of the engine's to the reference; values are about 1


@dataclass(frozen=True)
class AttentionShape:
    """What a node attends to: images I, rows R of each, heads H, places L, width D."""

    images: int
    rows: int
    heads: int
    places: int
    width: int

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return 2 * 4 * self.images * self.heads * self.places * self.width


@dataclass(frozen=True)
class AttentionCase:
    """One way on one shape; seconds per block, of one node among ``copies``."""

    way: str
    shape: AttentionShape
    threads: int
    copies: int
    checked: str
    seconds: list[float]

    @property
    def median(self) -> float:
        """Seconds."""
        return percentile(self.seconds, 50)

    def as_dict(self, cases: Sequence[AttentionCase]) -> dict[str, Any]:
        """With what follows from the samples, for a file."""
        found = asdict(self) | {"median_us": self.median * 1e6, "nbytes": self.shape.nbytes}
        engine = _engine(self, cases)
        if engine is not None:
            own, other = ([[s] for s in case.seconds] for case in (self, engine))
            ratio = compare_blocks(own, other, paired=True).ratio
            found["faster_than_the_engine"] = [ratio.estimate, ratio.low, ratio.high]
        return found


def attention_sizes(text: str) -> tuple[tuple[int, int, int], ...]:
    """``12x64x197,…`` → heads, width and places; for a command line."""
    found = []
    for word in text.split(","):
        heads, width, places = (int(part) for part in word.split("x"))
        if min(heads, width, places) < 1:
            raise argparse.ArgumentTypeError("heads, width and places are at least 1")
        found.append((heads, width, places))
    return tuple(found)


def attention_shapes(
    sizes: Sequence[tuple[int, int, int]], images: Sequence[int], rows: Sequence[int]
) -> Iterator[AttentionShape]:
    """Every size with every number of images and of rows for each."""
    for (heads, width, places), count, each in product(sizes, images, rows):
        yield AttentionShape(count, each, heads, places, width)


def measure_attention(
    shape: AttentionShape, threads: int, blocks: int, *, cache: int | None = None
) -> list[AttentionCase]:
    """Check every way against the reference, then time them in turns.

    Args:
        shape: of one node.
        threads: of the sessions.
        blocks: repetitions, after one that warms up.
        cache: bytes of the last-level cache; None asks the machine.

    Raises:
        EngineError: a way differs from the reference, so that its time would mean nothing.
    """
    copies = copies_for(shape.nbytes, cache=cache)
    random = np.random.default_rng(0)
    size = (2 * copies, shape.images, shape.heads, shape.places, shape.width)
    memory = random.standard_normal(size, np.float32)
    query = random.standard_normal(
        (shape.images, shape.rows, shape.heads * shape.width), np.float32
    )
    calls: dict[str, Sequence[Callable[[], object]]] = {}
    checks = {}
    for way in WAYS:
        call, found = _bound(way, query, memory, threads)
        checks[way] = _check(way, query, memory, found)
        calls[way] = [call]
    seconds = time_in_turns(calls, blocks=blocks)
    return [
        AttentionCase(
            *(way, shape, threads, copies, checks[way]),
            [s / copies for block in seconds[way] for s in block],
        )
        for way in WAYS
    ]


def _check(way: str, query: Array, memory: Array, found: Callable[[], Array]) -> str:
    from primelens.kernels import reference

    wanted = reference.cross_attention(query, memory[0], memory[1], _scale(memory))
    error = float(np.abs(found() - wanted).max())
    if error > (0 if "kernel" in way else _CLOSE):
        raise EngineError(f"{way} differs from its reference by {error:.1e}.")
    return "equal bits" if error == 0 else f"within {error:.1e}"


def _scale(memory: Array) -> float:
    return float(np.float32(memory.shape[-1] ** -0.5))


def _bound(
    way: str, query: Array, memory: Array, threads: int
) -> tuple[Callable[[], object], Callable[[], Array]]:
    """A call that runs all nodes, and what the first of them says after it ran alone."""
    from primelens.installation import onnxruntime_module

    ort = onnxruntime_module()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    domain, _, version = WAYS[way]
    if domain == "primelens.kernels":
        register_kernels(options, version)
    session = ort.InferenceSession(
        _model(way, memory).SerializeToString(),
        sess_options=options,
        providers=["CPUExecutionProvider"],
    )
    arrays = {"query": query} | {
        f"{kind}{i}": memory[2 * i + place]
        for i in range(len(memory) // 2)
        for place, kind in enumerate(("key", "value"))
    }
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    output = ort.OrtValue.ortvalue_from_numpy(np.empty_like(query))
    for value in session.get_outputs():
        binding.bind_ortvalue_output(value.name, output)

    def first() -> Array:
        said: list[Array] = session.run(["y0"], arrays)
        return said[0]

    return lambda: session.run_with_iobinding(binding), first


def _model(way: str, memory: Array) -> Any:
    from onnx import TensorProto, helper

    domain, kind, _ = WAYS[way]
    _, _, heads, places, width = memory.shape
    extra = {"num_heads": heads} if kind == "MultiHeadAttention" else {}
    inputs: dict[str, list[Any]] = {"query": ["I", "R", heads * width]}
    nodes, outputs = [], []
    for i in range(len(memory) // 2):
        names = [f"key{i}", f"value{i}"]
        inputs |= {name: ["I", heads, places, width] for name in names}
        nodes.append(
            helper.make_node(
                *(kind, ["query", *names], [f"y{i}"]), domain=domain, scale=_scale(memory), **extra
            )
        )
        outputs.append(f"y{i}")
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["I", "R", heads * width])
            for n in outputs
        ],
    )
    opsets = [helper.make_opsetid(*one) for one in (("", 21), (domain, 1))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _engine(case: AttentionCase, cases: Sequence[AttentionCase]) -> AttentionCase | None:
    """The engine's way on the same work; None for itself."""
    for other in cases:
        same = (other.shape, other.threads) == (case.shape, case.threads)
        if same and "kernel" not in other.way and "kernel" in case.way:
            return other
    return None


def attention_lines(
    cases: Sequence[AttentionCase], read_bytes_per_s: Callable[[int], float]
) -> Iterator[list[str]]:
    """Rows of a table, with a header.

    Args:
        cases: what was measured.
        read_bytes_per_s: threads → how fast memory is read.
    """
    yield ["images", "rows", "H x L x D", "threads", "way", "µs", "GB/s", "of memory", "engine's"]
    for case in cases:
        shape, rate = case.shape, case.shape.nbytes / case.median
        engine = _engine(case, cases)
        yield [
            str(shape.images),
            str(shape.rows),
            f"{shape.heads} x {shape.places} x {shape.width}",
            str(case.threads),
            case.way,
            f"{case.median * 1e6:.0f}",
            f"{rate / 1e9:.1f}",
            f"{rate / read_bytes_per_s(case.threads):.0%}",
            "" if engine is None else f"{engine.median / case.median:.2f}",
        ]
