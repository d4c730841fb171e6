"""Official LiT weights: a file in their layout, and the same model written down in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import primelens
from primelens.errors import CheckpointError, UnsupportedError
from primelens.export import ExportOptions, GateOptions, export_checkpoint, verify_against
from primelens.export.big_vision import NOTE, convert
from primelens.export.pictures import random_picture

Array = NDArray[np.float64]
GATE = GateOptions(threads=1, random_images=2, steps=2)
WIDTH, HEADS, PATCH, GRID, DEPTH = 128, 2, 8, 3, 2
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij", "cat", "dog", "##s", "red", "!", "two"]


def _arrays(seed: int, *, image_head: bool, older: bool) -> dict[str, Any]:
    """A model in the released layout; ``older`` numbers and nests as vision_transformer did."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int, fan_in: int = 1) -> Any:
        return (draw.standard_normal(shape) / fan_in**0.5).astype(np.float32)

    def dense(inputs: int, outputs: int) -> dict[str, Any]:
        return {"kernel": normal(inputs, outputs, fan_in=inputs), "bias": 0.3 * normal(outputs)}

    def norm() -> dict[str, Any]:
        return {"scale": 1 + 0.3 * normal(WIDTH), "bias": 0.3 * normal(WIDTH)}

    def attention() -> dict[str, Any]:
        heads = (HEADS, WIDTH // HEADS)
        parts = {
            name: {"kernel": 2 * normal(WIDTH, *heads, fan_in=WIDTH), "bias": 0.3 * normal(*heads)}
            for name in ("query", "key", "value")
        }
        out = {"kernel": normal(*heads, WIDTH, fan_in=WIDTH), "bias": 0.3 * normal(WIDTH)}
        return {**parts, "out": out}

    numbers = (0, 1, 2, 3) if older else (0, 0, 1, 0)
    transformer: dict[str, Any] = {"encoder_norm": norm()}
    for i in range(DEPTH):
        transformer[f"encoderblock_{i}"] = {
            f"LayerNorm_{numbers[0]}": norm(),
            f"MultiHeadDotProductAttention_{numbers[1]}": attention(),
            f"LayerNorm_{numbers[2]}": norm(),
            f"MlpBlock_{numbers[3]}": {"Dense_0": dense(WIDTH, 192), "Dense_1": dense(192, WIDTH)},
        }
    image: dict[str, Any] = {
        "cls": normal(1, 1, WIDTH),
        "embedding": {"kernel": normal(PATCH, PATCH, 3, WIDTH, fan_in=40), "bias": normal(WIDTH)},
        "Transformer": transformer,
    }
    places = GRID * GRID + older
    table = 0.5 * normal(1, places, WIDTH)
    if older:
        transformer["posembed_input"] = {"pos_embedding": table}
    else:
        image["pos_embedding"] = table
    if image_head:
        image["head"] = dense(WIDTH, WIDTH)
    layers = {}
    for i in range(DEPTH):
        block = {
            "attention_layer": {p: dense(WIDTH, WIDTH) for p in ("query", "key", "value")},
            "dense_layer": dense(WIDTH, WIDTH),
            "layer_norm": norm(),
        }
        mlp = {"mlp": {"dense_layer": dense(WIDTH, 192)}, "dense_layer": dense(192, WIDTH)}
        layers[f"layers_{i}"] = {
            "attention_block": block,
            "mlp_block": {**mlp, "layer_norm": norm()},
        }
    bert = {
        "embedder": {
            "embedders_token_ids": {"embedding": normal(40, WIDTH)},
            "embedders_position_ids": {"embedding": 0.5 * normal(20, WIDTH)},
            "embedders_segment_ids": {"embedding": 0.5 * normal(2, WIDTH)},
        },
        "layer_norm": norm(),
        "encoder_block": {"layer_sequence": layers},
    }
    text = {"BertEncoder_0": bert, "head": dense(WIDTH, WIDTH)}
    return {"img": image, "txt": text, "t": np.array([2.5], np.float32)}


def _flat(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        found |= _flat(value, f"{path}/") if isinstance(value, dict) else {path: value}
    return found


def _write(folder: Path, tree: dict[str, Any], prefix: str = "params/") -> Path:
    path = folder / "lit.npz"
    extra = {"opt/0/mu": np.ones(3, np.float32)} if prefix else {}
    np.savez(path, **_flat(tree, prefix), **extra)
    (folder / "lit.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return path


# The model as its papers and its code describe it, in float64 ------------------------------------


def _dense(x: Array, layer: dict[str, Any]) -> Array:
    kernel = np.asarray(layer["kernel"], np.float64)
    flat = kernel.reshape(x.shape[-1], -1)
    return np.asarray(x @ flat + np.asarray(layer["bias"], np.float64).reshape(-1))


def _norm(x: Array, layer: dict[str, Any], epsilon: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return np.asarray(centred / spread * layer["scale"] + layer["bias"])


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))))


def _attend(x: Array, layer: dict[str, Any], seen: int) -> Array:
    """Self-attention over the first ``seen`` places; heads side by side ``[T, C]``."""
    split = (len(x), HEADS, WIDTH // HEADS)
    query, key, value = (_dense(x, layer[p]).reshape(split) for p in ("query", "key", "value"))
    scores = np.einsum("qhd,khd->hqk", query, key)[:, :, :seen] / split[2] ** 0.5
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    return np.asarray(np.einsum("hqk,khd->qhd", weights, value[:seen])).reshape(len(x), WIDTH)


def _part(block: dict[str, Any], kind: str, place: int = 0) -> Any:
    return block[sorted(name for name in block if name.startswith(kind))[place]]


def _image(tree: dict[str, Any], pixels: Array) -> Array:
    """``[3, H, W]`` → ``[D]`` of length 1."""
    image, transformer = tree["img"], tree["img"]["Transformer"]
    kernel = np.asarray(image["embedding"]["kernel"], np.float64).reshape(-1, WIDTH)
    patches = pixels.transpose(1, 2, 0).reshape(GRID, PATCH, GRID, PATCH, 3)
    patches = patches.transpose(0, 2, 1, 3, 4).reshape(GRID * GRID, -1)
    x = patches @ kernel + image["embedding"]["bias"]
    if "pos_embedding" in image:
        x = np.concatenate([image["cls"][0], x + image["pos_embedding"][0]])
    else:
        table = transformer["posembed_input"]["pos_embedding"][0]
        x = np.concatenate([image["cls"][0], x]) + table
    for i in range(DEPTH):
        block = transformer[f"encoderblock_{i}"]
        layer = _part(block, "MultiHead")
        y = _attend(_norm(x, _part(block, "LayerNorm", 0), 1e-6), layer, len(x))
        x = x + y @ np.asarray(layer["out"]["kernel"], np.float64).reshape(WIDTH, WIDTH)
        x = x + layer["out"]["bias"]
        mlp = _part(block, "MlpBlock")
        y = _norm(x, _part(block, "LayerNorm", 1), 1e-6)
        x = x + _dense(_gelu(_dense(y, mlp["Dense_0"])), mlp["Dense_1"])
    z = _norm(x, transformer["encoder_norm"], 1e-6)[0]
    if "head" in image:
        z = _dense(z, image["head"])
    return np.asarray(z / (np.linalg.norm(z) + 1e-8))


def _text(tree: dict[str, Any], ids: list[int]) -> Array:
    """Ids, padded with 0 to 16 → ``[D]`` of length 1."""
    bert = tree["txt"]["BertEncoder_0"]
    tables = {name: table["embedding"] for name, table in bert["embedder"].items()}
    padded = ids + [0] * (16 - len(ids))
    x = tables["embedders_token_ids"][padded] + tables["embedders_position_ids"][:16]
    x = _norm(x + tables["embedders_segment_ids"][0], bert["layer_norm"], 1e-12)
    for layer in bert["encoder_block"]["layer_sequence"].values():
        block, mlp = layer["attention_block"], layer["mlp_block"]
        y = _dense(_attend(x, block["attention_layer"], len(ids)), block["dense_layer"])
        x = _norm(x + y, block["layer_norm"], 1e-12)
        y = _dense(_gelu(_dense(x, mlp["mlp"]["dense_layer"])), mlp["dense_layer"])
        x = _norm(x + y, mlp["layer_norm"], 1e-12)
    z = _dense(x[0], tree["txt"]["head"])
    return np.asarray(z / (np.linalg.norm(z) + 1e-8))


@pytest.mark.parametrize(
    ("image_head", "older", "prefix"), [(False, False, "params/"), (True, True, "")]
)
def test_a_bundle_of_the_file_says_what_the_model_says(
    tmp_path: Path, image_head: bool, older: bool, prefix: str
) -> None:
    tree = _arrays(5, image_head=image_head, older=older)
    path = _write(tmp_path, tree, prefix)
    report = export_checkpoint(path, tmp_path / "bundle", ExportOptions(gate=GATE))
    assert report.passed
    assert NOTE in report.notes
    model = primelens.load(tmp_path / "bundle")
    assert model.name == "lit"
    picture = random_picture(24, 24, 3)
    wanted = _image(tree, model.preprocessing(picture).astype(np.float64))
    assert np.abs(model.embed_image(picture) - wanted).max() < 2e-6
    texts = {
        "a CAT!": ["[CLS]", "a", "cat", "!"],
        "two dogs": ["[CLS]", "two", "dog", "##s"],
        "a b " * 10: ["[CLS]", *["a", "b"] * 8][:16],
    }
    for text, words in texts.items():
        ids = [WORDS.index(word) for word in words]
        assert model.rank_head().text.ids(text) == ids
        assert np.abs(model.embed_text(text) - _text(tree, ids)).max() < 2e-6
    scores = {entry.label: entry.score for entry in model.rank(picture, list(texts)).labels}
    for text, words in texts.items():
        cosine = wanted @ _text(tree, [WORDS.index(word) for word in words])
        assert scores[text] == pytest.approx(np.exp(2.5) * cosine, abs=2e-5)
    if not older:
        checks = verify_against(tmp_path / "bundle", path, GATE)
        assert checks.passed, checks.lines


def _without(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(tree: dict[str, Any]) -> None:
        for name in names[:-1]:
            tree = tree[name]
        del tree[names[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (_without("img", "cls"), UnsupportedError, "no class token"),
        (_without("txt", "BertEncoder_0"), UnsupportedError, "not BERT"),
        (_without("t"), CheckpointError, "no two-towers model"),
        (lambda tree: tree.update(b=np.zeros(1, np.float32)), UnsupportedError, "learned bias"),
        (_without("img", "Transformer", "encoder_norm", "scale"), CheckpointError, "encoder_norm"),
        (_without("img", "Transformer", "encoderblock_1", "MlpBlock_0", "Dense_1", "bias"),
         CheckpointError, "Dense_1"),
    ],
)  # fmt: skip
def test_other_models_and_broken_files_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], error: Any, said: str
) -> None:
    tree = _arrays(1, image_head=False, older=False)
    change(tree)
    path = _write(tmp_path, tree)
    with pytest.raises(error) as caught:
        convert(path, tmp_path)
    assert said in str(caught.value)


def test_a_missing_or_foreign_vocabulary_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, _arrays(1, image_head=False, older=False))
    (tmp_path / "lit.txt").write_text("cat\ndog\n")
    with pytest.raises(CheckpointError, match="not the vocabulary"):
        convert(path, tmp_path)
    (tmp_path / "lit.txt").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert(path, tmp_path)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lit.npz").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as arrays"):
        convert(tmp_path / "lit.npz", tmp_path)
