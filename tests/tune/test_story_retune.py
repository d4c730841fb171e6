"""``make story-retune``, at a size that takes seconds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "story_retune.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("story_retune", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_second_text_side_runs_without_the_tower(script: Any) -> None:
    lines: list[str] = []
    plan = script.Plan(pictures=20, steps=8, batch=8, threads=1)
    story = script.tell(plan, say=lines.append)
    assert story.tower_runs == {"encode": 20, "A": 0, "B": 0}
    assert story.hits == {"A": 20, "B": 20}
    assert story.captions["A"] != story.captions["B"]
    assert any("20 hits, tower runs: 0 (its graph raises" in line for line in lines)


def test_a_watched_tower_raises(script: Any) -> None:
    engine = script.WatchingEngine(1, tower_allowed=False)
    graph = engine.open(Path(script.resolve("default")) / "tower.onnx")
    with pytest.raises(script.TowerCalledError):
        graph.run({"pixel_values": np.zeros((1, 3, 128, 128), np.float32)})
