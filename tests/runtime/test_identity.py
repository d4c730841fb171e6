from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.identity import tensor_digest, tower_identity, weights_digest

RANDOM = np.random.default_rng(7)
TENSORS = {
    "patch.weight": RANDOM.standard_normal((4, 3, 2, 2)).astype(np.float32),
    "layer.0.bias": RANDOM.standard_normal(4).astype(np.float32),
}
PREPROCESSING = {"rescale": 1 / 255, "mean": [0.5, 0.5, 0.5]}
ARCHITECTURE = {"hidden_size": 4, "eps": 1e-12}


def identity(**changes: Any) -> str:
    """The identity of the example tower, with some of its parts replaced."""
    parts: dict[str, Any] = {
        "family": "vit",
        "architecture": ARCHITECTURE,
        "preprocessing": PREPROCESSING,
        "tap": "last_hidden_state",
        "tensors": TENSORS,
        **changes,
    }
    return tower_identity(**parts)


def test_the_identity_is_what_architecture_md_says() -> None:
    """Computed again from the documented definition with the standard library alone."""
    tensors = {
        name: {
            "shape": list(array.shape),
            "sha256": hashlib.sha256(array.astype("<f4").tobytes()).hexdigest(),
        }
        for name, array in TENSORS.items()
    }
    document = {
        "identity_version": 1,
        "family": "vit",
        "architecture": ARCHITECTURE,
        "preprocessing": PREPROCESSING,
        "tap": "last_hidden_state",
        "tensors": tensors,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert identity() == hashlib.sha256(text.encode()).hexdigest()


def test_golden_digests() -> None:
    """These strings are kept in stores all over the world; they may never change."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    assert tensor_digest(array) == GOLDEN_TENSOR
    assert weights_digest({"b": array, "a": array[0]}) == GOLDEN_WEIGHTS
    document = {"family": "vit", "architecture": {"n": 1}, "preprocessing": {"x": 0.1}, "tap": "t"}
    assert tower_identity(**document, tensors={"w": array}) == GOLDEN_TOWER  # type: ignore[arg-type]


GOLDEN_TENSOR = "b1290cd43eac8e2fa4ad8d45d9f79f8868fc8a6e08c627c33557814743ffdf3e"
GOLDEN_WEIGHTS = "40aef2d9d1e95a14a1407b9ea1f572847843b0267764c793d1c2d1654c6a32e7"
GOLDEN_TOWER = "406a347ecfee88cd42d6d8e93c48c0966adc9e9c4fe74d73e1a853b044738faa"


def test_order_layout_and_a_lossless_container_do_not_matter() -> None:
    halves = {name: array.astype(np.float16) for name, array in TENSORS.items()}
    widened = {name: array.astype(np.float32) for name, array in halves.items()}
    assert identity(tensors=halves) == identity(tensors=widened)
    assert identity(tensors=dict(reversed(TENSORS.items()))) == identity()
    fortran = {name: np.asfortranarray(array) for name, array in TENSORS.items()}
    assert identity(tensors=fortran) == identity()
    swapped = {name: array.astype(">f4").astype("=f4") for name, array in TENSORS.items()}
    assert identity(tensors=swapped) == identity()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_changes_the_identity(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(TENSORS)))
    raw = bytearray(TENSORS[name].tobytes())
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << (bit % 8)
    flipped = np.frombuffer(bytes(raw), np.float32).reshape(TENSORS[name].shape)
    assert identity(tensors={**TENSORS, name: flipped}) != identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"tap": "pooled"},
        {"family": "deit"},
        {"architecture": {**ARCHITECTURE, "eps": 1e-6}},
        {"preprocessing": {**PREPROCESSING, "mean": [0.5, 0.5, 0.50000000000001]}},
        {"tensors": {**TENSORS, "extra": np.zeros(1, np.float32)}},
        {"tensors": {"patch.weight": TENSORS["patch.weight"]}},
        {"tensors": {**TENSORS, "layer.0.bias": TENSORS["layer.0.bias"].reshape(2, 2)}},
        {"tensors": {**TENSORS, "layer.0.bias": TENSORS["layer.0.bias"] * np.float32(-0.0)}},
    ],
)
def test_any_other_change_changes_the_identity(changes: dict[str, Any]) -> None:
    assert identity(**changes) != identity()


def test_a_dtype_that_float32_does_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        tensor_digest(np.zeros(2))
