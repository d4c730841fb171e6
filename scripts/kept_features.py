"""What an epoch of tuning costs with and without kept features; ``python scripts/kept_features.py
TOWER [PICTURES]``.

Over drawn scenes, and over the same scenes as JPEG files of 512 pixels, three processes tune for
two epochs each: without a store, with an empty one, and with the full one that it left. Printed as
JSON: seconds of both epochs, runs of the tower in each, the process's peak memory, the store's
size, and whether the losses are the same to the last bit.
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
from primelens.tune.evaluation.scene_slots import scene_examples
from primelens.tune.scenes.render import render
from primelens.tune.scenes.world import scene
from primelens.tune.textside.recipe import Recipe
from primelens.tune.textside.run import Run

EPOCHS = 2
SIDE = 512


def measure(tower: str, data: str, store: str | None) -> dict[str, object]:
    """Two epochs in this process."""
    problems: list[str] = []
    recipe = decode(
        Recipe,
        {
            "objective": "caption",
            "out": "unused",
            "model": {"tower": tower, "fresh": {"layers": 3, "width": 192, "heads": 3}},
            "data": {"train": {"path": data}},
            "features": {"keep": store},
            "training": {"epochs": EPOCHS, "batch_size": 32, "threads": 1},
        },
        where="recipe",
        problems=problems,
    )
    if recipe is None:
        raise SystemExit("\n".join(problems))
    run = Run(recipe)
    losses, seconds, runs = [], [], []
    for epoch in range(EPOCHS):
        began, before = time.perf_counter(), run.states.runs
        size = run.lessons.steps_per_epoch
        losses += [run.step(step) for step in range(epoch * size, (epoch + 1) * size)]
        seconds.append(round(time.perf_counter() - began, 2))
        runs.append(run.states.runs - before)
    run.states.close()
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return {"seconds": seconds, "tower runs": runs, "peak MB": peak, "losses": losses}


def drawn(folder: Path, pictures: int) -> str:
    """The scenes as files with their captions; returns the data's path."""
    folder.mkdir()
    lines = []
    for number, example in enumerate(scene_examples("train", pictures)):
        name = f"{number}.jpg"
        render(scene("train", number), SIDE).save(folder / name, "JPEG", quality=90)
        lines.append(json.dumps({"file_name": name, "captions": example.captions}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


def compared(tower: str, data: str, store: Path) -> dict[str, object]:
    """The three processes over one data set."""
    found = {}
    for name, kept in (("no store", ""), ("empty store", str(store)), ("full store", str(store))):
        command = [sys.executable, __file__, tower, data, kept]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    losses = [entry.pop("losses") for entry in found.values()]
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    same = losses[0] == losses[1] == losses[2]
    return found | {"store MB": round(size / 1e6, 1), "same losses": same}


def main() -> None:
    """Measure scenes and files."""
    tower = sys.argv[1]
    if len(sys.argv) > 3:
        print(json.dumps(measure(tower, sys.argv[2], sys.argv[3] or None)))
        return
    pictures = int(sys.argv[2]) if len(sys.argv) > 2 else 512
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = drawn(folder / "files", pictures)
        found = {
            "pictures": pictures,
            "scenes": compared(tower, f"scenes:train:{pictures}", folder / "store-scenes"),
            "files": compared(tower, files, folder / "store-files"),
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
