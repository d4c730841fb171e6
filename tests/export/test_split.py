"""Halves of a bundle, made from a frozen one: the text side alone, the tower alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import primelens
from primelens import CacheOptions, LoadOptions
from primelens.bundle import open_bundle
from primelens.errors import InputError, ModelNotFoundError, OptionError
from primelens.export.remake import remove_head
from primelens.export.split import split_bundle
from primelens.verify import verify

WHOLE = Path(__file__).parents[1] / "runtime" / "data" / "bundle-v1"
ONE = LoadOptions(threads=1)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The text side and the tower."""
    home = tmp_path_factory.mktemp("halves")
    text = split_bundle(WHOLE, home / "text", "text-only")
    return text, split_bundle(WHOLE, home / "tower", "tower-only")


def picture(seed: int) -> Any:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (30, 50, 3), dtype=np.uint8)


def test_each_half_holds_what_it_needs(halves: tuple[Path, Path]) -> None:
    text, tower = (open_bundle(half).manifest for half in halves)
    whole = open_bundle(WHOLE).manifest
    both = {"README.md", "golden.safetensors"}
    assert set(text.files) == {n for n in whole.files if not n.startswith("tower.")}
    assert set(tower.files) == both | {"tower.onnx", "tower.weights"}
    assert (text.tower.graph, tower.tower.graph) == (None, "tower.onnx")
    assert text.heads == whole.heads
    assert tower.heads == {}
    assert text.tower.taps == tower.tower.taps == whole.tower.taps
    for half in halves:
        for name in open_bundle(half).manifest.files.keys() - both:
            assert (half / name).read_bytes() == (WHOLE / name).read_bytes()


def test_both_halves_replay_their_golden_outputs(halves: tuple[Path, Path]) -> None:
    whole = {check.name for check in verify(WHOLE, options=ONE).checks}
    text, tower = (verify(half, options=ONE) for half in halves)
    assert text.passed, text.lines
    assert tower.passed, tower.lines
    names = [{check.name for check in report.checks} for report in (text, tower)]
    assert names[0] | names[1] == whole
    assert {name for name in names[1] if "caption" in name} == set()
    assert {name for name in names[0] if "last_hidden_state" in name} == set()


def test_the_halves_together_are_the_whole(halves: tuple[Path, Path], tmp_path: Path) -> None:
    kept = CacheOptions(tmp_path / "kept")
    pictures = [picture(seed) for seed in range(5)]
    wanted = primelens.load(WHOLE, options=ONE).caption(pictures)
    farm = primelens.load(halves[1], options=ONE, cache=kept)
    assert [image.cache for image in farm.encode_batch(pictures[:4])] == ["miss"] * 4  # type: ignore[union-attr]
    farm.close()
    model = primelens.load(halves[0], options=ONE, cache=kept)
    found = model.caption(pictures[:4])
    assert [(c.tokens, c.cache) for c in found] == [(c.tokens, "hit") for c in wanted[:4]]
    assert [c.token_logprobs for c in found] == pytest.approx(
        [pytest.approx(c.token_logprobs, abs=1e-4) for c in wanted[:4]]
    )
    with pytest.raises(InputError) as caught:
        model.caption(pictures[4])
    assert str(tmp_path / "kept") in str(caught.value)
    assert "primelens encode --cache" in str(caught.value)
    rows = list(model.caption_batch(pictures))
    assert [isinstance(row, primelens.Failure) for row in rows] == [False] * 4 + [True]


def test_what_a_half_cannot_do_says_who_can(halves: tuple[Path, Path]) -> None:
    text, tower = (primelens.load(half, options=ONE) for half in halves)
    with pytest.raises(ModelNotFoundError, match="has no tower"):
        text.caption(picture(0))
    encoded = tower.encode(picture(0))
    assert text.caption(encoded).tokens == primelens.load(WHOLE).caption(picture(0)).tokens
    with pytest.raises(InputError) as caught:
        tower.caption(encoded)
    assert f"the tower of the bundle {tower.name!r}, which has: caption" in str(caught.value)


def test_halves_are_not_halved_again(halves: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="has no tower"):
        split_bundle(halves[0], tmp_path / "out", "tower-only")
    with pytest.raises(OptionError, match="has no heads"):
        split_bundle(halves[1], tmp_path / "out", "text-only")
    with pytest.raises(OptionError, match="is there already"):
        split_bundle(WHOLE, tmp_path, "text-only")
    assert list(tmp_path.iterdir()) == []


def test_the_last_head_can_be_removed(tmp_path: Path) -> None:
    folder = remove_head(WHOLE, "caption", tmp_path / "out")
    manifest = open_bundle(folder).manifest
    assert manifest.heads == {}
    assert manifest.parity["tower"]["largest_error"] < manifest.parity["tower"]["limit"]
    assert verify(folder, options=ONE).passed


def test_no_torch_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from primelens.export.split import split_bundle\n"
        "split_bundle(sys.argv[1], sys.argv[2], 'text-only')\n"
        "assert not {'torch', 'transformers', 'onnx', 'onnx_ir'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(WHOLE), str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == 0
