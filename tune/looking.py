"""A checkpoint at work in PyTorch: what it says, how sure it is, and what its tower saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

import primelens.towers  # noqa: F401 - registers the towers with transformers
from primelens.tune.domain import pool


@dataclass(frozen=True)
class Look:
    """What a model made of ``N`` pictures.

    Attributes:
        captions: one for each picture.
        log_probability: ``[N]`` float32, mean over the caption's tokens and its end.
        pooled: ``[N, 2 * C]`` float32, see :func:`primelens.tune.domain.pool`.
    """

    captions: list[str]
    log_probability: np.ndarray
    pooled: np.ndarray


class CheckpointCaptioner:
    """Captions pictures with a ``VisionEncoderDecoderModel`` as its folder configures it."""

    def __init__(self, model: Any, tokenizer: Any, processor: Any) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._processor = processor

    @classmethod
    def load(cls, folder: Path) -> CheckpointCaptioner:
        """Load model, tokenizer and image processor of a checkpoint folder."""
        return cls(
            VisionEncoderDecoderModel.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            AutoImageProcessor.from_pretrained(folder),
        )

    def __call__(self, pictures: list[Image.Image]) -> list[str]:
        """One caption for each picture."""
        return self.look(pictures).captions

    @torch.no_grad()
    def look(self, pictures: list[Image.Image]) -> Look:
        """Caption pictures and keep what tells known from foreign ones."""
        pixels = self._processor(pictures, return_tensors="pt").pixel_values
        states = self._model.encoder(pixel_values=pixels)
        made = self._model.generate(
            encoder_outputs=states, output_logits=True, return_dict_in_generate=True
        )
        tokens = made.sequences[:, 1:]
        chosen = torch.stack(made.logits, dim=1).log_softmax(dim=2)
        chosen = chosen.gather(2, tokens[:, :, None])[:, :, 0]
        spoken = tokens != self._model.generation_config.pad_token_id
        mean = (chosen * spoken).sum(dim=1) / spoken.sum(dim=1)
        return Look(
            captions=self._tokenizer.batch_decode(tokens, skip_special_tokens=True),
            log_probability=mean.numpy(),
            pooled=pool(states[0].numpy()),
        )
