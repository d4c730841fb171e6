"""The measure itself: perfect and wrong captioners on scenes that need no font."""

import pytest

from primelens.tune.scenes.evaluate import failures, measure_captions
from primelens.tune.scenes.language import caption
from primelens.tune.scenes.world import scene

SCENES = [scene("test", i) for i in range(120)]


def test_the_truth_scores_one() -> None:
    said = [caption(s) for s in SCENES]
    found = measure_captions(SCENES, said)
    assert found.pictures == 120
    assert found.object_f1 == found.count_accuracy == found.relation_accuracy == 1.0
    assert found.whole_caption_accuracy == 1.0
    assert set(found.whole_by_groups) == {1, 2, 3, 4}
    assert 0.6 < found.place_stated < 1.0
    assert failures(SCENES, said) == []


def test_another_pictures_captions_score_low() -> None:
    said = [caption(s) for s in SCENES[1:] + SCENES[:1]]
    found = measure_captions(SCENES, said)
    assert found.object_f1 < 0.1
    assert found.whole_caption_accuracy == 0.0
    assert len(failures(SCENES, said)) == 120


def test_nothing_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="no scenes"):
        measure_captions([], [])
