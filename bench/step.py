"""One decode step: the runtime's against transformers', and both against the memory's bandwidth.

A decode step at batch 1 multiplies one row by every weight: it can be no faster than memory
delivers the weights and the caches. The command

    python -m primelens.bench.step --model BUNDLE --against CHECKPOINT [--batch 1,4,8 --beams 1,3]

times the step of the shipped runtime (`primelens.decoding.session.DecoderSession`, the very class
that captions) and the cached step of transformers on the source checkpoint, interleaved A B A B in
one run, for every batch, number of beams and past length, and prints each median over the limit
measured in that run.

Both are fed the same random tokens over the same picture, and their logits are compared: the speed
of a wrong step is of no interest.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from primelens.bench.arguments import counts
from primelens.bench.bandwidth import read_rates
from primelens.bench.environment import Environment, Load, capture, load_now, usable_cores
from primelens.bench.estimators import Interval, compare_blocks, percentile
from primelens.bench.files import write_json
from primelens.bench.scenarios import settle
from primelens.bench.step_bytes import StepBytes, graph_weights, step_bytes
from primelens.bench.steppers import Logits, RuntimeStepper, Stepper, TransformersStepper
from primelens.bench.system import SystemClock
from primelens.errors import OptionError

__all__ = ["DEFAULT_PASTS", "StepReport", "StepRow", "main", "measure_steps"]

DEFAULT_PASTS = (4, 16, 64, 256)


@dataclass(frozen=True)
class StepRow:
    """What was measured at one past length.

    Attributes:
        past: tokens in the cache before the first timed step of a block.
        batch, beams: pictures, and rows for each of them.
        bytes: what a step in the middle of a block reads.
        seconds: system name → one list of timings per block.
        logits_error: largest absolute difference between the systems' logits; None for one system.
        same_tokens: the most probable token agreed at every timed step.
    """

    past: int
    bytes: StepBytes
    seconds: Mapping[str, list[list[float]]]
    logits_error: float | None
    same_tokens: bool
    batch: int = 1
    beams: int = 1

    def median(self, system: str) -> float:
        """Seconds: median of all timed steps of a system."""
        return percentile([s for block in self.seconds[system] for s in block], 50.0)

    def speed_up(self) -> Interval | None:
        """Second system's time over the first's, pair by pair; None where there is only one."""
        if len(self.seconds) < 2:
            return None
        first, second = self.seconds.values()
        return compare_blocks(first, second, paired=True).ratio


@dataclass(frozen=True)
class StepReport:
    """A finished run; bandwidth in bytes per second is the best seen before any block."""

    read_bytes_per_s: float
    rows: Sequence[StepRow]
    environment: Environment
    threads: int
    load: float | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def share(self, row: StepRow, system: str) -> float:
        """A system's median over the limit: 1.0 is as fast as memory delivers."""
        return row.median(system) / (row.bytes.total / self.read_bytes_per_s)

    def lines(self) -> list[str]:
        """The table for people."""
        cache = self.environment.cache or 0
        lines = [
            f"machine    {self.environment.line}",
            f"           {self.threads} threads; others used "
            + ("an unknown share" if self.load is None else f"{self.load:.0%}")
            + " of the cores before the run",
            f"memory     {self.read_bytes_per_s / 1e9:.1f} GB/s read, best of this run",
        ]
        names = list(self.rows[0].seconds)
        lines += [f"{'AB'[i]}          {name}" for i, name in enumerate(names)]
        columns = "".join(f"    {letter} ms  {letter}/limit" for letter in "AB"[: len(names)])
        if len(names) == 2:
            columns += "   B/A, 95 % interval       logits differ by, same tokens"
        lines += ["", f"batch  beams  past   bytes/step  limit ms{columns}"]
        for row in self.rows:
            limit = row.bytes.total / self.read_bytes_per_s
            text = f"{row.batch:5d}  {row.beams:5d}  {row.past:4d}"
            text += f"  {row.bytes.total / 1e6:8.1f} MB  {limit * 1e3:8.2f}"
            for name in names:
                text += f"  {row.median(name) * 1e3:6.2f}  {self.share(row, name):7.2f}"
            if (ratio := row.speed_up()) is not None:
                agreed = "yes" if row.same_tokens else "NO"
                text += f"   {ratio!s:22}   {row.logits_error:.1e}, {agreed}"
            lines.append(text)
        if min(row.bytes.total for row in self.rows) < 4 * cache:
            lines.append(
                f"note: a step reads little more than the last-level cache holds ({cache >> 20} "
                "MiB), so memory is not what limits it"
            )
        if self.load is not None and Load(0.0, self.load).busy:
            lines.append("note: the machine was busy; these figures say little. Run again alone.")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """All raw samples, for a file."""
        rows = [
            {
                **asdict(row),
                "bytes": {**asdict(row.bytes), "total": row.bytes.total},
                "median_ms": {name: row.median(name) * 1e3 for name in row.seconds},
                "over_limit": {name: self.share(row, name) for name in row.seconds},
            }
            for row in self.rows
        ]
        return {
            "kind": "primelens-bench-step",
            "version": 2,
            "environment": self.environment.as_dict(),
            "threads": self.threads,
            "others_before": self.load,
            "read_bytes_per_s": self.read_bytes_per_s,
            "digests": dict(self.digests),
            "rows": rows,
        }


def measure_steps(
    steppers: Sequence[Stepper],
    tokens: Sequence[int],
    past: int,
    *,
    blocks: int,
    steps: int,
) -> tuple[dict[str, list[list[float]]], float | None, bool]:
    """Time ``steps`` steps after ``past`` tokens, ``blocks`` times, the systems taking turns.

    Args:
        steppers: one or more systems.
        tokens: at least ``past + steps`` ids; every system is fed the same.
        past: tokens before the first timed step, at least 2.
        blocks: repetitions; one more at the start does not count.
        steps: timed steps per block.

    Returns:
        System name → timings per block; largest difference of logits to the first system's; whether
        the most probable token was always the same.
    """
    seconds: dict[str, list[list[float]]] = {stepper.name: [] for stepper in steppers}
    error, same = None, True
    for block in range(-1, blocks):
        expected: list[Logits] = []
        for number, stepper in enumerate(steppers):
            if len(steppers) > 1:
                settle(SystemClock())
            times, logits = _timed_block(stepper, tokens, past, steps)
            if block >= 0:
                seconds[stepper.name].append(times)
            if number == 0:
                expected = logits
                continue
            found = max(float(np.abs(a - b).max()) for a, b in zip(expected, logits, strict=True))
            error = max(error or 0.0, found)
            same &= all(
                np.array_equal(a.argmax(-1), b.argmax(-1))
                for a, b in zip(expected, logits, strict=True)
            )
    return seconds, error, same


def _timed_block(
    stepper: Stepper, tokens: Sequence[int], past: int, steps: int
) -> tuple[list[float], list[Logits]]:
    """Prefill all but one token of the past, feed that one untimed, then time the steps."""
    stepper.start(tokens[: past - 1])
    stepper.step(tokens[past - 1])
    times, logits = [], []
    for token in tokens[past : past + steps]:
        start = time.perf_counter()
        result = stepper.step(token)
        times.append(time.perf_counter() - start)
        logits.append(result.copy())
    return times, logits


def _report(arguments: argparse.Namespace) -> StepReport:
    load = load_now()
    longest = max(arguments.past) + arguments.steps
    runtime = RuntimeStepper(arguments.model, longest, arguments.threads)
    if longest > runtime.spec.max_positions:
        raise OptionError(
            f"A past of {max(arguments.past)} does not fit {runtime.spec.max_positions} positions.",
            remedy="Name shorter ones with --past.",
        )
    steppers: list[Stepper] = [runtime]
    if arguments.against is not None:
        steppers.append(TransformersStepper(arguments.against, runtime, arguments.threads))
    weights = graph_weights(runtime.bundle.path(runtime.spec.graph))
    random = np.random.default_rng(arguments.seed)
    tokens = random.integers(0, runtime.spec.vocab_size, longest).tolist()
    rows, bandwidth = [], 0.0
    for batch, beams, past in product(arguments.batch, arguments.beams, arguments.past):
        for stepper in steppers:
            stepper.resize(batch, beams)
        bandwidth = max(bandwidth, *read_rates(arguments.threads).values())
        seconds, error, same = measure_steps(
            steppers, tokens, past, blocks=arguments.blocks, steps=arguments.steps
        )
        middle = past + (arguments.steps - 1) // 2
        counted = step_bytes(
            weights, runtime.spec, runtime.cross_bytes, past=middle, rows=batch * beams
        )
        rows.append(StepRow(past, counted, seconds, error, same, batch, beams))
    bandwidth = max(bandwidth, *read_rates(arguments.threads).values())
    files = runtime.bundle.manifest.files
    digests = {name: record.sha256 for name, record in files.items()}
    return StepReport(bandwidth, rows, capture(), arguments.threads, load.others, digests)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 1 where the two systems' tokens differ."""
    parser = argparse.ArgumentParser(
        prog="python -m primelens.bench.step",
        description="Time one decode step beside transformers' and the memory's limit.",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="BUNDLE")
    parser.add_argument("--against", metavar="CHECKPOINT", help="its source: a folder or a hub id")
    parser.add_argument(
        "--past", type=_lengths, default=DEFAULT_PASTS, metavar="N,N,…", help="past lengths, ≥ 2"
    )
    for name, what in (("--batch", "pictures"), ("--beams", "rows per picture")):
        parser.add_argument(name, type=counts, default=(1,), metavar="N,N,…", help=what)
    parser.add_argument("--blocks", type=int, default=7, help="repetitions after warm-up")
    parser.add_argument("--steps", type=int, default=5, help="timed steps per repetition")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    chosen = parser.parse_args(arguments)
    if min(chosen.blocks, 2) < 2 or chosen.steps < 1:
        parser.error("at least 2 blocks of at least 1 step")
    report = _report(chosen)
    print("\n".join(report.lines()))
    if chosen.json is not None:
        write_json(chosen.json, report.as_dict())
    return 0 if all(row.same_tokens for row in report.rows) else 1


def _lengths(text: str) -> tuple[int, ...]:
    numbers = counts(text)
    if min(numbers) < 2:
        raise argparse.ArgumentTypeError("a past length is at least 2")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
