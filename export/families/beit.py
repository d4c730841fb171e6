"""The BEiT image tower (transformers ``BeitModel``), tapped after its final normalisation.

Where ``use_mean_pooling`` is set there is no final normalisation (it belongs to the pooler), and
the tap is what the last layer says.
"""

from __future__ import annotations

import re
from typing import Any

from primelens.export.families.vit import RENAMES, vit_architecture, vit_gaps
from primelens.export.registry import TowerSplit, register_tower
from primelens.export.towers import LastHiddenState, canonical, pair, upstream

__all__ = ["BeitTower"]

_RENAMES = (
    # Older names of relative positions, then everything as in ViT.
    (r"attention\.attention\.relative_position_bias\.", "relative_position_bias."),
    (r"^encoder\.relative_position_bias\.", "shared_position_bias."),
    (r"relative_position_bias\.relative_position_bias_table$", "relative_positions"),
    (r"shared_position_bias\.relative_position_bias_table$", "relative_positions"),
    *RENAMES,
    (r"lambda_1$", "attention.scale"),
    (r"lambda_2$", "mlp.scale"),
)
_UNUSED = re.compile(r"^(pooler\.|embeddings\.mask_token$)")


@register_tower
class BeitTower:
    """Class token first, then the patches row by row; positions are relative, absolute or both."""

    name = "beit"
    model_types = ("beit",)

    def gaps(self, config: Any) -> list[str]:
        gaps = vit_gaps(config)
        if not isinstance(config.patch_size, int):
            gaps.append(f"encoder.patch_size is {config.patch_size!r}, not one number")
        return gaps

    def split(self, model: Any) -> TowerSplit:
        config = model.config
        return TowerSplit(
            module=LastHiddenState(model),
            architecture={
                **vit_architecture(config),
                "final_norm": not config.use_mean_pooling,
                "relative_positions": config.use_relative_position_bias,
                "shared_relative_positions": config.use_shared_relative_position_bias,
            },
            taps={"last_hidden_state": canonical(upstream(model, _UNUSED), _RENAMES)},
            size=pair(config.image_size),
        )
