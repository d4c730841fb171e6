"""``primelens cache`` on real stores, and ``primelens encode`` on a model that is fake."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import safetensors
from click.testing import Result

import primelens
from primelens import CacheOptions
from primelens.cli.cache import Size, readable
from primelens.errors import ImageError
from primelens.results import EncodedImage, Failure
from primelens.store import EmbeddingStore, EntryKey, Frame, Hit, StoredDtype
from primelens.store.codec import stored

Run = Callable[..., Result]

TOWER = "a" * 64


def key_of(number: int, dtype: StoredDtype = "fp32", **parts: Any) -> EntryKey:
    source = hashlib.sha256(b"%d" % number).hexdigest()
    known: dict[str, Any] = {"tower": TOWER, "variant": "fp32", "tap": "states"}
    return EntryKey(dtype=dtype, source=source, **(known | parts))


def values_of(number: int) -> Any:
    return np.random.default_rng(number).standard_normal((4, 8)).astype(np.float32)


def fill(folder: Path, keys: Iterable[EntryKey]) -> None:
    with EmbeddingStore(CacheOptions(folder)) as store:
        for number, key in enumerate(keys):
            store.put(key, values_of(number), (number + 1, 7))


def found(folder: Path, key: EntryKey) -> Any:
    with EmbeddingStore(CacheOptions(folder)) as store:
        hit = store.get(key)
        assert isinstance(hit, Hit)
        return hit


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder with three embeddings of each stored dtype."""
    folder = tmp_path / "kept"
    fill(folder, [key_of(n, d) for d in ("fp32", "fp16", "int8") for n in range(3)])
    return folder


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("12", 12), ("1k", 1024), ("1.5M", 1_572_864), ("10G", 10 * 2**30), ("2TiB", 2**41)],
)
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1 G 2", "5X", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match="is not a size"):
        Size().convert(text, None, None)


def test_sizes_for_people() -> None:
    assert [readable(n) for n in (0, 1023, 1024, 1_572_864)] == ["0 B", "1023 B", "1.0 KiB", "1.5 MiB"]  # fmt: skip  # noqa: E501


def test_info_sums_up_by_kind(run: Run, kept: Path) -> None:
    result = run("cache", "info", kept)
    assert result.exit_code == 0, result.output
    assert "9 embeddings" in result.stdout
    assert "stored as int8: 3" in result.stdout
    data = json.loads(run("cache", "info", kept, "--json").stdout)
    assert (data["entries"], data["quarantined"]) == (9, 0)
    errors = {kind["dtype"]: kind["relative_error"] for kind in data["kinds"]}
    assert errors["fp32"] == 0 < errors["fp16"] < errors["int8"] < 0.02
    assert data["bytes"] == sum(p.stat().st_size for p in (kept / "v1").rglob("*.safetensors"))


def test_ls_lists_the_latest_first(run: Run, kept: Path) -> None:
    listed = [json.loads(line) for line in run("cache", "ls", kept, "--json").stdout.splitlines()]
    assert listed[0]["digest"] == key_of(2, "int8").digest
    assert {row["digest"] for row in listed} == {
        key_of(n, d).digest  # type: ignore[arg-type]
        for d in ("fp32", "fp16", "int8")
        for n in range(3)
    }
    assert len(run("cache", "ls", kept, "--limit", "2").stdout.splitlines()) == 2


def test_verify_names_what_is_corrupt(run: Run, kept: Path) -> None:
    assert run("cache", "verify", kept).exit_code == 0
    victim = key_of(1, "fp16").digest
    path = kept / "v1" / victim[:2] / f"{victim}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    result = run("cache", "verify", kept)
    assert result.exit_code == 1
    assert f"corrupt, put aside: {victim}" in result.stdout
    assert run("cache", "verify", kept).exit_code == 0


def test_prune_and_clear(run: Run, kept: Path) -> None:
    assert "9 embeddings removed" in run("cache", "prune", kept, "--to", "0").stdout
    fill(kept, [key_of(1)])
    refused = run("cache", "clear", kept)  # nobody answers
    assert refused.exit_code != 0
    assert json.loads(run("cache", "info", kept, "--json").stdout)["entries"] == 1
    assert "1 embeddings removed" in run("cache", "clear", kept, "--yes").stdout
    assert json.loads(run("cache", "info", kept, "--json").stdout)["entries"] == 0


@pytest.mark.parametrize("verb", ["info", "ls", "verify", "clear"])
def test_a_folder_without_embeddings_is_named_and_not_made(
    run: Run, tmp_path: Path, verb: str
) -> None:
    result = run("cache", verb, tmp_path / "nothing")
    assert result.exit_code == 1
    assert "holds no kept embeddings" in result.stderr
    assert not (tmp_path / "nothing").exists()


def test_shards_carry_every_entry_over(run: Run, kept: Path, tmp_path: Path) -> None:
    framed = key_of(5, "int8", frame=Frame(3, 120))
    fill(kept, [framed])
    result = run("cache", "export", kept, "--out", tmp_path / "out", "--shard-size", "200")
    assert result.exit_code == 0, result.output
    shards = sorted((tmp_path / "out").iterdir())
    assert len(shards) > 2
    assert run("cache", "export", kept, "--out", tmp_path / "out").exit_code == 1  # it exists
    with safetensors.safe_open(shards[0], framework="numpy") as shard:
        assert any(name.endswith(".values") for name in shard.keys())  # noqa: SIM118 - no mapping
    result = run("cache", "import", tmp_path / "copy", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "10 embeddings kept, 0 not" in result.stdout
    for dtype in ("fp32", "fp16", "int8"):
        for number in range(3):
            one, other = (found(f, key_of(number, dtype)) for f in (kept, tmp_path / "copy"))  # type: ignore[arg-type]
            assert one.values.tobytes() == other.values.tobytes()
            assert one.size == other.size
    assert np.array_equal(found(tmp_path / "copy", framed).values, stored(values_of(0), "int8").restore())  # fmt: skip  # noqa: E501


def test_an_altered_shard_is_not_imported(run: Run, kept: Path, tmp_path: Path) -> None:
    run("cache", "export", kept, "--out", tmp_path / "out")
    (shard,) = (tmp_path / "out").iterdir()
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    result = run("cache", "import", tmp_path / "copy", tmp_path / "out")
    assert result.exit_code == 1
    assert "8 embeddings kept, 1 not" in result.stdout
    assert "the checksum is wrong" in result.stdout
    shard.write_bytes(content[:100])
    result = run("cache", "import", tmp_path / "copy", tmp_path / "out")
    assert result.exit_code == 1
    assert "cannot be read" in result.stderr


def test_other_safetensors_are_no_shards(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "other"
    source.mkdir()
    assert "holds no shard" in run("cache", "import", tmp_path / "copy", source).stderr
    safetensors.numpy.save_file({"x": np.zeros(2)}, source / "x.safetensors")
    assert "no shard of embeddings" in run("cache", "import", tmp_path / "copy", source).stderr


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_the_clip_retrieval_layout_goes_there_and_back(
    run: Run, tmp_path: Path, dtype: StoredDtype
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    keys = [key_of(n, dtype) for n in range(5)]
    fill(tmp_path / "kept", keys)
    layout = ("--format", "clip-retrieval")
    result = run("cache", "export", tmp_path / "kept", "--out", tmp_path / "out", *layout)
    assert result.exit_code == 0, result.output
    values = np.load(tmp_path / "out" / "img_emb" / "img_emb_0000.npy")
    table = parquet.read_table(tmp_path / "out" / "metadata" / "metadata_0000.parquet").to_pylist()
    assert values.shape == (5, 4, 8)
    assert values.dtype == (np.float16 if dtype == "fp16" else np.float32)
    for row, value in zip(table, values, strict=True):
        number = [key.digest for key in keys].index(row["key"])
        wanted = stored(values_of(number), dtype)
        assert value.astype(np.float32).tobytes() == wanted.restore().tobytes()
        assert (row["width"], row["height"]) == (number + 1, 7)
        assert row["relative_error"] == wanted.error(values_of(number))[1]
    result = run("cache", "import", tmp_path / "copy", tmp_path / "out", *layout)
    assert result.exit_code == 0, result.output
    for key in keys:
        one, other = (found(folder, key) for folder in (tmp_path / "kept", tmp_path / "copy"))
        assert one.values.tobytes() == other.values.tobytes()


def test_the_clip_retrieval_layout_holds_one_kind(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    pooled = key_of(1, tower="b" * 64, tap="pooled")
    fill(tmp_path / "kept", [key_of(0), key_of(1), pooled])
    export = ("cache", "export", tmp_path / "kept", "--format", "clip-retrieval", "--out")
    result = run(*export, tmp_path / "out")
    assert result.exit_code == 1
    assert "tap pooled" in result.stderr
    assert run(*export, tmp_path / "out", "--tap", "pooled").exit_code == 0
    assert len(np.load(tmp_path / "out" / "img_emb" / "img_emb_0000.npy")) == 1
    assert "holds no embedding of" in run(*export, tmp_path / "no", "--tap", "x").stderr
    assert run("cache", "export", tmp_path, "--out", "x", "--tap", "states").exit_code == 2


@pytest.fixture
def towered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A model that encodes by file name; the list is what it was loaded with."""
    loaded: list[Any] = []

    def encode_batch(paths: list[str], *, batch_size: int) -> Iterator[EncodedImage | Failure]:
        for path in paths:
            if Path(path).name == "interrupt.png":
                raise KeyboardInterrupt
            if Path(path).name.startswith("bad"):
                yield Failure(path, ImageError(f"{path} is no picture."))
                continue
            known = Path(path).name.startswith("known")
            yield EncodedImage(
                taps={"states": np.zeros((2, 3), np.float32)},
                identities={"states": TOWER},
                source="c" * 64,
                size=(4, 3),
                name=path,
                cache="hit" if known else "miss",
                missed=None if known else "never kept",
                entries={"states": "d" * 64},
            )

    model = SimpleNamespace(
        encode_batch=encode_batch,
        cache_stats=lambda: SimpleNamespace(not_kept=0),
        close=lambda: loaded.append("closed"),
    )

    def load(name: str, **settings: Any) -> Any:
        loaded.append((name, settings))
        return model

    monkeypatch.setitem(vars(primelens), "load", load)
    return loaded


def test_encode_says_what_became_of_every_picture(
    run: Run, towered: list[Any], tmp_path: Path
) -> None:
    for name in ("known.png", "new.png", "bad.png"):
        (tmp_path / name).touch()
    result = run(
        *("encode", tmp_path, tmp_path / "*.gif", "--cache", tmp_path / "kept", "--json"),
        *("--cache-dtype", "int8", "--cache-size", "5M", "--batch-size", "2", "--threads", "1"),
    )
    assert result.exit_code == 1
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row.get("cache", "error") for row in rows] == ["error", "hit", "miss", "error"]
    assert rows[2]["cache_reason"] == "never kept"
    assert rows[2]["entries"] == {"states": "d" * 64}
    assert "1 encoded, 1 kept before, 2 failed" in result.stderr
    (name, settings), closed = towered
    assert name == "default"
    assert settings["cache"] == CacheOptions(tmp_path / "kept", dtype="int8", cap_bytes=5 * 2**20)
    assert settings["options"].threads == 1
    assert closed == "closed"


def test_encode_without_failures_ends_well(run: Run, towered: list[Any], tmp_path: Path) -> None:
    (tmp_path / "new.png").touch()
    result = run("encode", tmp_path / "new.png", "--cache", tmp_path / "kept")
    assert (result.exit_code, result.stdout) == (0, "")
    assert run("encode", tmp_path / "new.png").exit_code == 2  # no --cache


def test_whoever_interrupts_encode_is_told_how_far_it_came(
    run: Run, towered: list[Any], tmp_path: Path
) -> None:
    names = ("known.png", "new.png", "interrupt.png", "never.png")
    for name in names:
        (tmp_path / name).touch()
    result = run("encode", *(tmp_path / name for name in names), "--cache", tmp_path / "kept")
    assert result.exit_code != 0
    assert "1 encoded, 1 kept before" in result.stderr
    assert towered[-1] == "closed"  # and everything is written
