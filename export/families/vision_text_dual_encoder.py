"""transformers ``VisionTextDualEncoderModel``, the form of LiT: any supported tower, a text tower.

The seam runs after the tower's own pooled vector; over a `primelens.towers.PooledTower`, whose
pooling is tuned, after the states. The image projection may be the identity, as where only the
text side is projected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import transformers

import primelens.towers  # noqa: F401 - registers our own tower classes with transformers
from primelens.errors import UnsupportedError
from primelens.export.dual_encoder import (
    POOLED,
    STATES,
    DualEncoderReference,
    ImageSide,
    TextSide,
    pooled_only,
    projection_of,
    right_of_the_seam,
    scale_of,
)
from primelens.export.families.clip import whole_model
from primelens.export.registry import (
    ModelSplit,
    RankSplit,
    TowerSplit,
    register_model,
    tower_family,
)
from primelens.export.towers import tapped_at

__all__ = ["VisionTextDualEncoder"]

_WORN = "pooled_tower"
_WITHOUT_POOLED = ("feature_map_tower",)


def _all(config: Any) -> int:
    return int(config.max_position_embeddings)


def _after_padding(config: Any) -> int:
    return int(config.max_position_embeddings - config.pad_token_id - 1)


# Model type of a text tower → how many tokens its positions are for.
_TEXT_TOWERS: Mapping[str, Callable[[Any], int]] = {
    "bert": _all,
    "class_token_text": lambda config: _all(config.text_config),
    "clip_text_model": _all,
    "roberta": _after_padding,
    "xlm-roberta": _after_padding,
}


@register_model
class VisionTextDualEncoder:
    """One rank head, ``rank``."""

    name = "vision_text_dual_encoder"
    model_types = ("vision-text-dual-encoder",)
    unused_weights = re.compile(r"^vision_model\.tower\.pooler\.")  # of a worn tower

    def gaps(self, config: Any) -> list[str]:
        vision, text = config.vision_config, config.text_config
        worn = vision.model_type == _WORN
        tower = vision.tower_config if worn else vision
        gaps = []
        try:
            gaps += tower_family(tower.model_type).gaps(tower)
        except UnsupportedError as error:
            gaps.append(str(error))
        if not worn and vision.model_type in _WITHOUT_POOLED:
            gaps.append(f"vision_config is a {vision.model_type}, which pools nothing: wear it in "
                        f"a {_WORN}")  # fmt: skip
        if text.model_type not in _TEXT_TOWERS:
            known = ", ".join(_TEXT_TOWERS)
            gaps.append(f"text_config.model_type is {text.model_type!r}, not one of {known}")
        elif getattr(text, "is_decoder", False):
            gaps.append("text_config.is_decoder is true: a text tower reads in both directions")
        return gaps

    def load(self, folder: str) -> tuple[Any, Mapping[str, Any]]:
        return whole_model(transformers.VisionTextDualEncoderModel, folder)

    def split(self, model: Any) -> ModelSplit:
        vision, text = model.vision_model, model.config.text_config
        name, tower, worn = _tower(vision)
        pooling = vision.pooling if worn else None
        bias = float(getattr(model.config, "logit_bias", 0.0))
        head = RankSplit(
            tap=STATES if worn else POOLED,
            image=ImageSide(projection_of(model.visual_projection), pooling),
            text=TextSide(model.text_model, projection_of(model.text_projection)),
            width=model.config.projection_dim,
            # transformers' class knows the softmax alone; tuning by sigmoids says so in the config.
            scoring=getattr(model.config, "scoring", "softmax"),
            scale=scale_of(model.logit_scale),
            bias=bias,
            max_positions=_TEXT_TOWERS[text.model_type](text),
            pad_to_max=False,
            tensors=right_of_the_seam(model, "vision_model.tower." if worn else "vision_model."),
            reference=DualEncoderReference(model, STATES if worn else POOLED, pooling, bias),
        )
        return ModelSplit(name, tower, {"rank": head})


def _tower(vision: Any) -> tuple[str, TowerSplit, bool]:
    """Name of the tower's family, the tower at the tap that the head reads, and whether it is worn
    in a pooling.
    """
    if vision.config.model_type == _WORN:
        family = tower_family(vision.tower.config.model_type)
        return family.name, tapped_at(family.split(vision.tower), [STATES]), True
    family = tower_family(vision.config.model_type)
    return family.name, pooled_only(family.split(vision), vision), False
