"""A/A runs: does the bench find a difference between a bundle and itself on this machine?

    python -m primelens.bench aa --runs 20 [--planted 0.1]

Every run opens two fresh processes of the same bundle, lets them take turns as `bench compare` does
with two bundles, and compares them. All that differs is chance; what is called a difference is a
false alarm. ``--planted`` makes the second one really slower, by waiting, and counts how often that
is found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from primelens.bench.cells import Cell, run_cell
from primelens.bench.environment import capture, load_now, usable_cores
from primelens.bench.estimators import Comparison, compare_blocks
from primelens.bench.figures import latency_blocks
from primelens.bench.files import write_json
from primelens.bench.pictures import PictureSource
from primelens.bench.scenarios import Load
from primelens.bench.spec import Spec
from primelens.bench.system import Answer, Clock, Description, Request, System, SystemClock
from primelens.bench.workers import WorkerSystem
from primelens.errors import OptionError

__all__ = ["Slowed", "compare_alike", "main"]

_NEEDED = 185 / 200  # of the runs must come to the right verdict


class Slowed:
    """A system that takes longer than it needs: by ``by``, a share of its own time.

    Args:
        system: does the work.
        by: 0.1 makes every answer take 1.1 times as long.
        clock: what is waited by.
    """

    def __init__(self, system: System, by: float, clock: Clock) -> None:
        self._system, self._by, self._clock = system, by, clock

    def describe(self) -> Description:
        return self._system.describe()

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        start = self._clock.now()
        answers = self._system.answer(requests)
        spent = self._clock.now() - start
        self._clock.sleep_until(start + spent * (1.0 + self._by))
        return answers

    def close(self) -> None:
        self._system.close()


def compare_alike(
    opened: Callable[[], tuple[System, System]],
    spec: Spec,
    pictures: PictureSource,
    clock: Clock,
    *,
    runs: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[Comparison]:
    """Compare two systems ``runs`` times, both opened anew each time; the second over the first."""
    found = []
    for number in range(runs):
        first, second = opened()
        try:
            systems = {"A": first, "B": second}
            cell = Cell("single", "forced", Load("single"))
            samples = run_cell(cell, systems, spec, pictures, clock).samples
        finally:
            first.close()
            second.close()
        a, b = (latency_blocks(s for s in samples if s.system == name) for name in "AB")
        found.append(compare_blocks(a, b, paired=True, seed=spec.seed + number))
        say(f"run {number + 1}: {found[-1].ratio}, {found[-1].verdict}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where fewer than 185 of 200 verdicts are right."""
    chosen = _parsed(arguments)
    threads = chosen.threads
    clock = SystemClock()

    def opened() -> tuple[System, System]:
        first = WorkerSystem("primelens", {"model": chosen.model, "name": "A", "threads": threads})
        try:
            settings = {"model": chosen.model, "name": "B", "threads": threads}
            second: System = WorkerSystem("primelens", settings)
        except BaseException:
            first.close()
            raise
        return first, Slowed(second, chosen.planted, clock) if chosen.planted else second

    spec = Spec(
        "aa",
        model=chosen.model,
        tokens=chosen.tokens,
        blocks=chosen.blocks,
        requests=chosen.requests,
        threads=threads,
    )
    load = load_now()
    with tempfile.TemporaryDirectory() as folder:
        pictures = PictureSource(Path(folder), spec.seed)
        found = compare_alike(opened, spec, pictures, clock, runs=chosen.runs, say=print)
    after = load_now()
    wanted = "slower" if chosen.planted else "no difference"
    right = sum(one.verdict == wanted for one in found)
    print(
        f"machine: {capture().line}; others used {_share(load.others)} before, "
        f"{_share(after.others)} after"
    )
    print(f"{right} of {len(found)} runs: {wanted}")
    if chosen.json is not None:
        document: dict[str, Any] = {
            "kind": "primelens-bench-aa",
            "version": 1,
            "environment": capture().as_dict(),
            "others": [load.others, after.others],
            "spec": asdict(spec),
            "planted": chosen.planted,
            "runs": [{**asdict(one), "verdict": one.verdict} for one in found],
        }
        write_json(chosen.json, document)
    return 0 if right >= _NEEDED * len(found) else 1


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m primelens.bench aa",
        description="Compare a bundle with itself, in fresh processes: how often is that told?",
    )
    parser.add_argument("--model", default="default", help="bundle, hub id, or default")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--planted", type=float, default=0.0, metavar="SHARE", help="0.1 is 10 %%")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--requests", type=int, default=5, help="per block")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every comparison there")
    chosen = parser.parse_args(arguments)
    if chosen.runs < 1 or chosen.planted < 0:
        raise OptionError("There must be at least one run, and nothing can be planted below 0.")
    return chosen


def _share(others: float | None) -> str:
    return "an unknown share" if others is None else f"{others:.0%}"


if __name__ == "__main__":
    sys.exit(main())
