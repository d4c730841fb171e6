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
from primelens.tune.scenes.objects import KINDS
from primelens.tune.scenes.questions import questions
from primelens.tune.scenes.render import render
from primelens.tune.scenes.world import scene
from primelens.verify import verify

ASSETS = Path(primelens.__file__).parent / "assets"
SAMPLES = json.loads((ASSETS / "samples" / "samples.json").read_text())


@pytest.fixture(scope="module")
def model() -> Model:
    return primelens.load("default")


def test_the_package_stays_small() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
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


def test_questions_about_the_sample_pictures_are_answered(model: Model) -> None:
    right, asked = 0, 0
    for name, sample in SAMPLES.items():
        shown = scene("test", sample["index"])
        posed = [q for q in questions(shown) if q.topic in ("place", "time", "relation")]
        answers = model.answer(ASSETS / "samples" / name, [question.text for question in posed])
        right += sum(a.text == q.answer for a, q in zip(answers, posed, strict=True))
        asked += len(posed)
    assert asked >= 20
    assert right >= 0.85 * asked


def test_what_stands_alone_is_named(model: Model) -> None:
    labels = [kind.singular for kind in KINDS]
    assert len(labels) >= 120
    indices = [index for index in range(200) if len(scene("test", index).groups) == 1][:40]
    pictures = [np.asarray(render(scene("test", index))) for index in indices]
    rankings = model.rank_batch(pictures, labels)
    named = [
        KINDS[scene("test", index).groups[0].kind].singular == ranking.labels[0].label
        for index, ranking in zip(indices, rankings, strict=True)
        if not isinstance(ranking, primelens.Failure)
    ]
    assert len(named) == len(indices)
    assert sum(named) >= 0.9 * len(named)


def test_the_manifest_states_what_the_heads_were_measured_at(model: Model) -> None:
    tasks = model.manifest.parity["tasks"]
    assert tasks["rank"]["top1"] >= 0.9
    assert tasks["rank"]["labels"] >= 120
    assert tasks["answer"]["exact_answers"] >= 0.95
    assert min(tasks["answer"]["by_topic"].values()) >= 0.85
