"""``primelens_head.json``: what a text side without a tower says it was tuned on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from primelens.bundle import open_bundle
from primelens.errors import CheckpointError
from primelens.head_checkpoint import HEAD_FILE, TunedOn, of_tap, read, write

from .conftest import TAP, FakeBundle

PLAIN = TunedOn("a" * 64, "last_hidden_state", (64, 192))


def test_it_is_read_back_as_it_was_written(fake_bundle: FakeBundle, tmp_path: Path) -> None:
    assert read(tmp_path) is None
    tower = open_bundle(fake_bundle.folder).manifest.tower
    tuned_on = of_tap(tower, "last_hidden_state", "fp16")
    assert (tuned_on.tower_identity, tuned_on.shape) == ("2" * 64, TAP)
    assert write(tmp_path, tuned_on) == tmp_path / HEAD_FILE
    assert read(tmp_path) == tuned_on
    write(tmp_path, PLAIN)
    assert read(tmp_path) == PLAIN


def test_a_tap_that_the_tower_lacks(fake_bundle: FakeBundle) -> None:
    with pytest.raises(CheckpointError, match="no tap 'pooled'"):
        of_tap(open_bundle(fake_bundle.folder).manifest.tower, "pooled")


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"tower_identity": "A" * 64}, "not a SHA-256"),
        ({"shape": []}, "not the shape"),
        ({"shape": [3, 0]}, "not the shape"),
        ({"shape": "3"}, "expected a list"),
        ({"tap": ""}, "empty"),
        ({"stored_dtype": "fp8"}, "expected one of"),
        ({"format_version": 2}, "version 2"),
        ({"format": "other"}, "format 'other'"),
        ({"owner": "me"}, "unknown key"),
    ],
)
def test_what_makes_no_sense_is_named(tmp_path: Path, change: Any, finding: str) -> None:
    path = write(tmp_path, PLAIN)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=finding):
        read(tmp_path)


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / HEAD_FILE).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path)
