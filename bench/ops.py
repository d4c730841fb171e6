"""Kernels beside the engine's own operators, with weights that come from memory.

::

    primelens bench ops [--rows 1,3,4,8,16,197,577] [--threads 1,2] [--json FILE]

Every way works through weights of its own, several times larger than the last-level cache; the ways
take turns, block by block. Before anything is timed, the kernels' results are compared with the
NumPy reference, bit for bit, and the engine's 8- and 4-bit products with a product of the float
weights that they stand for.

A time is that of one product within a walk through all weights. *Of memory* is the share of the
measured read bandwidth, *of peak* that of the fastest product measured in this run (8 bits and
fewer: integer operations; MatMul: fp32). DynamicQuantizeMatMul does all that the kernel of 8 bits
does, with one scale for all rows; MatMulInteger is the product alone, of rows that were rounded
before.

``--attention 12x64x197,…`` (heads, width and places) measures cross-attention instead, for so many
``--images`` and ``--image-rows`` of each.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.bench.arguments import counts
from primelens.bench.bandwidth import Limits, measure_limits
from primelens.bench.cold_weights import time_in_turns
from primelens.bench.environment import Load, capture, last_level_cache, load_now, usable_cores
from primelens.bench.estimators import compare_blocks, percentile
from primelens.bench.files import write_json
from primelens.bench.op_attention import (
    AttentionCase,
    attention_lines,
    attention_shapes,
    attention_sizes,
    measure_attention,
)
from primelens.bench.op_graphs import (
    BLOCK,
    HEADS,
    PRODUCTS,
    Opened,
    Operation,
    open_operation,
)
from primelens.bench.table import align
from primelens.errors import EngineError

__all__ = ["Case", "Timing", "check_operation", "main", "measure_ops"]

FORMAT = 1
ROWS = (1, 3, 4, 8, 16, 197, 577)
SHAPES = ((768, 3072), (3072, 768))
VOCABULARY = 50257
_CHECKED = 16  # rows that the slow reference computes
_CACHE_FACTOR = 3
_UNKNOWN_CACHE = 32 * 2**20

Array = NDArray[Any]


@dataclass(frozen=True)
class Timing:
    """How to time.

    Attributes:
        threads: of the sessions.
        blocks: repetitions, after one that warms up.
        cache: bytes of the last-level cache; None asks the machine.
    """

    threads: int
    blocks: int
    cache: int | None = None


@dataclass(frozen=True)
class Case:
    """One way on so many rows.

    Attributes:
        way, bits, rows, shape, threads: what was timed; shape is K and N.
        nbytes: of one weight.
        copies: different weights that a run walks through.
        seconds: per block, of one product.
    """

    way: str
    bits: int
    rows: int
    shape: tuple[int, int]
    threads: int
    nbytes: int
    copies: int
    seconds: list[float]

    @property
    def median(self) -> float:
        """Seconds."""
        return percentile(self.seconds, 50)

    @property
    def bytes_per_s(self) -> float:
        """Weights read."""
        return self.nbytes / self.median

    @property
    def op_per_s(self) -> float:
        """Multiply-adds, two operations each."""
        return 2.0 * self.rows * self.shape[0] * self.shape[1] / self.median


def check_operation(opened: Opened, x: Array) -> str:
    """Compare the first weight's results with a reference; says how.

    Raises:
        EngineError: they differ, so that a time would mean nothing.
    """
    operation, found = opened.operation, opened.outputs(x)
    chosen = np.unique(np.r_[: _CHECKED // 2, len(x) - _CHECKED // 2 : len(x)].clip(0, len(x) - 1))
    few = [output[chosen] for output in found]
    if operation.kernel:
        wanted = _reference(operation, opened.first, x[chosen], len(found))
        if all(np.array_equal(a, b) for a, b in zip(few, wanted, strict=True)):
            return "equal bits"
    elif len(found) == 1 and operation.rows_dtype is np.float32:
        wanted = [x[chosen].astype(np.float64) @ _float_weight(operation, opened.first, x.shape[1])]
        wanted[0] += opened.first.get("bias", 0)
        error = np.abs(few[0] - wanted[0]).max() / np.abs(wanted[0]).max()
        if error < (1e-5 if operation.bits == 32 else 0.03):
            return f"within {error:.1e}"
    else:
        return "not checked"
    raise EngineError(f"{operation.name}, {operation.bits} bits, differs from its reference.")


def _reference(operation: Operation, weights: Mapping[str, Array], x: Array, count: int) -> Any:
    from primelens.bench.op_graphs import TOP
    from primelens.kernels import layout, reference

    width = weights["scale"].size
    if operation.bits == 8:
        weight = layout.unpack8(weights["weight"], width)
    else:
        weight = layout.unpack4(weights["weight"], weights["multiplier"], width)
    y = reference.linear(x, weight, weights["scale"], weights["bias"])
    return [y] if count == 1 else list(reference.top_logits(y, TOP))


def _float_weight(operation: Operation, weights: Mapping[str, Array], inner: int) -> Array:
    """What a MatMul or MatMulNBits multiplies with, ``[K, N]``."""
    weight = weights["weight"]
    if operation.bits == 32:
        return weight.astype(np.float64)
    if operation.name == "DynamicQuantizeMatMul":
        return np.asarray(weight * weights["scale"].astype(np.float64))
    if operation.bits == 4:
        weight = np.stack([weight & 15, weight >> 4], axis=-1)
    values = weight.reshape(-1, inner // BLOCK, BLOCK).astype(np.float64)
    values -= 2 ** (operation.bits - 1)
    scaled = values * weights["scale"].reshape(*values.shape[:2], 1)
    return np.asarray(scaled.reshape(-1, inner).T)


def measure_ops(
    operations: Sequence[Operation],
    shape: tuple[int, int],
    rows: Sequence[int],
    timing: Timing,
    *,
    say: Callable[[str], None] = print,
) -> tuple[list[Case], dict[str, str]]:
    """Time operations in turns.

    Args:
        operations: the ways.
        shape: K and N.
        rows: one case of every way for each.
        timing: threads, blocks and cache.
        say: gets progress.

    Returns:
        The cases, and way → how its result was checked.
    """
    threads, cache = timing.threads, timing.cache
    if cache is None:
        cache = last_level_cache() or _UNKNOWN_CACHE
    opened = []
    for operation in operations:
        nbytes = max(1, shape[0] * shape[1] * operation.bits // 8)
        copies = max(1, -(-_CACHE_FACTOR * cache // nbytes))
        opened.append(open_operation(operation, shape, copies=copies, threads=threads))
    random = np.random.default_rng(1)
    cases: list[Case] = []
    checks: dict[str, str] = {}
    for count in rows:
        calls: dict[str, list[Callable[[], object]]] = {}
        for way in opened:
            x: Array = random.standard_normal((count, shape[0]), np.float32)
            if way.operation.rows_dtype is np.uint8:
                x = random.integers(0, 128, x.shape, np.uint8)
            checks[_label(way.operation)] = check_operation(way, x)
            calls[_label(way.operation)] = [way.bound(x)]
        say(f"{shape[0]} x {shape[1]}, {threads} threads, {count} rows")
        seconds = time_in_turns(calls, blocks=timing.blocks)
        for way in opened:
            each = [s / way.copies for block in seconds[_label(way.operation)] for s in block]
            operation = way.operation
            case = Case(
                *(operation.name, operation.bits, count, shape, threads),
                *(way.nbytes, way.copies, each),
            )
            cases.append(case)
    return cases, checks


def _label(operation: Operation) -> str:
    return f"{operation.name}, {operation.bits} bits"


def _peers(case: Case, cases: Sequence[Case]) -> list[Case]:
    """The engine's ways on the same work, with as many bits or more."""
    return [
        other
        for other in cases
        if (other.rows, other.shape, other.threads) == (case.rows, case.shape, case.threads)
        and "kernel" not in other.way
        and other.bits in (case.bits, 32)
    ]


def _best_peer(case: Case, cases: Sequence[Case]) -> Case | None:
    return min(_peers(case, cases), key=lambda peer: peer.median, default=None)


def _as_dict(case: Case, cases: Sequence[Case]) -> dict[str, Any]:
    found = asdict(case) | {"median_us": case.median * 1e6, "least_us": min(case.seconds) * 1e6}
    found |= {"gb_per_s": case.bytes_per_s / 1e9, "gop_per_s": case.op_per_s / 1e9}
    if "kernel" in case.way:
        found["faster_than"] = {}
        for peer in _peers(case, cases):
            own, other = ([[s] for s in c.seconds] for c in (case, peer))
            ratio = compare_blocks(own, other, paired=True).ratio
            name = f"{peer.way}, {peer.bits} bits"
            found["faster_than"][name] = [ratio.estimate, ratio.low, ratio.high]
    return found


def _lines(cases: Sequence[Case], limits: Mapping[int, Limits]) -> list[str]:
    header = ["rows", "K x N", "threads", "bits", "way", "µs", "GB/s", "of memory", "GOP/s"]
    table = [[*header, "of peak", "against the engine's best"]]
    peaks = {
        threads: {
            True: max([limit.fp32_flop_per_s, *_rates(cases, threads, floats=True)]),
            False: max([limit.int8_op_per_s or 0, *_rates(cases, threads, floats=False)]),
        }
        for threads, limit in limits.items()
    }
    for case in cases:
        peer = _best_peer(case, cases) if "kernel" in case.way else None
        memory = case.bytes_per_s / limits[case.threads].read_bytes_per_s
        peak = case.op_per_s / peaks[case.threads][case.bits == 32]
        table.append(
            [
                str(case.rows),
                f"{case.shape[0]} x {case.shape[1]}",
                str(case.threads),
                str(case.bits),
                case.way,
                f"{case.median * 1e6:.0f}",
                f"{case.bytes_per_s / 1e9:.1f}",
                f"{memory:.0%}",
                f"{case.op_per_s / 1e9:.0f}",
                f"{peak:.0%}",
                f"{peer.median / case.median:.2f} ({peer.way})" if peer else "",
            ]
        )
    return align(table)


def _rates(cases: Sequence[Case], threads: int, *, floats: bool) -> list[float]:
    return [c.op_per_s for c in cases if c.threads == threads and (c.bits == 32) == floats]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0."""
    parser = argparse.ArgumentParser(
        prog="primelens bench ops",
        description="Time the kernels beside the engine's own operators, with cold weights.",
    )
    cores = usable_cores()
    parser.add_argument("--rows", type=counts, default=ROWS, metavar="N,N,…")
    parser.add_argument("--shapes", type=_shapes, default=SHAPES, metavar="KxN,KxN,…")
    parser.add_argument("--threads", type=counts, default=tuple({1, cores}), metavar="N,N,…")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="0: no heads")
    parser.add_argument("--head-rows", type=counts, default=(1, 4), metavar="N,N,…")
    parser.add_argument(
        "--attention", type=attention_sizes, default=(), metavar="HxDxL,…", help="only that"
    )
    parser.add_argument("--images", type=counts, default=(1, 3, 8, 16), metavar="N,N,…")
    parser.add_argument("--image-rows", type=counts, default=(1, 3), metavar="N,N,…")
    parser.add_argument("--ways", default="", metavar="WORD", help="only those that hold the word")
    parser.add_argument("--blocks", type=int, default=5, help="repetitions after warm-up")
    parser.add_argument("--cache", type=int, help="bytes; default: the last-level cache")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    chosen = parser.parse_args(arguments)
    if chosen.blocks < 2:
        parser.error("at least 2 blocks")
    before = os.environ.get("PRIMELENS_KERNELS")
    try:
        report = (_measure_attention if chosen.attention else _measure)(chosen)
    finally:
        os.environ.pop("PRIMELENS_KERNELS", None)
        if before is not None:
            os.environ["PRIMELENS_KERNELS"] = before
    if chosen.json is not None:
        write_json(chosen.json, report)
    return 0


def _measure(chosen: argparse.Namespace) -> dict[str, Any]:
    load = load_now()
    limits: dict[int, Limits] = {}
    cases: list[Case] = []
    checks: dict[str, str] = {}
    for threads in chosen.threads:
        limits[threads] = measure_limits(threads, quick=True)
        work: list[tuple[Sequence[Operation], tuple[int, int], Sequence[int]]] = [
            (PRODUCTS, shape, chosen.rows) for shape in chosen.shapes
        ]
        if chosen.vocabulary:
            shape = (chosen.shapes[0][0], chosen.vocabulary)
            work.append((HEADS, shape, chosen.head_rows))
        for operations, shape, rows in work:
            picked = [o for o in operations if chosen.ways in _label(o)]
            timing = Timing(threads, chosen.blocks, chosen.cache)
            found, said = measure_ops(picked, shape, rows, timing, say=_say)
            cases += found
            checks |= said
        limits[threads] = limits[threads].best_of(measure_limits(threads, quick=True))
    print("\n".join(_lines(cases, limits)))
    print(f"others used {load.others or 0:.0%} of the machine at the start")
    result: dict[str, Any] = {"checked": checks, "cases": [_as_dict(case, cases) for case in cases]}
    return result | _conditions(load, limits)


def _measure_attention(chosen: argparse.Namespace) -> dict[str, Any]:
    load = load_now()
    limits: dict[int, Limits] = {}
    cases: list[AttentionCase] = []
    for threads in chosen.threads:
        limits[threads] = measure_limits(threads, quick=True)
        for shape in attention_shapes(chosen.attention, chosen.images, chosen.image_rows):
            _say(f"{threads} threads, {shape}")
            cases += measure_attention(shape, threads, chosen.blocks, cache=chosen.cache)
        limits[threads] = limits[threads].best_of(measure_limits(threads, quick=True))
    lines = attention_lines(cases, lambda threads: limits[threads].read_bytes_per_s)
    print("\n".join(align([*lines])))
    print(f"others used {load.others or 0:.0%} of the machine at the start")
    found = {"attention": [case.as_dict(cases) for case in cases]}
    return found | _conditions(load, limits)


def _conditions(load: Load, limits: Mapping[int, Limits]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "environment": capture().as_dict(),
        "load": load.others,
        "limits": {str(threads): asdict(limit) for threads, limit in limits.items()},
    }


def _say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


def _shapes(text: str) -> tuple[tuple[int, int], ...]:
    found = []
    for word in text.split(","):
        inner, width = (int(part) for part in word.split("x"))
        if inner < 32 or inner % 32 or width < 1:
            raise argparse.ArgumentTypeError("K must be a multiple of 32")
        found.append((inner, width))
    return tuple(found)


if __name__ == "__main__":
    sys.exit(main())
