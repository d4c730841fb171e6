"""Processes that use one store and are killed at random; run by test_torture.py, or by hand::

    python tests/runtime/store/torture.py --processes 8 --operations 100000 --flips 10000

``--home DIR --seconds 300`` runs it in pieces, each of which ends with all checks.

Every worker puts (half of it behind its own back) and gets random keys whose values it can compute,
and says so at once when a hit has other values. Workers die by SIGKILL and are replaced, by forks
of a process that has imported everything and holds nothing. Now and then all of them are stopped,
and the bytes in the folder are counted: at most the cap and one entry for each living writer.

Afterwards bits of kept files are flipped, one at a time: every one must be found, none returned.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import mmap
import multiprocessing
import os
import random
import signal
import struct
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np

from primelens.options import CacheOptions
from primelens.store import EmbeddingStore, EntryKey, Miss
from primelens.store.codec import stored

ROOT = Path(__file__).resolve().parents[3]
KEYS = 300
CAP = 200_000
LARGEST = 8 * 64 * 4 + 1_000  # bytes of the largest entry's file
SLOT = struct.Struct("<qd")  # operations and processor seconds of the workers in one slot
BETWEEN_KILLS = 200  # operations at least
WRONG = 77  # exit status of a worker that was given wrong values
DTYPES = ("fp32", "fp16", "int8")


@cache
def key_of(number: int) -> EntryKey:
    dtype: Any = DTYPES[number % 3]
    return EntryKey("a" * 64, "fp32", dtype, f"{number:064x}", tap="last_hidden_state")


def values_of(number: int) -> Any:
    shape = (1 + number % 8, 64)
    return np.random.default_rng(number).standard_normal(shape).astype(np.float32)


@cache
def wanted(number: int) -> Any:
    """What a hit must hold."""
    return stored(values_of(number), key_of(number).dtype).restore()


def work(folder: Path, slot: int, operations: int, seed: int) -> None:
    """Put and get until ``operations`` of this slot are done, over all its workers; exits."""
    sys.exit(_operate(folder, slot, operations, seed))


def _operate(folder: Path, slot: int, operations: int, seed: int) -> int:
    choose = random.Random(seed)
    with (folder.parent / "progress").open("r+b") as file, mmap.mmap(file.fileno(), 0) as progress:
        store = EmbeddingStore(CacheOptions(folder, cap_bytes=CAP, memory_bytes=CAP // 20))
        done, before = SLOT.unpack_from(progress, slot * SLOT.size)
        while done < operations:
            number = min(choose.randrange(KEYS), choose.randrange(KEYS))
            found = store.get(key_of(number))
            if isinstance(found, Miss) or choose.random() < 0.1:
                item = (key_of(number), values_of(number), (number + 1, 1))
                (given,) = store.put_all([item], later=choose.random() < 0.5)
                right = np.array_equal(given, wanted(number))
            else:
                right = np.array_equal(found.values, wanted(number))
                right = right and found.size == (number + 1, 1)
            if not right:
                return WRONG
            done += 1
            SLOT.pack_into(progress, slot * SLOT.size, done, before + time.process_time())
        stats = store.stats()
        store.close()
    return 0 if stats.corrupt == 0 else 1


@dataclass
class Outcome:
    """What a run saw; the operations, and the processor seconds of the workers, of all pieces."""

    kills: int = 0
    operations: int = 0
    seconds: float = 0.0
    largest: int = 0
    checks: int = 0
    failures: list[str] = field(default_factory=list)


def bytes_in(folder: Path) -> int:
    places = [folder / "tmp", folder / "quarantine", *(folder / "v1").glob("*")]
    total = 0
    for place in places:
        with contextlib.suppress(FileNotFoundError), os.scandir(place) as found:
            total += sum(entry.stat(follow_symlinks=False).st_size for entry in found)
    return total


def torture(
    folder: Path,
    processes: int,
    operations: int,
    seconds_between_kills: float,
    most_seconds: float = float("inf"),
) -> Outcome:
    """Run until every slot has done ``operations``, or the time is up; goes on where it stopped."""
    outcome, choose = Outcome(), random.Random(0)
    end = time.monotonic() + most_seconds
    progress = folder.parent / "progress"
    if not progress.exists():
        progress.write_bytes(bytes(SLOT.size * processes))
    counted = _operations(progress)
    running: dict[int, ForkServerProcess] = {}
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["primelens.store", "primelens.options"])
    if __name__ != "__main__" and str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # workers are told it, and import this module by its name

    def start(slot: int) -> None:
        arguments = (folder, slot, operations, choose.getrandbits(30))
        running[slot] = server.Process(target=work, args=arguments)
        running[slot].start()

    for slot in range(processes):
        start(slot)
    try:
        while running and time.monotonic() < end:
            time.sleep(choose.uniform(0.5, 1.5) * seconds_between_kills)
            for slot, worker in list(running.items()):
                if worker.exitcode is not None:
                    if worker.exitcode:
                        outcome.failures.append(f"worker {slot} ended with {worker.exitcode}")
                    del running[slot]
            if running and _operations(progress) < counted + BETWEEN_KILLS:
                continue  # on a busy machine workers would die before they have done anything
            counted = _operations(progress)
            if running:
                slot = choose.choice(list(running))
                status = _killed(running[slot])
                if status in (0, -signal.SIGKILL):
                    outcome.kills += 1
                else:
                    outcome.failures.append(f"worker {slot} ended with {status}")
                start(slot)
            _count_bytes(folder, list(running.values()), outcome)
    finally:
        for worker in running.values():
            _killed(worker)
    outcome.operations = _operations(progress)
    outcome.seconds = sum(seconds for _, seconds in SLOT.iter_unpack(progress.read_bytes()))
    _check_at_rest(folder, outcome)
    return outcome


def _operations(progress: Path) -> int:
    return sum(done for done, _ in SLOT.iter_unpack(progress.read_bytes()))


def _killed(worker: ForkServerProcess) -> int | None:
    worker.kill()
    worker.join()
    return worker.exitcode


def _count_bytes(folder: Path, workers: list[ForkServerProcess], outcome: Outcome) -> None:
    """With every worker stopped, so that nothing is counted twice."""
    for worker in workers:
        _signal(worker, signal.SIGSTOP)
    time.sleep(0.02)
    size = bytes_in(folder)
    for worker in workers:
        _signal(worker, signal.SIGCONT)
    outcome.largest = max(outcome.largest, size)
    outcome.checks += 1
    if size > CAP + LARGEST * max(1, len(workers)):
        outcome.failures.append(f"{size} bytes with {len(workers)} writers")


def _signal(worker: ForkServerProcess, number: signal.Signals) -> None:
    if worker.pid is not None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(worker.pid, number)


def _check_at_rest(folder: Path, outcome: Outcome) -> None:
    with EmbeddingStore(CacheOptions(folder, cap_bytes=CAP)) as store:
        report = store.verify()
        if report.corrupt or store.totals()[1] > CAP or bytes_in(folder) > CAP:
            outcome.failures.append(f"at rest: {report}, {store.totals()}, {bytes_in(folder)}")
        for number in range(KEYS):
            found = store.get(key_of(number))
            if isinstance(found, Miss) or np.array_equal(found.values, wanted(number)):
                continue
            outcome.failures.append(f"at rest: key {number} has wrong values")


def flip_bits(folder: Path, flips: int, seed: int = 0) -> dict[str, int]:
    """Flip single bits of kept files; how often that was found, and how often a tensor came back.

    Every flip is of a fresh file, at a random place from its first bit to its last.
    """
    choose, found = random.Random(seed), {"found": 0, "returned": 0}
    with EmbeddingStore(CacheOptions(folder, memory_bytes=0)) as store:
        for _ in range(flips):
            key = key_of(number := choose.randrange(KEYS))
            store.put(key, values_of(number), (number + 1, 1))
            path = folder / "v1" / key.digest[:2] / f"{key.digest}.safetensors"
            content = bytearray(path.read_bytes())
            place = choose.randrange(8 * len(content))
            content[place // 8] ^= 1 << (place % 8)
            path.write_bytes(content)
            answer = store.get(key)
            wrong = not isinstance(answer, Miss)
            found["returned" if wrong else "found"] += 1
        assert store.stats().corrupt == found["found"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--operations", type=int, default=100_000, help="of each process")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop then, and check what there is"
    )
    parser.add_argument(
        "--home", type=Path, help="an empty folder, or that of an earlier piece of the same run"
    )
    parser.add_argument("--flips", type=int, default=10_000, help="single bits of kept files")
    parser.add_argument("--kill-every", type=float, default=1.0, metavar="SECONDS")
    arguments = parser.parse_args()
    logging.getLogger("primelens.store").setLevel(logging.ERROR)  # thousands of corrupt entries
    place = tempfile.TemporaryDirectory()
    with place as temporary, contextlib.suppress(KeyboardInterrupt):
        began = time.monotonic()
        home = arguments.home or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        outcome = torture(
            home / "kept",
            arguments.processes,
            arguments.operations,
            arguments.kill_every,
            arguments.seconds,
        )
        print(f"{outcome} in {time.monotonic() - began:.0f} s; cap {CAP}, entry {LARGEST}")
        print(f"processor time of this process: {time.process_time():.0f} s")
        flipped = flip_bits(Path(temporary) / "flipped", arguments.flips)
        print(f"bit flips: {flipped}")
        return 1 if outcome.failures or flipped["returned"] else 0
    return 130


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
