"""Pictures of every kind become one checked form, and everything else an error that names it."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from primelens import images
from primelens.errors import ImageError, OptionError
from primelens.images import FORMATS, ImageLimits, SourceImage, read_image

RNG = np.random.default_rng(5)


def _noise(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def _encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def _pixels(source: SourceImage, **policy: Any) -> NDArray[np.uint8]:
    return np.asarray(source.rgb(**policy))


def test_path_bytes_array_and_pillow_image_agree(tmp_path: Path) -> None:
    array = _noise(7, 11)
    data = _encoded(Image.fromarray(array), "PNG")
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    given = [path, str(path), data, bytearray(data), memoryview(data), array]
    given += [Image.fromarray(array), Image.open(path)]
    found = [read_image(source) for source in given]
    for source in found:
        assert np.array_equal(_pixels(source), array)
        assert source.size == (11, 7)
        assert read_image(source) is source
    encoded, decoded = {s.digest for s in found[:5]}, {s.digest for s in found[5:]}
    assert encoded == {hashlib.sha256(data).hexdigest()}
    assert len(decoded) == 1
    assert [s.format for s in found] == ["PNG"] * 5 + ["array", "PIL", "PIL"]
    assert found[0].name == str(path)
    assert found[7].name == str(path)


def test_the_pixel_digest_is_what_its_documentation_says() -> None:
    array = _noise(2, 3, 4)
    head = b"primelens-pixels-1\0RGBA\0" + struct.pack("<qqq", 3, 2, 1)
    assert read_image(array).digest == hashlib.sha256(head + array.tobytes()).hexdigest()


def test_whatever_changes_the_pixels_changes_the_digest() -> None:
    array = _noise(4, 6)
    altered = array.copy()
    altered[3, 5, 2] ^= 1
    turned = Image.fromarray(array)
    turned.getexif()[ExifTags.Base.Orientation] = 6
    see_through = Image.fromarray(array)
    see_through.info["transparency"] = tuple(int(v) for v in array[0, 0])
    given = [array, altered, array.reshape(6, 4, 3), turned, see_through]
    given.append(np.dstack([array, np.full((4, 6), 255, np.uint8)]))
    assert len({read_image(source).digest for source in given}) == len(given)
    assert read_image(np.asfortranarray(array)).digest == read_image(array).digest


def test_a_picture_does_not_change_with_what_it_was_made_from() -> None:
    array = _noise(4, 4, 4)
    image = Image.fromarray(array[..., :3])
    sources = [read_image(array), read_image(image), read_image(array[..., 0])]
    before = [_pixels(source).copy() for source in sources]
    array[:] = 0
    image.paste((0, 0, 0), (0, 0, 4, 4))
    for source, pixels in zip(sources, before, strict=True):
        assert np.array_equal(_pixels(source), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_as_transformers_applies_it(format_name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = _encoded(Image.fromarray(_noise(20, 9)), format_name, exif=exif)
    source = read_image(data)
    assert source.orientation == orientation
    assert np.array_equal(
        _pixels(source, exif="ignore"), Image.open(io.BytesIO(data)).convert("RGB")
    )
    image_utils = pytest.importorskip("transformers.image_utils")
    expected = np.asarray(image_utils.load_image(Image.open(io.BytesIO(data))))
    assert np.array_equal(_pixels(source, exif="apply"), expected)


def test_an_unreadable_exif_block_counts_as_none() -> None:
    data = _encoded(
        Image.fromarray(_noise(5, 6)), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk"
    )
    assert read_image(data).orientation == 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"])
def test_opaque_modes_are_converted_as_pillow_does(mode: str) -> None:
    image = Image.fromarray(_noise(8, 8)).convert(mode)
    source = read_image(image)
    assert source.picture.mode == "RGB"
    assert np.array_equal(_pixels(source), image.convert("RGB"))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "La", "RGBa"])
def test_transparency_is_dropped_or_laid_over_white(mode: str) -> None:
    rgba = Image.fromarray(_noise(16, 16, 4))
    image = {
        "LA": lambda: rgba.convert("LA"),
        "La": lambda: rgba.convert("LA").convert("La"),
        "PA": lambda: rgba.convert("RGB").convert("P").convert("PA"),
        "RGBa": lambda: rgba.convert("RGBa"),
        "RGBA": lambda: rgba,
    }[mode]()
    plain = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    expected = np.asarray(image.convert(plain).convert("RGBA")).astype(np.int64)
    source = read_image(image)
    assert source.picture.mode == "RGBA"
    assert np.array_equal(_pixels(source, alpha="drop"), expected[..., :3])
    alpha = expected[..., 3:]
    exact = (expected[..., :3] * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(_pixels(source, alpha="white") - exact).max() <= 1


def test_transparent_colours_of_palette_grey_and_rgb_files() -> None:
    grey = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    palette = Image.fromarray(_noise(4, 4, 4)).quantize(8)
    for data, hole in [
        (_encoded(grey, "PNG", transparency=5), True),
        (_encoded(grey.convert("RGB"), "PNG", transparency=(5, 5, 5)), True),
        (_encoded(palette, "PNG"), True),
        (_encoded(grey, "PNG"), False),
        (_encoded(grey.convert("P"), "GIF", transparency=5), True),
    ]:
        source = read_image(data)
        assert (source.picture.mode == "RGBA") == hole
        drop, white = _pixels(source, alpha="drop"), _pixels(source, alpha="white")
        assert np.array_equal(drop, white) != hole


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_high_byte(format_name: str) -> None:
    wide = RNG.integers(0, 65536, (5, 9)).astype(np.uint16)
    source = read_image(_encoded(Image.fromarray(wide), format_name))
    assert np.array_equal(_pixels(source), np.repeat((wide >> 8)[..., None], 3, axis=2))
    clipped = np.asarray(Image.fromarray(wide).convert("RGB"))
    assert (clipped == 255).mean() > 0.9, "Pillow scales by itself now: the module's text is old"


def test_sixteen_bit_pgm_png_with_a_hole_and_other_byte_order() -> None:
    wide = np.array([[0, 255, 256, 40000]], np.uint16)
    pgm = b"P5 4 1 65535\n" + wide.astype(">u2").tobytes()
    assert _pixels(read_image(pgm))[0, :, 0].tolist() == [0, 0, 1, 156]
    png = _encoded(Image.fromarray(wide), "PNG", transparency=256)
    assert _pixels(read_image(png), alpha="white")[0, :, 0].tolist() == [0, 0, 255, 156]
    big = _encoded(Image.fromarray(wide).convert("I").convert("I;16B"), "TIFF")
    assert _pixels(read_image(big))[0, :, 0].tolist() == [0, 0, 1, 156]


@pytest.mark.parametrize("kind", ["int32", "float32", "tiff", "pfm"])
def test_samples_without_an_agreed_range_are_refused(kind: str) -> None:
    values = np.array([[0.0, 1e5]], np.float32)
    given: Any = {
        "int32": lambda: Image.fromarray(values.astype(np.int32)),
        "float32": lambda: Image.fromarray(values),
        "tiff": lambda: _encoded(Image.fromarray(values), "TIFF"),
        "pfm": lambda: b"Pf\n2 1\n-1.0\n" + values.tobytes(),
    }[kind]()
    with pytest.raises(ImageError, match="32-bit samples"):
        read_image(given)


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(format_name: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = _encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(_pixels(read_image(data)), frames[0])


def test_a_multi_picture_jpeg_is_its_first_picture() -> None:
    frames = [Image.fromarray(_noise(16, 16)) for _ in range(2)]
    data = _encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.array_equal(_pixels(read_image(data)), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_format_of_the_list_is_read(format_name: str) -> None:
    data = _encoded(Image.fromarray(_noise(9, 13)), format_name)
    source = read_image(data)
    assert source.format == format_name
    assert np.array_equal(_pixels(source), Image.open(io.BytesIO(data)).convert("RGB"))


def test_formats_outside_the_list_are_not_opened() -> None:
    image = Image.fromarray(_noise(9, 13))
    for format_name in ("TGA", "PCX", "ICO", "EPS", "PDF", "SGI", "JPEG2000"):
        with pytest.raises(ImageError, match="not a picture in a format"):
            read_image(_encoded(image, format_name))
    with pytest.raises(ImageError, match="Give one of PNG"):
        read_image(_encoded(image, "JPEG"), limits=ImageLimits(formats=("PNG",)))
    assert read_image(_encoded(image, "TGA"), limits=ImageLimits(formats=("TGA",))).format == "TGA"


@pytest.mark.parametrize("limits", [{"bytes": 0}, {"pixels": -1}, {"formats": ("PNG", "XYZ")}])
def test_limits_that_make_no_sense(limits: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        ImageLimits(**limits)


def test_the_byte_limit(tmp_path: Path) -> None:
    data = _encoded(Image.fromarray(_noise(9, 13)), "PNG")
    (tmp_path / "p").write_bytes(data)
    for source in (data, tmp_path / "p"):
        read_image(source, limits=ImageLimits(bytes=len(data)))
        with pytest.raises(ImageError, match=r"the limit.*ImageLimits\.bytes"):
            read_image(source, limits=ImageLimits(bytes=len(data) - 1))


def test_a_file_that_grows_while_it_is_read_stays_within_the_limit() -> None:
    """/proc files have size 0 and any content, like a file that is being appended to."""
    path = Path("/proc/self/environ")
    if not path.exists():
        pytest.skip("needs /proc")
    with pytest.raises(ImageError, match="more than 4 bytes"):
        read_image(path, limits=ImageLimits(bytes=4))


@pytest.mark.parametrize("format_name", FORMATS)
def test_the_pixel_limit_is_checked_before_decoding(
    format_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _encoded(Image.fromarray(_noise(30, 40)), format_name)
    array, image = _noise(30, 40), Image.fromarray(_noise(30, 40))
    assert read_image(data, limits=ImageLimits(pixels=1200)).size == (40, 30)
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("decoded"))
    for source in (data, array, image):
        with pytest.raises(ImageError, match=r"40x30 pixels, more than the limit of 1199"):
            read_image(source, limits=ImageLimits(pixels=1199))


def test_pillows_own_limit_is_an_error_but_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _encoded(Image.fromarray(_noise(30, 40)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # warns above it, refuses twice of it
    assert read_image(data).size == (40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):
        read_image(data)


def test_the_default_limit_lets_a_large_photo_through_without_a_warning() -> None:
    """Between Pillow's warning (89 Mpx) and ours (100 Mpx); bilevel, so that it is small."""
    data = _encoded(Image.new("1", (9500, 9500)), "PNG")
    assert read_image(data).size == (9500, 9500)
    with pytest.raises(ImageError, match="more than the limit of 100000000"):
        read_image(_encoded(Image.new("1", (10_001, 10_000)), "PNG"))


def test_missing_paths_and_wrong_kinds(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    for source, said in [
        (tmp_path / "missing.jpg", "There is no picture at"),
        (tmp_path / "dangling.jpg", "There is no picture at"),
        (tmp_path / "text.jpg" / "below", "cannot be read"),
        (tmp_path, "is a folder"),
        (tmp_path / "text.jpg", "not a picture in a format"),
        (tmp_path / "empty.jpg", "empty: no bytes"),
        ("", "path is empty"),
        ("a\0b", "cannot be read"),
        ("x" * 100_000, "cannot be read"),
        ("https://example.org/a.jpg", "Addresses are not fetched"),
        (b"", "empty: no bytes"),
        (None, "type NoneType"),
        (3, "type int"),
        ([tmp_path], "type list"),
    ]:
        with pytest.raises(ImageError, match=said) as caught:
            read_image(source)  # type: ignore[arg-type]
        assert caught.value.remedy
        assert len(str(caught.value)) < 1000
        if isinstance(source, Path):
            assert str(source) in str(caught.value)


def test_a_linked_picture_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_encoded(Image.fromarray(_noise(3, 3)), "PNG"))
    (tmp_path / "b.png").symlink_to("a.png")
    assert read_image(tmp_path / "b.png").digest == read_image(tmp_path / "a.png").digest


def test_pipes_and_devices_never_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero"), Path("/dev/tty")):
        if path.exists():
            with pytest.raises(ImageError, match="pipe, socket or device"):
                read_image(path)


def test_a_file_replaced_by_a_pipe_after_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "swapped"
    path.write_bytes(b"x")
    real = os.open

    def swap(name: Any, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return real(name, flags)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(ImageError, match="pipe, socket or device"):
        read_image(path)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(_encoded(Image.fromarray(_noise(3, 3)), "PNG"))
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything

        def refuse(*_: Any) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match=r"secret\.png may not be read"):
        read_image(path)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 8, 8), np.uint8), "channels come last"),
        (np.zeros((8, 8, 3), np.float32), "not uint8"),
        (np.zeros((8, 8, 3), np.int64), "not uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), "one picture"),
        (np.zeros((8,), np.uint8), "one picture"),
        (np.zeros((8, 8, 2), np.uint8), "one picture"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
        (np.zeros((8, 0), np.uint8), "empty"),
    ],
)
def test_arrays_that_are_no_picture(array: NDArray[Any], said: str) -> None:
    with pytest.raises(ImageError, match=said):
        read_image(array)


def test_grey_arrays_with_and_without_a_channel_axis() -> None:
    grey = _noise(4, 5, 1)
    assert read_image(grey).digest == read_image(grey[..., 0]).digest
    assert np.array_equal(_pixels(read_image(grey)), np.repeat(grey, 3, axis=2))


def test_names_in_messages_are_printable_and_short() -> None:
    with pytest.raises(ImageError) as caught:
        read_image("line\nbreak\x1b[31m\udcff.png")
    assert str(caught.value).isprintable()
    assert "line\\nbreak\\x1b[31m\\udcff.png" in str(caught.value)
