"""What beams cost beside greedy decoding: per step, in moved caches, and in memory.

    python -m primelens.bench beams --model BUNDLE [--beams 3]

* *Per step*: captions of forced length through the public calls, greedy and with beams in turns
  over the same encoded pictures; the search's own work is part of a step.
* *Moved caches*: the part of a step that goes into letting rows continue other rows' pasts.
* *Memory*: peaks of fresh processes, of which half never use beams, part by part. What beams have
  to add is their own self-attention cache, logits and scores; the picture's cross-attention K/V is
  there once, however many beams read it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import primelens
from primelens.bench.captioner import require_caption_head
from primelens.bench.environment import Environment, capture, load_now, usable_cores
from primelens.bench.estimators import Comparison, compare_blocks, percentile
from primelens.bench.files import write_json
from primelens.bench.pictures import PictureSource
from primelens.bench.shares import cross_bytes
from primelens.bench.system import Request
from primelens.bench.workers import WorkerSystem
from primelens.bundle import open_bundle
from primelens.decoding.session import DecoderSession, capacity_for
from primelens.errors import OptionError
from primelens.hub import resolve

__all__ = ["BeamReport", "Memory", "main", "measure_beams", "measure_memory", "timed_moves"]

_PER_BLOCK = 3  # captions of a block
_PROCESSES = 3  # fresh ones of each kind
_ANSWERS = 3  # that fill the pools of a process before its memory is read


@dataclass(frozen=True)
class Memory:
    """Bytes that beams add to a process.

    Attributes:
        greedy, beams: how far the peaks of processes rose that decoded greedily, or with beams.
        greedy_files, beams_files: pages of files among it: token vectors that were looked up, and
            code. They are read again where the system takes them.
        self_cache: what the further beams' own self-attention cache takes.
        logits: what their ``[beams, V]`` float32 logits take more.
        scores: the search's own arrays of ``[beams, V]``: totals, and what processors changed.
        cross_copies: what copies of the cross-attention K/V for every further beam would take.
    """

    greedy: Sequence[int]
    beams: Sequence[int]
    greedy_files: Sequence[int]
    beams_files: Sequence[int]
    self_cache: int
    logits: int
    scores: int
    cross_copies: int

    @property
    def growth(self) -> int:
        """Difference of the medians."""
        return _grown(self.greedy, self.beams)

    @property
    def files(self) -> int:
        """The growth's part in pages of files."""
        return _grown(self.greedy_files, self.beams_files)

    @property
    def rest(self) -> int:
        """What the parts leave of the growth: free pieces between allocations, the engine's
        arena.
        """
        return self.growth - self.self_cache - self.logits - self.scores - self.files

    def lines(self) -> list[str]:
        """The account, for people."""
        parts = (
            (self.self_cache, "the beams' self-attention cache"),
            (self.logits, "their logits"),
            (self.scores, "the search's scores"),
            (self.files, "pages of files: token vectors that were looked up, code"),
            (self.rest, "the rest: free pieces between allocations, the engine's arena"),
        )
        found = [f"memory   peak {self.growth / 2**20:.1f} MiB above greedy's, of which"]
        found += [f"         {value / 2**20:5.1f} MiB  {name}" for value, name in parts]
        copies = self.cross_copies / 2**20
        return [*found, f"         copies of the cross-attention K/V would be {copies:.1f} MiB"]


def _grown(before: Sequence[int], after: Sequence[int]) -> int:
    return round(percentile(after, 50.0) - percentile(before, 50.0))


@dataclass(frozen=True)
class BeamReport:
    """A finished run.

    Attributes:
        beams, tokens: per picture; forced length of every caption.
        seconds: "greedy" and "beams" → blocks of seconds per step.
        moved: seconds per step spent on moving pasts, of every caption with beams.
        memory: None where it was not measured.
        others: share of the cores that other processes used before.
    """

    model: str
    beams: int
    tokens: int
    seconds: dict[str, list[list[float]]]
    moved: Sequence[float]
    memory: Memory | None
    environment: Environment
    others: float | None

    @property
    def ratio(self) -> Comparison:
        """A step with beams over a greedy one, pair by pair."""
        return compare_blocks(self.seconds["greedy"], self.seconds["beams"], paired=True)

    @property
    def moved_share(self) -> float:
        """Moving pasts as a share of a step with beams: medians."""
        return percentile(self.moved, 50.0) / self._median("beams")

    def _median(self, kind: str) -> float:
        return percentile([value for block in self.seconds[kind] for value in block], 50.0)

    def lines(self) -> list[str]:
        """For people."""
        others = "an unknown share" if self.others is None else f"{self.others:.0%}"
        found = [
            f"machine  {self.environment.line}; others used {others} of the cores before",
            f"model    {self.model}, {self.tokens} tokens forced",
            (
                f"step     greedy {self._median('greedy') * 1e3:.2f} ms, {self.beams} beams "
                f"{self._median('beams') * 1e3:.2f} ms: {self.ratio.ratio} times"
            ),
            (
                f"moves    {percentile(self.moved, 50.0) * 1e6:.0f} µs per step, "
                f"{self.moved_share:.2%} of it"
            ),
        ]
        if self.memory is not None:
            found += self.memory.lines()
        return found

    def as_dict(self) -> dict[str, Any]:
        """All samples, for a file."""
        ratio = self.ratio.ratio
        memory = None
        if self.memory is not None:
            held = self.memory
            memory = {
                **asdict(held),
                "growth": held.growth,
                "files": held.files,
                "rest": held.rest,
            }
        return {
            "kind": "primelens-bench-beams",
            "version": 2,
            **{k: getattr(self, k) for k in ("model", "beams", "tokens", "seconds")},
            "ratio": asdict(ratio),
            "moved_seconds": list(self.moved),
            "moved_share": self.moved_share,
            "memory": memory,
            "environment": self.environment.as_dict(),
            "others_before": self.others,
        }


@contextmanager
def timed_moves() -> Iterator[list[float]]:
    """While it lasts, note the seconds that every `DecoderSession` spends on letting rows continue
    other rows' pasts, one entry per step."""
    plain = DecoderSession._reorder
    spent: list[float] = []

    def timed(self: DecoderSession, parents: NDArray[np.int64]) -> None:
        start = time.perf_counter()
        plain(self, parents)
        spent.append(time.perf_counter() - start)

    DecoderSession._reorder = timed  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        DecoderSession._reorder = plain  # type: ignore[method-assign]


def measure_beams(
    model: primelens.Model, beams: int, tokens: int, *, blocks: int, seed: int = 0
) -> tuple[dict[str, list[list[float]]], list[float]]:
    """Seconds per step of captions of ``tokens`` tokens, greedy and with ``beams`` in turns.

    Returns:
        "greedy" and "beams" → blocks of seconds per step; and the seconds per step spent on moving
        pasts, one figure for every caption with beams.
    """
    with tempfile.TemporaryDirectory() as folder:
        pictures = [model.encode(path) for path in PictureSource(Path(folder), seed).fresh(8)]
    seconds: dict[str, list[list[float]]] = {"greedy": [], "beams": []}
    moved = []
    for block in range(-1, blocks):
        for kind, width in (("greedy", 1), ("beams", beams)):
            times = []
            for number in range(_PER_BLOCK):
                picture = pictures[(block * _PER_BLOCK + number) % len(pictures)]
                with timed_moves() as spent:
                    caption = model.caption(picture, _options(width, tokens))
                times.append(caption.timings.step / (tokens - 1))
                if width > 1 and block >= 0:
                    moved.append(sum(spent) / (tokens - 1))
            if block >= 0:
                seconds[kind].append(times)
    return seconds, moved


def _options(beams: int, tokens: int) -> primelens.CaptionOptions:
    return primelens.CaptionOptions(
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        decoding=primelens.DecodingOptions(num_beams=beams, do_sample=False),
    )


def measure_memory(folder: str, model: primelens.Model, beams: int, tokens: int) -> Memory:
    """How far fresh processes rise that caption greedily, or with beams, in turns."""
    found: dict[int, list[tuple[int, int]]] = {1: [], beams: []}
    with tempfile.TemporaryDirectory() as home:
        paths = PictureSource(Path(home), 0).fresh(_ANSWERS)
        for _ in range(_PROCESSES):
            for width, risen in found.items():
                risen.append(
                    _risen(
                        folder,
                        [
                            Request(0, path, max_new_tokens=tokens, forced=True, beams=width)
                            for path in paths
                        ],
                    )
                )
    head = require_caption_head(model.manifest)
    sizes = head.decoder
    start = len(head.generation.start_tokens)
    position = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * 4
    cross = sum(cross_bytes(open_bundle(resolve(folder), check="size"), head.connector))
    row = sizes.vocab_size * 4
    return Memory(
        greedy=[peak for peak, _ in found[1]],
        beams=[peak for peak, _ in found[beams]],
        greedy_files=[files for _, files in found[1]],
        beams_files=[files for _, files in found[beams]],
        self_cache=(beams - 1) * capacity_for(sizes.prefix + start + tokens, sizes) * position,
        logits=(beams - 1) * row,
        scores=2 * beams * row,
        cross_copies=(beams - 1) * cross,
    )


def _risen(folder: str, requests: Sequence[Request]) -> tuple[int, int]:
    """By how many bytes a fresh process's peak rises above what it held once the model was open,
    and its pages of files.
    """
    with WorkerSystem("primelens", {"model": folder, "threads": 1}) as system:
        before = system.memory(anew=True)
        for request in requests:
            system.answer([request])
        after = system.memory()
    files = [held["resident"] - held.get("anonymous", held["resident"]) for held in (before, after)]
    return after["peak"] - before["resident"], files[1] - files[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m primelens.bench beams",
        description="What beams cost beside greedy decoding: per step, in moves, in memory.",
    )
    parser.add_argument("--model", default="default", help="bundle, hub id, or default")
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--without-memory", action="store_true", help="no further processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    chosen = parser.parse_args(arguments)
    if min(chosen.beams, chosen.tokens, chosen.blocks) < 2:
        raise OptionError("Beams, tokens and blocks must each be at least 2.")
    load = load_now()
    options = primelens.LoadOptions(threads=chosen.threads)
    with closing(primelens.load(chosen.model, options=options)) as model:
        seconds, moved = measure_beams(model, chosen.beams, chosen.tokens, blocks=chosen.blocks)
        memory = None
        if not chosen.without_memory:
            memory = measure_memory(chosen.model, model, chosen.beams, chosen.tokens)
        report = BeamReport(
            model=f"{model.name}, {model.engine_name}",
            beams=chosen.beams,
            tokens=chosen.tokens,
            seconds=seconds,
            moved=moved,
            memory=memory,
            environment=capture(),
            others=load.others,
        )
    print("\n".join(report.lines()))
    if chosen.json is not None:
        write_json(chosen.json, report.as_dict())
    return 0


if __name__ == "__main__":
    sys.exit(main())
