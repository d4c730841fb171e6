"""A head that reads another tap of the same tower: one run of the tower emits both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import primelens
from primelens import CacheOptions, LoadOptions
from primelens.bundle import open_bundle
from primelens.errors import CheckpointError, OptionError
from primelens.export import ExportOptions, GateOptions, export_checkpoint
from primelens.export.heads import HeadOptions, add_head
from primelens.export.reference_works import randomise, write_companions
from primelens.verify import verify

GATE = GateOptions(threads=1, random_images=2, steps=8)
ONE = LoadOptions(threads=1)


@pytest.fixture(scope="module")
def dual(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dual encoder on the captioner's own tower."""
    folder = tmp_path_factory.mktemp("dual") / "checkpoint"
    whole = transformers.VisionEncoderDecoderModel.from_pretrained(checkpoints("tiny-vitgpt2"))
    text = transformers.BertConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
    )
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        whole.encoder.config, text, projection_dim=24
    )
    torch.manual_seed(5)
    model: Any = transformers.VisionTextDualEncoderModel(config).eval()
    randomise(model, 5)
    model.vision_model.load_state_dict(whole.encoder.state_dict(), strict=False)
    model.save_pretrained(folder)
    write_companions(folder, vocab_size=320, size=32)
    return folder


def test_a_rank_head_joins_a_captioner(
    checkpoints: Callable[[str], Path], dual: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    export_checkpoint(checkpoints("tiny-vitgpt2"), bundle, ExportOptions(gate=GATE))
    before = open_bundle(bundle).manifest
    kept = CacheOptions(tmp_path / "kept")
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    old = primelens.load(bundle, options=ONE, cache=kept).caption(picture)
    add_head(bundle, dual, "rank", HeadOptions(gate=GATE))
    after = open_bundle(bundle).manifest
    (new,) = after.tower.taps.keys() - before.tower.taps.keys()
    assert after.heads["rank"].tap == new != after.heads["caption"].tap
    assert {t: after.tower.taps[t] for t in before.tower.taps} == dict(before.tower.taps)
    replayed = verify(bundle, options=ONE)
    assert replayed.passed, replayed.lines
    model: Any = primelens.load(bundle, options=ONE, cache=kept)
    encoded = model.encode(picture)
    assert set(encoded.taps) == {*before.tower.taps, new}
    assert encoded.cache == "miss"  # of the new tap
    assert model.caption(picture).tokens == old.tokens
    assert model.encode(picture).cache == "hit"
    stats = model.cache_stats()
    assert stats.kept == 2  # one entry per tap
    ranking = model.rank(picture, ["a cat", "a dog"])
    assert {ranking.best.label} < {"a cat", "a dog"}

    with pytest.raises(OptionError, match="cannot be called 'answer'"):
        add_head(bundle, dual, "again", HeadOptions(kind="answer", gate=GATE))


def test_a_tap_that_the_checkpoint_cannot_prove(
    checkpoints: Callable[[str], Path], dual: Path, tmp_path: Path
) -> None:
    """The captioner's exporter knows nothing of the dual encoder's tap."""
    export_checkpoint(dual, tmp_path / "bundle", ExportOptions(gate=GATE))
    with pytest.raises(CheckpointError, match="the head reads 'last_hidden_state'"):
        add_head(tmp_path / "bundle", checkpoints("tiny-vitgpt2"), "c", HeadOptions(gate=GATE))
