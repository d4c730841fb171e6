"""A convolutional backbone worn as an image tower: its last feature map becomes a row of states.

``VisionEncoderDecoderModel`` wants an encoder with a ``hidden_size`` whose first output is
``[B, S, C]``. The convolutional models of transformers have neither, so this wrapper flattens the
last map and, because flattening forgets where a state came from, can add a learned table of
positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    ConvNextConfig,
    ConvNextModel,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
)
from transformers.modeling_outputs import BaseModelOutput

_BACKBONES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "resnet": (ResNetConfig, ResNetModel),
    "convnext": (ConvNextConfig, ConvNextModel),
}


class FeatureMapTowerConfig(PreTrainedConfig):
    """How a backbone becomes a tower.

    Args:
        backbone_config: configuration of the backbone, or its dictionary with a ``model_type`` of
            ``resnet`` or ``convnext``. ``None`` is a ResNet with transformers' own defaults.
        grid_size: rows and columns of the last feature map for the picture size the tower was made
            for; gives the length of the position table.
        position_embedding: add a learned table ``[rows * columns, C]`` to the flattened map.
        folded: the batch normalisations were folded into the convolutions, which therefore have
            biases and no normalisation layer behind them. Only a ResNet can be folded.

    Raises:
        ValueError: for an unknown backbone, or a folded one that has no batch normalisation.
    """

    model_type = "feature_map_tower"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - transformers reads it as is

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        grid_size: tuple[int, int] | list[int] = (8, 8),
        position_embedding: bool = True,
        folded: bool = False,
        **kwargs: Any,
    ) -> None:
        if backbone_config is None:
            backbone_config = ResNetConfig()
        elif isinstance(backbone_config, dict):
            fields = dict(backbone_config)
            backbone_config = _backbone_classes(str(fields.pop("model_type", "resnet")))[0](
                **fields
            )
        _backbone_classes(backbone_config.model_type)
        if folded and backbone_config.model_type != "resnet":
            raise ValueError(
                f"a {backbone_config.model_type} backbone has no batch normalisation to fold: "
                "set folded to false"
            )
        self.backbone_config = backbone_config
        self.grid_size = list(grid_size)
        self.position_embedding = position_embedding
        self.folded = folded
        self.hidden_size = int(backbone_config.hidden_sizes[-1])
        kwargs.pop("hidden_size", None)
        super().__init__(**kwargs)


class FeatureMapTower(PreTrainedModel):
    """The tower: ``pixel_values [B, 3, H, W]`` to ``last_hidden_state [B, rows * columns, C]``."""

    config: FeatureMapTowerConfig
    config_class = FeatureMapTowerConfig
    base_model_prefix = "feature_map_tower"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012 - typed so by transformers

    def __init__(self, config: FeatureMapTowerConfig) -> None:
        super().__init__(config)
        model_class = _backbone_classes(config.backbone_config.model_type)[1]
        self.backbone = model_class(config.backbone_config)
        if config.folded:
            _replace_normalisation(self.backbone)
        if config.position_embedding:
            rows, columns = config.grid_size
            self.position_table = nn.Parameter(torch.zeros(rows * columns, config.hidden_size))
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        # Guarded because transformers calls this for weights that it has already loaded too.
        if isinstance(module, FeatureMapTower) and self.config.position_embedding:
            table = module.position_table
            if not getattr(table, "_is_hf_initialized", False):
                table.normal_(std=0.02)

    def forward(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **_: Any
    ) -> BaseModelOutput | tuple[torch.Tensor]:
        """Flatten the backbone's last map, row by row.

        Args:
            pixel_values: ``[B, 3, H, W]``, normalised.
            return_dict: a plain tuple when false.

        Returns:
            ``last_hidden_state [B, rows * columns, C]``.
        """
        feature_map = self.backbone(pixel_values=pixel_values).last_hidden_state
        # Contiguous because GPT-2's cross-attention views the states instead of reshaping them.
        states = feature_map.flatten(2).transpose(1, 2).contiguous()
        if self.config.position_embedding:
            states = states + self.position_table
        if return_dict is False:
            return (states,)
        return BaseModelOutput(last_hidden_state=states)


@torch.no_grad()
def fold_normalisation(tower: FeatureMapTower) -> FeatureMapTower:
    """The same tower with every batch normalisation folded into the convolution before it.

    Folding is done in float64, so the only error is the last rounding to the weights' dtype. The
    given tower is left as it is.

    Raises:
        ValueError: if the tower is folded already or has no batch normalisation.
    """
    if tower.config.folded:
        raise ValueError("this tower is folded already")
    fields = tower.config.to_dict()
    fields.pop("model_type", None)
    fields["folded"] = True
    folded = FeatureMapTower(FeatureMapTowerConfig(**fields))
    state = dict(tower.state_dict())
    for name, block in _normalised_convolutions(tower):
        scale, shift = _scale_and_shift(block.normalization)
        weight = block.convolution.weight
        state[f"{name}.convolution.weight"] = (weight.double() * scale[:, None, None, None]).to(
            weight.dtype
        )
        state[f"{name}.convolution.bias"] = shift.to(weight.dtype)
        for key in list(state):
            if key.startswith(f"{name}.normalization."):
                del state[key]
    folded.load_state_dict(state, strict=True)
    folded.train(tower.training)
    return folded


def _backbone_classes(model_type: str) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    if model_type not in _BACKBONES:
        known = ", ".join(sorted(_BACKBONES))
        raise ValueError(f"unknown backbone {model_type!r} for a feature map tower: use {known}")
    return _BACKBONES[model_type]


def _normalised_convolutions(root: nn.Module) -> list[tuple[str, Any]]:
    """Modules of transformers' ResNet that hold a ``convolution`` and a ``normalization``."""
    return [
        (name, module)
        for name, module in root.named_modules()
        if isinstance(getattr(module, "normalization", None), nn.BatchNorm2d)
        and isinstance(getattr(module, "convolution", None), nn.Conv2d)
    ]


def _replace_normalisation(backbone: nn.Module) -> None:
    for _, block in _normalised_convolutions(backbone):
        block.convolution.bias = nn.Parameter(torch.zeros(block.convolution.out_channels))
        block.normalization = nn.Identity()


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """What a frozen batch normalisation multiplies by and adds, ``[C]`` each, in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch normalisation without running statistics cannot be folded")
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


AutoConfig.register(FeatureMapTowerConfig.model_type, FeatureMapTowerConfig)
AutoModel.register(FeatureMapTowerConfig, FeatureMapTower)
