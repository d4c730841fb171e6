"""The ViT image tower (transformers ``ViTModel``), tapped after its final normalisation."""

from __future__ import annotations

import re
from typing import Any

import torch

from primelens.export.registry import TowerSplit, register_tower
from primelens.export.towers import LastHiddenState, canonical, pair, upstream

__all__ = ["VitTower"]

# transformers 5.23's names, then the older ones of the same tensors.
RENAMES = (
    (r"(?:encoder\.)?layers?\.(\d+)\.", r"layer.\1."),
    (r"attention\.attention\.", "attention."),
    (r"attention\.(?:output\.dense|o_proj)\.", "attention.out."),
    (r"attention\.(?:query|q_proj)\.", "attention.query."),
    (r"attention\.(?:key|k_proj)\.", "attention.key."),
    (r"attention\.(?:value|v_proj)\.", "attention.value."),
    (r"layernorm_before\.", "attention.norm."),
    (r"layernorm_after\.", "mlp.norm."),
    (r"(?:mlp\.fc1|intermediate\.dense)\.", "mlp.up."),
    (r"(?:mlp\.fc2|(?<=\d\.)output\.dense)\.", "mlp.down."),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch."),
    (r"^embeddings\.(cls_token|distillation_token)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "positions"),
    (r"^layernorm\.", "norm."),
)
UNUSED = re.compile(r"^(pooler\.|embeddings\.mask_token$)")


def vit_architecture(config: Any) -> dict[str, Any]:
    """The fields that shape a ViT's computation, tensor shapes aside."""
    return {
        "activation": config.hidden_act,
        "heads": config.num_attention_heads,
        "image_size": list(pair(config.image_size)),
        "layers": config.num_hidden_layers,
        "norm_epsilon": config.layer_norm_eps,
        "patch_size": list(pair(config.patch_size)),
    }


def vit_gaps(config: Any) -> list[str]:
    """What a ViT-like configuration asks for that the taps do not mirror."""
    gaps = []
    if config.num_channels != 3:
        gaps.append(f"encoder.num_channels is {config.num_channels}; pictures have 3")
    return gaps


@register_tower
class VitTower:
    """Class token first, then the patches row by row."""

    name = "vit"
    model_types = ("vit",)

    def gaps(self, config: Any) -> list[str]:
        return vit_gaps(config)

    def split(self, model: Any) -> TowerSplit:
        tensors: dict[str, torch.Tensor] = canonical(upstream(model, UNUSED), RENAMES)
        return TowerSplit(
            module=LastHiddenState(model),
            architecture=vit_architecture(model.config),
            taps={"last_hidden_state": tensors},
            size=pair(model.config.image_size),
        )
