from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import primelens
from primelens.bundle import open_bundle
from primelens.engine import TensorSpec
from primelens.manifest import FORMAT_VERSION, Manifest

from .conftest import FakeBundle

VICTIM = "caption.decoder.onnx"


def test_a_sound_bundle_opens_and_round_trips(fake_bundle: FakeBundle) -> None:
    bundle = open_bundle(fake_bundle.folder)
    data = bundle.manifest.to_bytes()
    assert Manifest.from_bytes(data) == bundle.manifest
    assert Manifest.from_bytes(data).to_bytes() == data


def _missing(folder: Path) -> None:
    (folder / VICTIM).unlink()


def _altered(folder: Path) -> None:
    data = bytearray((folder / VICTIM).read_bytes())
    data[3] ^= 1
    (folder / VICTIM).write_bytes(data)


def _longer(folder: Path) -> None:
    with (folder / VICTIM).open("ab") as file:
        file.write(b"x")


def _symbolic_link(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / VICTIM).rename(outside)
    (folder / VICTIM).symlink_to(outside)


def _hard_link(folder: Path) -> None:
    os.link(folder / VICTIM, folder.parent / "outside")


def _fifo(folder: Path) -> None:
    (folder / VICTIM).unlink()
    os.mkfifo(folder / VICTIM)


def _directory(folder: Path) -> None:
    (folder / VICTIM).unlink()
    (folder / VICTIM).mkdir()


def _unlisted(folder: Path) -> None:
    (folder / "extra.bin").write_bytes(b"x")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_missing, f"{VICTIM}: missing"),
        (_altered, f"{VICTIM}: content differs"),
        (_longer, f"{VICTIM}: 201 bytes"),
        (_symbolic_link, f"{VICTIM}: a symbolic link"),
        (_hard_link, f"{VICTIM}: has 2 hard links"),
        (_fifo, f"{VICTIM}: not a regular file"),
        (_directory, f"{VICTIM}: not a regular file"),
        (_unlisted, "extra.bin: not listed"),
    ],
)
def test_a_damaged_file_refuses_the_bundle(
    fake_bundle: FakeBundle, damage: Callable[[Path], None], says: str
) -> None:
    damage(fake_bundle.folder)
    with pytest.raises(primelens.BundleError, match=says) as caught:
        primelens.load(fake_bundle.folder, engine=fake_bundle.engine)
    assert "unaltered copy" in str(caught.value)


def test_all_findings_come_at_once(fake_bundle: FakeBundle) -> None:
    _missing(fake_bundle.folder)
    _unlisted(fake_bundle.folder)
    (fake_bundle.folder / "tokenizer.json").write_text("{}")
    with pytest.raises(primelens.BundleError) as caught:
        open_bundle(fake_bundle.folder)
    assert len(caught.value.problems) == 3


def test_a_bundle_checked_by_size_only_trusts_its_content(fake_bundle: FakeBundle) -> None:
    _altered(fake_bundle.folder)
    open_bundle(fake_bundle.folder, check="size")
    _longer(fake_bundle.folder)
    with pytest.raises(primelens.BundleError, match="201 bytes"):
        open_bundle(fake_bundle.folder, check="size")


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for key in parents:
            data = data[key]
        data[last] = value

    return change


def _delete(path: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for key in parents:
            data = data[key]
        del data[last]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("format_version", FORMAT_VERSION + 1), "Upgrade primelens"),
        (_set("format_version", "1"), "no primelens has written"),
        (_set("format", "zip"), "not a primelens bundle"),
        (_set("surprise", 1), "bundle.surprise: unknown key"),
        (
            _set("heads/caption/decoder/surprise", 1),
            "bundle.heads.caption.decoder.surprise: unknown",
        ),
        (_delete("tower"), "bundle.tower: missing"),
        (_set("heads/caption/kind", "sing"), "expected one of"),
        (_set("heads/caption/tap", "pooled"), "the tower has no tap 'pooled'"),
        (_set("heads/caption/decoder/layers", 0), "layers is 0"),
        (_set("heads/caption/decoder/layers", 2.0), "expected int"),
        (_set("heads/caption/decoder/layers", True), "expected int"),
        (_set("heads/caption/decoder/graph", "../x.onnx"), "not listed under files"),
        (_set("heads/caption/generation/eos_tokens", [999]), "outside the vocabulary"),
        (_set("heads/caption/generation/start_tokens", []), "start_tokens is empty"),
        (_set("files/..%2Fx", {"size": 1, "sha256": "0" * 64}), "not a plain file name"),
        (_set("files/tower.onnx", {"size": -1, "sha256": "0" * 64}), "size is -1"),
        (_set("files/tower.onnx", {"size": 1, "sha256": "xyz"}), "not a SHA-256"),
        (_set("tower/taps/last_hidden_state/shape", [0, 8]), "must be at least 1"),
        (_set("tower/preprocessing", {}), "bundle.tower.preprocessing"),
        (_set("domain/threshold", 3.0), "detector and threshold go together"),
        (_set("source/digest", None), "expected str, found null"),
    ],
)
def test_a_malformed_manifest_is_refused_by_name(
    fake_bundle: FakeBundle, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    fake_bundle.rewrite(change)
    with pytest.raises(primelens.BundleError, match=says):
        open_bundle(fake_bundle.folder)


@pytest.mark.parametrize(
    "traversing",
    ["../secret", "/etc/passwd", "a/b", ".hidden", "", "a\\b", "bundle.json", "x" * 200],
)
def test_a_traversing_file_name_is_refused(fake_bundle: FakeBundle, traversing: str) -> None:
    def change(data: dict[str, Any]) -> None:
        data["files"][traversing] = {"size": 1, "sha256": "0" * 64}

    fake_bundle.rewrite(change)
    with pytest.raises(primelens.BundleError, match="not a plain file name"):
        open_bundle(fake_bundle.folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"format": NaN}',
        b'{"format": "x", "format": "x"}',
        b"[" * 10**5,
    ],
)
def test_a_manifest_that_is_no_json_object_is_refused(fake_bundle: FakeBundle, data: bytes) -> None:
    (fake_bundle.folder / "bundle.json").write_bytes(data)
    with pytest.raises(primelens.BundleError, match=r"bundle\.json"):
        open_bundle(fake_bundle.folder)


def test_a_linked_or_huge_manifest_is_refused(fake_bundle: FakeBundle) -> None:
    path = fake_bundle.folder / "bundle.json"
    path.rename(fake_bundle.folder.parent / "elsewhere.json")
    path.symlink_to(fake_bundle.folder.parent / "elsewhere.json")
    with pytest.raises(primelens.BundleError, match="link"):
        open_bundle(fake_bundle.folder)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(17 * 2**20)  # sparse
    with pytest.raises(primelens.BundleError, match="no manifest does"):
        open_bundle(fake_bundle.folder)


def test_a_folder_without_a_manifest_says_what_it_looks_like(tmp_path: Path) -> None:
    with pytest.raises(primelens.ModelNotFoundError, match="not a bundle"):
        open_bundle(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(primelens.ModelNotFoundError, match="primelens export"):
        open_bundle(tmp_path)
    with pytest.raises(primelens.ModelNotFoundError, match="not a folder"):
        open_bundle(tmp_path / "absent")


def test_graphs_that_do_not_fit_the_manifest_are_named(fake_bundle: FakeBundle) -> None:
    graph = fake_bundle.engine._graphs[VICTIM]
    graph._inputs["past_key.1"] = TensorSpec("past_key.1", "float32", (None, 7, None, 4))
    del graph._inputs["logits_rows"]
    with pytest.raises(primelens.BundleError, match=r"past_key\.1.*shape") as caught:
        primelens.load(fake_bundle.folder, engine=fake_bundle.engine)
    assert any("'logits_rows' is missing" in line for line in caught.value.problems)


def test_a_tower_that_does_not_fit_the_manifest_is_named(fake_bundle: FakeBundle) -> None:
    graph = fake_bundle.engine._graphs["tower.onnx"]
    graph._outputs["last_hidden_state"] = TensorSpec("last_hidden_state", "float32", (None, 5, 8))
    with pytest.raises(primelens.BundleError, match="manifest says"):
        primelens.load(fake_bundle.folder, engine=fake_bundle.engine)


def test_the_domain_detector_gives_a_notice(fake_bundle: FakeBundle) -> None:
    from safetensors.numpy import save_file

    from primelens.bundle import file_record
    from primelens.schema import encode

    path = fake_bundle.folder / "domain.safetensors"
    arrays = {"mean.last_hidden_state": np.zeros(16, np.float32),
              "scale.last_hidden_state": np.ones(16, np.float32)}  # fmt: skip
    save_file(arrays, path)

    def change(data: dict[str, Any]) -> None:
        data["files"][path.name] = encode(file_record(path))
        data["domain"] = {"description": "grey", "notice": "not grey", "detector": path.name,
                          "threshold": 0.5}  # fmt: skip

    fake_bundle.rewrite(change)
    model = primelens.load(fake_bundle.folder, engine=fake_bundle.engine)
    grey, white = np.full((9, 9, 3), 128, np.uint8), np.full((9, 9, 3), 255, np.uint8)
    assert model.caption(grey).notice is None
    assert model.caption(white).notice == "not grey"


def test_the_manifest_is_plain_json(fake_bundle: FakeBundle) -> None:
    data = json.loads((fake_bundle.folder / "bundle.json").read_text())
    assert list(data)[:2] == ["format", "format_version"]
