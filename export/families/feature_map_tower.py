"""A convolutional image tower whose last map is flattened (`primelens.towers.FeatureMapTower`)."""

from __future__ import annotations

import re
from typing import Any

from primelens.export.registry import TowerSplit, register_tower
from primelens.export.towers import LastHiddenState, canonical, upstream
from primelens.towers.feature_map import fold_normalisation

__all__ = ["FeatureMap"]

# Fields of the backbone's configuration that shape the computation, tensor shapes aside.
_BACKBONE_FIELDS = {
    "resnet": (
        "depths",
        "downsample_in_bottleneck",
        "downsample_in_first_stage",
        "hidden_act",
        "layer_type",
    ),
    "convnext": ("depths", "hidden_act", "layer_norm_eps", "patch_size"),
}
_RENAMES = ((r"^backbone\.", ""), (r"^position_table$", "positions"))
_UNUSED = re.compile(r"^backbone\.(layernorm|pooler)\.")  # only the pooled output reads them


@register_tower
class FeatureMap:
    """The map row by row, plus a learned position table where there is one.

    A batch normalisation is folded into the convolution before it, in float64; taps and digests
    are of the weights as they are in the checkpoint.
    """

    name = "feature_map_tower"
    model_types = ("feature_map_tower",)

    def gaps(self, config: Any) -> list[str]:
        channels = config.backbone_config.num_channels
        return [] if channels == 3 else [f"encoder.num_channels is {channels}; pictures have 3"]

    def split(self, model: Any) -> TowerSplit:
        config, backbone = model.config, model.config.backbone_config
        fields = {name: getattr(backbone, name) for name in _BACKBONE_FIELDS[backbone.model_type]}
        folds = backbone.model_type == "resnet" and not config.folded
        return TowerSplit(
            module=LastHiddenState(fold_normalisation(model) if folds else model),
            architecture={
                "backbone": {"type": backbone.model_type, **fields},
                "folded": config.folded,
                "grid_size": list(config.grid_size),
                "position_embedding": config.position_embedding,
            },
            taps={"last_hidden_state": canonical(upstream(model, _UNUSED), _RENAMES)},
            size=None,
        )
