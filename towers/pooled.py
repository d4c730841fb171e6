"""A tower of states with a pooling that is tuned: what a dual encoder needs of a feature map.

``VisionTextDualEncoderModel`` reads its image side's pooled output. A tower whose output is a map
of states has none, and its locked weights cannot learn one. So the tower is worn here inside a
`PreTrainedModel` that adds the pooling; the seam runs between the two: ``tower`` is locked,
``pooling`` belongs to the tuned side.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

_LIKE_INIT = 0.02


class PooledTowerConfig(PreTrainedConfig):
    """A tower and how its states are pooled.

    Args:
        tower_config: configuration of the tower, or its dictionary with a ``model_type`` that
            ``AutoConfig`` knows.
        pooling_heads: learned queries, each of ``hidden_size / pooling_heads`` channels.

    Raises:
        ValueError: without a tower, or where the heads do not divide its width.
    """

    model_type = "pooled_tower"
    sub_configs = {"tower_config": AutoConfig}  # noqa: RUF012 - transformers reads it as is

    def __init__(
        self,
        tower_config: PreTrainedConfig | dict[str, Any] | None = None,
        pooling_heads: int = 6,
        **kwargs: Any,
    ) -> None:
        if isinstance(tower_config, dict):
            fields = dict(tower_config)
            tower_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        # A copy: transformers writes into the configurations of a model's parts. There is nothing
        # to copy where it makes every configuration once with no arguments.
        self.tower_config = copy.deepcopy(tower_config)
        self.pooling_heads = pooling_heads
        kwargs.pop("hidden_size", None)
        self.hidden_size = 0 if tower_config is None else int(tower_config.hidden_size)
        if self.hidden_size % pooling_heads:
            raise ValueError(f"{pooling_heads} heads do not divide {self.hidden_size} channels")
        super().__init__(**kwargs)


class AttentionPooling(nn.Module):
    """States ``[B, L, C]`` to one vector ``[B, C]``: each head's learned query attends to them.

    Unlike a mean it can leave out what no text speaks of, the background above all.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(heads, width // heads) * _LIKE_INIT)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[B, L, C]`` to ``[B, C]``."""
        rows, length, width = states.shape
        normed = self.norm(states)
        split = (rows, length, self.heads, width // self.heads)
        key, value = self.key(normed).view(split), self.value(normed).view(split)
        scores = (key * self.query).sum(dim=3) * (width // self.heads) ** -0.5
        weights = scores.softmax(dim=1)[..., None]
        pooled: torch.Tensor = (weights * value).sum(dim=1).reshape(rows, width)
        return pooled


class PooledTower(PreTrainedModel):
    """``pixel_values`` to the tower's ``last_hidden_state`` and a tuned ``pooler_output``."""

    config: PooledTowerConfig
    config_class = PooledTowerConfig
    base_model_prefix = "pooled_tower"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012 - typed so by transformers

    def __init__(self, config: PooledTowerConfig, tower: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if tower is None:
            tower = AutoModel.from_config(copy.deepcopy(config.tower_config))
        self.tower = tower
        self.pooling = AttentionPooling(config.hidden_size, config.pooling_heads)
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        # Guarded because transformers calls this for weights that it has already loaded too.
        if isinstance(module, AttentionPooling):
            query = module.query
            if not getattr(query, "_is_hf_initialized", False):
                query.normal_(std=_LIKE_INIT)

    def forward(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **_: Any
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, torch.Tensor]:
        """Run the tower, then pool.

        Args:
            pixel_values: what the tower takes, ``[B, 3, H, W]``.
            return_dict: a plain tuple when false.

        Returns:
            ``last_hidden_state [B, L, C]`` of the tower and ``pooler_output [B, C]``.
        """
        states = self.tower(pixel_values=pixel_values).last_hidden_state
        pooled = self.pooling(states)
        if return_dict is False:
            return (states, pooled)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


AutoConfig.register(PooledTowerConfig.model_type, PooledTowerConfig)
AutoModel.register(PooledTowerConfig, PooledTower)
