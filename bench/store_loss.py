"""What a store costs that never hits: unique pictures, with and without it, turn by turn.

One model does it all with its store taken away and given back: the idle threads of a second one
would take the cores from the first. Both turns of a pair get the same pictures, each with a few
bytes of its own behind its end, so that no store knows the file and every decoder takes the same
time. A turn is many batches, and ends when everything is written: of the last batch that is in full
what would overlap with later pictures. Pairs change which comes first.

The loss is 1 - 1 / ratio, where the ratio of times with and without is the centre of the pairs'
(`primelens.bench.estimators.centre_interval`; a mean would be at the mercy of the few turns in
which something else ran). With ``alike`` both turns go without a store: what is found then is
chance or the method's fault.

A run deletes what it kept, and for five minutes ext4 takes twenty times as long to create a file
beside deleted ones: the next run on the same disk has to wait.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from primelens.bench.estimators import centre_interval, percentile
from primelens.model import Model, load
from primelens.options import CacheOptions, CaptionOptions

__all__ = ["BATCHES", "ROUNDS", "Loss", "throughput_loss"]

BATCH = 16  # pictures at once
BATCHES = 32  # in a turn
ROUNDS = 24

Work = Callable[[list[bytes]], object]


@dataclass(frozen=True)
class Loss:
    """How the loss is measured: pairs of turns, batches a turn, captions too, a store at all."""

    rounds: int = ROUNDS
    batches: int = BATCHES
    captions: bool = True
    alike: bool = False


def throughput_loss(bundle: str, folder: Path, how: Loss) -> dict[str, dict[str, float]]:
    """Use → its figures: encoded one by one, encoded in batches, captioned in batches.

    Returns:
        ``loss`` with ``low`` and ``high`` (95 %); medians of wall and of processor milliseconds a
        picture, ``plain_ms``, ``kept_ms``, ``plain_cpu_ms``, ``kept_cpu_ms``; the number of
        ``pairs``. Each use is printed as soon as it is known.
    """
    model = load(bundle, cache=CacheOptions(folder, memory_bytes=0))
    random = np.random.default_rng(0)
    pictures = [_picture(random) for _ in range(how.batches * BATCH)]
    found = {}
    for use, work in _uses(model, captions=how.captions).items():
        found[use] = _figures(_turns(model, work, pictures, how))
        print(f"\nunique pictures, {use}: {found[use]}", flush=True)
    model.close()
    return found


def _uses(model: Model, *, captions: bool) -> dict[str, Work]:
    forced = CaptionOptions(max_new_tokens=16, min_new_tokens=16)
    uses: dict[str, Work] = {
        "encode one by one": lambda files: [model.encode(file) for file in files],
        f"encode {BATCH} at once": lambda files: list(model.encode_batch(files, batch_size=BATCH)),
    }
    if captions and any(head.kind == "caption" for head in model.manifest.heads.values()):
        uses[f"caption {BATCH} at once"] = lambda files: list(
            model.caption_batch(files, forced, batch_size=BATCH)
        )
    return uses


def _turns(
    model: Model, work: Work, pictures: list[bytes], how: Loss
) -> dict[str, list[tuple[float, float]]]:
    """Per turn, wall and processor milliseconds a picture."""
    store = model._encoder.kept
    assert store is not None
    random = np.random.default_rng()  # no file may be known from an earlier run
    spent: dict[str, list[tuple[float, float]]] = {"plain": [], "kept": []}
    for number in range(-1, how.rounds):  # the first pair warms up
        for name in ("plain", "kept") if number % 2 else ("kept", "plain"):
            files = [picture + random.bytes(16) for picture in pictures]
            with_store = name == "kept" and not how.alike
            model._encoder.kept = store if with_store else None
            begin, used = time.perf_counter(), time.process_time()
            work(files)
            if with_store:  # what a thread still writes is no part of the other's time
                store.store.drain()
            wall, cpu = time.perf_counter() - begin, time.process_time() - used
            if number >= 0:
                spent[name].append((wall * 1e3 / len(files), cpu * 1e3 / len(files)))
    model._encoder.kept = store
    return spent


def _figures(spent: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    plain, kept = (np.log([wall for wall, _ in spent[name]]) for name in ("plain", "kept"))
    ratio = centre_interval(kept - plain)
    figures = {
        "loss": 1 - math.exp(-ratio.estimate),
        "low": 1 - math.exp(-ratio.low),
        "high": 1 - math.exp(-ratio.high),
        "pairs": float(len(plain)),
    }
    for name, turns in spent.items():
        figures[f"{name}_ms"] = percentile([wall for wall, _ in turns], 50)
        figures[f"{name}_cpu_ms"] = percentile([cpu for _, cpu in turns], 50)
    return {name: round(figure, 5) for name, figure in figures.items()}


def _picture(random: np.random.Generator) -> bytes:
    """A JPEG file of 640 x 480."""
    small = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    buffer = BytesIO()
    small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
