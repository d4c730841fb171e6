"""The frozen bundle of format version 1: it loads, and replays its proof, for ever."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import primelens
from primelens.bundle import file_record
from primelens.schema import encode
from primelens.verify import verify

FROZEN = Path(__file__).parent / "data" / "bundle-v1"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the frozen bundle that may be altered."""
    return Path(shutil.copytree(FROZEN, tmp_path / "bundle"))


def alter(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the golden arrays, and list the file anew, as a forger would."""
    path = folder / "golden.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"][path.name] = encode(file_record(path))
    (folder / "bundle.json").write_text(json.dumps(manifest))


def test_the_frozen_bundle_loads_and_replays() -> None:
    report = verify(FROZEN)
    assert report.passed, report.lines
    assert len(report.checks) == 16
    assert json.loads(json.dumps(report.as_dict()))["passed"] is True


def _other_picture(arrays: dict[str, Any]) -> None:
    arrays["image.1"] = np.ascontiguousarray(arrays["image.1"][::-1])


def _other_token(arrays: dict[str, Any]) -> None:
    arrays["tokens.caption.2"][3] += 1


def _shorter_text(arrays: dict[str, Any]) -> None:
    arrays["tokens.caption.0"] = arrays["tokens.caption.0"][:-2].copy()
    for name in ("logits.caption.0", "logits_ids.caption.0"):
        arrays[name] = arrays[name][:-2].copy()


def _moved_tap(arrays: dict[str, Any]) -> None:
    arrays["tap.last_hidden_state.3"][0, 0] += 1e-3


def _moved_logit(arrays: dict[str, Any]) -> None:
    arrays["logits.caption.1"][2, 5] += 1e-2


def _logit_that_is_nan(arrays: dict[str, Any]) -> None:
    arrays["logits.caption.1"][2, 5] = np.nan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_other_picture, "picture 1, pixels"),
        (_other_token, "picture 2, caption tokens"),
        (_moved_tap, "picture 3, last_hidden_state"),
        (_moved_logit, "picture 1, caption logits"),
        (_logit_that_is_nan, "picture 1, caption logits"),
    ],
)
def test_whatever_differs_is_named(
    copy: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    alter(copy, change)
    report = verify(copy)
    assert not report.passed
    failed = [line for line in report.lines if line.startswith("FAILED")]
    assert any(says in line for line in failed), report.lines


def test_a_shorter_golden_text_is_a_prefix_and_passes(copy: Path) -> None:
    """The replay asks for as many tokens as there are: a shorter proof is still a proof."""
    alter(copy, _shorter_text)
    assert verify(copy).passed


def test_weights_of_nan_are_found_even_when_they_are_listed(copy: Path) -> None:
    path = copy / "tower.weights"
    path.write_bytes(np.full(path.stat().st_size // 4, np.nan, np.float32).tobytes())
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["files"][path.name] = encode(file_record(path))
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(primelens.EngineError, match="not finite"):
        primelens.load(copy).caption(np.zeros((9, 9, 3), np.uint8))


def test_a_bundle_without_golden_outputs_says_what_to_do(copy: Path) -> None:
    (copy / "golden.safetensors").unlink()
    manifest = json.loads((copy / "bundle.json").read_text())
    del manifest["files"]["golden.safetensors"]
    manifest["golden"] = None
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(primelens.BundleError, match="--against"):
        verify(copy)


def test_a_golden_file_that_is_none_is_refused(copy: Path) -> None:
    path = copy / "golden.safetensors"
    path.write_bytes(b"\xff" * 100)
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["files"][path.name] = encode(file_record(path))
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(primelens.BundleError, match="golden"):
        verify(copy)


def test_batches_of_real_graphs_do_not_depend_on_companions() -> None:
    """Tower bits, tokens and log-probabilities, alone and in batches of every size."""
    model = primelens.load(FROZEN)
    random = np.random.default_rng(3)
    pictures = [
        random.integers(0, 256, (*random.integers(9, 60, 2), 3), dtype=np.uint8) for _ in range(7)
    ]
    alone = [model.caption(picture) for picture in pictures]
    taps = [model.encode(picture).taps["last_hidden_state"] for picture in pictures]
    for size in (2, 3, 7):
        rows = list(model.caption_batch(pictures, batch_size=size))
        for row, single in zip(rows, alone, strict=True):
            assert isinstance(row, primelens.Caption)
            assert (row.tokens, row.token_logprobs) == (single.tokens, single.token_logprobs)
    encoded = model._encode(pictures)
    for image, tap in zip(encoded, taps, strict=True):
        assert np.array_equal(image.taps["last_hidden_state"], tap)
