"""What an epoch of tuning costs with and without kept features; ``python scripts/kept_features.py
TOWER [PICTURES]``.

Three epochs over drawn scenes, each in a process of its own kind: without a store, with an empty
one, with a full one. Printed as JSON: seconds and peak memory of each, and whether the losses are
the same to the last bit.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from primelens.schema import decode
from primelens.tune.textside.recipe import Recipe
from primelens.tune.textside.run import Run


def epoch(tower: str, pictures: int, store: str | None) -> dict[str, object]:
    """One epoch in this process."""
    problems: list[str] = []
    recipe = decode(
        Recipe,
        {
            "objective": "caption",
            "out": "unused",
            "model": {"tower": tower, "fresh": {"layers": 3, "width": 192, "heads": 3}},
            "data": {"train": {"path": f"scenes:train:{pictures}"}},
            "features": {"keep": store},
            "training": {"epochs": 1, "batch_size": 32, "threads": 1},
        },
        where="recipe",
        problems=problems,
    )
    if recipe is None:
        raise SystemExit("\n".join(problems))
    run = Run(recipe)
    began = time.perf_counter()
    losses = [run.step(step) for step in range(run.steps)]
    seconds = time.perf_counter() - began
    run.states.close()
    return {
        "seconds": round(seconds, 2),
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "tower runs": run.states.runs,
        "losses": losses,
    }


def main() -> None:
    """Run the three epochs and compare them."""
    tower, pictures = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    if len(sys.argv) > 3:
        print(json.dumps(epoch(tower, pictures, sys.argv[3] or None)))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        for name, kept in (("no store", ""), ("empty store", store), ("full store", store)):
            command = [sys.executable, __file__, tower, str(pictures), kept]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
    losses = [entry.pop("losses") for entry in found.values()]
    print(json.dumps(found | {"same losses": losses[0] == losses[1] == losses[2]}, indent=1))


if __name__ == "__main__":
    main()
