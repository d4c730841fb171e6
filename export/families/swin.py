"""The Swin image towers: transformers ``SwinModel``, and Donut's ``DonutSwinModel``, which is the
same without a final normalisation. Both are tapped at the last hidden state.
"""

from __future__ import annotations

import re
from typing import Any

from primelens.export.registry import TowerSplit, register_tower
from primelens.export.towers import LastHiddenState, canonical, pair, upstream

__all__ = ["DonutSwinTower", "SwinTower"]

# The names of both classes and of older versions of transformers.
_RENAMES = (
    (r"^encoder\.layers\.(\d+)\.blocks\.(\d+)\.", r"stage.\1.layer.\2."),
    (r"^encoder\.layers\.(\d+)\.downsample\.", r"stage.\1.merge."),
    (
        r"attention\.(?:self\.|relative_position_bias\.)relative_position_bias_table$",
        "attention.relative_positions",
    ),
    (r"attention\.(?:self\.query|q_proj)\.", "attention.query."),
    (r"attention\.(?:self\.key|k_proj)\.", "attention.key."),
    (r"attention\.(?:self\.value|v_proj)\.", "attention.value."),
    (r"attention\.(?:output\.dense|o_proj)\.", "attention.out."),
    (r"layernorm_before\.", "attention.norm."),
    (r"layernorm_after\.", "mlp.norm."),
    (r"(?:mlp\.fc1|intermediate\.dense)\.", "mlp.up."),
    (r"(?:mlp\.fc2|(?<=\d\.)output\.dense)\.", "mlp.down."),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch."),
    (r"^embeddings\.norm\.", "patch.norm."),
    (r"^embeddings\.position_embeddings$", "positions"),
    (r"^layernorm\.", "norm."),
)
_UNUSED = re.compile(r"^embeddings\.mask_token$")


class _Swin:
    def gaps(self, config: Any) -> list[str]:
        channels = config.num_channels
        return [] if channels == 3 else [f"encoder.num_channels is {channels}; pictures have 3"]

    def split(self, model: Any) -> TowerSplit:
        config = model.config
        return TowerSplit(
            module=LastHiddenState(model),
            architecture={
                "activation": config.hidden_act,
                "depths": list(config.depths),
                "heads": list(config.num_heads),
                "image_size": list(pair(config.image_size)),
                "norm_epsilon": config.layer_norm_eps,
                "patch_size": list(pair(config.patch_size)),
                "window_size": config.window_size,
            },
            taps={"last_hidden_state": canonical(upstream(model, _UNUSED), _RENAMES)},
            size=pair(config.image_size),
        )


@register_tower
class SwinTower(_Swin):
    """Patches of the last stage, row by row, after the final normalisation."""

    name = "swin"
    model_types = ("swin",)


@register_tower
class DonutSwinTower(_Swin):
    """Patches of the last stage, row by row; pictures need not be square."""

    name = "donut_swin"
    model_types = ("donut-swin",)

    def gaps(self, config: Any) -> list[str]:
        gaps = super().gaps(config)
        if config.use_absolute_embeddings:
            # transformers 5.23 makes one position too many, and its own sum fails.
            gaps.append("encoder.use_absolute_embeddings is true")
        return gaps
