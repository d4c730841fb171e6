"""BLIP-2 with OPT or T5 (transformers ``Blip2ForConditionalGeneration``).

The Q-Former asks the tower's states with learned queries; its answers, projected, stand before the
text in the place of image placeholders. T5's side is `primelens.export.families.blip_2_t5`. OPT's
decoder reads them causally; placeholders count as positions, so the text's positions start behind
them.

How ``generate`` behaves with OPT (transformers 5.23, `modeling_blip_2.py`): it calls the language
model's own ``generate``, so that the settings are those which the language model derives from
``text_config``, whatever generation_config.json says; an explicit ``max_length`` counts the
placeholders; and they stand in what it returns, from where they are cut.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from primelens.export.decoder_plan import (
    DecoderPlan,
    Embedding,
    FeedForward,
    Layer,
    LmHead,
    SelfAttention,
    stack,
)
from primelens.export.families.blip import RENAMES
from primelens.export.families.blip_2_t5 import Queries, t5_head, t5_text_gaps
from primelens.export.families.vision_encoder_decoder import (
    VisionEncoderDecoderReference,
    until_end,
)
from primelens.export.fed_tower import fed
from primelens.export.generation import plain_generation, resolve_generation
from primelens.export.layers import activation, activation_gap, linear, norm, same
from primelens.export.registry import (
    Array,
    HeadSplit,
    ModelSplit,
    Prefix,
    TowerSplit,
    as_array,
    register_model,
    register_tower,
    tower_family,
)
from primelens.export.towers import LastHiddenState, canonical, pair, upstream
from primelens.manifest import Generation

__all__ = ["Blip2", "Blip2Tower"]

_TAP = "last_hidden_state"
_OFFSET = 2  # of OPT's position table
_NOTHING = re.compile(r"(?!)")


@register_tower
class Blip2Tower:
    """Class token first, all states normalised."""

    name = "blip_2"
    model_types = ("blip_2_vision_model",)

    def gaps(self, config: Any) -> list[str]:
        channels = getattr(config, "num_channels", 3)
        return [] if channels == 3 else [f"vision.num_channels is {channels}; pictures have 3"]

    def split(self, model: Any) -> TowerSplit:
        config = model.config
        return TowerSplit(
            module=LastHiddenState(model),
            architecture={
                "activation": config.hidden_act,
                "heads": config.num_attention_heads,
                "image_size": list(pair(config.image_size)),
                "layers": config.num_hidden_layers,
                "norm_epsilon": config.layer_norm_eps,
                "patch_size": list(pair(config.patch_size)),
            },
            taps={_TAP: canonical(upstream(model, _NOTHING), RENAMES)},
            size=pair(config.image_size),
        )


@register_model
class Blip2:
    """One head, ``caption``, that reads what the Q-Former's queries found before its text (OPT) or
    before its prompt (T5).
    """

    name = "blip_2"
    model_types = ("blip-2",)

    def gaps(self, config: Any) -> list[str]:
        text = config.text_config
        gaps = tower_family(config.vision_config.model_type).gaps(config.vision_config)
        if text.model_type not in ("opt", "t5"):
            known = "'opt', 't5'"
            return [*gaps, f"text_config.model_type is {text.model_type!r}; supported: {known}"]
        if config.image_token_index is None:
            gaps.append("image_token_index is null: transformers 5 needs the id of placeholders")
        if text.model_type == "t5":
            return gaps + t5_text_gaps(config)
        if text.word_embed_proj_dim != text.hidden_size:
            gaps.append("text_config.word_embed_proj_dim is not hidden_size")
        if not text.layer_norm_elementwise_affine:
            gaps.append("text_config.layer_norm_elementwise_affine is false")
        return gaps + activation_gap("text_config.activation_function", text.activation_function)

    def load(self, folder: str) -> tuple[Any, Mapping[str, Any]]:
        loaded: Any = transformers.Blip2ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        model, report = loaded
        return model, report

    def end_with(self, folder: Path, model: Any, token: int) -> None:
        """Make ``token`` the end token of a checkpoint and of the model loaded from it."""
        path = folder / "config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["text_config"]["eos_token_id"] = token
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        model.language_model.generation_config.eos_token_id = token

    def split(self, model: Any) -> ModelSplit:
        tower = tower_family(model.config.vision_config.model_type)
        queries = int(model.config.num_query_tokens)
        tensors = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if not name.startswith("vision_model.") and tensor.is_floating_point()
        }
        if model.config.text_config.model_type == "t5":
            head = t5_head(model, _TAP, tensors)
        else:
            head = HeadSplit(
                kind="caption",
                tap=_TAP,
                plan=_plan(model.language_model, queries),
                projection=None,
                generation=_generation(model),
                tensors=tensors,
                reference=Blip2Reference(model),
                prefix=Prefix(_Projector(model), queries, causal=True),
            )
        return ModelSplit(tower.name, tower.split(model.vision_model), {"caption": head})


def _generation(model: Any) -> Generation:
    language, queries = model.language_model, int(model.config.num_query_tokens)
    generation = resolve_generation(language)
    config = language.generation_config
    if config.max_new_tokens is None and config.max_length is not None:
        new = max(generation.max_new_tokens - queries, 1)
        return dataclasses.replace(generation, max_new_tokens=new)
    return generation


class _Projector(Queries):
    """The same in their places among the text's."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        places = model.language_model.model.decoder.embed_positions.weight
        count = int(model.config.num_query_tokens)
        self.places = torch.nn.Parameter(places[_OFFSET : _OFFSET + count], requires_grad=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[B, L, C]`` → ``[B, P, width]``."""
        return super().forward(states) + self.places


def _plan(model: Any, prefix: int) -> DecoderPlan:
    config, body = model.config, model.model.decoder
    tokens = as_array(body.embed_tokens.weight)
    final = body.final_layer_norm
    return DecoderPlan(
        embedding=Embedding(tokens, as_array(body.embed_positions.weight)[_OFFSET + prefix :]),
        layers=tuple(_layer(layer, config.activation_function) for layer in body.layers),
        heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        norm_first=config.do_layer_norm_before,
        final_norm=None if final is None else norm(final),
        lm_head=LmHead(weight=same(as_array(model.lm_head.weight), tokens)),
    )


def _layer(layer: Any, activation_name: str) -> Layer:
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return Layer(
        self_attention=SelfAttention(
            qkv=stack(*(linear(projection) for projection in projections)),
            out=linear(attention.out_proj),
            scale=float(attention.scaling),
            norm=norm(layer.self_attn_layer_norm),
        ),
        cross_attention=None,
        feed_forward=FeedForward(
            up=linear(layer.fc1),
            down=linear(layer.fc2),
            activation=activation(activation_name),
            norm=norm(layer.final_layer_norm),
        ),
    )


class Blip2Reference(VisionEncoderDecoderReference):
    """The source model answering the gate's questions, fed with what its tower said."""

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self._model.vision_model(pixel_values=pixels).last_hidden_state
        return states

    @torch.no_grad()
    def logits(self, tap: Array, tokens: Array) -> Array:
        """Teacher-forced, in one pass without a cache, from what `taps` returned."""
        # Not by the whole model's `forward`: it would take a placeholder in the text for another.
        model, states = self._model, self._tensor(tap)
        found = model.qformer(
            query_embeds=model.query_tokens.expand(len(states), -1, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:-1], dtype=torch.long),
        ).last_hidden_state
        text = model.get_input_embeddings()(torch.from_numpy(np.asarray(tokens, np.int64)))
        embeds = torch.cat([model.language_projection(found), text], dim=1)
        logits = model.language_model(inputs_embeds=embeds, use_cache=False).logits
        result: Array = logits[:, -tokens.shape[1] :].numpy()
        return result

    @torch.no_grad()
    def generate_from(
        self, tap: Array | torch.Tensor, settings: Mapping[str, Any], *, plain: bool
    ) -> list[list[int]]:
        """By the model's own ``generate`` from what `taps` returned."""
        if not plain:
            return self._generate(self._tensor(tap), (), settings)
        with plain_generation(self._model.language_model):
            return self._generate(self._tensor(tap), (), settings)

    @torch.no_grad()
    def generate_after(
        self, pixels: Array, prompt: Sequence[int], settings: Mapping[str, Any]
    ) -> list[list[int]]:
        """Continuations of a prompt, start tokens and prompt cut off; plain."""
        with plain_generation(self._model.language_model):
            return self._generate(self._states(pixels), prompt, settings)

    def _generate(
        self, states: torch.Tensor, prompt: Sequence[int], settings: Mapping[str, Any]
    ) -> list[list[int]]:
        generation = _generation(self._model)
        start, ends = [*generation.start_tokens, *prompt], set(generation.eos_tokens)
        given: dict[str, Any] = {}
        if prompt:
            given["input_ids"] = self._behind_the_picture([start] * len(states))
        with fed(self._model, "vision_model", states) as pixels:
            rows = self._model.generate(pixels, **given, **settings)
        cut = len(start) + int(self._model.config.num_query_tokens)
        return [until_end(row[cut:].tolist(), ends) for row in rows]

    def _behind_the_picture(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Token ids with the picture's placeholders before them."""
        config = self._model.config
        picture = [config.image_token_index] * config.num_query_tokens
        return torch.tensor([[*picture, *row] for row in rows])
