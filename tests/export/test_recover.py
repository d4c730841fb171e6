"""The shipped bundle's tower comes back as a checkpoint, to the last bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

import primelens
from primelens.bundle import open_bundle
from primelens.errors import OptionError, UnsupportedError
from primelens.export.lock import identify
from primelens.export.recover import declare_parts, recover_tower
from primelens.export.registry import tower_family
from primelens.tune.captioner import build_processor


def test_the_shipped_tower_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "tower"
    identity = recover_tower("default", out)
    assert identify(out).taps == {"last_hidden_state": identity}
    model = primelens.load("default", options=primelens.LoadOptions(threads=1))
    picture = np.random.default_rng(0).integers(0, 256, (90, 60, 3)).astype(np.uint8)
    pixels = build_processor()(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        states = AutoModel.from_pretrained(out).eval()(pixel_values=pixels).last_hidden_state
    np.testing.assert_allclose(
        states[0].numpy(), model.encode(picture).taps["last_hidden_state"], rtol=1e-4, atol=1e-4
    )
    with pytest.raises(OptionError, match="already"):
        recover_tower("default", out)


def test_a_manifest_is_told_what_its_tower_consists_of(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(primelens.load("default").folder, tmp_path / "bundle"))
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["tower"]["architecture"] = None
    manifest["tower"]["taps"]["last_hidden_state"]["weights"] = None
    (folder / "bundle.json").write_text(json.dumps(manifest))
    undeclared = open_bundle(folder).manifest
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = tmp_path / "tower"
    assert declare_parts(folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"bundle.json"}
    told = json.loads(after["bundle.json"])
    identity = recover_tower(folder, out)
    assert told["tower"]["taps"]["last_hidden_state"]["identity"] == identity
    split = tower_family("feature_map_tower").split(AutoModel.from_pretrained(out))
    assert told["tower"]["architecture"] == split.architecture
    assert told["tower"]["taps"]["last_hidden_state"]["weights"] == identify(out).tower
    now = open_bundle(folder).manifest
    assert replace(now, tower=undeclared.tower) == undeclared
    assert replace(now.tower, architecture=None, taps=undeclared.tower.taps) == undeclared.tower
    assert not declare_parts(folder)


def test_the_shipped_bundle_says_what_its_tower_consists_of() -> None:
    tower = primelens.load("default").manifest.tower
    assert tower.architecture
    assert all(tap.weights for tap in tower.taps.values())


def test_another_family_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(primelens.load("default").folder, tmp_path / "bundle"))
    text = (folder / "bundle.json").read_text().replace('"feature_map_tower"', '"vit"')
    (folder / "bundle.json").write_text(text)
    with pytest.raises(UnsupportedError, match="'vit'"):
        recover_tower(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
