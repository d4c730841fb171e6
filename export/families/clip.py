"""transformers ``CLIPModel``: an image tower, a causal text tower, a learned temperature.

The text is pooled at its first end token (or, where the configuration's ``eos_token_id`` is 2, at
its greatest id, as transformers does for the checkpoints that were saved so).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from primelens.export.dual_encoder import (
    POOLED,
    STATES,
    DualEncoderReference,
    ImageSide,
    TextSide,
    projection_of,
    right_of_the_seam,
    scale_of,
)
from primelens.export.registry import (
    ModelSplit,
    RankSplit,
    TowerSplit,
    register_model,
    register_tower,
    tower_family,
)
from primelens.export.towers import canonical, pair, tapped_at, upstream

__all__ = ["RENAMES", "Clip", "ClipTower", "StatesAndPooled", "clip_architecture", "whole_model"]

RENAMES = (
    (r"^encoder\.layers\.(\d+)\.", r"layer.\1."),
    (r"self_attn\.(q|k|v)_proj\.", r"attention.\1_proj."),
    (r"q_proj\.", "query."),
    (r"k_proj\.", "key."),
    (r"v_proj\.", "value."),
    (r"self_attn\.out_proj\.", "attention.out."),
    (r"layer_norm1\.", "attention.norm."),
    (r"layer_norm2\.", "mlp.norm."),
    (r"mlp\.fc1\.", "mlp.up."),
    (r"mlp\.fc2\.", "mlp.down."),
    (r"^embeddings\.patch_embedding\.", "patch."),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "positions"),
    (r"^pre_layrnorm\.", "pre_norm."),
    (r"^post_layernorm\.", "norm."),
)
_NOTHING = re.compile(r"(?!)")
_AFTER_STATES = re.compile(r"^post_layernorm\.")


class StatesAndPooled(torch.nn.Module):
    """A tower reduced to ``pixel_values`` → ``(last_hidden_state, pooler_output)``."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``[B, 3, H, W]`` → ``[B, L, C]``, ``[B, C]``."""
        output = self.model(pixel_values=pixel_values)
        return output.last_hidden_state, output.pooler_output


def clip_architecture(config: Any) -> dict[str, Any]:
    """The fields that shape the computation of CLIP's and SigLIP's towers, shapes aside."""
    return {
        "activation": config.hidden_act,
        "heads": config.num_attention_heads,
        "image_size": list(pair(config.image_size)),
        "layers": config.num_hidden_layers,
        "norm_epsilon": config.layer_norm_eps,
        "patch_size": list(pair(config.patch_size)),
    }


@register_tower
class ClipTower:
    """The last layer's states, class token first; and the class token's, normalised."""

    name = "clip"
    model_types = ("clip_vision_model",)

    def gaps(self, config: Any) -> list[str]:
        channels = config.num_channels
        return [] if channels == 3 else [f"vision.num_channels is {channels}; pictures have 3"]

    def split(self, model: Any) -> TowerSplit:
        return TowerSplit(
            module=StatesAndPooled(model),
            architecture=clip_architecture(model.config),
            taps={
                STATES: canonical(upstream(model, _AFTER_STATES), RENAMES),
                POOLED: canonical(upstream(model, _NOTHING), RENAMES),
            },
            size=pair(model.config.image_size),
        )


def whole_model(class_: Any, folder: str) -> tuple[Any, Mapping[str, Any]]:
    """A model in float32, and transformers' loading report."""
    loaded: tuple[Any, Mapping[str, Any]] = class_.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    return loaded


@register_model
class Clip:
    """One rank head, ``rank``, on the tower's pooled vector."""

    name = "clip"
    model_types = ("clip",)

    def gaps(self, config: Any) -> list[str]:
        return tower_family(config.vision_config.model_type).gaps(config.vision_config)

    def load(self, folder: str) -> tuple[Any, Mapping[str, Any]]:
        return whole_model(transformers.CLIPModel, folder)

    def split(self, model: Any) -> ModelSplit:
        tower = tower_family(model.vision_model.config.model_type)
        head = RankSplit(
            tap=POOLED,
            image=ImageSide(projection_of(model.visual_projection)),
            text=TextSide(model.text_model, projection_of(model.text_projection)),
            width=model.config.projection_dim,
            scoring="softmax",
            scale=scale_of(model.logit_scale),
            bias=0.0,
            max_positions=model.config.text_config.max_position_embeddings,
            pad_to_max=False,
            tensors=right_of_the_seam(model, "vision_model."),
            reference=DualEncoderReference(model, POOLED),
        )
        split = tapped_at(tower.split(model.vision_model), [POOLED])
        return ModelSplit(tower.name, split, {"rank": head})
