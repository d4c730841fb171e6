"""What a run leaves behind is exported as it is, proved against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, VisionTextDualEncoderModel

import primelens
from primelens.errors import CheckpointError
from primelens.export import ExportOptions, GateOptions, export_checkpoint
from primelens.export.heads import HeadOptions, add_head, swap_head
from primelens.export.remake import remove_head
from primelens.manifest import RankHeadSpec
from primelens.processor_config import from_processor_config
from primelens.tune.textside import tune

GATE = GateOptions(threads=1, random_images=2, steps=4)


def test_a_captioner(recipe: Any, pictures: Path, tmp_path: Path) -> None:
    asked = recipe(
        "caption",
        training={"steps": 300, "batch_size": 12},
        optimiser={"rate": 5e-3, "warm_up": 10, "weight_decay": 0.0},
        features={"keep": str(tmp_path / "store")},
        augmentation={"views": 2, "steps": [{"step": "colour_jitter", "brightness": 0.1}]},
    )
    checkpoint = tune(asked).checkpoint
    bundle = tmp_path / "bundle"
    report = export_checkpoint(checkpoint, bundle, ExportOptions(gate=GATE))
    assert report.passed
    note = json.loads((bundle / "caption.tuning.json").read_text())
    assert note["augmentation"] == asked.changes.to_dict()
    assert note["preprocessing"] == asked_preprocessing(checkpoint)
    assert "out" not in note["recipe"]
    assert "300 steps, augmentation colour_jitter" in (bundle / "README.md").read_text()
    model = primelens.load(bundle, options=primelens.LoadOptions(threads=1))
    files = sorted(pictures.glob("*-*.png"))
    said = [model.caption(file).text for file in files]
    wanted = [file.stem.replace("-", " left of ") for file in files]
    assert said == wanted
    assert model.preprocessing.output_size == (32, 32)


def asked_preprocessing(checkpoint: Path) -> Any:
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text())
    return from_processor_config(settings).to_dict()


def test_notes_go_with_their_heads(recipe: Any, tmp_path: Path) -> None:
    first = tune(recipe("caption", out=str(tmp_path / "first"))).checkpoint
    other = tune(recipe("caption", out=str(tmp_path / "other"), training={"steps": 7})).checkpoint
    bundle = tmp_path / "bundle"
    export_checkpoint(first, bundle, ExportOptions(gate=GATE))
    add_head(bundle, other, "second", HeadOptions(gate=GATE))
    assert json.loads((bundle / "second.tuning.json").read_text())["steps"] == 7
    (other / "tuning.json").unlink()
    swap_head(bundle, other, "second", HeadOptions(gate=GATE))
    assert not (bundle / "second.tuning.json").exists()
    assert "7 steps" not in (bundle / "README.md").read_text()
    remove_head(bundle, "caption")
    assert not list(bundle.glob("*.tuning.json"))
    (first / "tuning.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tuning\.json"):
        add_head(bundle, first, "third", HeadOptions(gate=GATE))


@pytest.mark.parametrize("objective", ["lit", "siglip"])
def test_scores(recipe: Any, pictures: Path, tmp_path: Path, objective: str) -> None:
    asked = recipe(
        objective,
        training={"steps": 30, "batch_size": 12},
        features={"keep": str(tmp_path / "store")},
    )
    checkpoint = tune(asked).checkpoint
    bundle = tmp_path / "bundle"
    assert export_checkpoint(checkpoint, bundle, ExportOptions(gate=GATE)).passed
    runtime = primelens.load(bundle, options=primelens.LoadOptions(threads=1))
    spec = runtime.manifest.heads["rank"]
    assert isinstance(spec, RankHeadSpec)
    assert spec.scoring == ("softmax" if objective == "lit" else "sigmoid")
    source = VisionTextDualEncoderModel.from_pretrained(checkpoint).eval()
    assert spec.bias == pytest.approx(getattr(source.config, "logit_bias", 0.0))
    labels = ["red left of green", "blue left of white"]
    file = pictures / "red-green.png"
    tokens = AutoTokenizer.from_pretrained(checkpoint)(labels, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = source(
            pixel_values=torch.from_numpy(runtime.preprocessing(file)[None]),
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
        ).logits_per_image[0]
    logits = scores.double().numpy() + spec.bias
    shares = np.exp(logits - logits.max())
    wanted = shares / shares.sum() if objective == "lit" else 1 / (1 + np.exp(-logits))
    found = {label.label: label.probability for label in runtime.rank(file, labels).labels}
    for label, value in zip(labels, wanted, strict=True):
        assert found[label] == pytest.approx(float(value), abs=1e-4)
