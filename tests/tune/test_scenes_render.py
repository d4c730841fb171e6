"""Pictures and their stream; everything here needs the emoji font."""

import numpy as np
import pytest

from primelens.tune.scenes.objects import KINDS
from primelens.tune.scenes.render import FONT_PATH, _glyph, font_is_installed, render
from primelens.tune.scenes.stream import Batch, StreamSpec, make_batch, stream
from primelens.tune.scenes.world import Group, scene

pytestmark = pytest.mark.skipif(
    not font_is_installed(), reason=f"no emoji font at {FONT_PATH} (fonts-noto-color-emoji)"
)


def test_a_picture_is_a_function_of_the_scene() -> None:
    first, again = render(scene("test", 4)), render(scene("test", 4))
    assert first.mode == "RGB"
    assert first.size == (128, 128)
    assert first.tobytes() == again.tobytes()
    assert render(scene("test", 4), size=300).size == (300, 300)


def test_objects_are_drawn_where_the_scene_says() -> None:
    shown = next(s for s in (scene("test", i) for i in range(50)) if len(s.groups) == 1)
    bare = np.asarray(render(type(shown)(**{**vars(shown), "groups": ()})), dtype=int)
    full = np.asarray(render(shown), dtype=int)
    rows, columns = np.nonzero(np.abs(full - bare).max(axis=2) > 60)
    left, top, right, bottom = shown.groups[0].box
    assert abs(columns.mean() - (left + right) / 2) < 8
    assert abs(rows.mean() - (top + bottom) / 2) < 8


def test_every_kind_has_a_glyph_of_its_own() -> None:
    thumbs = [
        np.asarray(_glyph(kind).resize((16, 16)), dtype=float).ravel() for kind in range(len(KINDS))
    ]
    nearest = min(np.abs(a - b).mean() for i, a in enumerate(thumbs) for b in thumbs[:i])
    assert nearest > 10.0


def same(a: Batch, b: Batch) -> bool:
    return a.index == b.index and a.captions == b.captions and bool((a.pixels == b.pixels).all())


def test_batches_line_up_with_scenes() -> None:
    spec = StreamSpec("validation", first=10, batches=2, batch_size=3, captions=2)
    batch = make_batch(spec, 1)
    assert batch.index == 13
    assert batch.pixels.shape == (3, 128, 128, 3)
    assert batch.kinds.shape == batch.counts.shape == (3, 8, 8)
    expected: list[Group] = list(scene("validation", 14).groups)
    assert set(batch.kinds[1].ravel()) - {0} == {g.kind + 1 for g in expected}
    assert len(batch.captions[2]) == 2


@pytest.mark.slow
def test_the_order_does_not_depend_on_the_producers() -> None:
    spec = StreamSpec("train", first=0, batches=5, batch_size=2)
    here = list(stream(spec, producers=0))
    assert len(here) == 5
    for there in (stream(spec, producers=1), stream(spec, producers=2)):
        assert all(same(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.slow
def test_a_failed_producer_is_heard() -> None:
    spec = StreamSpec("dev", first=0, batches=1, batch_size=2)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="producer"):
        list(stream(spec, producers=1))


def test_an_impossible_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        StreamSpec("train", first=0, batches=1, batch_size=0)
