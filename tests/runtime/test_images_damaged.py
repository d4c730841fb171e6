"""Damaged pictures are refused with an ImageError or decoded: nothing else, and no warning."""

from __future__ import annotations

import io
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from primelens import images
from primelens.errors import ImageError
from primelens.images import ImageLimits, read_image


def _encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def _samples() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 7, 4), dtype=np.uint8)).resize((41, 37))
    rgb, palette = smooth.convert("RGB"), smooth.quantize(40)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pair = {"save_all": True, "append_images": [rgb.rotate(90, expand=False)]}
    wide = Image.fromarray(rng.integers(0, 65536, (9, 8)).astype(np.uint16))
    return {
        "jpeg": _encoded(rgb, "JPEG", exif=exif),
        "progressive": _encoded(rgb, "JPEG", progressive=True),
        "cmyk": _encoded(rgb.convert("CMYK"), "JPEG"),
        "mpo": _encoded(rgb, "MPO", **pair),
        "png": _encoded(smooth, "PNG", exif=exif),
        "palette png": _encoded(palette, "PNG", bits=8),
        "apng": _encoded(rgb, "PNG", **pair),
        "16-bit png": _encoded(wide, "PNG", transparency=7),
        "gif": _encoded(palette, "GIF"),
        "animated gif": _encoded(rgb, "GIF", **pair),
        "webp": _encoded(smooth, "WEBP", exif=exif),
        "animated webp": _encoded(rgb, "WEBP", **pair),
        "bmp": _encoded(rgb, "BMP"),
        "tiff": _encoded(rgb, "TIFF", exif=exif),
        "deflated tiff": _encoded(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg tiff": _encoded(rgb, "TIFF", compression="jpeg"),
        "ppm": _encoded(rgb, "PPM"),
    }


SAMPLES = _samples()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_truncated_file_is_refused(name: str) -> None:
    """Half of it is missing: no format of the list can make a whole picture of that."""
    data = SAMPLES[name]
    assert read_image(data).size[0] > 1
    if name in ("mpo", "apng", "animated gif", "animated webp"):
        return  # the first picture may lie whole in the first half
    with pytest.raises(ImageError, match=r"broken or truncated|not a picture in a format"):
        read_image(data[: len(data) // 2])


def _survives(data: bytes) -> None:
    """Either a picture or an ImageError that says more than nothing; and no warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            source = read_image(data, limits=ImageLimits(pixels=10**6))
        except ImageError as error:
            picture, said = None, error.remedy
        else:
            picture, said = source.rgb(), "a picture"
    assert said
    assert caught == []
    assert picture is None or (
        picture.mode == "RGB" and 0 < picture.width * picture.height <= 10**6
    )


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=8),
    keep=st.floats(0, 1),
)
@example(name="jpeg", flips=[], keep=0.0)
def test_no_damage_does_anything_else(
    name: str, flips: list[tuple[float, int]], keep: float
) -> None:
    _survives(_damaged(SAMPLES[name], flips, keep))


def _damaged(data: bytes, flips: list[tuple[float, int]], keep: float) -> bytes:
    altered = bytearray(data)
    for place, bits in flips:
        # Squared: the first bytes, where headers and directories are, are hit more often.
        altered[int(place**2 * (len(altered) - 1))] ^= bits
    return bytes(altered[: int(keep * len(altered)) if keep < 0.8 else None])


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_no_damage_does_anything_else_many_times(name: str) -> None:
    rng = np.random.default_rng(17)
    for _ in range(1500):
        flips = [(float(rng.random()), int(rng.integers(1, 256))) for _ in range(rng.integers(9))]
        _survives(_damaged(SAMPLES[name], flips, float(rng.random())))


@given(st.binary(max_size=200))
def test_random_bytes_are_no_picture(data: bytes) -> None:
    with pytest.raises(ImageError):
        read_image(data)


def test_warnings_stay_muted_and_the_filters_whole_in_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Decoding in many threads at once leaves the process's warning filters as they were."""
    data = SAMPLES["png"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # from here on Pillow warns every time
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    before = list(warnings.filters)
    start, read = threading.Barrier(6), []

    def work() -> None:
        start.wait()
        for _ in range(60):
            read.append(read_image(data).digest)  # a warning would be an error in these tests

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 360
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="ours"):
        warnings.warn("ours", UserWarning, stacklevel=1)


def test_an_error_of_our_own_is_not_taken_for_a_broken_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bug(_: Image.Image) -> Image.Image:
        raise ValueError("a bug of ours")

    monkeypatch.setattr(images, "_high_bytes", bug)
    with pytest.raises(ValueError, match="a bug of ours") as caught:
        read_image(SAMPLES["16-bit png"])
    assert not isinstance(caught.value, ImageError)
