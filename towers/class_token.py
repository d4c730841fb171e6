"""A text tower pooled by an affine map of its first state: LiT's text side.

transformers' BERT pools through ``tanh``, and ``VisionTextDualEncoderModel`` projects without a
bias. LiT does neither: the class token's last state goes through one linear layer with a bias.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class ClassTokenTextConfig(PreTrainedConfig):
    """A text tower and the width of what its class token becomes.

    Args:
        text_config: configuration of a text encoder, or its dictionary with a ``model_type``.
        pooled_size: width of the pooled vector; the encoder's own by default.
    """

    model_type = "class_token_text"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 - transformers reads it as is

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        pooled_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            fields = dict(text_config)
            text_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        # transformers makes every configuration once with no arguments.
        self.text_config = text_config
        width = 0 if text_config is None else int(text_config.hidden_size)
        self.pooled_size = width if pooled_size is None else pooled_size
        kwargs.pop("hidden_size", None)
        self.hidden_size = self.pooled_size
        super().__init__(**kwargs)


class ClassTokenText(PreTrainedModel):
    """Ids to the encoder's ``last_hidden_state`` and ``pooler_output [N, pooled_size]``."""

    config: ClassTokenTextConfig
    config_class = ClassTokenTextConfig
    base_model_prefix = "class_token_text"
    input_modalities = ["text"]  # noqa: RUF012 - typed so by transformers

    def __init__(self, config: ClassTokenTextConfig) -> None:
        super().__init__(config)
        inner: Any = copy.deepcopy(config.text_config)
        self.text = AutoModel.from_config(inner, add_pooling_layer=False)
        self.dense = nn.Linear(inner.hidden_size, config.pooled_size)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, torch.Tensor]:
        """Encode, then map the first state.

        Args:
            input_ids: ``[N, T]``, the class token first.
            attention_mask: ``[N, T]``, 0 at padding.
            return_dict: a plain tuple when false.

        Returns:
            ``last_hidden_state [N, T, C]`` and ``pooler_output [N, pooled_size]``.
        """
        output = self.text(input_ids=input_ids, attention_mask=attention_mask)
        states = output.last_hidden_state
        pooled = self.dense(states[:, 0])
        if return_dict is False:
            return (states, pooled)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


AutoConfig.register(ClassTokenTextConfig.model_type, ClassTokenTextConfig)
AutoModel.register(ClassTokenTextConfig, ClassTokenText)
