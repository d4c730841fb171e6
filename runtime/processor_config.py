"""From a Hugging Face ``preprocessor_config.json`` to a `Preprocessing`.

Only what can be mirrored bit for bit is converted; everything else is refused, with every finding
in one message. A key that a config leaves out (or sets to null) has the default of its processor
class, so the class must be known: the table below says what transformers 5's classes default to,
and a test compares it with them.

Two policies are not in the file and follow what transformers does with a picture:

* EXIF: `transformers.image_utils.load_image` turns pictures upright, hence "apply";
* transparency: where ``do_convert_rgb`` is set, version 5 lays the picture over white (version 4
  dropped the alpha channel), hence "white"; without it, the processor refuses such a picture, and
  ``load_image`` would have dropped the channel, hence "drop". Say ``alpha="drop"`` for a model that
  was tuned with ``.convert("RGB")``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from primelens.errors import UnsupportedError
from primelens.patches import FitPatches
from primelens.preprocessing import (
    AlignLongAxis,
    CenterCrop,
    Normalize,
    Pad,
    Preprocessing,
    Resample,
    Resize,
    ResizeShortest,
    Step,
    Thumbnail,
)

__all__ = ["PROCESSORS", "ProcessorOrigin", "from_processor_config", "processor_origin"]

_RESAMPLE: tuple[Resample, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_BILINEAR, _BICUBIC = 2, 3

_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_OPENAI = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_EVERY = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "default_to_square": True,
}
_CROP_224 = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
_CLIP = {
    **_OPENAI,
    **_CROP_224,
    "size": {"shortest_edge": 224},
    "resample": _BICUBIC,
    "default_to_square": False,
    "do_convert_rgb": True,
}


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


# Processor class, without "ImageProcessor" -> the defaults that differ from _EVERY.
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "Beit": {
        **_HALF,
        **_CROP_224,
        "do_center_crop": False,
        "size": _square(224),
        "resample": _BICUBIC,
    },
    "Bit": _CLIP,
    "Blip": {**_OPENAI, "size": _square(384), "resample": _BICUBIC, "do_convert_rgb": True},
    "ChineseCLIP": _CLIP,
    "CLIP": _CLIP,
    "ConvNext": {
        **_HALF,
        "size": {"shortest_edge": 384},
        "resample": _BICUBIC,
        "default_to_square": False,
        "crop_pct": 224 / 256,
    },
    "DeiT": {**_HALF, **_CROP_224, "size": _square(256), "resample": _BICUBIC},
    "Donut": {
        **_HALF,
        "size": {"height": 2560, "width": 1920},
        "resample": _BILINEAR,
        "do_thumbnail": True,
        "do_align_long_axis": False,
        "do_pad": True,
    },
    "MobileNetV1": {
        **_HALF,
        **_CROP_224,
        "size": {"shortest_edge": 256},
        "resample": _BILINEAR,
        "default_to_square": False,
    },
    "Pvt": {**_IMAGENET, "size": _square(224), "resample": _BICUBIC},
    "Siglip": {
        **_HALF,
        "size": _square(224),
        "resample": _BICUBIC,
        "default_to_square": False,
        "do_convert_rgb": True,
    },
    "Siglip2": {**_HALF, "resample": _BILINEAR, "patch_size": 16, "max_num_patches": 256},
    "VideoMAE": {  # of a video's frames, one by one
        **_HALF,
        **_CROP_224,
        "size": {"shortest_edge": 224},
        "resample": _BILINEAR,
        "default_to_square": False,
    },
    "ViT": {**_HALF, "size": _square(224), "resample": _BILINEAR},
}

_READ = frozenset({*_EVERY, "size", "resample", "do_center_crop", "crop_size", "do_convert_rgb"})
_READ |= {"image_mean", "image_std", "do_pad"}
_ONLY = {
    "Beit": frozenset({"do_reduce_labels", "reduce_labels"}),  # of segmentation maps
    "ConvNext": frozenset({"crop_pct"}),
    "Donut": frozenset({"do_thumbnail", "do_align_long_axis"}),
    "Siglip2": frozenset({"patch_size", "max_num_patches"}),
}
# These say something about the file, the device or the tensors' container, and change no pixel.
_INERT = frozenset(
    {
        "_valid_processor_keys",
        "backend",
        "device",
        "disable_grouping",
        "feature_extractor_type",
        "image_processor_type",
        "image_seq_length",
        "pad_size",
        "processor_class",
        "return_tensors",
    }
)


@dataclass(frozen=True)
class ProcessorOrigin:
    """Which processor a config was written by; no pixel depends on it, so no identity does.

    Attributes:
        name: the class as the config names it.
        backend: "torchvision" for a ``...Fast`` class, whose resizing differs from Pillow's by
            single steps of 255; "pil" for ``...Pil`` and the old feature extractors; "unknown" for
            a bare ``...ImageProcessor``: PIL in transformers 4, torchvision (if installed) in 5.
    """

    name: str
    backend: Literal["pil", "torchvision", "unknown"]


def processor_origin(
    config: Mapping[str, Any], *, processor: str | None = None
) -> ProcessorOrigin | None:
    """What wrote ``config``; None where neither it nor ``processor`` says so."""
    config = _unnested(config)
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or processor
    if not isinstance(name, str):
        return None
    if name.endswith("Fast"):
        return ProcessorOrigin(name, "torchvision")
    pil = name.endswith(("Pil", "FeatureExtractor"))
    return ProcessorOrigin(name, "pil" if pil else "unknown")


def from_processor_config(
    config: Mapping[str, Any],
    *,
    processor: str | None = None,
    exif: Literal["apply", "ignore"] = "apply",
    alpha: Literal["drop", "white"] | None = None,
) -> Preprocessing:
    """The specification that does what the config's PIL processor does.

    Args:
        config: ``preprocessor_config.json``, or a ``processor_config.json`` that holds an
            ``image_processor``, parsed.
        processor: the class for a config that names none (``"ViTImageProcessor"``): transformers
            derives it from the model's type.
        exif: whether pictures are turned upright.
        alpha: what becomes of transparency; None for what transformers 5 does, see the module.

    Raises:
        UnsupportedError: the class is unknown here, or a setting cannot be mirrored exactly;
            ``problems`` has one line per finding.
    """
    config = _unnested(config)
    family = _family(config, processor)
    problems = _unknown_keys(config, family)
    settings = _Settings(config, {**_EVERY, **PROCESSORS[family]}, problems)
    if family == "Donut":
        steps = _donut_steps(settings)
    elif family == "Siglip2":
        steps = _naflex_steps(settings)
    elif family == "ConvNext":
        steps = [*_convnext_steps(settings), *settings.crop()]
    else:
        steps = [*settings.resize(), *settings.crop()]
        if settings.flag("do_pad"):
            problems.append("do_pad: padding after normalisation is not supported")
    rescale = settings.number("rescale_factor") if settings.flag("do_rescale") else None
    normalize = settings.normalize()
    if not problems:
        default_alpha: Literal["drop", "white"] = (
            "white" if settings.flag("do_convert_rgb") else "drop"
        )
        layout: Literal["NCHW", "patches"] = "patches" if family == "Siglip2" else "NCHW"
        try:
            return Preprocessing(
                tuple(steps), rescale, normalize, exif, alpha or default_alpha, layout=layout
            )
        except ValueError as error:
            problems.append(str(error))
    raise UnsupportedError(
        f"The preprocessing of {family}ImageProcessor cannot be mirrored exactly:",
        remedy="Tune and export with settings that are supported.",
        problems=problems,
    )


def _unnested(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("image_processor")
    return nested if isinstance(nested, Mapping) else config


def _family(config: Mapping[str, Any], processor: str | None) -> str:
    origin = processor_origin(config, processor=processor)
    if origin is None:
        raise UnsupportedError(
            "The preprocessing config names no processor class, so its defaults are unknown.",
            remedy="Add an image_processor_type, for example ViTImageProcessor.",
        )
    name = origin.name.removesuffix("Fast").removesuffix("Pil")
    family = name.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if family not in PROCESSORS or family == name:
        raise UnsupportedError(
            f"The image processor {origin.name} is not known here.",
            remedy=f"Known are: {', '.join(f'{key}ImageProcessor' for key in PROCESSORS)}.",
        )
    return family


def _unknown_keys(config: Mapping[str, Any], family: str) -> list[str]:
    """Keys that are set to something and may have an effect that is not mirrored."""
    known = _READ | _INERT | _ONLY.get(family, frozenset())
    problems = [
        f"{key}: {value!r} is not supported"
        for key, value in config.items()
        if key not in known | {"data_format"} and value is not None and value is not False
    ]
    if config.get("data_format") not in (None, "channels_first"):
        problems.append(f"data_format: {config['data_format']!r} is not supported")
    return problems


class _Settings:
    """A config over its class's defaults; whatever cannot be read is added to ``problems``."""

    def __init__(
        self, config: Mapping[str, Any], defaults: Mapping[str, Any], problems: list[str]
    ) -> None:
        self._config, self._defaults, self.problems = config, defaults, problems

    def value(self, key: str) -> Any:
        value = self._config.get(key)
        return self._defaults.get(key) if value is None else value

    def flag(self, key: str) -> bool:
        value = self.value(key)
        if value is not None and not isinstance(value, bool):
            self.problems.append(f"{key}: {value!r} is neither true nor false")
        return bool(value)

    def number(self, key: str) -> float | None:
        value = self.value(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        self.problems.append(f"{key}: {value!r} is not a number")
        return None

    def resample(self) -> Resample:
        value = self.value("resample")
        if type(value) is int and 0 <= value < len(_RESAMPLE):
            return _RESAMPLE[value]
        self.problems.append(f"resample: {value!r} is not one of Pillow's filters, 0 to 5")
        return "nearest"

    def size(self, key: str, *, square: bool) -> dict[str, int]:
        """As a dictionary, from any of the spellings that configs have had."""
        value = self.value(key)
        if type(value) is int:
            value = _square(value) if square else {"shortest_edge": value}
        if isinstance(value, (list, tuple)) and len(value) == 2:
            value = {"height": value[0], "width": value[1]}
        if isinstance(value, Mapping):
            value = {name: side for name, side in value.items() if side is not None}
            if value and all(type(side) is int and side > 0 for side in value.values()):
                return value
        self.problems.append(f"{key}: {value!r} is not a size")
        return {}

    def resize(self) -> list[Step]:
        if not self.flag("do_resize"):
            return []
        size = self.size("size", square=self.flag("default_to_square"))
        resample = self.resample()
        if size.keys() == {"height", "width"}:
            return self.built(Resize, size["height"], size["width"], resample)
        if size.keys() == {"shortest_edge"}:
            return self.built(ResizeShortest, size["shortest_edge"], resample)
        if size:
            self.problems.append(f"size: {size!r} is not supported")
        return []

    def crop(self) -> list[Step]:
        if not self.flag("do_center_crop"):
            return []
        size = self.size("crop_size", square=True)
        if size.keys() == {"height", "width"}:
            return self.built(CenterCrop, size["height"], size["width"])
        if size:
            self.problems.append(f"crop_size: {size!r} is not supported")
        return []

    def normalize(self) -> Normalize | None:
        if not self.flag("do_normalize"):
            return None
        triples = []
        for key in ("image_mean", "image_std"):
            value = self.value(key)
            values = list(value) if isinstance(value, (list, tuple)) else [value] * 3
            if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
                self.problems.append(f"{key}: {value!r} is not made of numbers")
                return None
            triples.append(tuple(map(float, values)))
        try:
            return Normalize(*triples)
        except ValueError as error:
            self.problems.append(f"image_{error}")
            return None

    def built(self, step: type[Any], *args: Any) -> list[Step]:
        try:
            return [step(*args)]
        except ValueError as error:
            self.problems.append(f"{step.op}: {error}")
            return []


def _convnext_steps(settings: _Settings) -> list[Step]:
    """Below 384: shortest edge to ``int(edge / crop_pct)``, then the middle; else squeezed."""
    if not settings.flag("do_resize"):
        return []
    size = settings.size("size", square=False)
    share, resample = settings.number("crop_pct"), settings.resample()
    edge = size.get("shortest_edge", 0)
    if size.keys() != {"shortest_edge"} or share is None or not 0 < share <= 1:
        settings.problems.append(f"size {size!r} with crop_pct {share!r} is not supported")
        return []
    if edge >= 384:
        return settings.built(Resize, edge, edge, resample)
    return [
        *settings.built(ResizeShortest, int(edge / share), resample),
        *settings.built(CenterCrop, edge, edge),
    ]


def _donut_steps(settings: _Settings) -> list[Step]:
    """Turn, resize by the shortest edge, shrink to fit, pad: each of them can be switched off."""
    size = settings.size("size", square=True)
    if size.keys() != {"height", "width"}:
        settings.problems.append(f"size: {size!r} is not supported")
        return []
    height, width, resample = size["height"], size["width"], settings.resample()
    if isinstance(settings.value("size"), (list, tuple)):  # old configs, and Donut's alone
        height, width = width, height
    steps: list[Step] = []
    if settings.flag("do_align_long_axis"):
        steps += settings.built(AlignLongAxis, height, width)
    if settings.flag("do_resize"):
        steps += settings.built(ResizeShortest, min(height, width), resample)
    if settings.flag("do_thumbnail"):
        # Its "resample or bicubic" takes nearest, whose number is 0, for unset.
        filter_used = "bicubic" if resample == "nearest" else resample
        steps += settings.built(Thumbnail, height, width, filter_used)
    if settings.flag("do_pad"):
        steps += settings.built(Pad, height, width)
    return [*steps, *settings.crop()]


def _naflex_steps(settings: _Settings) -> list[Step]:
    """Scaled to a budget of patches; ``size`` has no say, whatever it is."""
    if not settings.flag("do_resize"):
        settings.problems.append("do_resize: false would leave parts of patches over")
    if settings.flag("do_center_crop"):
        settings.problems.append("do_center_crop: True is not supported")
    numbers = []
    for key in ("patch_size", "max_num_patches"):
        value = settings.value(key)
        if type(value) is not int:
            settings.problems.append(f"{key}: {value!r} is not a whole number")
            return []
        numbers.append(value)
    return settings.built(FitPatches, *numbers, settings.resample())
