"""transformers ``VisionEncoderDecoderModel``: any supported tower, any supported cross-attending
decoder.

The seam runs after the tower's last hidden state. The decoder's cross-attention keys and values
(through ``enc_to_dec_proj`` where widths differ) are the connector.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from transformers.modeling_outputs import BaseModelOutput

import primelens.towers  # noqa: F401 - registers our own tower classes with transformers
from primelens.errors import UnsupportedError
from primelens.export.generation import plain_generation, resolve_generation
from primelens.export.layers import linear
from primelens.export.registry import (
    Array,
    HeadSplit,
    ModelSplit,
    decoder_family,
    register_model,
    tower_family,
)

__all__ = ["VisionEncoderDecoder", "VisionEncoderDecoderReference"]


@register_model
class VisionEncoderDecoder:
    """One caption head, ``caption``, on the tower's tap ``last_hidden_state``."""

    name = "vision_encoder_decoder"
    model_types = ("vision-encoder-decoder",)

    def gaps(self, config: Any) -> list[str]:
        gaps = []
        for part, find in (("encoder", tower_family), ("decoder", decoder_family)):
            part_config = getattr(config, part)
            try:
                family = find(part_config.model_type)
            except UnsupportedError as error:
                gaps.append(str(error))
            else:
                gaps += family.gaps(part_config)
        return gaps

    def load(self, folder: str) -> tuple[Any, Mapping[str, Any]]:
        loaded: Any = transformers.VisionEncoderDecoderModel.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
        model, report = loaded
        return model, report

    def split(self, model: Any) -> ModelSplit:
        tower = tower_family(model.config.encoder.model_type)
        decoder = decoder_family(model.config.decoder.model_type)
        projection = getattr(model, "enc_to_dec_proj", None)
        tensors = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if not name.startswith("encoder.") and tensor.is_floating_point()
        }
        head = HeadSplit(
            kind="caption",
            tap="last_hidden_state",
            plan=decoder.plan(model.decoder),
            projection=None if projection is None else linear(projection),
            generation=resolve_generation(model),
            tensors=tensors,
            reference=VisionEncoderDecoderReference(model),
        )
        return ModelSplit(tower.name, tower.split(model.encoder), {"caption": head})


class VisionEncoderDecoderReference:
    """The source model answering the gate's questions."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @torch.no_grad()
    def taps(self, pixels: Array) -> dict[str, Array]:
        """The tower's output."""
        states = self._model.encoder(pixel_values=self._tensor(pixels)).last_hidden_state
        return {"last_hidden_state": states.numpy()}

    @torch.no_grad()
    def logits(self, tap: Array, tokens: Array) -> Array:
        """Teacher-forced, in one pass without a cache, from what `taps` returned."""
        output = self._model(
            encoder_outputs=BaseModelOutput(self._tensor(tap)),
            decoder_input_ids=torch.from_numpy(np.ascontiguousarray(tokens, np.int64)),
            use_cache=False,
        )
        result: Array = output.logits.numpy()
        return result

    @torch.no_grad()
    def generate(
        self, pixels: Array, settings: Mapping[str, Any], *, plain: bool
    ) -> list[list[int]]:
        """The model's own ``generate`` with a KV cache; the whole batch in one call."""
        generation = resolve_generation(self._model)
        with plain_generation(self._model) if plain else contextlib.nullcontext():
            rows = self._model.generate(pixel_values=self._tensor(pixels), **settings)
        start, ends = len(generation.start_tokens), set(generation.eos_tokens)
        return [_until_end(row[start:].tolist(), ends) for row in rows]

    @contextlib.contextmanager
    def widen(self) -> Iterator[None]:
        """Compute in float64; widening and narrowing back loses nothing."""
        self._model.double()
        try:
            yield
        finally:
            self._model.float()

    def _tensor(self, pixels: Array) -> torch.Tensor:
        dtype = next(self._model.parameters()).dtype
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(dtype)


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """``tokens`` up to and with the first end token."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens
