"""A toy architecture as one file: a tower of its own, registered, and nothing edited elsewhere.

The tower cuts the picture into a grid and projects every cell's mean colour. Importing this file is
all that it takes to export, prove and run a ``VisionEncoderDecoderModel`` with it.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from primelens.export.registry import TowerSplit, register_tower
from primelens.export.towers import LastHiddenState, canonical, upstream


class MosaicConfig(PreTrainedConfig):
    model_type = "toy-mosaic"

    def __init__(self, cells: int = 4, hidden_size: int = 24, **kwargs: Any) -> None:
        self.cells, self.hidden_size = cells, hidden_size
        super().__init__(**kwargs)


class MosaicModel(PreTrainedModel):
    config_class = MosaicConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MosaicConfig) -> None:
        super().__init__(config)
        self.colour = nn.Linear(3, config.hidden_size)
        self.places = nn.Parameter(torch.zeros(config.cells**2, config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        rows, channels, height, width = pixel_values.shape
        cells = self.config.cells
        shape = (rows, channels, cells, height // cells, cells, width // cells)
        means = pixel_values.reshape(shape).mean(dim=(3, 5)).flatten(2).transpose(1, 2)
        states = self.norm(torch.tanh(self.colour(means)) + self.places)
        return BaseModelOutput(last_hidden_state=states)


AutoConfig.register(MosaicConfig.model_type, MosaicConfig)
AutoModel.register(MosaicConfig, MosaicModel)


@register_tower
class MosaicTower:
    """Cells row by row."""

    name = "toy_mosaic"
    model_types = ("toy-mosaic",)

    def gaps(self, config: Any) -> list[str]:
        return [] if config.cells > 1 else ["encoder.cells is 1: there would be no mosaic"]

    def split(self, model: Any) -> TowerSplit:
        tensors = canonical(upstream(model, re.compile(r"^$")), ((r"^places$", "positions"),))
        return TowerSplit(
            module=LastHiddenState(model),
            architecture={"cells": model.config.cells},
            taps={"last_hidden_state": tensors},
            size=None,
        )
