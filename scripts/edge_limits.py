"""Do models run on one core under a limit of memory? ``python scripts/edge_limits.py [BUNDLE …]``

Each bundle (``default`` for the shipped model) captions a picture in a process of its own, pinned
to one core, under a memory limit (``--limit``, 512 MB). Where control groups can be made (as root)
the limit is the kernel's own: a process that needs more is killed. It counts every page that the
process was the first to touch, so the peak is printed too, which counts those of files that were in
the page cache already. Elsewhere it is a limit of address space, which is stricter: it counts what
is reserved and never touched. Status 0 where all of them captioned.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")

PROGRAM = """
import json, sys, time
start = time.perf_counter()
import primelens
model = primelens.load(sys.argv[1], options=primelens.LoadOptions(threads=1))
loaded = time.perf_counter()
rows = [model.caption(picture) for picture in sys.argv[2:]]
words = open("/proc/self/status").read().split()
print(json.dumps({"engine": model.engine_name, "load": loaded - start,
                  "caption": (time.perf_counter() - loaded) / len(rows),
                  "peak": int(words[words.index("VmHWM:") + 1]) * 1024,
                  "text": rows[0].text}))
"""


@contextmanager
def limited(limit: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """How the limit is set, and what a child calls to come under it."""
    for root, name in ((V1, "memory.limit_in_bytes"), (V2, "memory.max")):
        group = root / f"primelens-edge-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not (group / name).exists():
                continue
            (group / name).write_text(str(limit))
            yield "control group", lambda: _enter(group / "cgroup.procs")  # noqa: B023
            return
        finally:
            group.rmdir()

    def address_space() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    yield "address space", address_space


def _enter(processes: Path) -> None:
    processes.write_text(str(os.getpid()))


def caption(bundle: str, pictures: list[str], limit: int) -> dict[str, Any]:
    """One process under the limit; what it said, or how it ended."""
    with limited(limit) as (way, enter):

        def before() -> None:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            enter()

        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, bundle, *pictures],
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            preexec_fn=before,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no words"])[-1]
        return {"way": way, "error": f"status {done.returncode}: {last}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"way": way, **found}


def main() -> int:
    """Run every bundle; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="*", default=["default"])
    parser.add_argument("--limit", type=int, default=512, metavar="MB")
    parser.add_argument("--picture", type=Path, action="append")
    chosen = parser.parse_args()
    shipped = ROOT / "runtime" / "assets" / "samples" / "scene-1.jpg"
    pictures = [str(path) for path in chosen.picture or [shipped]]
    failed = False
    for bundle in chosen.bundles:
        found = caption(bundle, pictures, chosen.limit * 10**6)
        where = f"{Path(bundle).name}, one core, {chosen.limit} MB ({found['way']})"
        if "error" in found:
            failed = True
            print(f"{where}: FAILED: {found['error']}")
            continue
        print(
            f"{where}: peak {found['peak'] / 1e6:.0f} MB, ready after {found['load']:.2f} s, "
            f"{found['caption']:.2f} s a caption; {found['engine']}: {found['text'][:60]!r}"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
