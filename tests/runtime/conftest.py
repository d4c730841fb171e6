"""A complete bundle whose graphs are Python functions: decoding is tested without a model.

The fake decoder is a deterministic random function of (picture, history). It keeps the history in
the KV cache buffers it is given, as a real graph does, so that a cache written to the wrong row or
reordered wrongly changes its logits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from primelens.bundle import file_record
from primelens.engine import TensorSpec
from primelens.engine_fake import FakeEngine, FakeGraph
from primelens.manifest import (
    FORMAT,
    FORMAT_VERSION,
    DecoderSpec,
    Domain,
    Generation,
    HeadSpec,
    Manifest,
    Source,
    TapSpec,
    TowerSpec,
)
from primelens.preprocessing import Normalize, Preprocessing, Resize

VOCAB, LAYERS, HEADS, WIDTH, POSITIONS = 300, 2, 2, 4, 64
TAP = (3, 8)
EOS = 0


def history_logits(picture: float, history: list[int], vocab: int = VOCAB) -> Any:
    """``[V]`` float32 logits: a random function of the picture's number and the tokens so far."""
    seed = hashlib.sha256(repr((round(picture, 4), history)).encode()).digest()
    random = np.random.default_rng(np.frombuffer(seed, np.uint32))
    logits = random.standard_normal(vocab).astype(np.float32)
    logits[EOS] += 1.0 + 0.15 * len(history)  # sequences do end
    return logits


def _tower(feeds: Mapping[str, Any]) -> dict[str, Any]:
    means = feeds["pixel_values"].mean(axis=(1, 2, 3), dtype=np.float64)
    ramp = np.linspace(0.5, 1.5, TAP[0] * TAP[1]).reshape(TAP)
    return {"last_hidden_state": (means[:, None, None] * ramp).astype(np.float32)}


def _connector(feeds: Mapping[str, Any]) -> dict[str, Any]:
    tap = feeds["last_hidden_state"]
    shape = (len(tap), HEADS, TAP[0], WIDTH)
    return {
        f"cross_{kind}.{layer}": np.broadcast_to(
            tap[:, :1, :1, None].transpose(0, 3, 1, 2), shape
        ).astype(np.float32)
        for layer in range(LAYERS)
        for kind in ("key", "value")
    }


def _decoder(feeds: Mapping[str, Any]) -> dict[str, Any]:
    ids, cross = feeds["input_ids"], feeds["cross_key.0"]
    rows, width = ids.shape
    cache = feeds["past_key.0"]
    totals = feeds["seqlens_k"].astype(np.int64) + 1
    assert int(feeds["total_sequence_length"]) == totals.max()
    starts = np.zeros(rows, np.int64) if width > 1 else totals - 1
    for row in range(rows):
        assert feeds["position_ids"][row, 0] == starts[row]
        for offset in range(min(width, int(totals[row] - starts[row]))):
            cache[row, :, starts[row] + offset, :] = ids[row, offset]
    logits = []
    for flat in feeds["logits_rows"]:
        row, offset = divmod(int(flat), width)
        history = cache[row, 0, : starts[row] + offset + 1, 0].astype(int).tolist()
        picture = float(cross[row // (rows // len(cross)), 0, 0, 0])
        logits.append(history_logits(picture, history))
    return {"logits": np.stack(logits)}


def byte_tokenizer(path: Path) -> None:
    """A byte-level tokenizer with one id per byte after the end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<end>": 0, **{symbol: i + 1 for i, symbol in enumerate(alphabet)}}
    vocab |= {f"word{i}": i for i in range(len(vocab), VOCAB)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(path))


def _specs(names: Mapping[str, tuple[int | None, ...]]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, "float32", shape) for name, shape in names.items()}


def fake_engine() -> FakeEngine:
    """Engine with the three graphs of the fake bundle."""
    past = (None, HEADS, None, WIDTH)
    kinds = [f"{kind}.{layer}" for layer in range(LAYERS) for kind in ("key", "value")]
    cross: dict[str, tuple[int | None, ...]] = {
        f"cross_{k}": (None, HEADS, TAP[0], WIDTH) for k in kinds
    }
    inputs: dict[str, tuple[int | None, ...]] = {
        "input_ids": (None, None),
        "position_ids": (None, None),
        "seqlens_k": (None,),
        "total_sequence_length": (),
        "logits_rows": (None,),
        **{f"past_{k}": past for k in kinds},
        **cross,
    }
    outputs: dict[str, tuple[int | None, ...]] = {
        "logits": (None, VOCAB),
        **{f"present_{k}": past for k in kinds},
    }
    tap = {"last_hidden_state": (None, *TAP)}
    return FakeEngine(
        {
            "tower.onnx": FakeGraph(_tower, _specs({"pixel_values": (None, 3, 8, 8)}), _specs(tap)),
            "caption.connector.onnx": FakeGraph(_connector, _specs(tap), _specs(cross)),
            "caption.decoder.onnx": FakeGraph(_decoder, _specs(inputs), _specs(outputs)),
        }
    )


@dataclass(frozen=True)
class FakeBundle:
    """A bundle folder and the engine that runs it."""

    folder: Path
    engine: FakeEngine

    def rewrite(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Alter ``bundle.json`` in place."""
        path = self.folder / "bundle.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))


def preprocessing() -> dict[str, Any]:
    """An 8 x 8 ViT-like specification."""
    normalize = Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    spec = Preprocessing(steps=(Resize(8, 8, "bilinear"),), rescale=1 / 255, normalize=normalize)
    return spec.to_dict()


@pytest.fixture
def fake_bundle(tmp_path: Path) -> FakeBundle:
    """A fresh, sound fake bundle."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("tower.onnx", "caption.connector.onnx", "caption.decoder.onnx"):
        (folder / name).write_bytes(name.encode() * 10)
    byte_tokenizer(folder / "tokenizer.json")
    head = HeadSpec(
        kind="caption",
        family="fake",
        tap="last_hidden_state",
        connector="caption.connector.onnx",
        decoder=DecoderSpec("caption.decoder.onnx", LAYERS, HEADS, WIDTH, VOCAB, POSITIONS),
        tokenizer="tokenizer.json",
        generation=Generation((EOS,), (EOS,), EOS, 12),
        precision="fp32",
        digest="0" * 64,
    )
    manifest = Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name="fake",
        producer={"primelens": "0"},
        source=Source("fake", None, "FakeModel", "1" * 64),
        license=None,
        domain=Domain("numbers"),
        tower=TowerSpec(
            "fake",
            "tower.onnx",
            "fp32",
            {"last_hidden_state": TapSpec("2" * 64, TAP)},
            preprocessing(),
        ),
        heads={"caption": head},
        golden=None,
        files={p.name: file_record(p) for p in folder.iterdir()},
        parity={},
    )
    (folder / "bundle.json").write_bytes(manifest.to_bytes())
    return FakeBundle(folder, fake_engine())
