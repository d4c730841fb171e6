"""Webdataset shards, sound and hostile; parquet."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from primelens.errors import ImageError, InputError
from primelens.tune.data import DataSource, Example, read_examples
from primelens.tune.data.example import ArchiveImage, InlineImage
from primelens.tune.data.shards import ShardLimits, expand_shards, read_shards

Members = Iterable[tuple[str | tarfile.TarInfo, bytes]]


def shard(path: Path, members: Members) -> Path:
    kind = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, kind) as tar:  # type: ignore[call-overload]
        for name, data in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            if member.isreg():
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def read(path: Path) -> list[Example]:
    return list(read_examples(DataSource(path)))


def sound(album: Path) -> Members:
    return [
        ("a/000.png", (album / "0.png").read_bytes()),
        ("a/000.json", json.dumps({"caption": "zero", "license": "x"}).encode()),
        ("a/000.pkl", b"never opened"),
        ("a/001.txt", b"one \n"),
        ("a/001.seg.png", (album / "1.png").read_bytes()),
        ("a/001.cls", b"7"),
        ("a/002.txt", b"a sample without a picture"),
        ("b/000.jpg", b"broken, but that is for later"),
        ("b/000.pt", b"never opened"),
    ]


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_samples_are_neighbours_with_one_stem(album: Path, name: str) -> None:
    found = read(shard(album / name, sound(album)))
    assert [(e.id, e.captions, e.label) for e in found] == [
        ("a/000", ("zero",), None),
        ("a/001", ("one",), "7"),
        ("b/000", (), None),
    ]
    assert found[0].image.read() == (album / "0.png").read_bytes()
    assert found[1].image.read() == (album / "1.png").read_bytes()
    expected = ArchiveImage if name == "x.tar" else InlineImage
    assert all(isinstance(e.image, expected) for e in found)


def test_nothing_is_written_to_disk(album: Path) -> None:
    path = shard(album / "x.tar", sound(album))
    before = sorted(album.rglob("*"))
    for example in read(path):
        example.image.read()
    assert sorted(album.rglob("*")) == before


def test_patterns_and_folders(album: Path) -> None:
    for number in (0, 1):
        members = [(f"{number}.png", b"x"), (f"{number}.txt", b"t")]
        shard(album / f"s-{number:03d}.tar", members)
    assert [e.id for e in read(album / "s-{000..001}.tar")] == ["0", "1"]
    assert [e.id for e in read(album)] == ["0", "1"]
    assert [p.name for p in expand_shards(Path("s-{08..11}.tar"))] == [
        "s-08.tar",
        "s-09.tar",
        "s-10.tar",
        "s-11.tar",
    ]
    with pytest.raises(InputError, match=r"s-002\.tar cannot be read"):
        read(album / "s-{000..002}.tar")


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("../../etc/cron.d/x.png", "leads out"),
        ("/etc/x.png", "leads out"),
        ("a\\..\\x.png", "leads out"),
        (special("a.png", tarfile.SYMTYPE, "/etc/passwd"), "link or a device"),
        (special("a.png", tarfile.LNKTYPE, "b.png"), "link or a device"),
        (special("a.png", tarfile.CHRTYPE), "link or a device"),
        (special("a.png", tarfile.FIFOTYPE), "link or a device"),
    ],
)
@pytest.mark.parametrize("name", ["x.tar", "x.tgz"])
def test_a_hostile_member_refuses_the_shard(
    tmp_path: Path, member: str | tarfile.TarInfo, said: str, name: str
) -> None:
    path = shard(tmp_path / name, [("ok.png", b"x"), (member, b"")])
    with pytest.raises(InputError, match=said):
        list(read_shards(path))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.png", b"x" * 101)], "101 bytes; at most 100"),
        ([("a.txt", b"x" * 11)], "11 bytes; at most 10"),
        ([("a.png", b"x"), ("a.png", b"y")], "has it twice"),
        ([(f"a.{n}", b"") for n in range(9)], "or too many"),
        ([("a.json", b"{")], "cannot be read"),
        ([("a.json", b"[]")], "holds no object"),
        ([("a.txt", b"\xff")], "cannot be read"),
    ],
)
def test_what_is_too_much_or_malformed_refuses_the_shard(
    tmp_path: Path, members: Sequence[tuple[str, bytes]], said: str
) -> None:
    path = shard(tmp_path / "x.tar", members)
    with pytest.raises(InputError, match=said):
        list(read_shards(path, limits=ShardLimits(image=100, text=10, members=8)))


@pytest.mark.parametrize("keep", [600, 100, 0])
def test_a_shard_that_ends_early_is_refused(tmp_path: Path, keep: int) -> None:
    path = shard(tmp_path / "x.tar", [("a.png", b"x" * 5000), ("b.png", b"y")])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"x\.tar cannot be read"):
        list(read_shards(path))


def test_a_picture_that_was_cut_off_later_is_a_broken_picture(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", [("a.png", b"x" * 5000)])
    (example,) = read(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ImageError, match="ends after 488 of 5000 bytes"):
        example.image.read()
    path.unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        example.image.read()


def parquet(path: Path, columns: dict[str, Any], group: int = 2) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    from pyarrow import parquet as writer

    writer.write_table(arrow.table(columns), path, row_group_size=group)
    return path


def test_parquet_with_bytes(album: Path) -> None:
    data = [(album / f"{n}.png").read_bytes() for n in range(3)]
    columns = {"image": data, "caption": ["a", "b", "c"], "image_id": [10, 11, 12]}
    found = read(parquet(album / "x.parquet", columns))
    assert [(e.id, e.captions) for e in found] == [("10", ("a",)), ("11", ("b",)), ("12", ("c",))]
    assert [e.image.read() for e in reversed(found)] == data[::-1]


def test_parquet_as_the_hub_writes_it(album: Path) -> None:
    image = [{"bytes": b"one", "path": "1.png"}, {"bytes": None, "path": "2.png"}, None]
    columns = {
        "image": image,
        "captions": [["a", "b"], [], ["c"]],
        "split": ["train", "test", "test"],
        "label": [4, None, 5],
    }
    (album / "data").mkdir()
    parquet(album / "data" / "0.parquet", columns)
    found = read(album / "data")
    assert [(e.captions, e.label, e.split) for e in found] == [
        (("a", "b"), "4", "train"),
        ((), None, "test"),
        (("c",), "5", "test"),
    ]
    assert found[0].image.read() == b"one"
    for example in found[1:]:
        with pytest.raises(ImageError, match="holds no picture"):
            example.image.read()
    only = list(read_examples(DataSource(album / "data", split="test")))
    assert [e.id for e in only] == [e.id for e in found[1:]]


def test_wrong_parquet_is_refused(album: Path) -> None:
    with pytest.raises(InputError, match="no column of pictures; it has caption"):
        read(parquet(album / "x.parquet", {"caption": ["a"]}))
    (album / "y.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(InputError, match=r"y\.parquet cannot be read"):
        read(album / "y.parquet")
