"""LiT's official weights (``.npz``) as a ``VisionTextDualEncoderModel``.

The layout is that of big_vision's two-towers model and of vision_transformer's LiT release: ``img``
is a ViT with a class token, ``txt`` a BERT encoder and a linear head on its class token, ``t`` the
logarithm of the temperature; kernels lie as flax keeps them, input axis first. Training checkpoints
have everything under ``params``, and the optimiser's state beside it, which is not read. Beside
``NAME.npz`` must lie ``NAME.txt``, the WordPiece vocabulary.

What transformers' classes do otherwise is settled by the configuration: GELU by its tanh formula,
as flax has it; the image's class token pooled without ``tanh``; the text's through
`primelens.towers.ClassTokenText`; texts of a class token and at most 15 more, no separator.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from primelens.errors import CheckpointError, UnsupportedError
from primelens.towers import ClassTokenTextConfig

__all__ = ["NOTE", "convert", "is_big_vision", "unpacked"]

Array = NDArray[Any]

NOTE = (
    "big_vision resizes pictures with TensorFlow's bilinear filter without antialiasing; the "
    "bundle resizes with Pillow's, which antialiases: embeddings differ slightly from the release"
)
_TOKENS = 16
_HEAD_WIDTH = 64  # of every BERT; told from shapes where kernels keep their heads apart
_GELU = "gelu_pytorch_tanh"
_BERT = "txt/BertEncoder_0/"
_BLOCK = re.compile(r"^img/Transformer/encoderblock_(\d+)/(\w+?)_(\d+)/(.+)$")
_LAYER = re.compile(r"^txt/BertEncoder_0/encoder_block/layer_sequence/layers_(\d+)/")


def is_big_vision(path: Path) -> bool:
    """Whether the path is such a file, by its suffix."""
    return path.suffix == ".npz" and path.is_file()


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary checkpoint folder with what `convert` makes of the file."""
    with tempfile.TemporaryDirectory(prefix="primelens-npz-") as folder:
        convert(path, Path(folder))
        yield Path(folder)


def convert(path: Path, folder: Path) -> Path:
    """Write the checkpoint folder; returns it.

    Args:
        path: the ``.npz`` file; its vocabulary lies beside it.
        folder: an existing folder.

    Raises:
        CheckpointError: the file or its vocabulary is missing or broken, or is no LiT model;
            ``problems`` lists tensors that are missing or left over.
        UnsupportedError: another text tower than BERT, another pooling than the class token, or a
            learned bias of the scores.
    """
    arrays = _read(path)
    _refuse(path, arrays)
    vision, text, size = _vision_config(arrays), _text_config(arrays), _output_width(arrays)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, ClassTokenTextConfig(text, pooled_size=size), projection_dim=size
    )
    model = VisionTextDualEncoderModel(config).eval()
    try:
        state = {**_image(arrays, vision, size), **_text(arrays, text)}
    except KeyError as error:
        raise CheckpointError(
            f"{path} lacks {error.args[0]!r}.", remedy="Fetch the file again."
        ) from error
    eye = np.eye(size, dtype=np.float32)
    state = {"text_projection.weight": eye, "logit_scale": arrays["t"].reshape(()), **state}
    tensors = {name: torch.from_numpy(np.array(a, np.float32)) for name, a in state.items()}
    _fill(model, tensors, path)
    model.save_pretrained(folder)
    _write_tokenizer(path.with_suffix(".txt"), folder, int(text.vocab_size))
    _write_processor(folder, _side(vision.image_size))
    return folder


def _read(path: Path) -> dict[str, Array]:
    """Name without ``params/`` → float32 array."""
    try:
        with np.load(path, allow_pickle=False) as file:
            raw = {name: file[name] for name in file.files if not name.startswith("opt/")}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as arrays: {error}", remedy="Fetch the file again."
        ) from error
    whole = any(name.startswith("params/") for name in raw)
    found = {}
    for name, array in raw.items():
        if not whole or name.startswith("params/"):
            found[name.removeprefix("params/")] = _widened(array)
    return found


def _widened(array: Array) -> Array:
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # how NumPy keeps bfloat16
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _refuse(path: Path, arrays: Mapping[str, Array]) -> None:
    if not any(name.startswith("img/") for name in arrays) or "t" not in arrays:
        raise CheckpointError(
            f"{path} is no two-towers model: it has no img/ and t.",
            remedy="Give a LiT checkpoint, as LiT-B16B.npz.",
        )
    gaps = []
    if not any(name.startswith(_BERT) for name in arrays):
        gaps.append("the text tower is not BERT")
    if "img/cls" not in arrays:
        gaps.append("the image tower has no class token: it pools by mean or attention")
    if any(name.startswith("img/pre_logits/") for name in arrays):
        gaps.append("the image tower has a pre_logits layer")
    if "b" in arrays:
        gaps.append("the scores have a learned bias (a sigmoid loss)")
    if "txt/head/kernel" not in arrays:
        gaps.append("the text tower has no head")
    if gaps:
        raise UnsupportedError(f"{path} asks for what is not converted:", problems=gaps)


def _depth(pattern: re.Pattern[str], arrays: Mapping[str, Array]) -> int:
    return 1 + max((int(m[1]) for name in arrays if (m := pattern.match(name))), default=-1)


def _position_table(arrays: Mapping[str, Array]) -> Array:
    for name in (
        "img/pos_embedding",
        "img/Transformer/pos_embedding",
        "img/Transformer/posembed_input/pos_embedding",
    ):
        if name in arrays:
            return arrays[name]
    raise CheckpointError("The file has no table of positions (img/pos_embedding).")


def _vision_config(arrays: Mapping[str, Array]) -> ViTConfig:
    kernel, places = arrays["img/embedding/kernel"], _position_table(arrays).shape[1]
    blocks = _blocks(arrays)
    query = blocks[0]["attention/query/kernel"]
    side = int(places**0.5)
    if side * side not in (places, places - 1):
        raise CheckpointError(f"{places} positions are no square of patches.")
    return ViTConfig(
        hidden_size=kernel.shape[3],
        num_hidden_layers=len(blocks),
        num_attention_heads=query.shape[1],
        intermediate_size=blocks[0]["mlp/Dense_0/kernel"].shape[1],
        hidden_act=_GELU,
        layer_norm_eps=1e-6,
        image_size=side * kernel.shape[0],
        patch_size=kernel.shape[0],
        qkv_bias=True,
        pooler_act="linear",
    )


def _text_config(arrays: Mapping[str, Array]) -> BertConfig:
    embedder = {
        kind: arrays[f"{_BERT}embedder/embedders_{kind}_ids/embedding"].shape
        for kind in ("token", "position", "segment")
    }
    first = f"{_BERT}encoder_block/layer_sequence/layers_0/"
    query = arrays[first + "attention_block/attention_layer/query/kernel"]
    width = embedder["token"][1]
    return BertConfig(
        vocab_size=embedder["token"][0],
        hidden_size=width,
        num_hidden_layers=_depth(_LAYER, arrays),
        num_attention_heads=query.shape[1] if query.ndim == 3 else width // _HEAD_WIDTH,
        intermediate_size=arrays[first + "mlp_block/mlp/dense_layer/kernel"].shape[1],
        hidden_act=_GELU,
        max_position_embeddings=embedder["position"][0],
        type_vocab_size=embedder["segment"][0],
        layer_norm_eps=1e-12,
        pad_token_id=0,
    )


def _output_width(arrays: Mapping[str, Array]) -> int:
    return int(arrays["txt/head/kernel"].shape[1])


def _blocks(arrays: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Per block its tensors as ``norm0``, ``norm1``, ``attention`` and ``mlp``: the two code bases
    number a block's modules differently, but in the same order.
    """
    blocks: list[dict[str, Array]] = [
        {} for _ in range(_depth(re.compile(r"^img/Transformer/encoderblock_(\d+)/"), arrays))
    ]
    numbers: dict[int, set[int]] = {}
    for name in arrays:
        if (m := _BLOCK.match(name)) and m[2] == "LayerNorm":
            numbers.setdefault(int(m[1]), set()).add(int(m[3]))
    names = {"MultiHeadDotProductAttention": "attention", "MlpBlock": "mlp"}
    for name, array in arrays.items():
        if m := _BLOCK.match(name):
            block, kind, number = int(m[1]), m[2], int(m[3])
            part = names.get(kind) or f"norm{sorted(numbers[block]).index(number)}"
            blocks[block][f"{part}/{m[4]}"] = array
    return blocks


def _side(size: Any) -> int:
    """Of a square, as transformers has it: one number, or two equal ones."""
    return int(size if isinstance(size, int) else size[0])


def _image(arrays: Mapping[str, Array], config: ViTConfig, size: int) -> dict[str, Array]:
    width, table = config.hidden_size, _position_table(arrays)
    if table.shape[1] == (_side(config.image_size) // _side(config.patch_size)) ** 2:
        # These positions were added before the class token was put in front: it has none.
        table = np.concatenate([np.zeros((1, 1, width), np.float32), table], axis=1)
    state = {
        "embeddings.cls_token": arrays["img/cls"],
        "embeddings.position_embeddings": table,
        "embeddings.patch_embeddings.projection.weight": arrays["img/embedding/kernel"].transpose(
            3, 2, 0, 1
        ),
        "embeddings.patch_embeddings.projection.bias": arrays["img/embedding/bias"],
        **_norm("layernorm", arrays, "img/Transformer/encoder_norm"),
        **_pooling(arrays, width, size),
    }
    for number, block in enumerate(_blocks(arrays)):
        to = f"layers.{number}."
        state |= _norm(f"{to}layernorm_before", block, "norm0")
        state |= _norm(f"{to}layernorm_after", block, "norm1")
        for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
            state |= _dense(f"{to}attention.{ours}_proj", block, f"attention/{theirs}", width)
        state |= _dense(f"{to}attention.o_proj", block, "attention/out", None)
        state |= _dense(f"{to}mlp.fc1", block, "mlp/Dense_0", width)
        state |= _dense(f"{to}mlp.fc2", block, "mlp/Dense_1", None)
    found = {f"vision_model.{name}": array for name, array in state.items()}
    return found | {"visual_projection.weight": _projection(arrays, width, size)}


def _pooling(arrays: Mapping[str, Array], width: int, size: int) -> dict[str, Array]:
    """The class token as it is, or through the image's head where that keeps the width."""
    if "img/head/kernel" in arrays and width == size:
        return _dense("pooler.dense", arrays, "img/head", width)
    zeros = np.zeros(width, np.float32)
    return {"pooler.dense.weight": np.eye(width, dtype=np.float32), "pooler.dense.bias": zeros}


def _projection(arrays: Mapping[str, Array], width: int, size: int) -> Array:
    if "img/head/kernel" not in arrays and width != size:
        raise CheckpointError(f"The image has width {width}, the text {size}, and no head.")
    if "img/head/kernel" not in arrays or width == size:
        return np.eye(size, width, dtype=np.float32)
    if np.any(arrays["img/head/bias"]):
        raise UnsupportedError("The image's head changes the width and has a bias.")
    kernel: Array = arrays["img/head/kernel"].T
    return kernel


def _text(arrays: Mapping[str, Array], config: BertConfig) -> dict[str, Array]:
    width = config.hidden_size
    tables = {"word": "token", "position": "position", "token_type": "segment"}
    state = {
        f"text.embeddings.{ours}_embeddings.weight": arrays[
            f"{_BERT}embedder/embedders_{theirs}_ids/embedding"
        ]
        for ours, theirs in tables.items()
    }
    state |= _norm("text.embeddings.LayerNorm", arrays, f"{_BERT}layer_norm")
    state |= _dense("dense", arrays, "txt/head", width)
    for number in range(config.num_hidden_layers):
        to, of = (
            f"text.encoder.layer.{number}.",
            f"{_BERT}encoder_block/layer_sequence/layers_{number}/",
        )
        attention = f"{of}attention_block/"
        for part in ("query", "key", "value"):
            name = f"{to}attention.self.{part}"
            state |= _dense(name, arrays, f"{attention}attention_layer/{part}", width)
        state |= _dense(f"{to}attention.output.dense", arrays, f"{attention}dense_layer", None)
        state |= _norm(f"{to}attention.output.LayerNorm", arrays, f"{attention}layer_norm")
        state |= _dense(f"{to}intermediate.dense", arrays, f"{of}mlp_block/mlp/dense_layer", width)
        state |= _dense(f"{to}output.dense", arrays, f"{of}mlp_block/dense_layer", None)
        state |= _norm(f"{to}output.LayerNorm", arrays, f"{of}mlp_block/layer_norm")
    return {f"text_model.{name}": array for name, array in state.items()}


def _norm(to: str, arrays: Mapping[str, Array], name: str) -> dict[str, Array]:
    return {f"{to}.weight": arrays[f"{name}/scale"], f"{to}.bias": arrays[f"{name}/bias"]}


def _dense(to: str, arrays: Mapping[str, Array], name: str, inputs: int | None) -> dict[str, Array]:
    """A kernel ``[in.., out..]``, heads apart or not, as ``[out, in]``.

    ``inputs`` is the input width; None where the *outputs* are the last axis by themselves.
    """
    kernel = arrays[f"{name}/kernel"]
    flat = kernel.reshape(-1, kernel.shape[-1]) if inputs is None else kernel.reshape(inputs, -1)
    return {f"{to}.weight": flat.T, f"{to}.bias": arrays[f"{name}/bias"].reshape(-1)}


def _fill(model: Any, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    state = model.state_dict()
    wanted = {name for name, t in state.items() if t.is_floating_point()}
    problems = [f"{name}: missing" for name in sorted(wanted - tensors.keys())]
    problems += [f"{name}: left over" for name in sorted(tensors.keys() - state.keys())]
    problems += [
        f"{name}: shape {list(tensors[name].shape)}, not {list(state[name].shape)}"
        for name in sorted(wanted & tensors.keys())
        if tensors[name].shape != state[name].shape
    ]
    if problems:
        raise CheckpointError(f"The tensors of {path} do not fit the model:", problems=problems)
    model.load_state_dict(dict(tensors), strict=False)


def _write_tokenizer(vocabulary: Path, folder: Path, size: int) -> None:
    try:
        words = vocabulary.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The vocabulary {vocabulary} cannot be read: {error}",
            remedy="Put BERT's vocab.txt beside the weights, under their name.",
        ) from error
    words = words[:-1] if words and not words[-1] else words
    absent = {"[PAD]", "[UNK]", "[CLS]"} - set(words)
    if absent or words[0] != "[PAD]" or len(words) > size:
        raise CheckpointError(
            f"{vocabulary} is not the vocabulary of these weights: {len(words)} words for {size} "
            f"rows, {', '.join(sorted(absent)) or 'nothing'} missing, first {words[0]!r}."
        )
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", vocab["[CLS]"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _TOKENS,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_processor(folder: Path, side: int) -> None:
    half = [0.5, 0.5, 0.5]
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": side, "width": side},
        "resample": 2,
        "image_mean": half,
        "image_std": half,
    }
    _write_json(folder / "preprocessor_config.json", settings)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
