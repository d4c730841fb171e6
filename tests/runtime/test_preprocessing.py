"""The specification as data, its arithmetic to the last bit, and its geometry."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from primelens.errors import BundleError, ImageError, InputError
from primelens.preprocessing import (
    AlignLongAxis,
    CenterCrop,
    Normalize,
    Pad,
    Preprocessing,
    Resize,
    ResizeShortest,
    Thumbnail,
)

CLIP = Preprocessing(
    steps=(ResizeShortest(24, "bicubic"), CenterCrop(24, 20)),
    rescale=1 / 255,
    normalize=Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    alpha="white",
)
RAW = Preprocessing(steps=(), rescale=None, normalize=None)

FINITE = st.floats(-10, 10, allow_subnormal=False)
POSITIVE = st.floats(1e-3, 1e3)
SIDES = st.integers(1, 8192)
FILTERS = st.sampled_from(["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
STEPS = st.one_of(
    st.builds(Resize, SIDES, SIDES, FILTERS),
    st.builds(ResizeShortest, SIDES, FILTERS),
    st.builds(Thumbnail, SIDES, SIDES, FILTERS),
    st.builds(AlignLongAxis, SIDES, SIDES),
    st.builds(Pad, SIDES, SIDES),
    st.builds(CenterCrop, SIDES, SIDES),
)
TRIPLES = st.tuples(FINITE, FINITE, FINITE)
SPECS = st.builds(
    Preprocessing,
    st.lists(STEPS, max_size=4).map(tuple),
    st.none() | POSITIVE,
    st.none() | st.builds(Normalize, TRIPLES, st.tuples(POSITIVE, POSITIVE, POSITIVE)),
    st.sampled_from(["apply", "ignore"]),
    st.sampled_from(["drop", "white"]),
)


def _every_value() -> NDArray[np.uint8]:
    """``[256, 3, 3]``: each of the 256 samples in each channel, the channels out of step."""
    values = np.arange(256, dtype=np.uint8)
    return np.stack([np.stack([values, values[::-1], np.roll(values, 7)], axis=1)] * 3, axis=1)


@given(SPECS)
def test_data_and_back(spec: Preprocessing) -> None:
    written = json.loads(json.dumps(spec.to_dict()))
    again = Preprocessing.from_dict(written)
    assert again == spec
    assert again.canonical_bytes() == spec.canonical_bytes()
    assert hash(again) == hash(spec)


@given(SPECS, SPECS)
def test_different_specifications_have_different_canonical_bytes(
    one: Preprocessing, other: Preprocessing
) -> None:
    assert (one == other) == (one.canonical_bytes() == other.canonical_bytes())


def test_the_canonical_bytes_are_pinned() -> None:
    """They are part of every tower's identity: if this fails, every kept embedding is lost."""
    assert CLIP.canonical_bytes() == (
        b'{"alpha":"white","decoder":"pillow","dtype":"float32","exif":"apply","layout":"NCHW",'
        b'"normalize":{"mean":[0.48145466,0.4578275,0.40821073],'
        b'"std":[0.26862954,0.26130258,0.27577711]},"rescale":0.00392156862745098,'
        b'"steps":[{"edge":24,"op":"resize_shortest","resample":"bicubic"},'
        b'{"height":24,"op":"center_crop","width":20}]}'
    )


def test_one_canonical_form_for_equal_numbers() -> None:
    integers = Preprocessing((), 1, Normalize((0, -0.0, 1), (1, 2, 3)))
    floats = Preprocessing((), 1.0, Normalize((0.0, 0.0, 1.0), (1.0, 2.0, 3.0)))
    assert integers.canonical_bytes() == floats.canonical_bytes()


def _changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data = CLIP.to_dict()
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("exif"), "exif: missing"),
        (lambda d: d.update(colour="RGB"), "colour: unknown key"),
        (lambda d: d.update(exif="rotate"), "exif: expected one of"),
        (lambda d: d.update(decoder="turbojpeg"), "decoder: expected one of"),
        (lambda d: d.update(rescale=float("nan")), "not a finite number"),
        (lambda d: d.update(rescale=10**400), "not a finite number"),
        (lambda d: d.update(rescale="1/255"), "rescale: expected float"),
        (lambda d: d.update(rescale=True), "rescale: expected float"),
        (lambda d: d.update(rescale=0), "rescale is 0.0"),
        (lambda d: d.update(rescale=1e300), "overflow"),
        (lambda d: d["normalize"].update(std=[1, 1]), "three finite numbers"),
        (lambda d: d["normalize"].update(std=[1, 1, -1]), "must be positive"),
        (lambda d: d["normalize"].update(std=[1, 1, 1e-60]), "must be positive"),
        (lambda d: d["normalize"].update(mean=[1, 1, None]), "mean[2]: expected float"),
        (lambda d: d["normalize"].update(mean=[1, 1, 1e300]), "overflow"),
        (lambda d: d["normalize"].update(extra=1), "normalize.extra: unknown key"),
        (lambda d: d.update(steps={}), "steps: expected a list"),
        (lambda d: d.update(steps=["resize"]), "op is None"),
        (lambda d: d.update(steps=[{"op": ["resize"]}]), "op is ['resize']"),
        (lambda d: d["steps"][0].update(edge=0), "edge is 0"),
        (lambda d: d["steps"][0].update(edge=-5), "edge is -5"),
        (lambda d: d["steps"][0].update(edge=10**9), "edge is 1000000000"),
        (lambda d: d["steps"][0].update(edge=24.0), "edge: expected int"),
        (lambda d: d["steps"][0].update(resample=3), "resample: expected one of"),
        (lambda d: d["steps"][1].pop("width"), "steps[1].width: missing"),
        (lambda d: d["steps"][1].update(op="crop"), "steps[1]: op is 'crop'"),
    ],
)
def test_malformed_data_is_refused_by_name(
    change: Callable[[dict[str, Any]], object], said: str
) -> None:
    with pytest.raises(BundleError) as caught:
        Preprocessing.from_dict(_changed(change))
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


def test_all_problems_at_once_and_no_mapping_at_all() -> None:
    data = {"steps": [{"op": "resize", "height": -1, "width": 0, "resample": "box"}, 7], "x": 1}
    with pytest.raises(BundleError) as caught:
        Preprocessing.from_dict(data)
    assert len(caught.value.problems) == 2 + 1 + 7
    for wrong in ([], "text", None, 3):
        with pytest.raises(BundleError, match="expected an object"):
            Preprocessing.from_dict(wrong)  # type: ignore[arg-type]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.sampled_from(sorted(CLIP.to_dict())), JSON)
def test_any_json_is_either_read_or_refused(key: str, value: Any) -> None:
    data = {**CLIP.to_dict(), key: value}
    try:
        spec = Preprocessing.from_dict(data)
    except BundleError:
        return
    assert Preprocessing.from_dict(spec.to_dict()) == spec


@given(
    st.none() | st.floats(1e-6, 1e3),
    st.none() | st.builds(Normalize, TRIPLES, st.tuples(POSITIVE, POSITIVE, POSITIVE)),
)
def test_the_table_is_the_arithmetic_bit_for_bit(
    rescale: float | None, normalize: Normalize | None
) -> None:
    """Over all 256 samples, against the same steps written out over the whole picture."""
    pixels = _every_value()
    expected = np.moveaxis(pixels, -1, 0)
    if rescale is not None:
        expected = (expected.astype(np.float64) * rescale).astype(np.float32)
    expected = expected.astype(np.float32)
    if normalize is not None:
        mean, std = (np.array(v, dtype=np.float32) for v in (normalize.mean, normalize.std))
        expected = ((expected.T - mean) / std).T
    result = Preprocessing((), rescale, normalize)(pixels)
    assert result.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_the_table_is_transformers_arithmetic() -> None:
    transforms = pytest.importorskip("transformers.image_transforms")
    pixels = _every_value()
    rng = np.random.default_rng(3)
    for _ in range(50):
        scale = float(rng.choice([1 / 255, 1 / 127.5, rng.uniform(1e-4, 2)]))
        mean, std = rng.uniform(-1, 1, 3).tolist(), rng.uniform(0.05, 2, 3).tolist()
        scaled = transforms.rescale(np.moveaxis(pixels, -1, 0), scale)
        theirs = transforms.normalize(scaled, mean, std, input_data_format="channels_first")
        ours = Preprocessing((), scale, Normalize(tuple(mean), tuple(std)))(pixels)
        assert ours.tobytes() == np.ascontiguousarray(theirs).tobytes()


def test_one_picture_and_a_batch_agree() -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(30, 40), (90, 31)]]
    batch = CLIP.batch(pictures)
    assert batch.shape == (2, 3, 24, 20)
    assert batch.dtype == np.float32
    for row, picture in zip(batch, pictures, strict=True):
        assert np.array_equal(row, CLIP(picture))
    assert CLIP.output_size == (24, 20)


def test_a_batch_of_different_sizes_or_of_nothing_is_refused() -> None:
    uneven = [np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)]
    with pytest.raises(InputError, match="4x5, 5x4"):
        RAW.batch(uneven)
    with pytest.raises(InputError, match="none at all"):
        RAW.batch([])
    assert RAW.output_size is None


@pytest.mark.parametrize(
    ("steps", "size"),
    [
        ((Resize(3, 4, "box"),), (3, 4)),
        ((Resize(3, 4, "box"), ResizeShortest(5, "box")), None),
        ((ResizeShortest(5, "box"), Thumbnail(9, 8, "box"), Pad(9, 8)), (9, 8)),
        ((CenterCrop(2, 7), AlignLongAxis(7, 2)), None),
    ],
)
def test_the_output_size_is_known_from_the_steps(
    steps: tuple[Any, ...], size: tuple[int, int] | None
) -> None:
    spec = Preprocessing(steps, None, None)
    assert spec.output_size == size
    shapes = {spec(np.zeros((h, w, 3), np.uint8)).shape[1:] for h, w in [(3, 5), (6, 4), (9, 9)]}
    assert size is None or shapes == {size}


def test_geometry_by_hand() -> None:
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)

    def after(*steps: Any) -> NDArray[Any]:
        return np.moveaxis(Preprocessing(steps, None, None)(picture), 0, -1)

    assert np.array_equal(after(CenterCrop(2, 3)), picture[1:3, 1:4])
    larger = after(CenterCrop(7, 3))
    assert np.array_equal(larger[2:6], picture[:, 1:4])
    assert not larger[[0, 1, 6]].any()
    padded = after(Pad(5, 9))
    assert np.array_equal(padded[0:4, 1:7], picture)
    assert padded.sum() == picture.sum()
    assert np.array_equal(after(AlignLongAxis(9, 2)), np.rot90(picture, -1))
    assert np.array_equal(after(AlignLongAxis(2, 9)), picture)
    assert after(ResizeShortest(5, "bilinear")).shape == (5, 7, 3)
    # Donut's own rule: the landscape keeps its width (6) and takes int(4 * 6 / 6) as its height.
    assert after(Thumbnail(2, 100, "bilinear")).shape == (4, 6, 3)
    assert after(Thumbnail(100, 3, "bilinear")).shape == (2, 3, 3)
    assert np.array_equal(after(Thumbnail(4, 6, "bilinear")), picture)


def test_policies_reach_the_picture() -> None:
    rng = np.random.default_rng(2)
    rgba = rng.integers(0, 256, (5, 8, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG", exif=exif)
    outputs = {
        (e, a): Preprocessing((), None, None, e, a)(buffer.getvalue())
        for e in ("apply", "ignore")
        for a in ("drop", "white")
    }
    assert np.array_equal(outputs["ignore", "drop"], np.moveaxis(rgba[..., :3], -1, 0))
    turned = np.rot90(rgba[..., :3], -1)
    assert np.array_equal(outputs["apply", "drop"], np.moveaxis(turned, -1, 0))
    assert not np.array_equal(outputs["ignore", "white"], outputs["ignore", "drop"])
    assert outputs["apply", "white"].shape == (3, 8, 5)


def test_shapes_beyond_reason_name_the_picture(tmp_path: Any) -> None:
    path = tmp_path / "strip.png"
    Image.new("L", (1, 40_000)).save(path)
    spec = Preprocessing((ResizeShortest(224, "bicubic"),), None, None)
    with pytest.raises(ImageError, match=r"strip\.png of 1x40000 pixels would be resized to 224x8"):
        spec(path)
    with pytest.raises(ImageError, match="does not fit into 4x4"):
        Preprocessing((Pad(4, 4),), None, None)(np.zeros((5, 3, 3), np.uint8))
    with pytest.raises(ImageError, match="would be resized to 0x4"):
        Preprocessing((Thumbnail(4, 4, "box"),), None, None)(np.zeros((50, 3, 3), np.uint8))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Resize(0, 5, "box"),
        lambda: ResizeShortest(9000, "box"),
        lambda: Normalize((0, 0), (1, 1, 1)),
        lambda: Normalize((0, 0, float("inf")), (1, 1, 1)),
        lambda: Preprocessing((), -1.0, None),
    ],
)
def test_the_constructors_check_too(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()
