"""Videos: frames chosen, decoded and kept one by one; a head that reads several of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import primelens
from primelens import CacheOptions, LoadOptions, Video
from primelens.cli.app import app
from primelens.errors import DependencyError, GateError, ImageError, InputError, OptionError
from primelens.export.bundle_writer import write_draft
from primelens.export.draft import Draft
from primelens.export.pictures import random_picture
from primelens.export.pipeline import prove
from primelens.verify import verify
from primelens.video import chosen, read_frames

from .conftest import OPTIONS, Work
from .mutations import Mutation, Table, in_input, reversed_axis
from .test_prefix_heads import CONNECTOR, TAP, _draft, in_connector, projection_changed

NAME, FRAMES, RATE = "tiny-git-video", 3, 10


def write_video(path: Path, count: int = 20, *, codec: str = "mpeg4") -> Path:
    """A clip whose frames get brighter, at 10 frames a second."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(RATE))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(count):
            pixels = np.full((48, 64, 3), 10 + 200 * number // count, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@given(total=st.integers(1, 10**6), count=st.integers(1, 64))
def test_frames_are_spread_evenly(total: int, count: int) -> None:
    numbers = chosen(total, count)
    assert len(numbers) == count
    assert numbers == sorted(numbers)
    assert 0 <= numbers[0] <= total // 2
    assert numbers[-1] < total
    gaps = np.diff(numbers)
    assert not gaps.size or gaps.max() - gaps.min() <= 1
    assert abs((numbers[0] + numbers[-1]) - total) <= 1  # as far from the end as from the start


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_frames_come_with_number_and_time(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}")
    frames = read_frames(path, 4)
    places = [image.frame[1] for image in frames if image.frame]
    assert [place.index for place in places] == [2, 7, 12, 17]
    assert [round(place.timestamp_ns / 1e8) for place in places] == [2, 7, 12, 17]
    levels = [float(np.asarray(image.picture).mean()) for image in frames]
    np.testing.assert_allclose(levels, [10 + 10 * n for n in (2, 7, 12, 17)], atol=4)
    assert len({image.digest for image in frames}) == 4
    again = read_frames(write_video(tmp_path / f"other{suffix}", 21), 4)
    assert {image.digest for image in again}.isdisjoint({image.digest for image in frames})


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with pytest.raises(ImageError, match="no such file"):
        read_frames(tmp_path / "none.mp4", 2)
    text = tmp_path / "text.mp4"
    text.write_text("#EXTM3U\n#EXTINF:1,\nother.mp4\n" * 50)
    with pytest.raises(ImageError, match="no video that can be decoded"):
        read_frames(text, 2)
    path = write_video(tmp_path / "clip.mkv", 40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    places = [image.frame[1].index for image in read_frames(path, 2) if image.frame]
    assert len(places) == 2
    assert max(places) < 26  # a shorter clip, as far as it goes
    with pytest.raises(OptionError, match="at least 1"):
        Video(path, frames=0)
    with pytest.raises(OptionError, match="no frames"):
        Video([])


def test_without_the_library_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", 3)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DependencyError, match=r"primelens\[video\]"):
        read_frames(path, 2)


# The head ---------------------------------------------------------------------------------------


def without_times(draft: Draft, work: Work) -> None:
    module = work.split.heads["caption"].prefix.module
    before = [parameter.clone() for parameter in module.temporal]
    try:
        with torch.no_grad():
            for parameter in module.temporal:
                parameter.zero_()
        in_connector()(draft, work)
    finally:
        with torch.no_grad():
            for parameter, value in zip(module.temporal, before, strict=True):
                parameter.copy_(value)


VIDEO: Table = {
    "temporal embeddings dropped": without_times,
    "frames in reverse": in_input(CONNECTOR, TAP, reversed_axis(1)),
    "projection norm": projection_changed("visual_projection.1.weight"),
}


@pytest.mark.parametrize("mutation", VIDEO.values(), ids=VIDEO)
def test_the_gate_catches(works: Callable[[str], Work], mutation: Mutation, tmp_path: Path) -> None:
    work = works(NAME)
    draft = _draft(work)
    mutation(draft, work)
    write_draft(draft, tmp_path, OPTIONS)
    with pytest.raises(GateError):
        prove(tmp_path, work.split, work.answers, OPTIONS.gate)


@pytest.fixture(scope="module")
def bundle(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from primelens.export import export_checkpoint

    out = tmp_path_factory.mktemp("video") / "bundle"
    assert export_checkpoint(checkpoints(NAME), out, OPTIONS).passed
    return out


def test_a_video_equals_generate(
    works: Callable[[str], Work], bundle: Path, tmp_path: Path
) -> None:
    """File, list of frames and array say the same as the source does about the same frames."""
    work, path = works(NAME), write_video(tmp_path / "clip.mp4")
    model = primelens.load(bundle, options=LoadOptions(threads=1, check="size"))
    frames = [np.asarray(image.picture) for image in read_frames(path, FRAMES)]
    pixels = np.stack([model.preprocessing(frame) for frame in frames])[None]
    reference: Any = work.split.heads["caption"].reference
    wanted = reference.generate(pixels, {"max_new_tokens": 12}, plain=True)[0]
    options = primelens.CaptionOptions(max_new_tokens=12)
    given = [Video(path), Video(path, frames=FRAMES), Video(frames), np.stack(frames)]
    captions = model.caption(given, options)
    assert [list(caption.tokens) for caption in captions] == [wanted] * 4
    assert captions[0].image == str(path)
    assert captions[0].timestamps == pytest.approx((0.3, 1.0, 1.6))
    assert captions[2].timestamps == (0.0, 1.0, 2.0)
    assert verify(bundle).passed


def test_frames_are_kept_one_by_one(bundle: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    options = LoadOptions(threads=1, check="size")
    model = primelens.load(bundle, options=options, cache=CacheOptions(tmp_path / "kept"))
    first, second = (model.encode(Video(path)) for _ in range(2))
    assert (first.cache, second.cache) == ("miss", "hit")
    assert first.entries == second.entries
    np.testing.assert_array_equal(first.taps[TAP], second.taps[TAP])
    assert first.taps[TAP].shape[0] == FRAMES
    stats = model.cache_stats()
    assert stats is not None
    assert stats.kept == FRAMES
    one = model.encode(Video(path, frames=1))  # the middle frame is one of the three
    assert one.cache == "hit"
    np.testing.assert_array_equal(one.taps[TAP][0], first.taps[TAP][1])
    a, b = (model.caption(Video(path)) for _ in range(2))
    assert a.token_logprobs == b.token_logprobs


def test_pictures_and_videos_are_told_apart(
    works: Callable[[str], Work], bundle: Path, tmp_path: Path
) -> None:
    picture = random_picture(40, 40, 0)
    model = primelens.load(bundle, options=LoadOptions(threads=1, check="size"))
    with pytest.raises(InputError, match="is a picture; the head 'caption' reads videos of 3"):
        model.caption(picture)
    with pytest.raises(InputError, match="a video of 2 frames"):
        model.caption(Video([picture, picture]))
    write_draft(works("tiny-git").draft, tmp_path, OPTIONS)
    still = primelens.load(tmp_path, options=LoadOptions(threads=1, check="size"))
    with pytest.raises(InputError, match="is a video of 2 frames; the head 'caption' reads pict"):
        still.caption(Video([picture, picture]))
    with pytest.raises(InputError, match="how many frames"):
        still.caption(Video(tmp_path / "clip.mp4"))


def test_the_command_captions_a_clip(bundle: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    command = ["caption", str(path), str(broken), "--model", str(bundle), "--frames", "3"]
    done = CliRunner().invoke(app, [*command, "--json", "--threads", "1"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 1, done.stderr
    assert rows[0]["timestamps"] == pytest.approx([0.3, 1.0, 1.6])
    assert rows[0]["caption"]
    assert "broken.mp4" in json.dumps(rows[1])
