"""A model with a store: what was encoded once is never encoded again, and says the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import primelens
from primelens import CacheOptions, CaptionOptions, InputError, OptionError, StoreError
from primelens.engine import TensorSpec
from primelens.engine_fake import FakeEngine, FakeGraph
from primelens.images import UndecodedImage
from primelens.model import Model
from primelens.results import Caption, Failure
from primelens.store.codec import stored
from primelens.store.key import StoredDtype

from .conftest import TAP, FakeBundle, fake_engine

LENIENT = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def picture(seed: int) -> Any:
    """A uint8 picture ``[h, w, 3]`` whose size and brightness depend on the seed."""
    random = np.random.default_rng(seed)
    height, width = random.integers(5, 30, 2)
    level = random.integers(0, 200)
    return random.integers(level, level + 56, (height, width, 3), dtype=np.uint8)


def locked_away(*names: str) -> FakeEngine:
    """The fake engine, but the named graphs must not be run."""

    def raises(_: Any) -> Any:
        raise AssertionError("this graph must not run")

    engine = fake_engine()
    graphs = {name: engine.open(Path(name)) for name in GRAPHS}
    for name in names:
        graphs[name] = FakeGraph(raises, graphs[name].inputs, graphs[name].outputs)
    return FakeEngine(graphs)


def files_in(folder: Path) -> list[Path]:
    return list((folder / "v1").rglob("*.safetensors"))


GRAPHS = ("tower.onnx", "caption.connector.onnx", "caption.decoder.onnx")


def load(bundle: FakeBundle, engine: FakeEngine | None = None, **options: Any) -> Model:
    folder = bundle.folder.with_name("kept")
    return primelens.load(
        bundle.folder,
        engine=engine or bundle.engine,
        cache=CacheOptions(folder, **options),
    )


def same_captions(one: list[Caption], other: list[Caption]) -> bool:
    return [(c.tokens, c.token_logprobs, c.text) for c in one] == [
        (c.tokens, c.token_logprobs, c.text) for c in other
    ]


@LENIENT
@given(
    seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True),
    dtype=st.sampled_from(["fp32", "fp16", "int8"]),
    held=st.booleans(),
)
def test_tokens_are_the_same_for_a_hit_and_a_miss(
    fake_bundle: FakeBundle, seeds: list[int], dtype: StoredDtype, held: bool
) -> None:
    images = [picture(seed) for seed in seeds]
    memory = {} if held else {"memory_bytes": 0, "derived_bytes": 0}
    model = load(fake_bundle, dtype=dtype, **memory)
    first = model.caption(images)
    second = model.caption(images)
    later = load(fake_bundle, locked_away("tower.onnx"), dtype=dtype).caption(images)
    assert {caption.cache for caption in [*second, *later]} == {"hit"}
    assert same_captions(first, second)
    assert same_captions(first, later)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_a_miss_has_passed_through_the_stored_dtype(
    fake_bundle: FakeBundle, dtype: StoredDtype
) -> None:
    plain = primelens.load(fake_bundle.folder, engine=fake_bundle.engine).encode(picture(1))
    kept = load(fake_bundle, dtype=dtype).encode(picture(1))
    wanted = stored(plain.taps["last_hidden_state"], dtype).restore()
    assert kept.taps["last_hidden_state"].tobytes() == wanted.tobytes()
    assert (plain.source, plain.size, plain.identities) == (
        kept.source,
        kept.size,
        kept.identities,
    )


def test_a_call_says_hit_or_miss_and_why(fake_bundle: FakeBundle) -> None:
    plain = primelens.load(fake_bundle.folder, engine=fake_bundle.engine)
    assert (plain.encode(picture(1)).cache, plain.encode(picture(1)).entries) == ("off", {})
    assert plain.cache_stats() is None
    plain.close()
    off = load(fake_bundle, mode="off")
    assert off.caption(picture(1)).cache == "off"
    assert not fake_bundle.folder.with_name("kept").exists()

    model = load(fake_bundle)
    miss, hit = model.encode(picture(1)), model.encode(picture(1))
    assert (miss.cache, miss.cache_reason) == ("miss", "never kept")
    assert (hit.cache, hit.cache_reason) == ("hit", None)
    assert hit.entries == miss.entries != {}
    assert (hit.size, hit.source, hit.identities) == (miss.size, miss.source, miss.identities)
    other = load(fake_bundle, dtype="int8").encode(picture(1))
    assert (other.cache, other.cache_reason) == ("miss", "kept with another dtype")
    fake_bundle.rewrite(lambda data: data["tower"].update(variant="fp16"))
    other = load(fake_bundle).encode(picture(1))
    assert other.cache_reason == "kept with another variant"
    retuned = {"identity": "3" * 64, "shape": list(TAP)}
    fake_bundle.rewrite(lambda data: data["tower"]["taps"].update(last_hidden_state=retuned))
    fake_bundle.rewrite(lambda data: data["tower"].update(variant="fp32"))
    other = load(fake_bundle).encode(picture(1))
    assert other.cache_reason == "kept with another tower"
    stats = model.cache_stats()
    assert stats is not None
    assert (stats.memory_hits, stats.misses, stats.kept) == (1, {"new": 1}, 1)
    assert model.caption([picture(1), picture(2)])[1].cache == "miss"


def test_a_hit_neither_decodes_nor_preprocesses_the_file(
    fake_bundle: FakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(picture(3)).save(path)
    model = load(fake_bundle)
    first = model.encode(path)

    def raises(*_: Any) -> Any:
        raise AssertionError("the picture is known already")

    monkeypatch.setattr(UndecodedImage, "decode", raises)
    monkeypatch.setattr(model._encoder, "preprocessing", raises)
    renamed = path.rename(tmp_path / "renamed.png")
    for again in (renamed, renamed.read_bytes()):
        found = model.encode(again)
        assert found.cache == "hit"
        assert (
            found.taps["last_hidden_state"].tobytes() == first.taps["last_hidden_state"].tobytes()
        )
        assert found.size == first.size
    assert model.encode(renamed).name == str(renamed)


def test_the_same_pixels_in_another_file_are_another_picture(fake_bundle: FakeBundle) -> None:
    """The key is the file's bytes: a decoder that changes must not meet a stale embedding."""
    model = load(fake_bundle)
    files = []
    for level in (0, 9):
        buffer = BytesIO()
        Image.fromarray(picture(3)).save(buffer, "PNG", compress_level=level)
        files.append(buffer.getvalue())
    assert [model.encode(data).cache for data in files] == ["miss", "miss"]


def test_a_batch_mixes_hits_misses_and_failures(fake_bundle: FakeBundle) -> None:
    model = load(fake_bundle)
    model.encode(picture(1))
    rows = list(model.caption_batch([picture(1), b"no picture", picture(2), picture(1)]))
    assert [row.cache if isinstance(row, Caption) else "failed" for row in rows] == [
        "hit",
        "failed",
        "miss",
        "hit",
    ]
    assert fake_bundle.engine.open(Path("tower.onnx")).calls == 2


def test_a_retuned_head_finds_every_embedding_and_nothing_derived(
    fake_bundle: FakeBundle,
) -> None:
    images = [picture(seed) for seed in range(6)]
    load(fake_bundle).caption(images)
    fake_bundle.rewrite(lambda data: data["heads"]["caption"].update(digest="5" * 64))
    engine = locked_away("tower.onnx")
    model = load(fake_bundle, engine)
    captions = model.caption(images)
    stats = model.cache_stats()
    assert [caption.cache for caption in captions] == ["hit"] * 6
    assert stats is not None
    assert (stats.disk_hits, stats.misses, stats.derived_misses) == (6, {}, 6)
    assert engine.open(Path("tower.onnx")).calls == 0


def test_the_second_tier_spares_the_connector(fake_bundle: FakeBundle) -> None:
    connector = fake_bundle.engine.open(Path("caption.connector.onnx"))
    model = load(fake_bundle)
    first = model.caption(picture(1))
    assert model.caption(picture(1)).tokens == first.tokens
    assert connector.calls == 2  # what comes once is not held
    again = model.caption(picture(1), CaptionOptions(prompt="ab"))
    assert again.tokens != first.tokens
    assert connector.calls == 2
    pair = model.caption([picture(1), picture(2)])
    assert connector.calls == 3  # for both: one of them was not held
    assert model.caption(picture(2)).tokens == pair[1].tokens
    assert connector.calls == 4
    assert model.caption([picture(2), picture(1)])[0].tokens == pair[1].tokens
    assert connector.calls == 4
    assert pair[0].tokens == first.tokens
    stats = model.cache_stats()
    assert stats is not None
    assert (stats.derived_hits, stats.derived_misses) == (3, 5)
    without = load(fake_bundle, derived_bytes=0)
    for _ in range(3):
        assert without.caption(picture(1)).tokens == first.tokens
    assert connector.calls == 7


def test_an_image_that_was_encoded_without_a_store_has_no_derived_tensors(
    fake_bundle: FakeBundle,
) -> None:
    """Its values may differ from the kept ones, and nothing says so."""
    plain = primelens.load(fake_bundle.folder, engine=fake_bundle.engine).encode(picture(1))
    model = load(fake_bundle, dtype="int8")
    wanted = model.caption(model.encode(picture(1)))
    altered = replace(plain, taps={"last_hidden_state": plain.taps["last_hidden_state"] + 1})
    assert model.caption(altered).tokens != wanted.tokens
    assert model.caption(picture(1)).tokens == wanted.tokens


def test_every_tap_is_an_entry_of_its_own(fake_bundle: FakeBundle) -> None:
    taps = {"pooled": {"identity": "4" * 64, "shape": [5]}}
    fake_bundle.rewrite(lambda data: data["tower"]["taps"].update(taps))
    engine = fake_engine()
    graphs = {name: engine.open(Path(name)) for name in GRAPHS}
    tower = graphs["tower.onnx"]
    outputs = {**tower.outputs, "pooled": TensorSpec("pooled", "float32", (None, 5))}

    def both(feeds: Any) -> Any:
        states = tower.run(feeds)["last_hidden_state"]
        return {"last_hidden_state": states, "pooled": states[:, 0, :5] * 2}

    graphs["tower.onnx"] = FakeGraph(both, tower.inputs, outputs)
    model = load(fake_bundle, FakeEngine(graphs), memory_bytes=0)
    miss = model.encode(picture(1))
    kept = model._encoder.kept
    assert kept is not None
    kept.store.drain()
    hit = model.encode(picture(1))
    assert hit.cache == "hit"
    assert sorted(hit.entries) == ["last_hidden_state", "pooled"]
    assert len(files_in(fake_bundle.folder.with_name("kept"))) == 2
    for name, values in miss.taps.items():
        assert np.array_equal(values, hit.taps[name])
    pooled = next(p for p in files_in(fake_bundle.folder.with_name("kept")) if hit.entries["pooled"] in p.name)  # fmt: skip  # noqa: E501
    pooled.unlink()
    assert model.encode(picture(1)).cache_reason == "evicted"


def make_text_only(data: dict[str, Any]) -> None:
    data["tower"]["graph"] = None


def test_a_bundle_without_a_tower_runs_from_what_is_kept(fake_bundle: FakeBundle) -> None:
    known, unknown = picture(1), picture(2)
    wanted = load(fake_bundle).caption(known)
    fake_bundle.rewrite(make_text_only)
    model = load(fake_bundle, mode="read-only")
    assert model.caption(known).tokens == wanted.tokens
    with pytest.raises(InputError, match=r"not in the store .*kept \(never kept\).*encode --cache"):
        model.caption(unknown)
    rows = list(model.caption_batch([unknown, known]))
    assert isinstance(rows[0], Failure)
    assert isinstance(rows[1], Caption)


def test_a_store_that_is_refused_refuses_the_load(fake_bundle: FakeBundle) -> None:
    folder = fake_bundle.folder.with_name("kept")
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StoreError, match="Others may write"):
        load(fake_bundle)


def test_a_kept_entry_of_another_shape_is_not_used(fake_bundle: FakeBundle) -> None:
    model = load(fake_bundle, memory_bytes=0)
    first = model.encode(picture(1))
    assert model._encoder.kept is not None
    key = model._encoder.kept._keys(first.source)["last_hidden_state"]
    model._encoder.kept.store.put(key, np.zeros((2, 2), np.float32), (1, 1))
    again = model.encode(picture(1))
    assert again.cache == "miss"
    assert np.array_equal(again.taps["last_hidden_state"], first.taps["last_hidden_state"])


def test_closing_records_what_was_used(fake_bundle: FakeBundle) -> None:
    model = load(fake_bundle)
    model.encode(picture(1))
    model.encode(picture(2))
    model.encode(picture(1))
    model.close()
    store = load(fake_bundle)._encoder.kept
    assert store is not None
    sources = [row.key.source for row in store.store.rows()]
    assert sources == [model.encode(picture(n)).source for n in (1, 2)]


@pytest.mark.parametrize(
    "options",
    [
        {"folder": ""},
        {"mode": "rw"},
        {"dtype": "bf16"},
        {"cap_bytes": 0},
        {"memory_bytes": -1},
        {"derived_bytes": 1.5},
    ],
)
def test_cache_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        CacheOptions(**({"folder": "x"} | options))


def test_without_a_store_none_of_it_is_imported(fake_bundle: FakeBundle) -> None:
    code = (
        "import sys, primelens.model; "
        "print(sorted(m for m in sys.modules if 'sqlite' in m or m.startswith('primelens.store')))"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
