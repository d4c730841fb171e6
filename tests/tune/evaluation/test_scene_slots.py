"""Slots of scenes: the numbers of the scenes' own evaluation, as tallies."""

from __future__ import annotations

import PIL
import pytest

from primelens.errors import InputError
from primelens.images import read_image
from primelens.tune.evaluation import Request, evaluate
from primelens.tune.evaluation.scene_slots import (
    SceneImage,
    parse_scene_source,
    scene_examples,
    slot_tallies,
)
from primelens.tune.metrics import Resampling
from primelens.tune.scenes.evaluate import measure_captions
from primelens.tune.scenes.language import caption
from primelens.tune.scenes.render import drawing_digest
from primelens.tune.scenes.world import scene


def test_the_slots_equal_the_scenes_own_measure() -> None:
    examples = list(scene_examples("test", 24))
    # True captions of the picture, of its neighbour, and none.
    texts = [
        "" if row % 5 == 4 else examples[(row + (row % 3 == 1)) % 24].captions[row % 5]
        for row in range(24)
    ]
    scores = {
        k: v for t in slot_tallies([e.id for e in examples], texts) for k, v in t.scores().items()
    }
    expected = measure_captions([scene("test", row) for row in range(24)], texts)
    assert scores == pytest.approx(
        {
            "object F1": expected.object_f1,
            "count accuracy": expected.count_accuracy,
            "relation accuracy": expected.relation_accuracy,
            "extras accuracy": expected.extras_accuracy,
            "whole caption": expected.whole_caption_accuracy,
        }
    )
    assert 0.1 < scores["whole caption"] < 0.9


def test_examples_are_drawn_on_demand_and_have_true_captions() -> None:
    example = next(scene_examples("validation", 1))
    assert example.captions[2] == caption(scene("validation", 0), 2)
    assert example.id == "validation:0"


@pytest.mark.slow
def test_a_scene_becomes_the_same_picture_each_time() -> None:
    example = next(scene_examples("validation", 1))
    assert read_image(example.image.read()).size == (128, 128)
    assert example.image.read() == example.image.read()


def test_a_picture_is_identified_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [
        SceneImage("test", 4),
        SceneImage("test", 5),
        SceneImage("train", 4),
        SceneImage("test", 4, size=64),
    ]
    sources = [image.source for image in images]
    assert len(set(sources)) == 4
    assert sources[0] == SceneImage("test", 4).source
    monkeypatch.setattr(PIL, "__version__", "0.0")
    drawing_digest.cache_clear()
    assert images[0].source not in sources
    drawing_digest.cache_clear()


def test_names_of_scene_sets() -> None:
    assert parse_scene_source("scenes") == ("test", 1000)
    assert parse_scene_source("scenes:validation:7") == ("validation", 7)
    for wrong in ("scene", "scenes:exam", "scenes:test:x", "scenes:test:0"):
        with pytest.raises(InputError, match="names no scenes"):
            parse_scene_source(wrong)


def test_a_result_file_on_scenes_has_a_slot_table(tmp_path: object) -> None:
    import json
    from pathlib import Path

    path = Path(str(tmp_path)) / "r.json"
    rows = [{"image_id": e.id, "caption": e.captions[1]} for e in scene_examples("test", 6)]
    path.write_text(json.dumps(rows))
    found = evaluate(Request(str(path), "scenes:test:6", resampling=Resampling(samples=10)))
    slots = found.report.tables[-1]
    assert slots.title.startswith("Slots")
    assert slots.rows["r.json"]["whole caption"].value == 1
    assert slots.rows["most frequent caption"]["whole caption"].value < 1
