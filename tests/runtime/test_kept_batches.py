"""A batch with a store: looked up by the caller, decoded by readers, and the same one by one."""

from __future__ import annotations

import threading
import weakref
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from primelens import CacheOptions
from primelens.bundle import open_bundle
from primelens.images import UndecodedImage
from primelens.model import Model
from primelens.results import Failure
from primelens.store.kept import KeptTaps

from .conftest import FakeBundle
from .test_kept import LENIENT, files_in, picture


def with_threads(bundle: FakeBundle, threads: int, folder: Path | None = None) -> Model:
    cache = folder and CacheOptions(folder)
    return Model(open_bundle(bundle.folder), bundle.engine, threads=threads, cache=cache)


def as_source(seed: int, form: str, folder: Path) -> Any:
    """A picture in one of the forms that a batch may hold."""
    pixels = picture(seed)
    if form in ("array", "pillow"):
        return pixels if form == "array" else Image.fromarray(pixels)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    if form != "path":
        return buffer.getvalue() if form == "bytes" else buffer.getvalue()[:40]
    path = folder / f"{seed}.png"
    path.write_bytes(buffer.getvalue())
    return path


@LENIENT
@given(
    items=st.lists(
        st.tuples(
            st.integers(0, 5), st.sampled_from(["array", "pillow", "bytes", "path", "broken"])
        ),
        min_size=1,
        max_size=9,
    ),
    known=st.sets(st.integers(0, 5)),
    size=st.integers(1, 9),
)
def test_a_batch_says_what_its_pictures_say_one_by_one(
    fake_bundle: FakeBundle,
    tmp_path_factory: pytest.TempPathFactory,
    items: list[tuple[int, str]],
    known: set[int],
    size: int,
) -> None:
    """Hits, misses, twins and broken files, looked up and decoded by several threads."""
    folder = tmp_path_factory.mktemp("batch")
    sources = [as_source(seed, form, folder) for seed, form in items]
    plain = with_threads(fake_bundle, 1)
    wanted = list(plain.encode_batch(sources, batch_size=1))
    model = with_threads(fake_bundle, 2, folder / "kept")
    kept_before = {
        model.encode(source).source
        for source, (seed, form) in zip(sources, items, strict=True)
        if seed in known and form != "broken"
    }
    rows = list(model.encode_batch(sources, batch_size=size))
    for row, other, (_, form) in zip(rows, wanted, items, strict=True):
        assert isinstance(row, Failure) == isinstance(other, Failure) == (form == "broken")
        if isinstance(row, Failure):
            assert isinstance(other, Failure)
            assert (row.image, str(row.error)) == (other.image, str(other.error))
            continue
        assert not isinstance(other, Failure)
        assert (row.name, row.source, row.size) == (other.name, other.source, other.size)
        assert row.taps["last_hidden_state"].tobytes() == other.taps["last_hidden_state"].tobytes()
        assert row.cache == "hit" or row.source not in kept_before
    model.close()
    assert len(files_in(folder / "kept")) == len(
        {row.source for row in rows if not isinstance(row, Failure)}
    )


def test_files_of_a_batch_are_looked_up_by_the_caller(
    fake_bundle: FakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other; what has to be decoded to be looked up is left to the readers."""
    threads: dict[str, set[bool]] = {"find": set(), "decode": set()}
    find, decode = KeptTaps.find, UndecodedImage.decode

    def by_caller() -> bool:
        return threading.current_thread() is threading.main_thread()

    def found(self: KeptTaps, image: Any) -> Any:
        threads["find"].add(by_caller())
        return find(self, image)

    def decoded(self: UndecodedImage) -> Any:
        threads["decode"].add(by_caller())
        return decode(self)

    monkeypatch.setattr(KeptTaps, "find", found)
    monkeypatch.setattr(UndecodedImage, "decode", decoded)
    model = with_threads(fake_bundle, 2, tmp_path / "k")
    list(model.encode_batch([as_source(n, "bytes", tmp_path) for n in range(3)]))
    assert threads == {"find": {True}, "decode": {False}}
    threads["find"].clear()
    list(model.encode_batch([as_source(n, "pillow", tmp_path) for n in range(3)]))
    assert threads["find"] == {False}


def test_a_mistake_of_ours_ends_a_batch(
    fake_bundle: FakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_threads(fake_bundle, 2, tmp_path / "k")
    files = [as_source(n, "bytes", tmp_path) for n in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(UndecodedImage, "decode", lambda _: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            list(model.encode_batch(files))
    assert len(list(model.encode_batch(files))) == 4


@pytest.mark.parametrize("threads", [1, 2])
def test_a_decoded_picture_is_let_go_of_when_it_is_preprocessed(
    fake_bundle: FakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """A batch of photographs would hold gigabytes else."""
    model = with_threads(fake_bundle, threads)
    alive: list[weakref.ref[Any]] = []
    decode = UndecodedImage.decode

    def noted(self: UndecodedImage) -> Any:
        picture = decode(self)
        alive.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(UndecodedImage, "decode", noted)
    prepared = model._encoder.attempt_all([as_source(n, "bytes", tmp_path) for n in range(3)])
    assert len(prepared) == len(alive) == 3
    assert [one() for one in alive] == [None] * 3
