"""Turn the finished default checkpoint into what ships: bundle, measures, sample pictures.

``python scripts/ship_default_model.py --work .work/scenes`` takes the path that every user's
checkpoint takes (`primelens.export.export_checkpoint`), then measures the *bundle* on held-out
scenes, and writes the figures into its manifest and card. ``--pictures 0`` skips the measuring.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import primelens
from primelens.atomic import write_bytes
from primelens.bundle import MANIFEST_NAME, file_record, open_bundle
from primelens.export import ExportOptions, GateOptions, export_checkpoint
from primelens.manifest import Domain
from primelens.tune.scenes.evaluate import SceneMetrics, evaluate_scenes
from primelens.tune.scenes.language import caption
from primelens.tune.scenes.render import render
from primelens.tune.scenes.world import scene

ASSETS = Path(__file__).resolve().parents[1] / "runtime" / "assets"
DOMAIN = "Drawn scenes: one to four groups of emoji objects on simple backgrounds; no photographs."
NOTICE = (
    "this picture is not a drawn scene, the only thing that the shipped model knows; for "
    "photographs, export a real checkpoint: primelens export CHECKPOINT --out DIR"
)
SAMPLES = range(700_000, 700_009)  # of the test split; behind all that is measured on
UNMEASURED = "text quality on labelled data"


def write_samples(folder: Path) -> list[Path]:
    """Nine successive scenes of the test split at 384 pixels, whatever the model makes of them.

    ``samples.json`` holds the split index and a true caption of each.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record = {}
    for number, index in enumerate(SAMPLES, start=1):
        path = folder / f"scene-{number}.jpg"
        render(scene("test", index), 384).save(path, quality=88)
        record[path.name] = {"index": index, "caption": caption(scene("test", index))}
    write_bytes(folder / "samples.json", (json.dumps(record, indent=1) + "\n").encode())
    return sorted(folder.glob("*.jpg"))


def export(work: Path, folder: Path, samples: list[Path], least: float) -> dict[str, Any]:
    """Export the checkpoint; returns the report.

    Args:
        work: where the checkpoint was made.
        folder: the bundle to be.
        samples: pictures that the gate compares too.
        least: mean log-probability of a caption's tokens below which the notice is given.
    """
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "scenes"
        shutil.copytree(work / "checkpoint", checkpoint, ignore=shutil.ignore_patterns("domain.*"))
        options = ExportOptions(
            name="scenes",
            license="Apache-2.0",
            domain=Domain(DOMAIN, NOTICE, min_token_logprob=least),
            overwrite=True,
            gate=GateOptions(images=tuple(samples)),
        )
        return export_checkpoint(checkpoint, folder, options).as_dict()


def measure(folder: Path, pictures: int) -> dict[str, Any]:
    """Caption held-out scenes with the bundle; every figure comes from the exported graphs."""
    model = primelens.load(folder)

    def captions(images: list[Image.Image]) -> list[str]:
        return [result.text for result in model.caption([np.asarray(image) for image in images])]

    start = time.monotonic()
    metrics: SceneMetrics = evaluate_scenes(captions, "test", pictures)
    return {**asdict(metrics), "split": "test", "seconds": round(time.monotonic() - start, 1)}


def write_measures(folder: Path, task: dict[str, Any], record: dict[str, Any]) -> None:
    """Put the figures into the manifest's parity block and the card, and list the card anew."""
    bundle = open_bundle(folder)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8").replace(
        "* not measured: text quality on labelled data\n", ""
    )
    write_bytes(card, (text + "\n" + _quality(task, record)).encode())
    parity = {**bundle.manifest.parity, "task": task}
    parity["not_measured"] = [item for item in parity.get("not_measured", []) if item != UNMEASURED]
    files = {**bundle.manifest.files, card.name: file_record(card)}
    manifest = replace(bundle.manifest, parity=parity, files=files)
    write_bytes(folder / MANIFEST_NAME, manifest.to_bytes())
    open_bundle(folder)


_QUALITY = """## Quality of this bundle

On {pictures} held-out test scenes, measured with the exported graphs:

* whole caption right (objects, counts, relation): {whole_caption_accuracy:.4f}
* object-set F1: {object_f1:.4f}; counts: {count_accuracy:.4f}; relations: {relation_accuracy:.4f}

## Domain

The model knows drawn scenes and nothing else. It will say something about a photograph, and be
wrong; the runtime adds a one-line notice.
"""

_PHOTOGRAPHS = """
The notice is given where the mean log-probability of a caption's tokens is low: for
{confidence_caught:.1%} of {photographs} photographs and 1 % of test scenes (AUROC
{confidence_auroc:.4f}; the distance of the tower's states from known ones: {distance_auroc:.4f}).
"""


def _quality(task: dict[str, Any], record: dict[str, Any]) -> str:
    domain = record.get("domain", {})
    return _QUALITY.format(**task) + (
        _PHOTOGRAPHS.format(**domain) if "confidence_auroc" in domain else ""
    )


def main() -> None:
    """Read the command line and ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".work/scenes"))
    parser.add_argument("--out", type=Path, default=ASSETS, help="where the assets go")
    parser.add_argument("--pictures", type=int, default=5000, help="test scenes to measure on")
    given = parser.parse_args()
    samples = write_samples(given.out / "samples")
    folder = given.out / "default"
    record = json.loads((given.work / "default_model.json").read_text())
    least = round(record["domain"]["confidence_threshold"], 4)
    report = export(given.work, folder, samples, least)
    print(f"{folder}: {report['size'] / 1e6:.2f} MB, gate passed: {report['passed']}")
    if given.pictures:
        task = measure(folder, given.pictures)
        write_measures(folder, task, record)
        print(json.dumps(task, indent=1))


if __name__ == "__main__":
    main()
