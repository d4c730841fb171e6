"""BLIP's source models answering the gate's questions, by their own ``generate`` or ``forward``."""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers.modeling_outputs import BaseModelOutputWithPooling

from primelens.export.generation import plain_generation
from primelens.export.registry import Array

__all__ = ["BlipAnswers", "BlipCaptions", "BlipScores", "GivenStates"]

_REMEMBERED = 32  # pictures
_PIXELS_AT_ONCE = 8 * 384 * 384  # bounds the memory of a large tower


class GivenStates(torch.nn.Module):
    """Stands in for the image tower: says what the tower said before."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.states)


class _Blip:
    """What both models have in common."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen: OrderedDict[tuple[torch.dtype, bytes], torch.Tensor] = OrderedDict()

    @torch.no_grad()
    def taps(self, pixels: Array) -> dict[str, Array]:
        """The tower's output."""
        return {"last_hidden_state": self._states(pixels).numpy()}

    @contextlib.contextmanager
    def widen(self) -> Iterator[None]:
        """Compute in float64; widening and narrowing back loses nothing."""
        self._model.double()
        try:
            yield
        finally:
            self._model.float()

    @contextlib.contextmanager
    def _seeing(self, states: torch.Tensor, *, plain: bool) -> Iterator[None]:
        """The tower answers with ``states``; of the settings only special tokens are left."""
        tower, self._model.vision_model = self._model.vision_model, GivenStates(states)
        decoder = self._model.text_decoder
        try:
            with plain_generation(decoder) if plain else contextlib.nullcontext():
                yield
        finally:
            self._model.vision_model = tower

    def _states(self, pixels: Array) -> torch.Tensor:
        """The tower's last hidden state; that of the last pictures is remembered, because the gate
        asks about the same ones again and again.
        """
        dtype = next(self._model.parameters()).dtype
        keys = [
            (dtype, hashlib.sha256(np.ascontiguousarray(picture).tobytes()).digest())
            for picture in pixels
        ]
        found = {key: self._seen[key] for key in keys if key in self._seen}
        fresh = {key: row for row, key in enumerate(keys) if key not in found}
        if fresh:
            rows = max(1, _PIXELS_AT_ONCE // (pixels.shape[2] * pixels.shape[3]))
            parts = torch.split(self._tensor(pixels[list(fresh.values())]), rows)
            states = [self._model.vision_model(pixel_values=p).last_hidden_state for p in parts]
            found |= zip(fresh, torch.cat(states), strict=True)
        self._seen |= found
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return torch.stack([found[key] for key in keys])

    def _tensor(self, values: Array | torch.Tensor) -> torch.Tensor:
        dtype = next(self._model.parameters()).dtype
        if isinstance(values, torch.Tensor):
            return values.to(dtype)
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)

    def _until_end(self, rows: torch.Tensor, start: int) -> list[list[int]]:
        """The rows without their first ``start`` tokens, up to and with the end token."""
        config = self._model.config.text_config
        end = config.sep_token_id
        if end is None:
            end = self._model.text_decoder.generation_config.eos_token_id
        ends = set(end if isinstance(end, (list, tuple)) else [end])
        texts = []
        for row in rows[:, start:].tolist():
            stop = next((place for place, token in enumerate(row) if token in ends), len(row))
            texts.append(row[: stop + 1])
        return texts


class BlipCaptions(_Blip):
    """``BlipForConditionalGeneration``."""

    @torch.no_grad()
    def logits(self, tap: Array, tokens: Array) -> Array:
        """Teacher-forced, in one pass without a cache, from what `taps` returned."""
        output = self._model.text_decoder(
            input_ids=torch.from_numpy(np.ascontiguousarray(tokens, np.int64)),
            encoder_hidden_states=self._tensor(tap),
            use_cache=False,
        )
        result: Array = output.logits.numpy()
        return result

    @torch.no_grad()
    def generate(
        self, pixels: Array, settings: Mapping[str, Any], *, plain: bool
    ) -> list[list[int]]:
        """The model's own ``generate``; the whole batch in one call."""
        return self._generate(self._states(pixels), None, settings, plain=plain)

    @torch.no_grad()
    def generate_from(
        self, tap: Array | torch.Tensor, settings: Mapping[str, Any], *, plain: bool
    ) -> list[list[int]]:
        """The same from what `taps` returned."""
        return self._generate(self._tensor(tap), None, settings, plain=plain)

    @torch.no_grad()
    def generate_after(
        self, pixels: Array, prompt: Sequence[int], settings: Mapping[str, Any]
    ) -> list[list[int]]:
        """Continuations of a prompt, start token and prompt cut off; plain.

        ``generate`` is given the prompt as the processor would make it, between two special tokens.
        """
        config = self._model.config.text_config
        framed = [config.pad_token_id or 0, *prompt, config.sep_token_id or 0] if prompt else None
        return self._generate(self._states(pixels), framed, settings, plain=True)

    def _generate(
        self,
        states: torch.Tensor,
        framed: Sequence[int] | None,
        settings: Mapping[str, Any],
        *,
        plain: bool,
    ) -> list[list[int]]:
        given = {}
        if framed is not None:
            ids = torch.tensor([list(framed)] * len(states))
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with self._seeing(states, plain=plain):
            rows = self._model.generate(pixel_values=states, **given, **settings)
        return self._until_end(rows, 1 if framed is None else len(framed) - 1)


class BlipAnswers(_Blip):
    """``BlipForQuestionAnswering``, asked one question per picture.

    Args:
        model: the source.
        questions: ids of the questions, special tokens included; `asking` sets them.
    """

    def __init__(self, model: Any, questions: Sequence[Sequence[int]] = ()) -> None:
        super().__init__(model)
        self._questions = questions

    def asking(self, questions: Sequence[Sequence[int]]) -> BlipAnswers:
        """The same model asked these questions, one for every row of pixels or taps."""
        other = BlipAnswers(self._model, questions)
        other._seen = self._seen
        return other

    @torch.no_grad()
    def logits(self, tap: Array, tokens: Array) -> Array:
        """Teacher-forced, question by question, from what `taps` returned."""
        rows = [
            self._model.text_decoder(
                input_ids=torch.from_numpy(np.ascontiguousarray(fed, np.int64))[None],
                encoder_hidden_states=self._read(states[None], question),
                use_cache=False,
            ).logits
            for states, fed, question in zip(
                self._tensor(tap), tokens, self._questions, strict=True
            )
        ]
        result: Array = torch.cat(rows).numpy()
        return result

    def _read(self, states: torch.Tensor, question: Sequence[int]) -> torch.Tensor:
        """What the question's encoder says."""
        ids = torch.tensor([list(question)])
        output = self._model.text_encoder(
            input_ids=ids, attention_mask=torch.ones_like(ids), encoder_hidden_states=states
        )
        result: torch.Tensor = output.last_hidden_state
        return result

    @torch.no_grad()
    def generate(
        self, pixels: Array, settings: Mapping[str, Any], *, plain: bool
    ) -> list[list[int]]:
        """The model's own ``generate``, question by question: in a batch it would see padding."""
        return self.generate_from(self._states(pixels), settings, plain=plain)

    @torch.no_grad()
    def generate_from(
        self, tap: Array | torch.Tensor, settings: Mapping[str, Any], *, plain: bool
    ) -> list[list[int]]:
        """The same from what `taps` returned."""
        texts = []
        for states, question in zip(self._tensor(tap), self._questions, strict=True):
            ids = torch.tensor([list(question)])
            with self._seeing(states[None], plain=plain):
                rows = self._model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    pixel_values=states[None],
                    **settings,
                )
            texts += self._until_end(rows, 1)
        return texts


class BlipScores(_Blip):
    """``BlipForImageTextRetrieval``."""

    @torch.no_grad()
    def answer(self, tap: Array, ids: Array, mask: Array) -> tuple[Array, Array, Array]:
        """By ``forward`` without the matching; the embeddings by the same modules, because
        ``forward`` keeps them to itself.
        """
        states = self._tensor(tap)
        output = self._forward(states, ids, mask, matching=False)
        image = normalize(self._model.vision_proj(states[:, 0]), dim=-1)
        text = normalize(self._model.text_proj(output.question_embeds[:, 0]), dim=-1)
        return image.numpy(), text.numpy(), output.itm_score.numpy()

    @torch.no_grad()
    def match(self, tap: Array, ids: Array, mask: Array) -> Array:
        """``[B, N, 2]`` by ``forward``, picture by picture."""
        rows = [
            self._forward(states.expand(len(ids), -1, -1), ids, mask, matching=True).itm_score
            for states in self._tensor(tap)
        ]
        result: Array = torch.stack(rows).numpy()
        return result

    def _forward(self, states: torch.Tensor, ids: Array, mask: Array, *, matching: bool) -> Any:
        tower, self._model.vision_model = self._model.vision_model, GivenStates(states)
        try:
            return self._model(
                input_ids=torch.from_numpy(np.ascontiguousarray(ids, np.int64)),
                attention_mask=torch.from_numpy(np.ascontiguousarray(mask, np.int64)),
                pixel_values=states,
                use_itm_head=matching,
            )
        finally:
            self._model.vision_model = tower
