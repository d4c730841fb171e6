"""transformers ``VisionEncoderDecoderModel``: any supported tower, any supported cross-attending
decoder.

The seam runs after the tower's last hidden state. The decoder's cross-attention keys and values
(through ``enc_to_dec_proj`` where widths differ) are the connector.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
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

__all__ = ["VisionEncoderDecoder", "VisionEncoderDecoderReference", "until_end"]

_REMEMBERED = 4
_PIXELS_AT_ONCE = 8 * 384 * 384  # bounds the memory of a large tower


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
        complete = getattr(decoder_family(model.config.decoder.model_type), "complete", None)
        if complete is not None:
            complete(model.decoder)
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
        self._seen: dict[tuple[torch.dtype, tuple[int, ...], bytes], torch.Tensor] = {}

    @torch.no_grad()
    def taps(self, pixels: Array) -> dict[str, Array]:
        """The tower's output."""
        return {"last_hidden_state": self._states(pixels).numpy()}

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
        return self.generate_from(self._states(pixels), settings, plain=plain)

    @torch.no_grad()
    def generate_from(
        self, tap: Array | torch.Tensor, settings: Mapping[str, Any], *, plain: bool
    ) -> list[list[int]]:
        """The same from what `taps` returned."""
        with plain_generation(self._model) if plain else contextlib.nullcontext():
            return self._generate(self._tensor(tap), (), settings)

    @torch.no_grad()
    def generate_after(
        self, pixels: Array, prompt: Sequence[int], settings: Mapping[str, Any]
    ) -> list[list[int]]:
        """Continuations of a prompt, start tokens and prompt cut off; plain."""
        with plain_generation(self._model):
            return self._generate(self._states(pixels), prompt, settings)

    def _generate(
        self, states: torch.Tensor, prompt: Sequence[int], settings: Mapping[str, Any]
    ) -> list[list[int]]:
        generation = resolve_generation(self._model)
        start, ends = [*generation.start_tokens, *prompt], set(generation.eos_tokens)
        given = {"decoder_input_ids": torch.tensor([start] * len(states))} if prompt else {}
        outputs = BaseModelOutput(states)
        rows = self._model.generate(encoder_outputs=outputs, **given, **settings)
        return [until_end(row[len(start) :].tolist(), ends) for row in rows]

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """The tower itself."""
        states: torch.Tensor = self._model.encoder(pixel_values=pixels).last_hidden_state
        return states

    def _states(self, pixels: Array) -> torch.Tensor:
        """The tower's last hidden state; that of the last few questions is remembered, because the
        gate asks about the same pictures again and again.
        """
        dtype = next(self._model.parameters()).dtype
        key = (dtype, pixels.shape, hashlib.sha256(np.ascontiguousarray(pixels).data).digest())
        if key not in self._seen:
            while len(self._seen) >= _REMEMBERED:
                self._seen.pop(next(iter(self._seen)))
            rows = max(1, _PIXELS_AT_ONCE // (pixels.shape[2] * pixels.shape[3]))
            parts = torch.split(self._tensor(pixels), rows)
            states = [self._encode(part) for part in parts]
            self._seen[key] = torch.cat(states)
        return self._seen[key]

    @contextlib.contextmanager
    def widen(self) -> Iterator[None]:
        """Compute in float64; widening and narrowing back loses nothing."""
        self._model.double()
        try:
            yield
        finally:
            self._model.float()

    def _tensor(self, values: Array | torch.Tensor) -> torch.Tensor:
        dtype = next(self._model.parameters()).dtype
        if isinstance(values, torch.Tensor):
            return values.to(dtype)
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """``tokens`` up to and with the first end token."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens
