"""The DeiT image tower (transformers ``DeiTModel``), tapped after its final normalisation."""

from __future__ import annotations

from typing import Any

from primelens.export.families.vit import RENAMES, UNUSED, vit_architecture, vit_gaps
from primelens.export.registry import TowerSplit, register_tower
from primelens.export.towers import LastHiddenState, canonical, pair, upstream

__all__ = ["DeitTower"]


@register_tower
class DeitTower:
    """Class token, distillation token, then the patches row by row."""

    name = "deit"
    model_types = ("deit",)

    def gaps(self, config: Any) -> list[str]:
        return vit_gaps(config)

    def split(self, model: Any) -> TowerSplit:
        return TowerSplit(
            module=LastHiddenState(model),
            architecture=vit_architecture(model.config),
            taps={"last_hidden_state": canonical(upstream(model, UNUSED), RENAMES)},
            size=pair(model.config.image_size),
        )
