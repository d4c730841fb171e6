"""Every family through the whole export, and the identity of towers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    GPT2Config,
    ResNetConfig,
    ViTConfig,
)

from primelens.export import ExportOptions, GateOptions, export_checkpoint, supported
from primelens.export.checkpoint import open_checkpoint
from primelens.export.companions import write_companions
from primelens.export.registry import register_tower, tower_family
from primelens.export.works.vision_encoder_decoder import vision_encoder_decoder
from primelens.identity import tower_identity
from primelens.towers import FeatureMapTowerConfig

from .conftest import Work

GATE = GateOptions(threads=1, random_images=2, steps=12)
SIZE = 32

VIT: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": SIZE,
    "patch_size": 16,
}
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "is_decoder": True,
    "add_cross_attention": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GPT2: dict[str, Any] = {**TEXT, "n_positions": 40, "n_embd": 48, "n_layer": 2, "n_head": 3}
BERT: dict[str, Any] = {
    **TEXT,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def feature_map(**fields: Any) -> FeatureMapTowerConfig:
    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"
    )
    return FeatureMapTowerConfig(backbone_config=backbone, grid_size=(4, 4), **fields)


# What the small reference works, each of which meets the mutation table, leave out.
CASES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "vit, other activation and patches": lambda: (
        ViTConfig(**{**VIT, "hidden_act": "gelu_pytorch_tanh", "qkv_bias": False}),
        GPT2Config(**GPT2),
    ),
    "feature map, folded": lambda: (
        feature_map(folded=True, position_embedding=False),
        GPT2Config(**{**GPT2, "activation_function": "relu", "n_inner": 40}),
    ),
    "gpt2, scales": lambda: (
        ViTConfig(**VIT),
        GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
    ),
    "gpt2, unscaled": lambda: (
        ViTConfig(**VIT),
        GPT2Config(**{**GPT2, "scale_attn_weights": False, "activation_function": "gelu"}),
    ),
    "bert, other activation, untied": lambda: (
        ViTConfig(**VIT),
        BertConfig(**{**BERT, "hidden_act": "silu"}, tie_word_embeddings=False),
    ),
}


def write(folder: Path, encoder: Any, decoder: Any, seed: int = 3) -> Path:
    vision_encoder_decoder(encoder, decoder, seed).save_pretrained(folder)
    write_companions(folder, vocab_size=320, size=SIZE)
    return folder


@pytest.mark.parametrize("case", list(CASES))
def test_the_gate_passes(tmp_path: Path, case: str) -> None:
    folder = write(tmp_path / "checkpoint", *CASES[case]())
    report = export_checkpoint(folder, tmp_path / "out", ExportOptions(gate=GATE))
    assert report.passed
    assert report.parity["heads"]["caption"]["tokens_compared"] >= 2 * 12


def test_what_is_supported_is_discovered() -> None:
    """At least these; every file in the families' folder adds its own."""
    found = supported()
    assert {"beit", "deit", "donut-swin", "feature_map_tower", "swin", "vit"} <= set(
        found["towers"]
    )
    assert {"bart", "bert", "gpt2", "mbart", "roberta", "trocr"} <= set(found["decoders"])
    assert "vision-encoder-decoder" in found["models"]


def test_two_families_cannot_claim_one_model_type() -> None:
    tower_family("vit")

    class Impostor:
        name = "impostor"
        model_types = ("vit",)

    with pytest.raises(ValueError, match="two families claim"):
        register_tower(Impostor)


# Identity ---------------------------------------------------------------------------------------


def identity(work_or_folder: Path | Work, **changes: Any) -> str:
    if isinstance(work_or_folder, Path):
        checkpoint = open_checkpoint(work_or_folder)
        split = checkpoint.family.split(checkpoint.model)
    else:
        checkpoint, split = work_or_folder.checkpoint, work_or_folder.split
    tensors = split.tower.taps["last_hidden_state"]
    fields: dict[str, Any] = {
        "family": split.tower_family,
        "architecture": split.tower.architecture,
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "tap": "last_hidden_state",
        "tensors": {name: tensor.numpy() for name, tensor in tensors.items()},
    }
    return tower_identity(**{**fields, **changes})


def test_the_same_tower_under_two_decoders_has_one_identity(
    works: Callable[[str], Work],
) -> None:
    """So that what is kept for one text side serves the other."""
    assert identity(works("tiny-vitgpt2")) == identity(works("tiny-vitbert"))
    first, second = (works(name).draft.tower.taps for name in ("tiny-vitgpt2", "tiny-vitbert"))
    assert first == second
    assert first["last_hidden_state"].identity == identity(works("tiny-vitgpt2"))


def test_one_bit_of_any_weight_changes_the_identity(works: Callable[[str], Work]) -> None:
    work = works("tiny-vitgpt2")
    tensors = work.split.tower.taps["last_hidden_state"]
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    seen = {identity(work)}
    for name, array in arrays.items():
        changed = array.copy()
        changed.view("<u4").reshape(-1)[-1] ^= 1
        seen.add(identity(work, tensors={**arrays, name: changed}))
    assert len(seen) == len(arrays) + 1


def test_weights_that_no_tap_reads_do_not_matter(tmp_path: Path) -> None:
    first = write(tmp_path / "a", ViTConfig(**VIT), GPT2Config(**GPT2))
    before = identity(first)
    checkpoint = open_checkpoint(first)
    assert checkpoint.model.encoder.pooler is not None
    checkpoint.model.encoder.pooler.dense.weight.mul_(2)
    checkpoint.model.decoder.transformer.ln_f.bias.add_(1)
    checkpoint.model.save_pretrained(first)
    assert identity(first) == before
    checkpoint.model.encoder.layernorm.bias.add_(1)
    checkpoint.model.save_pretrained(first)
    assert identity(first) != before


def test_architecture_and_preprocessing_are_part_of_the_identity(
    works: Callable[[str], Work],
) -> None:
    work = works("tiny-vitgpt2")
    architecture = dict(work.split.tower.architecture)
    preprocessing = work.checkpoint.preprocessing.to_dict()
    seen = {identity(work)}
    for name in architecture:
        seen.add(identity(work, architecture={**architecture, name: "other"}))
    for name in preprocessing:
        seen.add(identity(work, preprocessing={**preprocessing, name: "other"}))
    assert len(seen) == 1 + len(architecture) + len(preprocessing)


def test_older_names_of_the_same_tensors_are_the_same(works: Callable[[str], Work]) -> None:
    """transformers renamed ViT's modules; what is kept must survive that."""
    from primelens.export.families.vit import RENAMES
    from primelens.export.towers import canonical

    model = works("tiny-vitgpt2").checkpoint.model.encoder
    patch = model.embeddings.patch_embeddings.projection
    older = {
        "embeddings.cls_token": model.embeddings.cls_token,
        "embeddings.position_embeddings": model.embeddings.position_embeddings,
        "embeddings.patch_embeddings.projection.weight": patch.weight,
        "embeddings.patch_embeddings.projection.bias": patch.bias,
        "layernorm.weight": model.layernorm.weight,
        "layernorm.bias": model.layernorm.bias,
    }
    parts = {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "layernorm_before": "layernorm_before",
        "layernorm_after": "layernorm_after",
    }
    state = model.state_dict()
    for layer in range(2):
        for old, new in parts.items():
            for kind in ("weight", "bias"):
                older[f"encoder.layer.{layer}.{old}.{kind}"] = state[f"layers.{layer}.{new}.{kind}"]
    found = canonical(older, RENAMES)
    wanted = works("tiny-vitgpt2").split.tower.taps["last_hidden_state"]
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
