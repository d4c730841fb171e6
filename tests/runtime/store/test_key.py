from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primelens.store import EntryKey, Frame
from primelens.store.key import LazyKey, TapKeys

from .conftest import OTHER_TOWER, TOWER, key_of

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
KEYS = st.builds(
    EntryKey,
    tower=DIGESTS,
    variant=st.text(min_size=1, max_size=20),
    dtype=st.sampled_from(["fp32", "fp16", "int8"]),
    source=DIGESTS,
    frame=st.none() | st.builds(Frame, st.integers(0, 2**40), st.integers(-(2**60), 2**60)),
)


def test_the_key_is_what_the_documentation_defines() -> None:
    document = (
        '{"dtype":"fp16","frame":{"index":3,"timestamp_ns":120000000},"key_version":1,'
        f'"source":"{"c" * 64}","tower":"{"d" * 64}","variant":"fp32"}}'
    )
    key = EntryKey("d" * 64, "fp32", "fp16", "c" * 64, Frame(3, 120_000_000), tap="any")
    assert key.digest == hashlib.sha256(document.encode()).hexdigest()
    assert key.digest == "a0c9e4a719e6b1ec10a5a50dad728180468fd99dad624c16ee048c570c641415"


@given(KEYS, KEYS)
def test_keys_share_a_digest_only_if_they_are_equal(one: EntryKey, other: EntryKey) -> None:
    assert (one.digest == other.digest) == (one == other)
    assert json.loads(json.dumps(one.document())) == one.document()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"tower": OTHER_TOWER}, "tower"),
        ({"tower": OTHER_TOWER, "tap": "pooled"}, "tap"),
        ({"variant": "int8"}, "variant"),
        ({"dtype": "fp16"}, "dtype"),
        ({"frame": Frame(0, 0)}, "frame"),
    ],
)
def test_every_part_changes_the_digest_and_is_named(change: dict[str, Any], part: str) -> None:
    parts: dict[str, Any] = {"dtype": "fp32"} | change
    other = key_of(1, **parts)
    assert other.digest != key_of(1).digest
    assert key_of(1).differing(other) == (part,)


@given(KEYS)
def test_a_key_put_together_later_is_the_same(key: EntryKey) -> None:
    lazy = LazyKey(TapKeys(key.tower, key.variant, key.dtype, "states"), key.source, key.frame)
    assert (lazy.digest, lazy.dtype, lazy.whole) == (key.digest, key.dtype, key)
    assert lazy.tap == lazy.whole.tap == "states"
    assert (lazy.tower, lazy.variant) == (key.tower, key.variant)
    assert (lazy.source, lazy.frame) == (key.source, key.frame)
    assert lazy.document() == key.document()


@pytest.mark.parametrize("source", ["", "a" * 63, "A" * 64, 'x","tower":"' + "a" * 53])
def test_a_source_that_is_no_digest_never_becomes_a_key(source: str) -> None:
    """It would be written between quotes as it is."""
    with pytest.raises(ValueError, match="not a SHA-256"):
        LazyKey(TapKeys(TOWER, "fp32", "fp32", "states"), source)


def test_the_name_of_the_tap_is_a_label() -> None:
    assert key_of(1, tap="x").digest == key_of(1, tap="y").digest


@pytest.mark.parametrize(
    "change",
    [
        {"tower": TOWER.upper()},
        {"tower": ""},
        {"variant": ""},
        {"tap": "t" * 300},
    ],
)
def test_malformed_parts_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"SHA-256|length"):
        key_of(1, **change)
    with pytest.raises(ValueError, match="stored dtype"):
        key_of(1, dtype="bf16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        Frame(-1, 0)
