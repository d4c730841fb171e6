"""What this machine can do at most: read bandwidth of memory, fp32 and int8 products.

A figure means little without its limit, and a limit taken on another day is no limit:
`measure_limits` is called in the same run as the measurement that is held against it.

*Read bandwidth* is a reduction over a buffer several times larger than the last-level cache, split
over threads (NumPy releases the GIL in these loops). Several reductions are tried and the fastest
counts, since none of them may be held back by arithmetic; the best of n repetitions counts, since a
limit is not a mean. *Multiplication rates* are square matrix products large enough to be bound by
arithmetic, of two sizes, through NumPy's BLAS and through ONNX Runtime; the fastest counts.

``python -m primelens.bench.bandwidth`` prints them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.bench.environment import last_level_cache, usable_cores

__all__ = [
    "Limits",
    "best_seconds",
    "measure_limits",
    "multiply_rates",
    "read_rates",
]

_LEAST_BUFFER = 256 * 2**20
_CACHE_FACTOR = 8  # buffer over last-level cache: at most 1/8 of it can be found there
_GEMM_SIZES = (768, 2048)


@dataclass(frozen=True)
class Limits:
    """The machine's limits in one run.

    Attributes:
        threads: threads that the measurements used.
        read_bytes_per_s: read bandwidth of memory.
        fp32_flop_per_s: fp32 multiply-adds, two operations each.
        int8_op_per_s: multiply-adds of unsigned with signed 8 bit into 32 bit, two operations each;
            None where it was not measured.
        ways: every way that was tried → its rate; the fields above are the fastest of them.
        missing: what was not measured → why.
        cache: bytes of the last-level cache, or None: what fits into it is not read from memory.
    """

    threads: int
    read_bytes_per_s: float
    fp32_flop_per_s: float
    int8_op_per_s: float | None
    ways: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    cache: int | None = None

    def best_of(self, other: Limits) -> Limits:
        """The faster of two measurements of one run, way by way: neighbours can only slow down."""
        ways = dict(self.ways)
        for way, rate in other.ways.items():
            ways[way] = max(rate, ways.get(way, 0.0))
        return _limits(self.threads, ways, self.missing)

    def lines(self) -> list[str]:
        """One line per limit, for people."""
        int8 = self.int8_op_per_s
        text = "not measured" if int8 is None else f"{int8 / 1e9:.0f} GOP/s"
        rows = [
            f"memory read   {self.read_bytes_per_s / 1e9:.1f} GB/s ({self._way('read')})",
            f"fp32 product  {self.fp32_flop_per_s / 1e9:.0f} GFLOP/s ({self._way('fp32')})",
            f"int8 product  {text}" + ("" if int8 is None else f" ({self._way('int8')})"),
        ]
        return rows + [f"{what}: {why}" for what, why in self.missing.items()]

    def _way(self, kind: str) -> str:
        found = {k: v for k, v in self.ways.items() if k.startswith(f"{kind}:")}
        return max(found, key=found.__getitem__).partition(":")[2]


def best_seconds(call: Callable[[], object], repetitions: int) -> float:
    """The shortest of ``repetitions`` calls, after one that does not count."""
    call()
    best = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _dot(part: NDArray[np.float32]) -> object:
    return np.dot(part, part)  # both operands are the same memory: it is read once


_REDUCTIONS: Mapping[str, Callable[[NDArray[Any]], object]] = {
    "sum of float32": np.sum,
    "maximum of float32": np.max,
    "dot of float32": _dot,
    "sum of int64": lambda part: np.sum(part.view(np.int64)),
    "or of int64": lambda part: np.bitwise_or.reduce(part.view(np.int64)),
}


def read_rates(threads: int, *, size: int | None = None, repetitions: int = 5) -> dict[str, float]:
    """Way of reading → bytes per second, by ``threads`` threads over disjoint parts.

    Args:
        threads: how many threads read at once.
        size: bytes of the buffer; None takes eight times the last-level cache, at least 256 MiB.
        repetitions: the best of so many counts.
    """
    size = size or max(_LEAST_BUFFER, _CACHE_FACTOR * (last_level_cache() or 0))
    count = size // (4096 * threads) * 1024  # float32 values per thread, whole pages
    buffer = np.full((threads, count), 0.5, np.float32)
    rates = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, reduction in _REDUCTIONS.items():
            seconds = best_seconds(_over(pool, reduction, buffer), repetitions)
            rates[f"read:{name}"] = buffer.nbytes / seconds
    return rates


def _over(
    pool: ThreadPoolExecutor, reduction: Callable[[NDArray[Any]], object], parts: NDArray[Any]
) -> Callable[[], object]:
    return lambda: list(pool.map(reduction, parts))


def multiply_rates(
    threads: int, *, size: int = _GEMM_SIZES[-1], repetitions: int = 4
) -> tuple[dict[str, float], dict[str, str]]:
    """Way of multiplying → operations per second, and what could not be measured → why."""
    work = 2.0 * size**3
    random = np.random.default_rng(0)
    left = random.standard_normal((size, size), np.float32)
    right = random.standard_normal((size, size), np.float32)
    seconds = best_seconds(lambda: left @ right, repetitions)
    rates = {f"fp32:NumPy, {size}": work / seconds}
    missing = {}
    try:
        for kind in ("fp32", "int8"):
            call = _engine_product(kind, size, threads)
            rates[f"{kind}:ONNX Runtime, {size}"] = work / best_seconds(call, repetitions)
    except ImportError as error:
        missing["products by ONNX Runtime"] = f"not measured, {error}"
    return rates, missing


def _engine_product(kind: str, size: int, threads: int) -> Callable[[], object]:
    """A product as the engine runs it: the weight is a constant of the graph, hence packed."""
    from onnx import TensorProto, helper, numpy_helper

    from primelens.installation import onnxruntime_module

    ort = onnxruntime_module()
    random = np.random.default_rng(1)
    operand: NDArray[Any]
    weight: NDArray[Any]
    if kind == "fp32":
        operand = random.standard_normal((size, size), np.float32)
        weight = random.standard_normal((size, size), np.float32)
        types, op = (TensorProto.FLOAT, TensorProto.FLOAT), "MatMul"
    else:
        operand = random.integers(0, 128, (size, size), np.uint8)
        weight = random.integers(-64, 64, (size, size), np.int8)
        types, op = (TensorProto.UINT8, TensorProto.INT32), "MatMulInteger"
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", types[0], [size, size])],
        [helper.make_tensor_value_info("y", types[1], [size, size])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": operand})


def measure_limits(threads: int | None = None, *, quick: bool = False) -> Limits:
    """Measure all limits now; takes one to three seconds.

    Args:
        threads: how many threads; None takes the cores that this process may use.
        quick: fewer repetitions.
    """
    threads = threads or usable_cores()
    ways = read_rates(threads, repetitions=3 if quick else 7)
    missing: dict[str, str] = {}
    for size in _GEMM_SIZES:
        products, unknown = multiply_rates(threads, size=size, repetitions=2 if quick else 5)
        ways |= products
        missing |= unknown
    return _limits(threads, ways, missing)


def _limits(threads: int, ways: Mapping[str, float], missing: Mapping[str, str]) -> Limits:
    def best(kind: str) -> float | None:
        return max((rate for way, rate in ways.items() if way.startswith(kind)), default=None)

    return Limits(
        threads=threads,
        read_bytes_per_s=best("read:") or 0.0,
        fp32_flop_per_s=best("fp32:") or 0.0,
        int8_op_per_s=best("int8:"),
        ways=ways,
        missing=missing,
        cache=last_level_cache(),
    )


if __name__ == "__main__":
    print("\n".join(measure_limits().lines()))
