"""Does this text belong to this picture? A cross-attending decoder's last state, and one number."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MatchingConfig(PreTrainedConfig):
    """A tower and a decoder with cross-attention.

    Args:
        encoder: configuration of the tower, or its dictionary.
        decoder: configuration of the decoder, or its dictionary.
    """

    model_type = "image_text_matching"
    sub_configs = {"encoder": AutoConfig, "decoder": AutoConfig}  # noqa: RUF012 - read as is

    def __init__(
        self,
        encoder: PreTrainedConfig | dict[str, Any] | None = None,
        decoder: PreTrainedConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder, self.decoder = (
            # A copy: transformers writes into the configurations of a model's parts.
            AutoConfig.for_model(**part) if isinstance(part, dict) else copy.deepcopy(part)
            for part in (encoder, decoder)
        )
        super().__init__(**kwargs)


class MatchingModel(PreTrainedModel):
    """Picture and text to one logit: how much rather they belong together than not."""

    config: MatchingConfig
    config_class = MatchingConfig
    base_model_prefix = "image_text_matching"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]  # noqa: RUF012 - typed so by transformers

    def __init__(
        self,
        config: MatchingConfig,
        encoder: PreTrainedModel | None = None,
        decoder: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.encoder = encoder or AutoModel.from_config(copy.deepcopy(config.encoder))
        self.decoder = decoder or AutoModel.from_config(copy.deepcopy(config.decoder))
        sides: Any = config
        wide, narrow = sides.encoder.hidden_size, sides.decoder.hidden_size
        self.projection = nn.Linear(wide, narrow) if wide != narrow else nn.Identity()
        self.score = nn.Linear(narrow, 1)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Score pairs.

        Args:
            pixel_values: ``[B, 3, H, W]``.
            input_ids: ``[B, T]`` int64, padded on the right.
            attention_mask: ``[B, T]``, 1 on the text.

        Returns:
            ``logits [B]``.
        """
        states = self.projection(self.encoder(pixel_values=pixel_values).last_hidden_state)
        read = self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=states,
            use_cache=False,
        ).last_hidden_state
        # A causal decoder has read the whole text at its last token alone.
        last = attention_mask.sum(dim=1) - 1
        rows = torch.arange(len(read), device=read.device)
        return SequenceClassifierOutput(logits=self.score(read[rows, last])[:, 0])


AutoConfig.register(MatchingConfig.model_type, MatchingConfig)
AutoModel.register(MatchingConfig, MatchingModel)
