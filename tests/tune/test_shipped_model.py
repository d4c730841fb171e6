"""What ships in the package: the default bundle and the sample pictures."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest

import primelens
from primelens.model import Model
from primelens.tune.scenes.grammar import score_caption
from primelens.tune.scenes.world import scene
from primelens.verify import verify

ASSETS = Path(primelens.__file__).parent / "assets"
SAMPLES = json.loads((ASSETS / "samples" / "samples.json").read_text())


@pytest.fixture(scope="module")
def model() -> Model:
    return primelens.load("default")


def test_the_package_stays_small() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert all(path.stat().st_mode & stat.S_IROTH for path in files)


def test_the_sample_pictures_are_captioned_rightly(model: Model) -> None:
    right = 0
    for name, sample in SAMPLES.items():
        caption = model.caption(ASSETS / "samples" / name)
        right += score_caption(scene("test", sample["index"]), caption.text).whole
        assert caption.notice is None, name
    assert len(SAMPLES) >= 6
    assert right == len(SAMPLES)


def test_the_shipped_bundle_replays_its_proof() -> None:
    report = verify("default")
    assert report.passed, report.lines


def test_the_card_states_domain_and_measures(model: Model) -> None:
    card = (ASSETS / "default" / "README.md").read_text()
    task = model.manifest.parity["task"]
    assert "drawn scenes" in card.lower()
    assert f"{task['whole_caption_accuracy']:.4f}" in card
    assert task["pictures"] >= 5000
    assert task["whole_caption_accuracy"] >= 0.90
    assert task["object_f1"] >= 0.95


def test_a_picture_that_is_no_scene_draws_a_notice(model: Model) -> None:
    random = np.random.default_rng(5)
    noise = random.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    notice = model.caption(noise).notice
    assert notice is not None
    assert "primelens export" in notice
