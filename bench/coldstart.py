"""From process start to the first caption, in a fresh process every time.

``python -m primelens.bench.coldstart`` starts an interpreter that imports primelens, loads a bundle
and captions one picture, and says when each of these was done. The clock starts before the process
is made and is the system's monotonic one, which both processes read. The first runs warm the page
cache and do not count. Python is started with ``-I`` as an installed program would be: no
site-customisation by the working directory or the environment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from primelens.bench.environment import Environment, capture, load_now
from primelens.bench.estimators import percentile
from primelens.bench.files import write_json
from primelens.errors import EngineError

__all__ = ["PARTS", "ColdStart", "main", "measure_cold_start"]

PARTS = ("python", "import", "load", "caption")
"""What the time is split into: the interpreter, the import, opening the bundle, captioning."""

# What a program of a user does, with a look at the clock between the lines.
_PROGRAM = """
import time
stamps = [time.monotonic()]
import json, sys
import primelens
primelens.load
stamps.append(time.monotonic())
options = primelens.LoadOptions(check=sys.argv[3])
model = primelens.load(sys.argv[1], options=options)
stamps.append(time.monotonic())
caption = model.caption(sys.argv[2])
stamps.append(time.monotonic())
from pathlib import Path
status = Path("/proc/self/status")
words = status.read_text().split() if status.is_file() else ["VmHWM:", "0"]
print(json.dumps({"stamps": stamps, "text": caption.text, "tokens": len(caption.tokens),
                  "model": model.name, "engine": model.engine_name,
                  "peak": int(words[words.index("VmHWM:") + 1]) * 1024}))
"""


@dataclass(frozen=True)
class ColdStart:
    """Cold starts of one bundle.

    Attributes:
        model: the bundle's own name and the engine's.
        seconds: one row per process: part → seconds, and "total".
        text: what the caption said; ``tokens`` its length.
        peaks: bytes that were resident at most, one per process; 0 where the system does not tell.
    """

    model: str
    text: str
    tokens: int
    seconds: Sequence[Mapping[str, float]]
    environment: Environment
    others: float | None
    peaks: Sequence[int] = ()

    def median(self, part: str = "total") -> float:
        """Seconds: the median of a part, or of the total, over the processes."""
        return percentile([row[part] for row in self.seconds], 50.0)

    def lines(self) -> list[str]:
        """For people."""
        totals = [row["total"] for row in self.seconds]
        split = ", ".join(f"{part} {self.median(part) * 1e3:.0f}" for part in PARTS)
        span = f"{min(totals) * 1e3:.0f} to {max(totals) * 1e3:.0f}"
        others = "an unknown share" if self.others is None else f"{self.others:.0%}"
        return [
            f"machine    {self.environment.line}; others used {others} of the cores before",
            f"model      {self.model}",
            f"caption    {self.text!r} ({self.tokens} tokens)",
            f"cold start {self.median() * 1e3:.0f} ms from process start to the first caption",
            f"           median of {len(totals)} fresh processes, {span}; page cache warm",
            f"           {split} ms (medians of the parts)",
            f"memory     {max(self.peaks, default=0) / 1e6:.0f} MB resident at most",
        ]

    def as_dict(self) -> dict[str, Any]:
        """All samples, for a file."""
        return {
            "kind": "primelens-bench-coldstart",
            "version": 1,
            "environment": self.environment.as_dict(),
            "others_before": self.others,
            "model": self.model,
            "text": self.text,
            "tokens": self.tokens,
            "median_ms": {part: self.median(part) * 1e3 for part in (*PARTS, "total")},
            "seconds": [dict(row) for row in self.seconds],
            "peak_bytes": list(self.peaks),
        }


def measure_cold_start(
    model: str, picture: Path, *, repetitions: int = 7, warm_ups: int = 2, check: str = "once"
) -> ColdStart:
    """Start ``warm_ups + repetitions`` processes one after the other.

    Args:
        model: what `primelens.load` takes.
        picture: the picture to caption.
        repetitions: processes that count.
        warm_ups: processes before, which bring files into the page cache.
        check: how the bundle is checked when it is loaded, "full", "once" or "size".

    Raises:
        EngineError: a process failed; the message carries what it said.
    """
    others = load_now().others
    runs = [_start(model, picture, check) for _ in range(warm_ups + repetitions)]
    last = runs[-1]
    return ColdStart(
        model=f"{last['model']}, {last['engine']}",
        text=last["text"],
        tokens=last["tokens"],
        seconds=[run["seconds"] for run in runs[warm_ups:]],
        environment=capture(),
        others=others,
        peaks=[int(run.get("peak", 0)) for run in runs[warm_ups:]],
    )


def _start(model: str, picture: Path, check: str) -> dict[str, Any]:
    command = [sys.executable, "-I", "-c", _PROGRAM, model, str(picture), check]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(
            f"The cold start failed with status {done.returncode}: {done.stderr.strip()}"
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    stamps = [start, *found["stamps"]]
    parts = [after - before for before, after in pairwise(stamps)]
    seconds = dict(zip(PARTS, parts, strict=True))
    return {**found, "seconds": {**seconds, "total": stamps[-1] - start}}


def sample_picture(folder: Path) -> Path:
    """The first shipped sample picture; where there is none, a drawn one, written to ``folder``."""
    import primelens

    samples = Path(primelens.__file__).parent / "assets" / "samples"
    shipped = sorted(p for p in samples.glob("*") if p.suffix in {".png", ".jpg", ".webp"})
    if shipped:
        return shipped[0]
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (320, 240), (120, 170, 220))
    ImageDraw.Draw(picture).ellipse((90, 60, 230, 200), fill=(230, 190, 40))
    path = folder / "drawn.png"
    picture.save(path)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m primelens.bench.coldstart",
        description="Time a fresh process from its start to its first caption.",
    )
    parser.add_argument("--model", default="default", help="bundle, hub id, or default")
    parser.add_argument("--image", type=Path, help="the picture; default: a shipped sample")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--check", choices=("full", "once", "size"), default="once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    chosen = parser.parse_args(arguments)
    if chosen.repetitions < 5:
        parser.error("a median of fewer than 5 processes says too little")
    with tempfile.TemporaryDirectory() as folder:
        picture = chosen.image or sample_picture(Path(folder))
        found = measure_cold_start(
            chosen.model, picture, repetitions=chosen.repetitions, check=chosen.check
        )
    print("\n".join(found.lines()))
    if chosen.json is not None:
        write_json(chosen.json, found.as_dict())
    return 0


if __name__ == "__main__":
    sys.exit(main())
