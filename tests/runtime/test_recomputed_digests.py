"""What ARCHITECTURE.md defines, computed a second time: the standard library, numpy, and onnx to
read the weights; nothing of primelens but what is to be checked.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import primelens

BUNDLE = Path(primelens.__file__).parent / "assets" / "default"
TOWER: dict[str, Any] = json.loads((BUNDLE / "bundle.json").read_text(encoding="utf-8"))["tower"]
ARCHITECTURE: dict[str, Any] = TOWER["architecture"] or {  # a manifest of before it was named
    "backbone": {
        "type": "resnet", "depths": [1, 2, 2], "downsample_in_bottleneck": False,
        "downsample_in_first_stage": False, "hidden_act": "relu", "layer_type": "basic",
    },
    "folded": True,
    "grid_size": [8, 8],
    "position_embedding": True,
}  # fmt: skip
PIXELS = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of(document: Any) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(text.encode())


def tensors_of(graph: Path, prefix: str = "model.") -> dict[str, Any]:
    """Canonical name → shape and digest of the tower's weights, widened to float32."""
    found = {}
    for tensor in onnx.load(graph).graph.initializer:
        if tensor.name.startswith(prefix):
            name = tensor.name.removeprefix(prefix).removesuffix(".narrow")
            values = numpy_helper.to_array(tensor, base_dir=str(graph.parent)).astype("<f4")
            name = {"position_table": "positions"}.get(name, name.removeprefix("backbone."))
            found[name] = {"shape": list(values.shape), "sha256": sha256(values.tobytes())}
    return found


def entry_key(tap: str, dtype: str, source: str) -> str:
    return digest_of({
        "key_version": 1, "tower": TOWER["taps"][tap]["identity"], "variant": TOWER["variant"],
        "dtype": dtype, "source": source, "frame": None,
    })  # fmt: skip


def test_the_shipped_towers_identity_follows_from_its_weights() -> None:
    ((tap, declared),) = TOWER["taps"].items()
    tensors = tensors_of(BUNDLE / TOWER["graph"])
    assert declared["identity"] == digest_of({
        "identity_version": 1, "family": TOWER["family"], "architecture": ARCHITECTURE,
        "preprocessing": TOWER["preprocessing"], "tap": tap, "tensors": tensors,
    })  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kind", ["file", "array"])
def test_an_entry_lies_where_its_key_says(tmp_path: Path, dtype: Any, kind: str) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(path)
    head = b"primelens-pixels-1\0RGB\0" + struct.pack("<qqq", 60, 40, 1)
    source = sha256(path.read_bytes() if kind == "file" else head + PIXELS.tobytes())
    options = primelens.CacheOptions(tmp_path / "kept", dtype=dtype)
    model = primelens.load(BUNDLE, options=primelens.LoadOptions(threads=1), cache=options)
    encoded = model.encode(path if kind == "file" else PIXELS)
    model.close()
    ((tap, _),) = TOWER["taps"].items()
    key = entry_key(tap, dtype, source)
    assert (encoded.source, encoded.entries[tap]) == (source, key)
    content = (tmp_path / "kept" / "v1" / key[:2] / f"{key}.safetensors").read_bytes()
    place = 8 + len(b'{"__metadata__":{"checksum":"')
    crc = zlib.crc32(content[:place] + content[place + 8 :])
    assert content[place : place + 8] == b"%08x" % crc
