"""The default captioner, rebuilt from nothing: ``python -m primelens.tune.default_model``.

Every stage writes into one folder, goes on where it was stopped and is skipped when it is done.
Every random number hangs on one seed; across machines and thread counts the floating point sums
differ, and with them the last digits of the weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from primelens.towers import FeatureMapTower, fold_normalisation
from primelens.tune.captioner import (
    assemble,
    round_to_half,
    save_checkpoint,
    scene_texts,
    train_tokenizer,
)
from primelens.tune.decoder_stage import DecoderStage, keep_states, tune_decoder
from primelens.tune.domain import auroc, fit_domain
from primelens.tune.lock import content_digest, locked
from primelens.tune.looking import CheckpointCaptioner, Look
from primelens.tune.scenes.evaluate import evaluate_scenes
from primelens.tune.scenes.render import render
from primelens.tune.scenes.world import Split, scene
from primelens.tune.tower_stage import TowerStage, load_stage, train_tower

_TOKENIZER_SCENES = 30_000


@dataclass(frozen=True)
class DefaultModel:
    """One rebuild: where, with which settings, and what it is measured on.

    Attributes:
        photos: a folder of photographs; without one the domain scores are not measured.
    """

    work: Path
    tower: TowerStage
    decoder: DecoderStage
    test_pictures: int = 5000
    photos: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """Where the finished checkpoint is."""
        return self.work / "checkpoint"


def make_tokenizer(run: DefaultModel) -> dict[str, Any]:
    """Train the tokenizer on captions and questions of train scenes."""
    tokenizer = train_tokenizer(scene_texts(_TOKENIZER_SCENES, run.tower.seed))
    tokenizer.save_pretrained(run.work / "tokenizer")
    return {"entries": len(tokenizer)}


def make_tower(run: DefaultModel) -> dict[str, Any]:
    """Stage 1; see :mod:`primelens.tune.tower_stage`."""
    return train_tower(run.work / "tower", run.tower, _tokenizer(run))


def keep(run: DefaultModel) -> dict[str, Any]:
    """Let the locked tower look at the pictures of stage 2, once."""
    tower = finished_tower(run)
    keep_states(run.work / "decoder", tower, run.decoder)
    return {"tower_digest": content_digest(tower), "pictures": run.decoder.pictures}


def make_decoder(run: DefaultModel) -> dict[str, Any]:
    """Stage 2, then the checkpoint; see :mod:`primelens.tune.decoder_stage`."""
    tower, tokenizer = finished_tower(run), _tokenizer(run)
    decoder = load_stage(run.work / "tower").decoder
    model = assemble(tower, decoder)
    with locked(model.encoder) as handle:
        tune_decoder(run.work / "decoder", decoder, run.decoder, tokenizer)
        round_to_half(decoder)
        digest = handle.digest
    save_checkpoint(run.checkpoint, model, tokenizer)
    return {
        "tower_digest": digest,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tower_parameters": sum(p.numel() for p in tower.parameters()),
    }


def measure(run: DefaultModel) -> dict[str, Any]:
    """Caption the test split with the finished checkpoint, in float32."""
    captioner = CheckpointCaptioner.load(run.checkpoint)
    metrics = asdict(evaluate_scenes(captioner, "test", run.test_pictures))
    # Users show pictures of any size, which the processor scales down.
    large = evaluate_scenes(captioner, "test", min(500, run.test_pictures), picture_size=512)
    return {"test": metrics, "test_from_512_pixels": asdict(large)}


def measure_domain(run: DefaultModel) -> dict[str, Any]:
    """Fit the domain on validation scenes; tell test scenes from photographs."""
    captioner = CheckpointCaptioner.load(run.checkpoint)
    fit = fit_domain(_look_at_scenes(captioner, "validation", 2048).pooled)
    save_file(
        {"mean": fit.mean, "scale": fit.scale},
        run.checkpoint / "domain.safetensors",
        metadata={"threshold": repr(fit.threshold), "pooling": "mean and standard deviation"},
    )
    known = _look_at_scenes(captioner, "test", 1024)
    result: dict[str, Any] = {
        "threshold": fit.threshold,
        "false_alarms_on_test": float((fit.distance(known.pooled) > fit.threshold).mean()),
    }
    if run.photos is None:
        return result | {"photographs": "not measured"}
    foreign = captioner.look(
        [Image.open(path).convert("RGB") for path in sorted(run.photos.glob("*.jpg"))]
    )
    # The threshold on confidence is set on test scenes, which flatters it; the other is not.
    sure = float(np.quantile(known.log_probability, 0.01))
    return result | {
        "photographs": len(foreign.captions),
        "distance_auroc": auroc(fit.distance(known.pooled), fit.distance(foreign.pooled)),
        "distance_caught": float((fit.distance(foreign.pooled) > fit.threshold).mean()),
        "distance_known_p99": float(np.quantile(fit.distance(known.pooled), 0.99)),
        "distance_foreign_min": float(fit.distance(foreign.pooled).min()),
        "confidence_auroc": auroc(-known.log_probability, -foreign.log_probability),
        "confidence_threshold": sure,
        "confidence_caught": float((foreign.log_probability < sure).mean()),
    }


STAGES: dict[str, Callable[[DefaultModel], dict[str, Any]]] = {
    "tokenizer": make_tokenizer,
    "tower": make_tower,
    "states": keep,
    "decoder": make_decoder,
    "measure": measure,
    "domain": measure_domain,
}
"""All stages in their order."""


def build(run: DefaultModel, only: str | None = None) -> dict[str, Any]:
    """Run the stages that are not done, or one of them again; returns the record of all."""
    run.work.mkdir(parents=True, exist_ok=True)
    path = run.work / "default_model.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    record["settings"] = {"tower": asdict(run.tower), "decoder": asdict(run.decoder)}
    record["machine"] = _machine()
    for name, stage in STAGES.items():
        if only not in (None, name) or (only is None and name in record):
            continue
        began = time.monotonic()
        result = stage(run)
        record[name] = result | {"seconds": round(time.monotonic() - began, 1)}
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(f"{name}: {json.dumps(record[name])}", flush=True)
    return record


def finished_tower(run: DefaultModel) -> FeatureMapTower:
    """The averaged tower of stage 1, folded and rounded to half precision."""
    tower = fold_normalisation(load_stage(run.work / "tower").tower)
    round_to_half(tower)
    tower.eval()  # type: ignore[no-untyped-call]
    return tower


def _tokenizer(run: DefaultModel) -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
        run.work / "tokenizer"
    )
    return tokenizer


def _look_at_scenes(captioner: CheckpointCaptioner, split: Split, count: int) -> Look:
    # Behind the scenes that the accuracy is measured on, so that the two never share a picture.
    first = 500_000
    looks = [
        captioner.look([render(scene(split, first + i)) for i in range(start, start + 64)])
        for start in range(0, count, 64)
    ]
    return Look(
        captions=[text for look in looks for text in look.captions],
        log_probability=np.concatenate([look.log_probability for look in looks]),
        pooled=np.concatenate([look.pooled for look in looks]),
    )


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(prog="primelens.tune.default_model", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".work/scenes"), help="where all goes")
    parser.add_argument("--stage", choices=STAGES, help="run this stage alone, again")
    parser.add_argument("--photos", type=Path, help="photographs to tell scenes from")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--tower-steps", type=int, default=TowerStage.steps)
    parser.add_argument("--decoder-epochs", type=int, default=DecoderStage.epochs)
    parser.add_argument("--pictures", type=int, default=DecoderStage.pictures)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    decoder = replace(
        DecoderStage(threads=given.threads), epochs=given.decoder_epochs, pictures=given.pictures
    )
    tower = TowerStage(threads=given.threads, steps=given.tower_steps)
    build(DefaultModel(given.work, tower, decoder, photos=given.photos), given.stage)


if __name__ == "__main__":
    main()
