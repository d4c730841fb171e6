"""GIT's text side before any tower: fusion by prefix, ``[f, h]`` in one sequence.

transformers' ``GitForCausalLM`` brings a CLIP-like tower of its own. Here the tower is whatever is
given; everything right of it is GIT: a projection with a normalisation, states that attend to each
other in both directions, text that is causal and whose positions start at 0.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    GitConfig,
    GitForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

_PLACEHOLDER = {"num_hidden_layers": 0, "num_attention_heads": 1, "intermediate_size": 1}


class PrefixedConfig(GitConfig):
    """A tower, how many states it says of a picture, and GIT's own settings of the text side.

    Args:
        tower_config: configuration of the tower, or its dictionary with a ``model_type`` that
            ``AutoConfig`` knows.
        prefix_length: states of a picture, which all stand before the text.
    """

    model_type = "git_over_tower"

    def __init__(
        self,
        tower_config: PreTrainedConfig | dict[str, Any] | None = None,
        prefix_length: int = 0,
        **kwargs: Any,
    ) -> None:
        if isinstance(tower_config, dict):
            fields = dict(tower_config)
            tower_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        # GIT takes the width of its projection from here; the tower that is described is replaced.
        width = 1 if tower_config is None else int(tower_config.hidden_size)
        kwargs["vision_config"] = {
            **_PLACEHOLDER,
            "hidden_size": width,
            "image_size": 1,
            "patch_size": 1,
        }
        super().__init__(**kwargs)
        # A copy: transformers writes into the configurations of a model's parts.
        self.tower_config = copy.deepcopy(tower_config)
        self.prefix_length = prefix_length


class PrefixedModel(GitForCausalLM):
    """``pixel_values`` and ``input_ids`` to logits over picture and text ``[B, P + T, V]``.

    Its tower is ``git.image_encoder``, as in any GIT.

    Raises:
        ValueError: a configuration without a tower.
    """

    config: PrefixedConfig
    config_class = PrefixedConfig

    def __init__(self, config: PrefixedConfig, tower: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if tower is None:
            if config.tower_config is None:
                raise ValueError("the configuration names no tower")
            tower = AutoModel.from_config(copy.deepcopy(config.tower_config))
        git: Any = self.git
        git.image_encoder = tower
        for layer in git.encoder.layer:
            # What GIT reckons from the picture's size, for its own tower.
            layer.attention.self.image_patch_tokens = config.prefix_length


AutoConfig.register(PrefixedConfig.model_type, PrefixedConfig)
