"""BLIP-2 with T5: `primelens.export.families.blip_2` hands such a model over.

What the Q-Former's queries found, projected, stands before the prompt's tokens in the encoder of
T5, which reads both together; the decoder attends to all of it and starts anew. So a prompt is a
question here, and a caption the answer to none.

How its ``generate`` behaves (transformers 5.23, `modeling_blip_2.py`): it calls T5's own
``generate`` with the encoder's input embedded, so that the settings are those which T5 derives from
``text_config``, whatever generation_config.json says: texts start with ``decoder_start_token_id``
(else ``bos_token_id``), neither placeholders nor the prompt stand in what it returns, and a
``max_length`` counts the start token alone. Without a prompt the encoder reads the placeholders and
``text_config.bos_token_id`` (the published checkpoints have the end token there); a prompt comes
with the tokenizer's special tokens (T5: an end token behind it) and nothing else. Placeholders and
tokens count as one sequence for the bias of distances. Padding between prompts of different length
is masked, in the encoder and for the decoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from primelens.export.families.t5 import t5_decoder, t5_encoder, t5_gaps
from primelens.export.families.vision_encoder_decoder import (
    VisionEncoderDecoderReference,
    until_end,
)
from primelens.export.fed_tower import fed
from primelens.export.generation import plain_generation, resolve_generation
from primelens.export.question_graph import QuestionPlan
from primelens.export.registry import Array, HeadSplit, Prefix

__all__ = ["Blip2T5Reference", "Queries", "t5_head", "t5_text_gaps"]


class Queries(torch.nn.Module):
    """The tap to what stands before the text: queries, answered and projected."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.queries, self.qformer = model.query_tokens, model.qformer
        self.projection = model.language_projection

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[B, L, C]`` → ``[B, P, width]``."""
        queries = self.queries.expand(states.shape[0], -1, -1)
        found = self.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
        projected: torch.Tensor = self.projection(found)
        return projected


def t5_text_gaps(config: Any) -> list[str]:
    """What a ``Blip2Config`` with T5 asks for that the exporter does not mirror."""
    text, gaps = config.text_config, t5_gaps(config.text_config)
    if text.bos_token_id is None:
        gaps.append("text_config.bos_token_id is null: generate needs it where there is no prompt")
    return gaps


def t5_head(model: Any, tap: str, tensors: Mapping[str, torch.Tensor]) -> HeadSplit:
    """The text side of a loaded model whose tower is tapped at ``tap``."""
    language, text = model.language_model, model.config.text_config
    queries = int(model.config.num_query_tokens)
    pad = 0 if text.pad_token_id is None else int(text.pad_token_id)
    return HeadSplit(
        kind="caption",
        tap=tap,
        plan=t5_decoder(language),
        projection=None,
        generation=resolve_generation(language),
        tensors=tensors,
        reference=Blip2T5Reference(model),
        question=QuestionPlan(t5_encoder(language), pad, unasked=(int(text.bos_token_id),)),
        prefix=Prefix(Queries(model), queries, causal=False),
    )


class Blip2T5Reference(VisionEncoderDecoderReference):
    """The source model answering the gate's questions, fed with what its tower said.

    Args:
        model: the source.
        questions: ids of the prompts, special tokens included; `asking` sets them.
    """

    def __init__(self, model: Any, questions: Sequence[Sequence[int]] = ()) -> None:
        super().__init__(model)
        self._questions = [list(question) for question in questions]

    def asking(self, questions: Sequence[Sequence[int]]) -> Blip2T5Reference:
        """The same model asked these questions, one for every row of pixels or taps."""
        other = Blip2T5Reference(self._model, questions)
        other._seen = self._seen
        return other

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self._model.vision_model(pixel_values=pixels).last_hidden_state
        return states

    @torch.no_grad()
    def logits(self, tap: Array, tokens: Array) -> Array:
        """Teacher-forced, in one pass without a cache, from what `taps` returned."""
        # Not by the whole model's `forward`: it would take a placeholder in the text for another.
        model, states = self._model, self._tensor(tap)
        fed_tokens = torch.from_numpy(np.asarray(tokens, np.int64))
        found: dict[int, Array] = {}
        for rows, ids in self._by_length():
            picture = Queries(model)(states[rows])
            embeds = torch.cat([picture, model.get_input_embeddings()(ids)], dim=1)
            output = model.language_model(
                inputs_embeds=embeds, decoder_input_ids=fed_tokens[rows], use_cache=False
            )
            found |= zip(rows, output.logits.numpy(), strict=True)
        return np.stack([found[row] for row in range(len(fed_tokens))])

    @torch.no_grad()
    def generate_from(
        self, tap: Array | torch.Tensor, settings: Mapping[str, Any], *, plain: bool
    ) -> list[list[int]]:
        """By the model's own ``generate`` from what `taps` returned: a call for all prompts of one
        length.
        """
        model, language = self._model, self._model.language_model
        ends = set(resolve_generation(language).eos_tokens)
        states, texts = self._tensor(tap), dict[int, list[int]]()
        unasked = [model.config.text_config.bos_token_id]
        with plain_generation(language) if plain else contextlib.nullcontext():
            for rows, ids in self._by_length():
                asked = ids.tolist() != [unasked] * len(rows)
                given = self._behind(ids) if asked else {}
                with fed(model, "vision_model", states[rows]) as pixels:
                    written = model.generate(pixels, **given, **settings)
                for row, tokens in zip(rows, written.tolist(), strict=True):
                    texts[row] = until_end(tokens[1:], ends)
        return [texts[row] for row in range(len(self._questions))]

    def _by_length(self) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Rows whose questions have one length, and their ids."""
        for length in sorted({len(question) for question in self._questions}):
            rows = [row for row, asked in enumerate(self._questions) if len(asked) == length]
            yield rows, torch.tensor([self._questions[row] for row in rows])

    def _behind(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Prompts behind the picture's placeholders, as the processor makes them."""
        config = self._model.config
        picture = torch.full((len(ids), config.num_query_tokens), config.image_token_index)
        whole = torch.cat([picture, ids], dim=1)
        return {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
