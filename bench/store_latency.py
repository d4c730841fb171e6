"""What a kept embedding costs to find, and where the time goes.

::

    python -m primelens.bench.store_latency [--folder DIR] [--model BUNDLE]

Prints medians and 95th percentiles for entries of three sizes and all stored dtypes: a hit on disk
split into its parts, a hit in memory, a miss, keeping one, the key of a 200 KB JPEG, and a hit of
the second tier. With ``--model``, also what a store costs that never hits
(`primelens.bench.store_loss`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from primelens.bench.environment import capture
from primelens.bench.estimators import percentile
from primelens.bench.store_loss import BATCHES, Loss, throughput_loss
from primelens.bench.store_loss import ROUNDS as LOSS_ROUNDS
from primelens.options import CacheOptions
from primelens.store import EmbeddingStore, EntryKey, Hit, StoredDtype
from primelens.store.codec import stored
from primelens.store.derived import DerivedTensors
from primelens.store.entry_file import from_bytes

__all__ = ["entry_costs", "key_costs", "second_tier_costs"]

SHAPES = ((64, 384), (197, 768), (577, 768))
COUNT = 60  # entries that are looked up in turn
ROUNDS = 5

Costs = dict[str, dict[str, float]]


def _key(number: int, dtype: StoredDtype) -> EntryKey:
    source = hashlib.sha256(b"%d" % number).hexdigest()
    return EntryKey("a" * 64, "fp32", dtype, source, tap="last_hidden_state")


def _figures(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    return {"median": percentile(seconds, 50) * 1e3, "p95": percentile(seconds, 95) * 1e3}


def _timed(work: Callable[[int], object], numbers: Iterator[int] | range) -> dict[str, float]:
    seconds = []
    for number in numbers:
        begin = time.perf_counter()
        work(number)
        seconds.append(time.perf_counter() - begin)
    return _figures(seconds)


def _in_turn() -> Iterator[int]:
    for _ in range(ROUNDS):
        yield from range(COUNT)


def entry_costs(folder: Path, shape: tuple[int, int], dtype: StoredDtype) -> Costs:
    """Operation → milliseconds, for entries of one shape and dtype."""
    random = np.random.default_rng(0)
    values = [random.standard_normal(shape, np.float32) for _ in range(8)]
    keys = [_key(number, dtype) for number in range(COUNT)]
    digests = [key.digest for key in keys]  # the key's own cost is measured apart
    costs: Costs = {}
    options = CacheOptions(folder, dtype=dtype, memory_bytes=0)
    with EmbeddingStore(options) as store:
        for number in range(COUNT):  # the folders and files are made once
            store.put(keys[number], values[number % 8], (640, 480))
        costs["keep"] = _timed(
            lambda n: store.put(keys[n], values[n % 8], (640, 480)), range(COUNT)
        )
        for key in keys:
            assert isinstance(store.get(key), Hit)
        costs["hit on disk"] = _timed(lambda n: store.get(keys[n]), _in_turn())
        files = store._folder
        contents = [files.read(digest)[0] for digest in digests]
        entries = [from_bytes(content, digests[n]).stored for n, content in enumerate(contents)]
        costs["  read the file"] = _timed(lambda n: files.read(digests[n]), _in_turn())
        costs["  of the rest, checksum"] = _timed(lambda n: zlib.crc32(contents[n]), _in_turn())
        costs["  checksum and header"] = _timed(
            lambda n: from_bytes(contents[n], digests[n]), _in_turn()
        )
        costs["  to float32"] = _timed(lambda n: entries[n].restore(), _in_turn())
        absent = [_key(number, dtype) for number in range(COUNT, 2 * COUNT)]
        costs["miss"] = _timed(lambda n: store.get(absent[n]), range(COUNT))
        store.clear()
    costs["through the dtype"] = _timed(lambda n: stored(values[n % 8], dtype), range(COUNT))
    with EmbeddingStore(CacheOptions(folder, dtype=dtype, memory_bytes=2**30)) as store:
        for number in range(COUNT):
            store.put(keys[number], values[number % 8], (640, 480))
        costs["hit in memory"] = _timed(lambda n: store.get(keys[n]), _in_turn())
        store.clear()
    return costs


def _photo(size: int, seed: int) -> bytes:
    """A JPEG of about ``size`` bytes: smoothed noise, so that it compresses like a photograph."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (150, 200, 3), dtype=np.uint8))
    picture = small.resize((1600, 1200), Image.Resampling.BICUBIC)
    for quality in range(30, 100):
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        if buffer.tell() >= size:
            break
    return buffer.getvalue()


def key_costs(folder: Path) -> Costs:
    """From a JPEG of 200 KB on disk to the key of its entry."""
    from primelens.images import open_image

    paths = []
    for number in range(8):
        paths.append(folder / f"photo{number}.jpg")
        paths[-1].write_bytes(_photo(200_000, number))
    return {
        "read, SHA-256": _timed(lambda n: open_image(paths[n % 8]).digest, range(COUNT)),
        "the key from it": _timed(lambda n: _key(n, "fp16").digest, range(COUNT)),
    }


def second_tier_costs(layers: int, heads: int, length: int, width: int) -> Costs:
    """Cross-attention keys and values ``[1, heads, length, width]`` of every layer."""
    random = np.random.default_rng(0)
    buffers: dict[str, Any] = {
        f"cross_{kind}.{layer}": random.standard_normal((1, heads, length, width), np.float32)
        for layer in range(layers)
        for kind in ("key", "value")
    }
    tier = DerivedTensors(2**30).tier("b" * 64, "c" * 64)
    entries = [_key(number, "fp16").digest for number in range(8)]
    once = _timed(lambda n: tier.keep([entries[n % 8]], buffers), range(8))  # a key is noted
    keep = _timed(lambda n: tier.keep([entries[n % 8]], buffers), range(COUNT))
    fill = _timed(lambda n: tier.fill([entries[n % 8]], buffers), range(COUNT))
    return {"note": once, "keep": keep, "hit": fill}


def _print_costs(title: str, costs: Costs) -> None:
    print(f"\n{title}")
    for name, figures in costs.items():
        print(f"  {name:<24} {figures['median']:8.3f} ms   p95 {figures['p95']:8.3f} ms")


def main() -> None:
    """Measure and print; the last line is the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="Where to keep; on the disk to be measured.")
    parser.add_argument("--model", help="A bundle, to measure the loss of a store that never hits.")
    parser.add_argument(
        "--rounds", type=int, default=LOSS_ROUNDS, help="of the loss: pairs of turns, of each use"
    )
    parser.add_argument("--batches", type=int, default=BATCHES, help="of the loss, in a turn")
    parser.add_argument("--encode-only", action="store_true", help="of the loss: no captions")
    parser.add_argument(
        "--alike", action="store_true", help="of the loss: both turns without a store"
    )
    parser.add_argument("--loss-only", action="store_true", help="Measure nothing but that loss.")
    chosen = parser.parse_args()
    result: dict[str, Any] = {"environment": capture().as_dict()}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        home = Path(name)
        for shape in () if chosen.loss_only else SHAPES:
            for dtype in get_args(StoredDtype):
                title = f"{shape[0]} x {shape[1]}, {dtype}"
                result[title] = entry_costs(home / "kept", shape, dtype)
                _print_costs(title, result[title])
        tiers = () if chosen.loss_only else ((4, 6, 64, 64), (12, 12, 577, 64))
        if not chosen.loss_only:
            result["key"] = key_costs(home)
            _print_costs("key of a 200 KB JPEG", result["key"])
        for layers, heads, length, width in tiers:
            title = f"second tier, {layers} layers of {heads} x {length} x {width}"
            result[title] = second_tier_costs(layers, heads, length, width)
            _print_costs(title, result[title])
        if chosen.model:
            how = Loss(chosen.rounds, chosen.batches, not chosen.encode_only, chosen.alike)
            result["loss"] = throughput_loss(chosen.model, home / "never hits", how)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
