"""What ``--calibration`` takes: pictures, labelled data, drawn scenes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import pytest

from primelens.cli.calibration import MOST_PICTURES, _parts, calibration_of
from primelens.hub import resolve
from primelens.tune.data import Example
from primelens.tune.evaluation.scene_slots import SceneImage

SAMPLES = Path(resolve("default")).parent / "samples"


def test_nothing_gives_nothing() -> None:
    assert calibration_of(None) == {}


@pytest.mark.parametrize("data", [SAMPLES, SAMPLES / "*.jpg"])
def test_pictures_without_labels_are_rounded_by_and_no_more(data: Path) -> None:
    found = calibration_of(str(data))
    assert list(found) == ["calibration"]
    assert found["calibration"] == tuple(sorted(SAMPLES.glob("*.jpg")))


def test_one_picture() -> None:
    one = SAMPLES / "scene-1.jpg"
    assert calibration_of(str(one)) == {"calibration": (one,)}


def test_labelled_data_are_judged_by_too(tmp_path: Path) -> None:
    for n in (1, 2):
        shutil.copy(SAMPLES / f"scene-{n}.jpg", tmp_path)
    data = {
        "images": [{"id": n, "file_name": f"scene-{n}.jpg"} for n in (1, 2)],
        "annotations": [{"id": n, "image_id": n, "caption": "a cat"} for n in (1, 2)],
    }
    (tmp_path / "val.json").write_text(json.dumps(data), encoding="utf-8")
    found = calibration_of(str(tmp_path / "val.json"))
    assert len(found["calibration"]) == 2
    assert found["metric"].name == "CIDEr-D on 2 pictures of val.json"


def test_drawn_scenes_are_measured() -> None:
    found = calibration_of("scenes:test:3")
    assert len(found["calibration"]) == 3
    metric = found["metric"]
    assert metric.name == "whole caption on 3 pictures of scenes:test:3"
    assert metric.measure(Path(resolve("default"))) in (pytest.approx(n / 3) for n in range(4))


@pytest.mark.parametrize(("count", "judged"), [(5, 5), (200, 200), (300, 300 - MOST_PICTURES)])
def test_the_two_parts_are_apart_where_there_is_enough(count: int, judged: int) -> None:
    examples = [Example(str(n), SceneImage("test", n)) for n in range(count)]
    first, second = _parts(examples)
    assert (len(first), len(second)) == (min(count, MOST_PICTURES), judged)
    apart = {e.id for e in first}.isdisjoint(e.id for e in second)
    assert apart == (count == 300)


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="does not exist"):
        calibration_of("nowhere")
    with pytest.raises(click.BadParameter, match="no file matches"):
        calibration_of("nowhere/*.jpg")
