"""A tiny tower and a tiny data set of coloured pictures, and recipes over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import ResNetConfig

from primelens.schema import decode
from primelens.towers import FeatureMapTower, FeatureMapTowerConfig
from primelens.tune.captioner import build_processor
from primelens.tune.textside import Recipe

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (250,) * 3}
SIZE = 32


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ResNet of four cells with lively batch normalisations."""
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    model = FeatureMapTower(FeatureMapTowerConfig(backbone, grid_size=(4, 4)))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.5)
            part.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(part.bias)
    nn.init.normal_(model.position_table)
    folder = tmp_path_factory.mktemp("tower")
    model.save_pretrained(folder)
    processor = build_processor()
    processor.size = {"height": SIZE, "width": SIZE}
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, each of two colours side by side, that captions name in their order."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    lines = []
    for left in COLOURS:
        for right in COLOURS:
            if left == right:
                continue
            pixels = random.integers(0, 25, (SIZE, SIZE, 3))
            pixels[:, : SIZE // 2] += np.array(COLOURS[left]) - 12
            pixels[:, SIZE // 2 :] += np.array(COLOURS[right]) - 12
            name = f"{left}-{right}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
            lines.append({"file_name": name, "text": f"{left} left of {right}"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text)
    questions = [
        {"question_id": n, "image_id": n, "question": "what is on the left?"}
        for n in range(len(lines))
    ]
    answers = [
        {"question_id": n, "answers": [{"answer": str(line["text"]).split()[0]}]}
        for n, line in enumerate(lines)
    ]
    for number, line in enumerate(lines):
        link = folder / f"{number:012d}.jpg"
        link.write_bytes((folder / line["file_name"]).read_bytes())
    (folder / "questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "answers.json").write_text(json.dumps({"annotations": answers}))
    return folder


Build = Callable[..., Recipe]


@pytest.fixture
def recipe(tower: Path, pictures: Path, tmp_path: Path) -> Build:
    """A recipe with some of its tables changed: ``recipe("caption", training={...})``."""

    def build(objective: str, **tables: Any) -> Recipe:
        data: dict[str, Any] = {"path": str(pictures), "format": "folder"}
        if objective == "answer":
            data = {
                "path": str(pictures / "questions.json"),
                "format": "vqa",
                "answers": str(pictures / "answers.json"),
            }
        base: dict[str, Any] = {
            "objective": objective,
            "out": str(tmp_path / "run"),
            "model": {
                "tower": str(tower),
                "fresh": {"layers": 1, "width": 32, "heads": 2, "vocabulary": 300},
                "projection": 16,
                "max_new_tokens": 12,
            },
            "data": {"train": data, "validation": data},
            "training": {"steps": 6, "batch_size": 6, "threads": 1},
            "optimiser": {"rate": 3e-3, "warm_up": 2},
        }
        for name, table in tables.items():
            base[name] = {**base[name], **table} if isinstance(base.get(name), dict) else table
        problems: list[str] = []
        made = decode(Recipe, base, where="recipe", problems=problems)
        assert made is not None, problems
        return made

    return build
