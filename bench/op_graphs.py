"""Graphs that do one operation again and again, each time with other weights.

A graph holds as many nodes as it takes to read weights several times larger than the last-level
cache, all on one input, and every output is bound to the same memory: so a run is what a decode
step is, a walk through weights that come from memory, and its overhead is paid once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HEADS", "PRODUCTS", "Opened", "Operation", "open_operation", "register_kernels"]

Array = NDArray[Any]
Weights = Mapping[str, Array]

DOMAIN, MICROSOFT = "primelens.kernels", "com.microsoft"
BLOCK = 32  # k that share a scale, in the engine's own weights
TOP = 8  # of a head: enough for 4 beams


@dataclass(frozen=True)
class Operation:
    """One way to multiply rows with a weight.

    Attributes:
        name: as people know it.
        bits: of a weight.
        weights: random generator, K, N → the operands after the rows.
        node: input, names of the operands, prefix of the outputs → nodes, names of the outputs.
        version: of the kernels, where not the fastest.
    """

    name: str
    bits: int
    weights: Callable[[np.random.Generator, int, int], Weights]
    node: Callable[[str, Sequence[str], str, tuple[int, int]], tuple[list[Any], list[str]]]
    version: str = ""
    rows_dtype: type[np.generic] = np.float32

    @property
    def kernel(self) -> bool:
        """Whether it is ours."""
        return "kernel" in self.name


def _kernel_weights(bits: int) -> Callable[[np.random.Generator, int, int], Weights]:
    def draw(random: np.random.Generator, inner: int, width: int) -> Weights:
        panels = -(-width // 16)
        numbers: dict[str, Array] = {
            "scale": random.random(width, np.float32) / 1000,
            "bias": random.standard_normal(width, np.float32),
        }
        if bits == 8:
            weight = random.integers(1, 256, (panels, inner // 4, 16, 4), np.uint8)
            return {"weight": weight, **numbers}
        halves = random.integers(1, 16, (2, panels, inner // 32, 4, 64), np.uint8)
        multiplier = random.integers(1, 19, (panels, inner // 32, 16), np.uint8)
        return {"weight": halves[0] | halves[1] << 4, **numbers, "multiplier": multiplier}

    return draw


def _nbits_weights(bits: int) -> Callable[[np.random.Generator, int, int], Weights]:
    def draw(random: np.random.Generator, inner: int, width: int) -> Weights:
        blocks = inner // BLOCK
        weight = random.integers(0, 256, (width, blocks, BLOCK * bits // 8), np.uint8)
        scale = random.random((width, blocks), np.float32) / 100
        return {"weight": weight, "scale": scale.reshape(-1) if bits == 4 else scale}

    return draw


def _integer_weights(random: np.random.Generator, inner: int, width: int) -> Weights:
    return {"weight": random.integers(-127, 128, (inner, width), np.int8)}


def _dynamic_weights(random: np.random.Generator, inner: int, width: int) -> Weights:
    return {
        "weight": random.integers(-127, 128, (inner, width), np.int8),
        "scale": random.random(width, np.float32) / 1000,
        "zero": np.zeros(width, np.int8),
        "bias": random.standard_normal(width, np.float32),
    }


def _float_weights(random: np.random.Generator, inner: int, width: int) -> Weights:
    return {"weight": random.standard_normal((inner, width), np.float32)}


def _single(op_type: str, domain: str = "", **attributes: Any) -> Any:
    def node(
        x: str, operands: Sequence[str], prefix: str, shape: tuple[int, int]
    ) -> tuple[list[Any], list[str]]:
        from onnx import helper

        extra = dict(attributes)
        if op_type == "MatMulNBits":
            extra |= {"K": shape[0], "N": shape[1], "block_size": BLOCK, "accuracy_level": 4}
        inputs = [x, *operands]
        made = helper.make_node(op_type, inputs, [f"{prefix}y"], domain=domain, **extra)
        return [made], [f"{prefix}y"]

    return node


def _top_of(product: Any) -> Any:
    """A product, then the engine's TopK and log-sum-exp."""

    def node(
        x: str, operands: Sequence[str], prefix: str, shape: tuple[int, int]
    ) -> tuple[list[Any], list[str]]:
        from onnx import helper

        nodes, (logits,) = product(x, operands, prefix, shape)
        names = [f"{prefix}ids", f"{prefix}best", f"{prefix}lse"]
        nodes.append(helper.make_node("TopK", [logits, "top"], [names[1], names[0]]))
        nodes.append(helper.make_node("ReduceLogSumExp", [logits, "last"], [names[2]], keepdims=0))
        return nodes, names

    return node


def _top_logits(op_type: str) -> Any:
    def node(
        x: str,
        operands: Sequence[str],
        prefix: str,
        shape: tuple[int, int],  # noqa: ARG001 # a kernel sees it in its operands
    ) -> tuple[list[Any], list[str]]:
        from onnx import helper

        names = [f"{prefix}ids", f"{prefix}best", f"{prefix}lse"]
        return [helper.make_node(op_type, [x, *operands], names, domain=DOMAIN, k=TOP)], names

    return node


_NBITS = {bits: _single("MatMulNBits", MICROSOFT, bits=bits) for bits in (8, 4)}
PRODUCTS = (
    Operation("kernel", 8, _kernel_weights(8), _single("Linear", DOMAIN)),
    Operation("kernel, avx2", 8, _kernel_weights(8), _single("Linear", DOMAIN), "avx2"),
    Operation("MatMulNBits", 8, _nbits_weights(8), _NBITS[8]),
    Operation(
        "DynamicQuantizeMatMul", 8, _dynamic_weights, _single("DynamicQuantizeMatMul", MICROSOFT)
    ),
    Operation("MatMulInteger", 8, _integer_weights, _single("MatMulInteger"), "", np.uint8),
    Operation("kernel", 4, _kernel_weights(4), _single("Linear4", DOMAIN)),
    Operation("kernel, avx2", 4, _kernel_weights(4), _single("Linear4", DOMAIN), "avx2"),
    Operation("MatMulNBits", 4, _nbits_weights(4), _NBITS[4]),
    Operation("MatMul", 32, _float_weights, _single("MatMul")),
)
HEADS = (
    Operation("kernel", 8, _kernel_weights(8), _top_logits("TopLogits")),
    Operation("MatMulNBits, TopK, …", 8, _nbits_weights(8), _top_of(_NBITS[8])),
    Operation("kernel", 4, _kernel_weights(4), _top_logits("TopLogits4")),
    Operation("MatMulNBits, TopK, …", 4, _nbits_weights(4), _top_of(_NBITS[4])),
    Operation("MatMul, TopK, …", 32, _float_weights, _top_of(_single("MatMul"))),
)


class Opened:
    """A session that does an operation with every one of its weights.

    Attributes:
        operation: what.
        copies: how many weights, each used once a run.
        nbytes: of one weight with all that belongs to it.
        first: operands of the first weight.
    """

    def __init__(
        self, operation: Operation, session: Any, weights: Sequence[Weights], nbytes: int
    ) -> None:
        self.operation = operation
        self.copies = len(weights)
        self.nbytes = nbytes
        self.first = weights[0]
        self._session = session

    def outputs(self, x: Array) -> list[Array]:
        """Of the first weight, in memory of their own."""
        each = len(self._session.get_outputs()) // self.copies
        names = [value.name for value in self._session.get_outputs()[:each]]
        found: list[Array] = self._session.run(names, {"x": x})
        return found

    def bound(self, x: Array) -> Callable[[], object]:
        """A call that runs all weights on rows that stay where they are."""
        ort = _onnxruntime()
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
        values = self._session.get_outputs()
        shared = {}
        for place, array in enumerate(self.outputs(x)):
            shared[place] = ort.OrtValue.ortvalue_from_numpy(array)
        for i, value in enumerate(values):
            binding.bind_ortvalue_output(value.name, shared[i % len(shared)])
        session = self._session
        return lambda: session.run_with_iobinding(binding)


def open_operation(
    operation: Operation, shape: tuple[int, int], *, copies: int, threads: int, seed: int = 0
) -> Opened:
    """Draw the weights and open the session.

    Args:
        operation: what to do.
        shape: K and N.
        copies: different weights.
        threads: of the session's pool, which spins while a run lasts and rests between runs.
        seed: of the weights.
    """
    random = np.random.default_rng(seed)
    weights = [operation.weights(random, *shape) for _ in range(copies)]
    model = _model(operation, shape, weights)
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # warnings about constants that only some ways use
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if operation.kernel:
        register_kernels(options, operation.version)
    session = ort.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    nbytes = sum(array.nbytes for array in weights[0].values())
    return Opened(operation, session, weights, nbytes)


def _onnxruntime() -> Any:
    from primelens.installation import onnxruntime_module

    return onnxruntime_module()


def register_kernels(options: Any, version: str) -> None:
    """The kernels choose their version while a session is opened, from the environment; "" is the
    fastest. Raises `EngineError` where there are none.
    """
    from primelens.errors import EngineError
    from primelens.kernels import ENVIRONMENT, library

    if version:
        os.environ[ENVIRONMENT] = version
    else:
        os.environ.pop(ENVIRONMENT, None)
    found = library()
    if found.path is None:
        raise EngineError(
            f"There are no compiled kernels to measure: {found.reason}.",
            remedy="Run `python -m primelens.kernels.build` with a C compiler.",
        )
    options.register_custom_ops_library(str(found.path))


def _model(operation: Operation, shape: tuple[int, int], weights: Sequence[Weights]) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    nodes, outputs = [], []
    constants = [
        numpy_helper.from_array(np.array([TOP], np.int64), "top"),
        numpy_helper.from_array(np.array([-1], np.int64), "last"),
    ]
    for i, operands in enumerate(weights):
        names = [f"w{i}_{name}" for name in operands]
        constants += [
            numpy_helper.from_array(array, name)
            for name, array in zip(names, operands.values(), strict=True)
        ]
        made, found = operation.node("x", names, f"n{i}_", shape)
        nodes += made
        outputs += found
    rows_type = TensorProto.UINT8 if operation.rows_dtype is np.uint8 else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "operation",
        [helper.make_tensor_value_info("x", rows_type, ["M", shape[0]])],
        [_output_info(helper, TensorProto, name, operation) for name in outputs],
        constants,
    )
    domains = [("", 21), (MICROSOFT, 1), (DOMAIN, 1)]
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*domain) for domain in domains], ir_version=10
    )


def _output_info(helper: Any, types: Any, name: str, operation: Operation) -> Any:
    if name.endswith("ids"):
        kind = types.INT64
    else:
        kind = types.INT32 if operation.rows_dtype is np.uint8 else types.FLOAT
    return helper.make_tensor_value_info(name, kind, ["M"] if name.endswith("lse") else ["M", "N"])
