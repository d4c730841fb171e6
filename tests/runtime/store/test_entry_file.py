from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from primelens.store import EntryKey, Frame, StoredDtype
from primelens.store.codec import stored
from primelens.store.entry_file import (
    HEAD_BYTES,
    CorruptEntryError,
    Head,
    from_bytes,
    head_of,
    unsealed,
)

from .conftest import key_of, values_of

SMALL_FLIPS = 2_000
FLIPS = 10_000


def file_of(key: EntryKey, shape: tuple[int, ...] = (6, 16)) -> bytes:
    kept = stored(values_of(1, shape), key.dtype)
    return b"".join(unsealed(key, (640, 480), (0.5, 0.25), kept).sealed())


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("shape", [(6, 16), (5,), (1, 1), (0, 4), (3, 5, 7)])
@pytest.mark.parametrize("frame", [None, Frame(7, 280_000_000)])
def test_a_file_is_read_back_as_it_was_written(
    dtype: StoredDtype, shape: tuple[int, ...], frame: Frame | None
) -> None:
    key = key_of(1, dtype, frame=frame, tap="tap with ümlaut")
    content = file_of(key, shape)
    entry = from_bytes(content, key.digest)
    assert entry.head == Head(key, (640, 480), 0.5, 0.25)
    assert entry.head.key.tap == "tap with ümlaut"
    assert np.array_equal(entry.stored.restore(), stored(values_of(1, shape), dtype).restore())
    assert head_of(content[:HEAD_BYTES], key.digest) == entry.head


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_any_safetensors_reader_reads_it(dtype: StoredDtype) -> None:
    content = file_of(key_of(1, dtype))
    wanted = stored(values_of(1), dtype).arrays
    found = safetensors.numpy.load(content)
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        assert array.dtype == wanted[name].dtype
        assert np.array_equal(array, wanted[name])
    assert int.from_bytes(content[:8], "little") % 8 == 0  # the values are aligned


def test_the_longest_labels_fit() -> None:
    key = key_of(1, tap="ü" * 200, variant="ü" * 200)
    assert from_bytes(file_of(key), key.digest).head.key == key


def flips_that_pass(content: bytes, digest: str, flips: int, seed: int) -> int:
    """Flip random bits, one at a time and in bursts; count what is still accepted."""
    random = np.random.default_rng(seed)
    accepted = 0
    for number in range(flips):
        damaged = bytearray(content)
        # One bit mostly; sometimes several, anywhere.
        for position in random.integers(0, len(content) * 8, 1 if number % 4 else number % 7 + 1):
            damaged[position // 8] ^= 1 << (position % 8)
        if bytes(damaged) == content:  # an even number of flips of the same bit
            continue
        try:
            from_bytes(bytes(damaged), digest)
        except CorruptEntryError:
            continue
        accepted += 1
    return accepted


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_flipped_bits_are_found(dtype: StoredDtype) -> None:
    key = key_of(1, dtype)
    assert flips_that_pass(file_of(key), key.digest, SMALL_FLIPS, seed=1) == 0


def test_every_single_bit_of_the_header_counts() -> None:
    key = key_of(1, "int8")
    content = file_of(key, (1, 4))
    for position in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << (position % 8)
        with pytest.raises(CorruptEntryError):
            from_bytes(bytes(damaged), key.digest)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 384), (577, 768)])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_ten_thousand_flipped_bits_are_found(dtype: StoredDtype, shape: tuple[int, int]) -> None:
    key = key_of(1, dtype)
    assert flips_that_pass(file_of(key, shape), key.digest, FLIPS, seed=2) == 0


@given(st.data())
def test_a_torn_file_is_found(data: Any) -> None:
    key = key_of(1)
    content = file_of(key)
    length = data.draw(st.integers(0, len(content) - 1))
    tail = data.draw(st.sampled_from([b"", b"\0" * (len(content) - length)]))
    if content[:length] + tail == content:
        return  # the file really ends in zeros
    with pytest.raises(CorruptEntryError):
        from_bytes(content[:length] + tail, key.digest)
    with pytest.raises(CorruptEntryError):
        from_bytes(content + data.draw(st.binary(min_size=1, max_size=9)), key.digest)


@given(st.binary(max_size=300))
def test_garbage_is_no_entry(content: bytes) -> None:
    with pytest.raises(CorruptEntryError):
        from_bytes(content)
    with pytest.raises(CorruptEntryError):
        head_of(content, key_of(1).digest)


def test_a_file_of_another_key_is_refused() -> None:
    content = file_of(key_of(1))
    with pytest.raises(CorruptEntryError, match="another key"):
        from_bytes(content, key_of(2).digest)
    with pytest.raises(CorruptEntryError, match="another key"):
        head_of(content, key_of(2).digest)


def sealed(header: Any, payload: bytes) -> bytes:
    """A file with any header and a right checksum, as no primelens writes it."""
    import zlib

    text = json.dumps(header, separators=(",", ":")).encode()
    content = bytearray(len(text).to_bytes(8, "little") + text + payload)
    place = content.index(b'"checksum":"') + 12
    content[place : place + 8] = b"%08x" % zlib.crc32(content[:place] + content[place + 8 :])
    return bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["__metadata__"].update(format="primelens-entry-2"),
        lambda header: header["__metadata__"].update(tower="short"),
        lambda header: header["__metadata__"].update(dtype="fp8"),
        lambda header: header["__metadata__"].update(size="640"),
        lambda header: header["__metadata__"].update(frame="1"),
        lambda header: header["__metadata__"].update(max_error="big"),
        lambda header: header["__metadata__"].pop("source"),
        lambda header: header.pop("values"),
        lambda header: header["values"].update(shape=[6, 17]),
        lambda header: header["values"].update(dtype="F64"),
        lambda header: header["values"].update(data_offsets=[8, 392]),
        lambda header: header["values"].update(data_offsets=[0, 10**9], shape=[10**9 // 4]),
        lambda header: header.update(more=header["values"]),
        lambda header: header.update(values=3),
    ],
)
def test_a_header_that_makes_no_sense_is_corrupt_whatever_its_checksum(change: Any) -> None:
    key = key_of(1)
    content = file_of(key)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert from_bytes(sealed(header, content[8 + length :]), key.digest).head.key == key
    change(header)
    with pytest.raises(CorruptEntryError):
        from_bytes(sealed(header, content[8 + length :]), key.digest)
