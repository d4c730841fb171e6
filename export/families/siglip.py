"""transformers ``SiglipModel``: pairs are scored by themselves, with a learned bias.

SigLIP 2 at a fixed resolution is the same model type. The pooled vector is that of the tower's
attention-pooling head, which is locked with it. Texts are padded to the greatest length, and their
last place is what is read, so padding is part of the text: whether the attention sees it is what
the checkpoint's tokenizer says (``model_input_names``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import transformers

from primelens.export.dual_encoder import (
    POOLED,
    STATES,
    DualEncoderReference,
    ImageSide,
    TextSide,
    right_of_the_seam,
    scale_of,
)
from primelens.export.families.clip import (
    RENAMES,
    StatesAndPooled,
    clip_architecture,
    whole_model,
)
from primelens.export.registry import (
    ModelSplit,
    RankSplit,
    TowerSplit,
    register_model,
    register_tower,
    tower_family,
)
from primelens.export.towers import LastHiddenState, canonical, pair, tapped_at, upstream

__all__ = ["Siglip", "SiglipTower"]

_RENAMES = ((r"^head\.", "pooler."), *RENAMES)
_HEAD = re.compile(r"^head\.")
_NOTHING = re.compile(r"(?!)")


@register_tower
class SiglipTower:
    """Patches row by row after the final normalisation; and what the pooling head makes of them."""

    name = "siglip"
    model_types = ("siglip_vision_model",)

    def gaps(self, config: Any) -> list[str]:
        channels = config.num_channels
        return [] if channels == 3 else [f"vision.num_channels is {channels}; pictures have 3"]

    def split(self, model: Any) -> TowerSplit:
        taps = {STATES: canonical(upstream(model, _HEAD), _RENAMES)}
        pooled = model.config.vision_use_head
        if pooled:
            taps[POOLED] = canonical(upstream(model, _NOTHING), _RENAMES)
        return TowerSplit(
            module=StatesAndPooled(model) if pooled else LastHiddenState(model),
            architecture=clip_architecture(model.config),
            taps=taps,
            size=pair(model.config.image_size),
        )


@register_model
class Siglip:
    """One rank head, ``rank``, on the tower's pooled vector; nothing of the image is projected."""

    name = "siglip"
    model_types = ("siglip",)

    def gaps(self, config: Any) -> list[str]:
        vision, text = config.vision_config, config.text_config
        gaps = tower_family(vision.model_type).gaps(vision)
        if not vision.vision_use_head:
            gaps.append("vision_config.vision_use_head is false: nothing is pooled")
        if text.projection_size != vision.hidden_size:
            sizes = f"{text.projection_size}, the tower's width is {vision.hidden_size}"
            gaps.append(f"text_config.projection_size is {sizes}")
        return gaps

    def load(self, folder: str) -> tuple[Any, Mapping[str, Any]]:
        return whole_model(transformers.SiglipModel, folder)

    def split(self, model: Any) -> ModelSplit:
        tower = tower_family(model.vision_model.config.model_type)
        head = RankSplit(
            tap=POOLED,
            image=ImageSide(None),
            text=TextSide(model.text_model, None),
            width=model.config.text_config.projection_size,
            scoring="sigmoid",
            scale=scale_of(model.logit_scale),
            bias=float(model.logit_bias.item()),
            max_positions=model.config.text_config.max_position_embeddings,
            pad_to_max=True,
            tensors=right_of_the_seam(model, "vision_model."),
            reference=DualEncoderReference(model, POOLED),
        )
        split = tapped_at(tower.split(model.vision_model), [POOLED])
        return ModelSplit(tower.name, split, {"rank": head})
