"""Random-weight checkpoints in the shape of the real ones, for tests and measurements.

`build` writes a complete checkpoint folder: configuration written out, weights, tokenizer,
preprocessor and generation settings. Freshly initialised weights make a nearly blind test: biases
are zero, norms are one, and the text repeats one token. So every bias, normalisation and position
is randomised at a scale that matters, the image is made to matter, and the head is sharpened until
the text has variety.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

__all__ = ["NAMES", "build", "model_of", "randomise", "write_companions"]

_BOS, _EOS, _PAD = "<s>", "</s>", "<pad>"
_TABLES = ("word_embeddings", "wte", "lm_head", "token_type")
_QUERY_OR_KEY = (".query.", ".key.", "q_attn")
_CROSS_OUT = ("crossattention.output.dense", "crossattention.c_proj")
_SHARP = 4.0  # spread of attention: scores vary enough for a state to choose what it looks at


def _vit(**fields: Any) -> dict[str, Any]:
    base = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "image_size": 224,
        "patch_size": 16,
        "qkv_bias": True,
    }
    return {**base, **fields}


def _gpt2(**fields: Any) -> dict[str, Any]:
    base = {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "add_cross_attention": True,
        "is_decoder": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return {**base, **fields}


def _bert(**fields: Any) -> dict[str, Any]:
    base = {
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "add_cross_attention": True,
        "is_decoder": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return {**base, **fields}


_TINY_VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}
_TINY_GPT2 = {"vocab_size": 320, "n_positions": 64, "n_embd": 64, "n_layer": 3, "n_head": 4}
_TINY_BERT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}

_WORKS: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "vitgpt2-base": lambda: (ViTConfig(**_vit()), GPT2Config(**_gpt2())),
    "vitbert-base": lambda: (ViTConfig(**_vit()), BertConfig(**_bert())),
    "tiny-vitgpt2": lambda: (ViTConfig(**_vit(**_TINY_VIT)), GPT2Config(**_gpt2(**_TINY_GPT2))),
    "tiny-vitbert": lambda: (ViTConfig(**_vit(**_TINY_VIT)), BertConfig(**_bert(**_TINY_BERT))),
}
NAMES = tuple(_WORKS)


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write the checkpoint called ``name`` (one of `NAMES`) into ``folder``; returns the folder."""
    folder = Path(folder)
    model = model_of(name, seed)
    model.save_pretrained(folder)
    size = int(model.config.encoder.image_size)
    write_companions(folder, vocab_size=int(model.config.decoder.vocab_size), size=size)
    return folder


def model_of(name: str, seed: int = 0) -> Any:
    """The model called ``name`` with randomised weights, in float32 and evaluation mode."""
    encoder, decoder = _WORKS[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        config.decoder_start_token_id = 0
        model = VisionEncoderDecoderModel(config).eval()
    generation = model.generation_config
    generation.decoder_start_token_id, generation.bos_token_id = 0, 0
    generation.eos_token_id, generation.pad_token_id = 1, 2
    randomise(model, seed)
    return model


@torch.no_grad()
def randomise(model: Any, seed: int) -> None:
    """Give every parameter of a ``VisionEncoderDecoderModel`` a value that matters.

    Matrices keep a variance that preserves scale; biases, norm weights and positions get spread;
    attention in the decoder is sharp, so that the picture and the past steer the text and greedy
    decoding wanders.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(_randomised(name, parameter, noise))


def _randomised(name: str, parameter: torch.Tensor, noise: torch.Tensor) -> Any:
    """Independent normal values, at the scale that fits the parameter's role."""
    decoder = name.startswith("decoder.")
    if name.endswith("bias"):
        return (0.1 if decoder else 0.2) * noise
    if "norm" in name.lower() or "ln_" in name:
        return 1.0 + 0.2 * noise
    if "position" in name or "wpe" in name:
        return (2.0 if decoder else 0.5) * noise  # so that no two steps look alike
    if parameter.ndim < 2 or "_token" in name or any(part in name for part in _TABLES):
        return 0.5 * noise
    conv1d = ".c_" in name or "q_attn" in name  # stored [in, out]
    fan_in = parameter.shape[0] if conv1d else parameter[0].numel()
    weight = noise / fan_in**0.5
    if any(part in name for part in _CROSS_OUT):
        return 0.4 * weight  # else what the picture says drowns what the text says
    if decoder and any(part in name for part in _QUERY_OR_KEY):
        weight *= _SHARP
    elif decoder and "c_attn" in name:  # [query,] key and value side by side: all but value
        weight[:, : -parameter.shape[0]] *= _SHARP
    return weight


def write_companions(folder: Path, *, vocab_size: int, size: int) -> None:
    """Tokenizer and preprocessor files for a checkpoint folder."""
    _tokenizer(vocab_size).save(str(folder / "tokenizer.json"))
    special = {"bos_token": _BOS, "eos_token": _EOS, "pad_token": _PAD}
    _write_json(
        folder / "tokenizer_config.json",
        {**special, "tokenizer_class": "PreTrainedTokenizerFast"},
    )
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.45, 0.4],
            "image_std": [0.5, 0.45, 0.55],
        },
    )


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly ``vocab_size`` ids; its merges are all pairs, level by level."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([_BOS, _EOS, _PAD, *alphabet])}
    merges: list[tuple[str, str]] = []
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = ["Ġ", *letters, *(a + b for a in ["Ġ", *letters] for b in letters)]
    for left, right in itertools.chain.from_iterable(
        ((a, b) for a in pieces[: 27 * n] for b in letters) for n in (1, 28)
    ):
        if len(vocab) >= vocab_size:
            break
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append((left, right))
    while len(vocab) < vocab_size:
        vocab[f"<extra{len(vocab)}>"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_BOS, _EOS, _PAD])
    return tokenizer
