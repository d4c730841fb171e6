"""How cost and memory grow: with batch and threads, a caption's length, the number of pictures.

    python -m primelens.bench scale --out DIR                   # scale.json, scale.svg: minutes
    python -m primelens.bench scale --out DIR --counts 10000    # a look

* *Batches*: pictures per second of whole captions of the natural length, for every number of
  threads.
* *Lengths*: seconds of one caption of a kept picture, forced to so many tokens. A step reads all
  weights and the tokens so far, so the cost of a token ought to grow by the latter alone.
* *Counts*: a run over very many pictures whose graphs are stubs, so that everything else is what is
  measured: reading, preparing, batching, the decode loop, results. Time ought to grow in proportion
  and memory not at all.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import primelens
from primelens.bench.arguments import counts
from primelens.bench.captioner import require_caption_head
from primelens.bench.environment import capture, load_now, usable_cores
from primelens.bench.estimators import percentile
from primelens.bench.files import write_json
from primelens.bench.peers.worker import memory
from primelens.bench.pictures import PictureSource
from primelens.bench.table import align
from primelens.engine import Array, Graph
from primelens.engine_fake import FakeGraph
from primelens.engine_onnx import OnnxEngine
from primelens.errors import OptionError
from primelens.head_spec import HeadSpec

__all__ = [
    "FILE",
    "StubEngine",
    "main",
    "measure_batches",
    "measure_counts",
    "measure_lengths",
    "scale_lines",
]

FILE = "scale.json"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (5, 10, 20, 50, 100, 150, 200)
_SETTLED = 1000  # pictures after which pools are as large as they get

Rows = list[dict[str, Any]]


class StubEngine:
    """Opens a bundle's graphs for what they take and give, and runs none of them.

    The tower's and the connector's outputs are zeros; the decoder finds one token most probable,
    and after it the end, so that every caption has two tokens.
    """

    name = "stub"

    def __init__(self, head: HeadSpec) -> None:
        self._engine = OnnxEngine(threads=1)
        self._end = head.generation.eos_tokens[0]
        self._start = len(head.generation.start_tokens)

    def open(self, path: Path) -> Graph:
        """A stub with the inputs and outputs of the real graph."""
        real = self._engine.open(path)

        def function(feeds: Mapping[str, Array]) -> dict[str, Array]:
            rows = len(next(iter(feeds.values())))
            if "logits" in real.outputs:
                return {"logits": self._logits(feeds, real.outputs["logits"].shape[-1] or 1)}
            return {
                name: np.zeros([rows, *(side or 1 for side in spec.shape[1:])], np.float32)
                for name, spec in real.outputs.items()
            }

        return FakeGraph(function, real.inputs, real.outputs)

    def _logits(self, feeds: Mapping[str, Array], width: int) -> NDArray[np.float32]:
        logits = np.zeros((len(feeds["logits_rows"]), width), np.float32)
        past = feeds["seqlens_k"] + 1 - self._start  # tokens written so far
        logits[:, self._end] = np.where(past > 0, 1.0, -1.0)
        return logits


@dataclass(frozen=True)
class _Clock:
    """Seconds of a call: the median of several, after one that does not count."""

    repetitions: int

    def median(self, call: Callable[[], object]) -> float:
        call()
        seconds = []
        for _ in range(self.repetitions):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return percentile(seconds, 50.0)


def measure_batches(
    model: str, batches: Sequence[int], threads: Sequence[int], repetitions: int
) -> Rows:
    """Pictures per second of whole captions: one row per batch and number of threads."""
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        pictures = PictureSource(Path(folder), 0).fresh(max(batches))
        for count in threads:
            options = primelens.LoadOptions(threads=count)
            with closing(primelens.load(model, options=options)) as opened:
                for batch in batches:
                    seconds = _Clock(repetitions).median(
                        lambda size=batch, by=opened: list(  # type: ignore[misc]
                            by.caption_batch(pictures, batch_size=size)
                        )
                    )
                    rows.append(
                        {
                            "threads": count,
                            "batch": batch,
                            "images_per_s": len(pictures) / seconds,
                            "resident": memory()["resident"],
                        }
                    )
    return rows


def measure_lengths(model: str, lengths: Sequence[int], threads: int, repetitions: int) -> Rows:
    """Seconds of one caption of a kept picture, forced to each length."""
    options = primelens.LoadOptions(threads=threads)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(primelens.load(model, options=options)) as opened,
    ):
        encoded = opened.encode(PictureSource(Path(folder), 0).fresh(1)[0])
        rows: Rows = []
        for length in lengths:
            wanted = primelens.CaptionOptions(
                max_new_tokens=length,
                min_new_tokens=length,
                decoding=primelens.DecodingOptions(num_beams=1, do_sample=False),
            )
            seconds = _Clock(repetitions).median(
                lambda how=wanted: opened.caption(encoded, how)  # type: ignore[misc]
            )
            rows.append({"tokens": length, "seconds": seconds})
    return rows


def measure_counts(model: str, largest: int, batch: int, threads: int) -> Rows:
    """Seconds and resident bytes after 10, 100, … pictures of one run over stub graphs."""
    marks = [10**n for n in range(1, 10) if 10**n < largest] + [largest]
    bundle = primelens.load(model)
    head = require_caption_head(bundle.manifest)
    folder = bundle.folder
    bundle.close()
    rows: Rows = []
    options = primelens.LoadOptions(threads=threads, check="size")
    stub = StubEngine(head)
    with closing(primelens.load(folder, options=options, engine=stub)) as opened:
        start = time.perf_counter()
        results = opened.caption_batch(_pictures(largest), batch_size=batch)
        for number, row in enumerate(results, 1):
            if not isinstance(row, primelens.Caption):
                raise OptionError(f"A stub's picture failed: {row}")
            if number == marks[len(rows)]:
                seconds = time.perf_counter() - start
                rows.append(
                    {"images": number, "seconds": seconds, "resident": memory()["resident"]}
                )
    return rows


def _pictures(count: int) -> Iterator[NDArray[np.uint8]]:
    """Small pictures, each unlike all others, made as they are asked for."""
    for number in range(count):
        picture = np.full((32, 32, 3), number % 251, np.uint8)
        picture[0, :8, 0] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
        yield picture


def scale_lines(found: Mapping[str, Any]) -> list[str]:
    """For people: the three series, and what grows."""
    batches = [["threads", "batch", "pictures/s", "resident MB"]]
    batches += [
        [
            str(row["threads"]),
            str(row["batch"]),
            f"{row['images_per_s']:.1f}",
            f"{row['resident'] / 1e6:.0f}",
        ]
        for row in found["batches"]
    ]
    lengths = [["tokens", "seconds", "ms a token more"]]
    lengths += [
        [str(row["tokens"]), f"{row['seconds']:.3f}", "–" if more is None else f"{more * 1e3:.2f}"]
        for row, more in zip(found["lengths"], _marginal(found["lengths"]), strict=True)
    ]
    counts = [["pictures", "seconds", "ms a picture", "resident MB"]]
    counts += [
        [
            str(row["images"]),
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / row['images'] * 1e3:.3f}",
            f"{row['resident'] / 1e6:.1f}",
        ]
        for row in found["counts"]
    ]
    growth = _growth(found["counts"])
    said = "too few pictures to tell" if growth is None else f"{growth:.1f} bytes a picture"
    return [
        f"batches: {found['models']['batches']}",
        *align(batches),
        "",
        f"lengths: {found['models']['lengths']}",
        *align(lengths),
        "",
        f"counts: stub graphs; memory grows by {said} after the first {_SETTLED}",
        *align(counts),
    ]


def _marginal(rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """What a token more costs, from each length to the next."""
    steps: list[float | None] = [None]
    for before, row in pairwise(rows):
        more = row["tokens"] - before["tokens"]
        steps.append((row["seconds"] - before["seconds"]) / more)
    return steps[: len(rows)]


def _growth(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Bytes a picture between the first and the last mark of a settled run."""
    settled = [row for row in rows if row["images"] >= _SETTLED]
    if len(settled) < 2:
        return None
    first, last = settled[0], settled[-1]
    grown: float = last["resident"] - first["resident"]
    return grown / int(last["images"] - first["images"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m primelens.bench scale",
        description="How cost and memory grow with batch, threads, length and pictures.",
    )
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {FILE}, scale.svg")
    parser.add_argument("--model", default="default", help="for batches and counts")
    parser.add_argument("--long", default="default", help="a bundle with positions for --lengths")
    parser.add_argument("--batches", type=counts, default=BATCHES)
    parser.add_argument("--lengths", type=counts, default=LENGTHS)
    parser.add_argument("--counts", type=int, default=100_000, help="pictures of the longest run")
    parser.add_argument("--threads", type=counts, default=tuple(range(1, usable_cores() + 1)))
    parser.add_argument("--repetitions", type=int, default=3)
    chosen = parser.parse_args(arguments)
    if chosen.counts < 10:
        parser.error("at least 10 pictures")
    most = max(chosen.threads)
    before = load_now()
    # The counts come first: what the other series leave behind would be counted with them.
    pictures = measure_counts(chosen.model, chosen.counts, 16, most)
    found: dict[str, Any] = {
        "kind": "primelens-bench-scale",
        "version": 1,
        "environment": capture().as_dict(),
        "models": {"batches": Path(chosen.model).name, "lengths": Path(chosen.long).name},
        "counts": pictures,
        "lengths": measure_lengths(
            chosen.long, _fitting(chosen.long, chosen.lengths), most, chosen.repetitions
        ),
        "batches": measure_batches(
            chosen.model, chosen.batches, chosen.threads, chosen.repetitions
        ),
        "load": {"before": before.others, "after": load_now().others},
    }
    print("\n".join(scale_lines(found)))
    write_json(chosen.out / FILE, found)
    from primelens.bench.scale_plot import draw_scale

    draw_scale(found, chosen.out / "scale.svg")
    return 0


def _fitting(model: str, lengths: Sequence[int]) -> list[int]:
    """Those lengths that the model has positions for."""
    opened = primelens.load(model)
    head = require_caption_head(opened.manifest)
    opened.close()
    room = head.decoder.max_positions + 1 - len(head.generation.start_tokens)
    return [length for length in lengths if length <= room]


if __name__ == "__main__":
    sys.exit(main())
