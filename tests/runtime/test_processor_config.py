"""Bit equality with the PIL image processors of transformers, and what is refused."""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from primelens.errors import ImageError, UnsupportedError
from primelens.preprocessing import CenterCrop, Normalize, Preprocessing, Resize, ResizeShortest
from primelens.processor_config import PROCESSORS, from_processor_config, processor_origin

MODULES = {
    "Beit": "beit",
    "Bit": "bit",
    "Blip": "blip",
    "ChineseCLIP": "chinese_clip",
    "CLIP": "clip",
    "ConvNext": "convnext",
    "DeiT": "deit",
    "Donut": "donut",
    "MobileNetV1": "mobilenet_v1",
    "Pvt": "pvt",
    "Siglip": "siglip",
    "Siglip2": "siglip2",
    "VideoMAE": "videomae",
    "ViT": "vit",
}

MODES = ("RGB", "L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr", "PA", "I;16")

# Settings that reach every branch of the conversion, kept small so that the tests are quick.
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("ViT", {}),
    ("ViT", {"size": 96, "resample": 3}),
    ("ViT", {"size": {"shortest_edge": 61}, "do_center_crop": True, "crop_size": [80, 47]}),
    ("ViT", {"do_rescale": False, "size": [30, 50]}),
    ("ViT", {"do_normalize": False, "size": 40, "resample": 0}),
    ("ViT", {"do_normalize": False, "do_rescale": False, "size": 40, "resample": 5}),
    ("ViT", {"do_resize": False, "do_center_crop": True, "crop_size": 55}),
    ("ViT", {"rescale_factor": 0.0123, "image_mean": 0.25, "image_std": [0.1, 2, 0.5], "size": 33}),
    ("Beit", {}),
    ("Beit", {"size": 40, "do_center_crop": True, "crop_size": [36, 30], "resample": 2}),
    ("Beit", {"size": [30, 50], "do_reduce_labels": True}),
    ("DeiT", {}),
    ("DeiT", {"size": {"height": 65, "width": 64}, "crop_size": {"height": 64, "width": 65}}),
    ("CLIP", {}),
    ("CLIP", {"size": 35, "crop_size": 36, "resample": 1}),
    ("CLIP", {"do_convert_rgb": False, "size": 64, "crop_size": 64}),
    ("ChineseCLIP", {"size": 48, "crop_size": 48}),
    ("Bit", {"size": 64, "crop_size": 56, "resample": 4}),
    ("Blip", {}),
    ("Siglip", {}),
    ("Siglip", {"size": 70}),
    ("Pvt", {"size": 64}),
    ("MobileNetV1", {"size": 72, "crop_size": 64}),
    ("VideoMAE", {}),
    ("VideoMAE", {"size": {"shortest_edge": 60}, "crop_size": {"height": 48, "width": 48}}),
    ("ConvNext", {"size": {"shortest_edge": 96}}),
    ("ConvNext", {"size": {"shortest_edge": 96}, "crop_pct": 0.95}),
    ("ConvNext", {}),
    ("Donut", {"size": {"height": 96, "width": 64}}),
    ("Donut", {"size": [96, 64], "do_align_long_axis": True}),
    ("Donut", {"size": [64, 96], "do_align_long_axis": True, "resample": 0}),
    ("Donut", {"size": {"height": 90, "width": 90}, "do_resize": False}),
]


def _processor(family: str, settings: dict[str, Any]) -> Any:
    pytest.importorskip("transformers")
    module = f"transformers.models.{MODULES[family]}.image_processing_pil_{MODULES[family]}"
    return getattr(importlib.import_module(module), f"{family}ImageProcessorPil")(**settings)


def _picture(rng: np.random.Generator, mode: str, size: tuple[int, int]) -> Image.Image:
    width, height = size
    noise = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((max(1, width // 7), max(1, height // 7)))
    picture = smooth.resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        deep = np.asarray(picture.convert("L"), np.uint16) << 8
        return Image.fromarray(deep + rng.integers(0, 256, (height, width), dtype=np.uint16))
    if mode == "PA":
        return picture.convert("RGB").convert("P").convert("PA")
    if mode == "P" and rng.integers(2):
        return picture.quantize(200)  # with transparency in the palette
    return picture.convert(mode)


def _sizes(rng: np.random.Generator, count: int, *, longest: int = 700) -> list[tuple[int, int]]:
    """Mostly ordinary shapes, some of a few pixels, some thin strips."""
    sizes = []
    for i in range(count):
        low, high = [(1, longest), (1, 12), (200, 260)][i % 3]
        width, height = (int(n) for n in rng.integers(low, high + 1, 2))
        if i % 7 == 6:
            width = int(rng.integers(1, 6))
        sizes.append((width, height) if i % 2 else (height, width))
    return sizes


def _compare(family: str, settings: dict[str, Any], seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    processor = _processor(family, settings)
    config = {**settings, "image_processor_type": f"{family}ImageProcessor"}
    ours = from_processor_config(json.loads(json.dumps(config)))
    shapes, refused = set(), 0
    for i, size in enumerate(_sizes(rng, count)):
        if family == "Donut" and not settings.get("do_resize", True) and max(size) > 90:
            size = (size[0] % 90 + 1, size[1] % 90 + 1)
        mode = MODES[i % len(MODES)]
        picture = _picture(rng, mode, size)
        given = picture if processor.do_convert_rgb else picture.convert("RGB")
        if mode == "I;16":  # Pillow would clip it; here the high byte counts
            given = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
        try:
            theirs = processor(given, return_tensors="np")["pixel_values"][0]
            theirs = theirs.reshape(theirs.shape[-3:])  # VideoMAE's: one frame of one video
        except ValueError:  # Donut's thumbnail of a thin strip has no width left
            with pytest.raises(ImageError):
                ours(picture)
            refused += 1
            continue
        try:
            result = ours(picture)
        except ImageError:  # a strip that the short edge would blow up beyond all caps
            if max(size) <= 60 * min(size):
                raise
            refused += 1
            continue
        assert result.dtype == np.float32
        assert result.flags.c_contiguous
        assert np.array_equal(result, theirs.astype(np.float32)), (family, settings, mode, size)
        shapes.add(result.shape)
    assert refused <= (count // 2 if family == "Donut" else 0)
    if ours.output_size is not None:
        assert shapes == {(3, *ours.output_size)}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize(("family", "settings"), SETTINGS, ids=str)
def test_bit_equal_to_the_pil_processor(family: str, settings: dict[str, Any]) -> None:
    _compare(family, settings, seed=1, count=9)


# Every way of making a size, small; the published sizes are slow.
MANY: list[tuple[str, dict[str, Any]]] = [
    ("Beit", {"size": 48}),
    ("ConvNext", {"size": {"shortest_edge": 56}}),
    ("ConvNext", {"size": {"shortest_edge": 384}, "resample": 2}),
    ("CLIP", {"size": 48, "crop_size": 48}),  # GIT's, too
    ("DeiT", {"size": 64, "crop_size": 56}),
    ("Donut", {"size": {"height": 64, "width": 48}}),
    ("Donut", {"size": {"height": 48, "width": 64}, "do_align_long_axis": True}),
    ("Siglip", {"size": 48}),
    ("VideoMAE", {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}),
    ("ViT", {"size": 48}),  # Swin's and TrOCR's, too
]
PUBLISHED = [
    # Siglip2's packed patches are compared in tests/export/test_patches.py.
    *((family, {}) for family in PROCESSORS if family not in ("Donut", "Siglip2")),
    ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    ("Donut", {"size": {"height": 1280, "width": 960}, "do_align_long_axis": True}),
]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize(("family", "settings"), MANY, ids=str)
def test_bit_equal_over_many_sizes(family: str, settings: dict[str, Any]) -> None:
    """Two hundred sizes, from single pixels and thin strips up, in every mode."""
    _compare(family, settings, seed=3, count=200)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize(("family", "settings"), PUBLISHED, ids=str)
def test_bit_equal_over_many_sizes_as_published(family: str, settings: dict[str, Any]) -> None:
    _compare(family, settings, seed=2, count=200)


@pytest.mark.parametrize("family", PROCESSORS)
def test_the_table_holds_each_classs_defaults(family: str) -> None:
    """As the processor writes them itself, so that a new transformers with new defaults is seen."""
    processor = _processor(family, {})
    written = json.loads(json.dumps(processor.to_dict()))
    assert set(MODULES) == set(PROCESSORS)
    explicit = from_processor_config(written)
    by_default = from_processor_config({"image_processor_type": f"{family}ImageProcessorPil"})
    assert explicit == by_default
    # An integer size is read by this flag, which to_dict does not write.
    assert PROCESSORS[family].get("default_to_square", True) == processor.default_to_square


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"do_pad": True}, "do_pad"),
        ({"size": {"longest_edge": 224}}, "size"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "size"),
        ({"size": "224"}, "size"),
        ({"size": {"height": 224, "width": 0}}, "size"),
        ({"size": 1_000_000}, "height"),
        ({"resample": 9}, "resample"),
        ({"resample": True}, "resample"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "crop_size"),
        ({"do_center_crop": True}, "crop_size"),
        ({"do_resize": "yes"}, "do_resize"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
        ({"rescale_factor": float("nan")}, "rescale"),
        ({"image_mean": [0.5, 0.5]}, "mean"),
        ({"image_mean": [0.5, 0.5, "0.5"]}, "image_mean"),
        ({"image_std": 0}, "std"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"auto_map": {"AutoImageProcessor": "code.Processor"}}, "auto_map"),
        ({"data_format": "channels_last"}, "data_format"),
    ],
)
def test_what_cannot_be_mirrored_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        from_processor_config({"image_processor_type": "ViTImageProcessor", **change})
    assert any(said in problem for problem in caught.value.problems)


def test_every_finding_is_reported_at_once() -> None:
    config = {"image_processor_type": "CLIPImageProcessor", "do_pad": True, "resample": 7}
    with pytest.raises(UnsupportedError) as caught:
        from_processor_config({**config, "image_std": [1, 1], "mystery": 3})
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("name", ["LlavaNextImageProcessor", "ImageProcessor", "ViT", 3, None])
def test_an_unknown_or_missing_class_is_refused(name: object) -> None:
    with pytest.raises(UnsupportedError, match=r"image processor|names no processor class"):
        from_processor_config({"image_processor_type": name})


def test_settings_without_effect_are_accepted() -> None:
    config = {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 8, "width": 9}}
    config |= {"do_pad": False, "mystery": None, "device": "cpu", "data_format": "channels_first"}
    assert from_processor_config(config).steps == (Resize(8, 9, "bilinear"),)


def test_an_old_feature_extractor_and_a_nested_config() -> None:
    config = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 30, "crop_size": 20}
    expected = (ResizeShortest(30, "bicubic"), CenterCrop(20, 20))
    assert from_processor_config(config).steps == expected
    nested = {"processor_class": "CLIPProcessor", "image_processor": config}
    assert Preprocessing.from_processor_config(nested).steps == expected
    assert Preprocessing.from_processor_config({}, processor="ViTImageProcessor").steps


def test_policies_follow_the_processor_and_can_be_chosen() -> None:
    blip, vit = ({"image_processor_type": f"{name}ImageProcessor"} for name in ("Blip", "ViT"))
    assert (from_processor_config(blip).alpha, from_processor_config(blip).exif) == (
        "white",
        "apply",
    )
    assert from_processor_config(vit).alpha == "drop"
    chosen = from_processor_config(blip, exif="ignore", alpha="drop")
    assert (chosen.alpha, chosen.exif) == ("drop", "ignore")
    assert chosen.normalize == Normalize(
        PROCESSORS["Blip"]["image_mean"], PROCESSORS["Blip"]["image_std"]
    )


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("ViTImageProcessorFast", "torchvision"),
        ("ViTImageProcessorPil", "pil"),
        ("ViTFeatureExtractor", "pil"),
        ("ViTImageProcessor", "unknown"),
    ],
)
def test_the_origin_is_told_apart_but_changes_no_pixel(name: str, backend: str) -> None:
    origin = processor_origin({"image_processor_type": name})
    assert origin is not None
    assert (origin.name, origin.backend) == (name, backend)
    plain = from_processor_config({"image_processor_type": "ViTImageProcessor"})
    same = from_processor_config({"image_processor_type": name})
    assert same.canonical_bytes() == plain.canonical_bytes()
    assert processor_origin({}) is None
