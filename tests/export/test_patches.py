"""Packed patches: bit equality with the source's processor, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from primelens.errors import BundleError, UnsupportedError
from primelens.export.answers import pixels_of
from primelens.patches import FitPatches
from primelens.preprocessing import Preprocessing, Resize
from primelens.processor_config import from_processor_config

MODES = ("RGB", "L", "RGBA", "P", "CMYK", "LA", "1", "YCbCr")


def config(patch: int, most: int, resample: int = 2) -> dict[str, Any]:
    return {
        "image_processor_type": "Siglip2ImageProcessor",
        "patch_size": patch,
        "max_num_patches": most,
        "resample": resample,
    }


def test_patches_equal_the_pillow_processor_bit_for_bit() -> None:
    """200 pictures of random sizes and modes, thin strips among them, and three budgets."""
    rng = np.random.default_rng(0)
    budgets = [(16, 256), (8, 24), (14, 100)]
    made = [
        (from_processor_config(config(p, n, 2 + k % 2)), Siglip2ImageProcessorPil(
            patch_size=p, max_num_patches=n, resample=2 + k % 2))
        for k, (p, n) in enumerate(budgets)
    ]  # fmt: skip
    grids = set()
    for number in range(200):
        width, height = (int(n) for n in rng.integers(1, 400, 2))
        if number % 10 == 0:
            width, height = (1, int(rng.integers(1, 2000)))[:: 1 if number % 20 else -1]
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mode = MODES[number % len(MODES)]
        picture = Image.fromarray(noise).convert("L" if mode in ("LA", "1") else "RGB")
        picture = picture.convert(mode).convert("RGB")
        preprocessing, processor = made[number % 3]
        found = preprocessing(np.asarray(picture))
        assert found.shape == preprocessing.output_shape
        assert np.array_equal(found, pixels_of(processor, np.asarray(picture))[0])
        grids.add((int(found[0, 0]), int(found[0, 1])))
    assert len(grids) > 60


def test_what_cannot_be_mirrored_is_refused() -> None:
    for change in ({"do_resize": False}, {"max_num_patches": 1.5}, {"patch_size": 0}):
        with pytest.raises(UnsupportedError):
            from_processor_config({**config(16, 256), **change})
    with pytest.raises(ValueError, match="fit_patches"):
        Preprocessing((Resize(8, 8, "bilinear"),), None, None, layout="patches")
    with pytest.raises(ValueError, match="fit_patches"):
        Preprocessing((FitPatches(8, 4, "bilinear"),), None, None)
    data = Preprocessing((FitPatches(8, 4, "bilinear"),), None, None, layout="patches").to_dict()
    assert Preprocessing.from_dict(data).to_dict() == data
    with pytest.raises(BundleError):
        Preprocessing.from_dict({**data, "layout": "NHWC"})
